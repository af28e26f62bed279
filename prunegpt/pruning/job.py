"""What pruning in training will do, decided before it starts from the model as the stage finds it."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from prunegpt.errors import MaskDriftError, PruningError
from prunegpt.lm.views import WeightView
from prunegpt.pruning.criteria.base import Criterion
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.masks import one_per_storage
from prunegpt.pruning.patterns import Block, NOfM, Pattern, parse_pattern
from prunegpt.pruning.selection import Scope
from prunegpt.pruning.solvers.base import Solver
from prunegpt.pruning.threshold import zeros_for
from prunegpt.registry import CRITERIA, MASK_MODES, SOLVERS
from prunegpt.spec.code import CodePart
from prunegpt.spec.methods import method_entry
from prunegpt.spec.part import Part, Scalar
from prunegpt.spec.problems import option_problems
from prunegpt.spec.pruning import mode_problems, refuse
from prunegpt.spec.schedules import Clock, interpolate


class GradualJob(Part):
    """Which tensors are pruned to what, by what, and before which optimizer steps. Frozen; written as JSON.

    Attributes:
        method: criterion or solver, by its registered name.
        options: further arguments of the method.
        pattern: what is pruned as one, as :func:`~prunegpt.pruning.patterns.parse_pattern` reads it.
        scope: what scores are compared over.
        schedule: name of the curve from `initial` to the final sparsities.
        updates: optimizer steps before which masks are updated, ascending.
        initial: sparsity at the first update; where weights may not come back, a tensor whose final sparsity is lower
            begins with that.
        sparsities: parameter name -> sparsity at the end, each storage once.
        regrow: whether what this job has pruned may come back, as in all modes but `projected`. What earlier stages
            pruned never does.
        mode: how masks live, by its registered name.
        mode_options: further arguments of the mode.
        seed: of criteria that draw.
    """

    method: str
    options: Mapping[str, Scalar] = {}
    pattern: str = "unstructured"
    scope: Scope = "tensor"
    schedule: str = "cubic"
    updates: tuple[int, ...]
    initial: float = 0.0
    sparsities: Mapping[str, float]
    regrow: bool = False
    mode: str = "projected"
    mode_options: Mapping[str, Scalar] = {}
    seed: int = 0

    @property
    def clock(self) -> Clock:
        return Clock(self.updates)

    def targets(self, update: int) -> dict[str, float]:
        """Parameter name -> the sparsity that is asked for at an update."""
        share = self.clock.share(self.schedule, update)
        return {
            name: interpolate(share, final, self.initial if self.regrow else min(self.initial, final))
            for name, final in self.sparsities.items()
        }

    def verify(self, masks: Mapping[str, Mask], held: Mapping[str, Mask]) -> None:
        """Looks that masks at the end of training prune what the job says.

        Args:
            masks: at the end, by parameter name.
            held: what earlier stages had pruned; where that is more than was asked for, it may stay so.

        Raises:
            MaskDriftError: a tensor, or for scope `global` all together, has another sparsity, or something that was
                pruned before has come back.
        """
        pattern = parse_pattern(self.pattern)
        groups: list[tuple[str, list[str]]] = [(name, [name]) for name in self.sparsities]
        if self.scope == "global":
            groups = [("all pruned tensors together", list(self.sparsities))]
        for what, names in groups:
            for name in names:
                if name in held and (masks[name] & held[name]).pruned != masks[name].pruned:
                    raise MaskDriftError(f"what earlier stages pruned must stay pruned; weights of {name} came back.")
            pruned, weights = sum(masks[name].pruned for name in names), sum(masks[name].weights for name in names)
            final = max(self.sparsities[name] for name in names)
            shapes = [masks[name].shape for name in names]
            closed = [held[name].kept.logical_not() if name in held else None for name in names]
            least, most = _zeros(pattern, shapes, final, closed, by_row=self.scope == "row")
            if not least <= pruned <= most:
                raise MaskDriftError(
                    f"a training must end with the sparsity that it was asked for; {what} should be {final:.4%} sparse "
                    f"and is {pruned / max(weights, 1):.4%}. Nothing was published; report the method and the "
                    "schedule."
                )


def resolve_gradual(
    views: Mapping[str, WeightView],
    *,
    method: str,
    clock: Clock,
    final: float | None = None,
    sparsities: Mapping[str, float] | None = None,
    schedule: str = "cubic",
    initial: float = 0.0,
    pattern: str = "unstructured",
    scope: Scope | None = None,
    regrow: bool = False,
    mode: str = "projected",
    mode_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> GradualJob:
    """The job of pruning these weights in training.

    Args:
        views: parameter name -> the weights to prune. Tied ones count once.
        clock: when masks are updated.
        final: sparsity at the end, of all weights together; None = what the pattern or `sparsities` say.
        sparsities: parameter name -> sparsity at the end, from an allocation; None = `final` for each.
        scope: None = rows for a criterion that declares it, else tensors. Other arguments: :class:`GradualJob`.

    Raises:
        PruningError: parts that do not go together, or a number out of its range.
    """
    part, shape = load_method(method), parse_pattern(pattern)
    regrow = regrow or schedule == "acdc" or mode != "projected"
    rowwise = isinstance(part, Criterion) and part.rowwise
    scope = scope or ("row" if rowwise else "tensor")
    _check_parts(part, scope, options or {})
    refuse(mode_problems(mode, method, mode_options or {}))
    unique = one_per_storage(views)
    if not unique:
        raise PruningError("pruning needs at least one weight matrix, got none. Widen the targets.")
    if sparsities is None:
        finals = dict.fromkeys(unique, shape.target(final))
    elif missing := sorted(set(unique) - set(sparsities)):
        raise PruningError(
            f"an allocation must give the sparsity of every pruned weight; {missing[0]} has none. Allot over the same "
            "weights that are pruned."
        )
    else:
        finals = {name: shape.target(sparsities[name]) for name in unique}
    initial = shape.target(initial)
    if initial > max(finals.values()) and not regrow:
        raise PruningError(
            f"sparsity grows from initial to the final one; initial is {initial:g} and the final sparsity at most "
            f"{max(finals.values()):g}. Set a smaller initial, or regrow: true to let weights come back."
        )
    _check_curve(clock, schedule, regrow)
    return GradualJob(
        method=method,
        options=dict(options or {}),
        pattern=shape.name,
        scope=scope,
        schedule=schedule,
        updates=clock.updates,
        initial=initial,
        sparsities=finals,
        regrow=regrow,
        mode=mode,
        mode_options=dict(mode_options or {}),
        seed=seed,
    )


def enforcer_of(job: GradualJob | None, views: Mapping[str, WeightView], masks: Mapping[str, Mask]) -> Enforcer:
    """The masks of a model in training, in the mode of a job; what earlier stages pruned, where there is none.

    Args:
        views: parameter name -> the weights that are pruned, or were.
        masks: those of earlier stages.
    """
    if job is None:
        return Enforcer(views, masks)
    made: Enforcer = MASK_MODES.load(job.mode)(views, masks, moving=job.sparsities, **job.mode_options)
    return made


def load_method(name: str) -> Criterion | Solver:
    """The criterion or solver of a name.

    Raises:
        PruningError: there is none.
    """
    entry = method_entry(name)  # refuses what is none
    if code := CodePart.of(name):
        return Criterion(name, entry.needs, code.function())
    part: Criterion | Solver = (SOLVERS if name in SOLVERS else CRITERIA).load(name)
    return part


def _check_parts(part: Criterion | Solver, scope: Scope, options: Mapping[str, Any]) -> None:
    if isinstance(part, Solver) and scope != "tensor":
        raise PruningError(
            f"a solver prunes each layer to a sparsity of its own; the scope is {scope!r}. Use the scope 'tensor' with "
            f"{part.name}, or a criterion."
        )
    refuse(option_problems(part.name, options, method_entry(part.name).valid_options))


def _check_curve(clock: Clock, schedule: str, regrow: bool) -> None:
    """A schedule must end at the final sparsity, and grow where masks only close."""
    shares = [clock.share(schedule, update) for update in clock.updates]
    falls = any(later < earlier for earlier, later in pairwise(shares))
    if shares[-1] != 1.0 or min(shares) < 0.0 or max(shares) > 1.0 or (falls and not regrow):
        raise PruningError(
            f"a schedule must be between 0 and 1, end at 1, and never fall where weights may not come back; {schedule} "
            f"goes from {shares[0]:g} to {shares[-1]:g}, between {min(shares):g} and {max(shares):g}. Choose another "
            "schedule, or regrow: true."
        )


def _zeros(
    pattern: Pattern,
    shapes: Sequence[tuple[int, ...]],
    final: float,
    closed: Sequence[Tensor | None],
    *,
    by_row: bool,
) -> tuple[int, int]:
    """The fewest and the most weights that are pruned where a share `final` of the units of some matrices is.

    Args:
        shapes: [out, in] of each; more than one where they share a budget.
        closed: what earlier stages pruned of each, bool [out, in], which stays so and counts.
        by_row: whether every row of units is pruned alike.
    """
    weights = sum(rows * columns for rows, columns in shapes)
    already = sum(int(one.sum()) for one in closed if one is not None)
    if isinstance(pattern, NOfM) and final >= pattern.sparsity:
        pruned = pattern.group - pattern.kept  # of every group, where earlier stages have not pruned more
        extra = [one.reshape(one.shape[0], -1, pattern.group).sum(dim=2) - pruned for one in closed if one is not None]
        zeros = weights // pattern.group * pruned + sum(int(one.clamp(min=0).sum()) for one in extra)
        return zeros, zeros
    if isinstance(pattern, Block):
        units = [_units(pattern, shape) for shape in shapes]
        if by_row:
            ((heights, widths),) = units
            zeros = zeros_for(len(widths), final)
            least, most = sum(sorted(widths)[:zeros]), sum(sorted(widths, reverse=True)[:zeros])
            return sum(heights) * least, sum(heights) * most + already
        sizes = sorted(height * width for heights, widths in units for height in heights for width in widths)
        zeros = zeros_for(len(sizes), final)
        return sum(sizes[:zeros]), sum(sizes[len(sizes) - zeros :]) + already
    if by_row:
        ((rows, columns),) = shapes
        share = zeros_for(columns, final)
        zeros = rows * share
        if closed[0] is not None:
            zeros = int(closed[0].sum(dim=1).clamp(min=share).sum())
        return zeros, zeros
    zeros = max(zeros_for(weights, final), already)
    return zeros, zeros


def _units(pattern: Block, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Heights and widths of the blocks of a matrix: the last ones may be smaller."""
    heights = [min(pattern.rows, shape[0] - row) for row in range(0, shape[0], pattern.rows)]
    return heights, [min(pattern.columns, shape[1] - column) for column in range(0, shape[1], pattern.columns)]
