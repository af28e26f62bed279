"""What pruning in training will do, decided before it starts from the model as the stage finds it."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from prunegpt.errors import MaskDriftError, PruningError
from prunegpt.lm.views import WeightView
from prunegpt.pruning.criteria.base import Criterion
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.masks import one_per_storage
from prunegpt.pruning.patterns import Block, Pattern, parse_pattern
from prunegpt.pruning.selection import Scope
from prunegpt.pruning.solvers.base import Solver
from prunegpt.pruning.threshold import zeros_for
from prunegpt.registry import CRITERIA, SOLVERS
from prunegpt.spec.options import option_problems
from prunegpt.spec.part import Part, Scalar
from prunegpt.spec.pruning import method_entry, refuse
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
        initial: sparsity at the first update; of a tensor whose final sparsity is lower, that one.
        sparsities: parameter name -> sparsity at the end, each storage once.
        regrow: whether what this job has pruned may come back. What earlier stages pruned never does.
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
    seed: int = 0

    @property
    def clock(self) -> Clock:
        return Clock(self.updates)

    def targets(self, update: int) -> dict[str, float]:
        """Parameter name -> the sparsity that is asked for at an update."""
        share = self.clock.share(self.schedule, update)
        return {name: interpolate(share, final, min(self.initial, final)) for name, final in self.sparsities.items()}

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
        closed = {name: held[name].pruned if name in held else 0 for name in self.sparsities}
        for name, final in self.sparsities.items():
            mask = masks[name]
            if name in held and (mask & held[name]).pruned != mask.pruned:
                raise MaskDriftError(f"what earlier stages pruned must stay pruned, but weights of {name} came back.")
            if self.scope != "global":
                sizes = [_unit_sizes(pattern, mask.shape)]
                _compare(name, mask.pruned, mask.weights, final, sizes, closed[name], by_row=self.scope == "row")
        if self.scope == "global":
            together = [masks[name] for name in self.sparsities]
            _compare(
                "all pruned tensors together",
                sum(mask.pruned for mask in together),
                sum(mask.weights for mask in together),
                max(self.sparsities.values()),
                [_unit_sizes(pattern, mask.shape) for mask in together],
                sum(closed.values()),
                by_row=False,
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
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> GradualJob:
    """The job of pruning these weights in training.

    Args:
        views: parameter name -> the weights to prune. Tied ones count once.
        clock: when masks are updated.
        final: sparsity at the end, of all weights together; None = what the pattern or `sparsities` say.
        sparsities: parameter name -> sparsity at the end, from an allocation; None = `final` for each.
        scope: None = rows for a criterion that says so, else tensors. Other arguments: :class:`GradualJob`.

    Raises:
        PruningError: parts that do not go together, or a number out of its range.
    """
    part, shape = load_method(method), parse_pattern(pattern)
    regrow = regrow or schedule == "acdc"
    rowwise = isinstance(part, Criterion) and part.rowwise
    scope = scope or ("row" if rowwise else "tensor")
    _check_parts(part, scope, options or {})
    unique = one_per_storage(views)
    if not unique:
        raise PruningError("pruning needs at least one weight matrix, but got none. Widen the targets.")
    if sparsities is None:
        finals = dict.fromkeys(unique, shape.target(final))
    elif missing := sorted(set(unique) - set(sparsities)):
        raise PruningError(
            f"an allocation must give the sparsity of every pruned weight, but {missing[0]} has none. "
            f"Allot over the same weights that are pruned."
        )
    else:
        finals = {name: shape.target(sparsities[name]) for name in unique}
    initial = shape.target(initial)
    if initial > max(finals.values()) and not regrow:
        raise PruningError(
            f"sparsity grows from initial to the final one, but initial is {initial:g} and the final sparsity at most "
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
        seed=seed,
    )


def load_method(name: str) -> Criterion | Solver:
    """The criterion or solver of a name.

    Raises:
        PruningError: there is none.
    """
    method_entry(name)  # refuses what is none
    part: Criterion | Solver = (SOLVERS if name in SOLVERS else CRITERIA).load(name)
    return part


def _check_parts(part: Criterion | Solver, scope: Scope, options: Mapping[str, Any]) -> None:
    if isinstance(part, Solver) and scope != "tensor":
        raise PruningError(
            f"a solver prunes each layer to a sparsity of its own, but the scope is {scope!r}. "
            f"Use the scope 'tensor' with {part.name}, or a criterion."
        )
    refuse(option_problems(part.name, options, method_entry(part.name).valid_options))


def _check_curve(clock: Clock, schedule: str, regrow: bool) -> None:
    """A schedule must end at the final sparsity, and grow where masks only close."""
    shares = [clock.share(schedule, update) for update in clock.updates]
    falls = any(later < earlier for earlier, later in pairwise(shares))
    if shares[-1] != 1.0 or min(shares) < 0.0 or max(shares) > 1.0 or (falls and not regrow):
        raise PruningError(
            f"a schedule must lie between 0 and 1, end at 1, and never fall where weights may not come back, but "
            f"{schedule} goes from {shares[0]:g} to {shares[-1]:g}, between {min(shares):g} and {max(shares):g}. "
            f"Choose another schedule, or regrow: true."
        )


def _unit_sizes(pattern: Pattern, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Heights and widths of the units that a pattern prunes as one: the last ones of a matrix may be smaller."""
    tall, wide = (pattern.rows, pattern.columns) if isinstance(pattern, Block) else (1, 1)
    return [min(tall, shape[0] - i) for i in range(0, shape[0], tall)], [
        min(wide, shape[1] - j) for j in range(0, shape[1], wide)
    ]


def _compare(
    what: str,
    pruned: int,
    weights: int,
    final: float,
    sizes: Sequence[tuple[list[int], list[int]]],
    closed: int,
    *,
    by_row: bool,
) -> None:
    """Raises MaskDriftError where so many pruned weights are not what a share `final` of the units comes to.

    Args:
        closed: weights that earlier stages had pruned: where they are more, or in rows and groups that have more than
            their share, they stay.
    """
    if by_row:
        ((heights, widths),) = sizes
        zeros = zeros_for(len(widths), final)
        least, most = (
            sum(heights) * sum(sorted(widths)[:zeros]),
            sum(heights) * sum(sorted(widths, reverse=True)[:zeros]),
        )
    elif all(max(heights) == max(widths) == 1 for heights, widths in sizes if heights and widths):
        least = most = zeros_for(weights, final)
    else:
        units = sorted(height * width for heights, widths in sizes for height in heights for width in widths)
        zeros = zeros_for(len(units), final)
        least, most = sum(units[:zeros]), sum(units[len(units) - zeros :])
    if not least <= pruned <= most + closed:
        raise MaskDriftError(
            f"a training must end with the sparsity that it was asked for, but {what} should be {final:.4%} sparse and "
            f"is {pruned / max(weights, 1):.4%}. Nothing was published; report the method and the schedule."
        )
