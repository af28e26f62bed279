"""Pruning in training: at which steps masks change, to what, and how the change reaches weights and optimizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from prunegpt.errors import PruningError, unknown
from prunegpt.lm.views import WeightView
from prunegpt.pruning.criteria.base import Criterion
from prunegpt.pruning.enforce import Enforcer, HasState
from prunegpt.pruning.gradients import GATHERED, GradientStatistics
from prunegpt.pruning.masks import one_per_storage
from prunegpt.pruning.patterns import Pattern, Unstructured
from prunegpt.pruning.selection import Scope, select_masks
from prunegpt.pruning.solvers.base import Solver, option_names
from prunegpt.spec.schedules import Clock, interpolate

Statistics = Callable[[], Mapping[str, Mapping[str, Tensor]]]  # parameter name -> need -> tensor

_SEED_STRIDE = 1_000_003  # apart enough that the updates of neighbouring seeds draw differently


@dataclass(frozen=True)
class MaskUpdate:
    """What one change of the masks did. Sparsities are counted from the weights."""

    step: int
    target: float  # of all pruned tensors together
    achieved: float
    by_tensor: Mapping[str, float]
    closed: int  # weights pruned by this update
    opened: int  # weights that may grow again
    notes: tuple[str, ...] = ()  # of a solver


class GradualPruner:
    """Prunes a model step by step while it trains.

    A training loop calls, for each optimizer step: :meth:`before_step`; forward and backward; :meth:`accumulate`;
    `enforcer.mask_gradients()`; clipping; the optimizer; `enforcer.mask_weights()`.

    Args:
        views: parameter name -> the weights to prune. Tied ones count once.
        method: a criterion, or a solver that also repairs the weights it keeps.
        clock: when masks are updated.
        final: sparsity at the end, of all weights together; None = what the pattern or `sparsities` say.
        schedule: name of the curve between `initial` and `final`.
        initial: sparsity at the first update.
        pattern: what is pruned as one.
        scope: what scores are compared over; None = rows for a criterion that says so, else tensors.
        sparsities: parameter name -> sparsity at the end, from an allocation; None = `final` for each.
        monotone: whether what is pruned stays pruned; None = yes, but for `acdc`.
        masks: what is pruned already, True = kept; names may be missing.
        statistics: gives the calibration statistics of the present weights, such as `input_norm` or `gram`, when
            called; once an update, and only where the method needs some.
        seed: of criteria that draw.
        options: further keywords of the solver's `solve` or the criterion's `score`.

    Raises:
        PruningError: parts that do not go together, or a number out of its range.
    """

    def __init__(
        self,
        views: Mapping[str, WeightView],
        method: Criterion | Solver,
        *,
        clock: Clock,
        final: float | None = None,
        schedule: str = "cubic",
        initial: float = 0.0,
        pattern: Pattern | None = None,
        scope: Scope | None = None,
        sparsities: Mapping[str, float] | None = None,
        monotone: bool | None = None,
        masks: Mapping[str, Tensor] | None = None,
        statistics: Statistics | None = None,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._views = one_per_storage(views)
        self._method = method
        self._clock = clock
        self._pattern = pattern or Unstructured()
        self._schedule = schedule
        clock.share(schedule, clock.start)  # refuses a schedule that does not go with the clock
        self._alternates = schedule == "acdc"
        self._monotone = not self._alternates if monotone is None else monotone
        self._initial = self._pattern.target(initial)
        self._final = self._finals(final, sparsities)
        rowwise = isinstance(method, Criterion) and method.rowwise
        self._scope: Scope = scope or ("row" if rowwise else "tensor")
        self._statistics = statistics
        self._seed = seed
        self._options = dict(options or {})
        self._check_parts()
        self._gradients = GradientStatistics(self._views, method.needs & GATHERED)
        self._last: int | None = None
        self.enforcer = Enforcer(self._views, masks)

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name -> bool [out, in], True = kept."""
        return self.enforcer.masks

    @property
    def target(self) -> float:
        """The sparsity of the last update, over all pruned tensors together; 0 before the first."""
        return 0.0 if self._last is None else self._mean(self._targets(self._last))

    @property
    def checked_pattern(self) -> Pattern | None:
        """The pattern that the masks must be of by now; None while an N:M pattern is still on its way."""
        fixed = self._pattern.sparsity
        if fixed is None:
            return self._pattern
        reached = self._last is not None and all(value >= fixed for value in self._targets(self._last).values())
        return self._pattern if reached else None

    def accumulate(self, gradients: Mapping[str, Tensor] | None = None) -> None:
        """Shows the criterion the gradients of a step: once an optimizer step, after its last backward pass.

        Args:
            gradients: parameter name -> [out, in]; None = those the parameters hold.

        Raises:
            PruningError: a weight has no gradient, and the criterion needs it.
        """
        self._gradients.accumulate(gradients)

    @torch.no_grad()
    def before_step(self, step: int, optimizer: HasState | None = None) -> MaskUpdate | None:
        """Updates masks, weights and moments where an update is due.

        A step may be passed over: the next one makes up for the last update that was missed.

        Args:
            step: the optimizer step about to be taken, counted from 0.
            optimizer: whose moments are reset where a mask changes; None where it has not stepped yet.

        Returns:
            What the update did; None where none is due, or it would ask for what the last one asked.

        Raises:
            PruningError: scores or statistics are missing or not finite.
        """
        due = self._clock.held(step)
        if due is None or (self._last is not None and due <= self._last):
            return None
        targets = self._targets(due)
        settled = self._monotone or self._alternates
        repeats = self._last is not None and settled and targets == self._targets(self._last)
        self._last = due
        if repeats:
            return None
        before = self.enforcer.masks
        masks, notes = self._choose(targets, before if self._monotone else None, due)
        self.enforcer.set_masks(masks, optimizer)
        self.enforcer.mask_weights()
        self.enforcer.mask_gradients()
        self._gradients.close_window()
        return self._record(step, targets, before, masks, notes)

    def state_dict(self) -> dict[str, Tensor]:
        """Masks, gathered gradients and the last update: all that a resumed run needs beside weights and optimizer."""
        return {
            "last": torch.tensor(-1 if self._last is None else self._last),
            **{f"masks/{name}": bits for name, bits in self.enforcer.state_dict().items()},
            **{f"gradients/{name}": tensor for name, tensor in self._gradients.state_dict().items()},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what :meth:`state_dict` gave.

        Raises:
            PruningError: the state is of other weights or another criterion.
        """
        last = int(state["last"])
        self._last = None if last < 0 else last
        self.enforcer.load_state_dict(_under("masks/", state))
        self._gradients.load_state_dict(_under("gradients/", state))

    def _finals(self, final: float | None, sparsities: Mapping[str, float] | None) -> dict[str, float]:
        if sparsities is None:
            return dict.fromkeys(self._views, self._pattern.target(final))
        if missing := sorted(set(self._views) - set(sparsities)):
            raise PruningError(
                f"an allocation must give the sparsity of every pruned weight, but {missing[0]} has none. "
                f"Allot over the same weights that are pruned."
            )
        return {name: self._pattern.target(sparsities[name]) for name in self._views}

    def _check_parts(self) -> None:
        given = self._method.needs - GATHERED - {"generator"}
        if given and self._statistics is None:
            raise PruningError(
                f"{self._method.name} needs {' and '.join(sorted(given))} from calibration data, but got none. "
                f"Give it calibration data, or use magnitude."
            )
        method = self._method
        if isinstance(method, Solver):
            valid = method.options
            if self._scope != "tensor":
                raise PruningError(
                    f"a solver prunes each layer to a sparsity of its own, but the scope is {self._scope!r}. "
                    f"Use the scope 'tensor' with {method.name}, or a criterion."
                )
        else:
            valid = option_names(method.score, {"weight", *method.needs})
        for option in self._options:
            if option not in valid:
                raise PruningError(unknown(f"option of {method.name}", option, valid))

    def _targets(self, update: int) -> dict[str, float]:
        share = self._clock.share(self._schedule, update)
        return {name: interpolate(share, final, self._initial) for name, final in self._final.items()}

    def _mean(self, by_tensor: Mapping[str, float]) -> float:
        weights = {name: self._views[name].parameter.numel() for name in by_tensor}
        values = set(by_tensor.values())
        if len(values) == 1:
            return values.pop()
        return sum(value * weights[name] for name, value in by_tensor.items()) / max(sum(weights.values()), 1)

    def _choose(
        self, targets: Mapping[str, float], masks: Mapping[str, Tensor] | None, update: int
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        if not any(targets.values()):
            open_masks = {name: torch.ones_like(view.matrix, dtype=torch.bool) for name, view in self._views.items()}
            return (open_masks if masks is None else dict(masks)), ()
        given = self._method.needs - GATHERED - {"generator"}
        statistics = self._statistics() if given and self._statistics is not None else {}
        needed = {name: {need: _find(statistics, name, need) for need in given} for name in self._views}
        if isinstance(self._method, Solver):
            return self._solve(self._method, targets, masks, needed)
        generator = Generator().manual_seed(self._seed * _SEED_STRIDE + update)
        drawn = {"generator": generator} if "generator" in self._method.needs else {}
        scores = {
            name: self._method.score(
                view.matrix, **needed[name], **self._gradients.of(name), **drawn, **self._options
            )  # [out, in]
            for name, view in self._views.items()
        }
        return select_masks(scores, targets, pattern=self._pattern, scope=self._scope, masks=masks), ()

    def _solve(
        self,
        solver: Solver,
        targets: Mapping[str, float],
        masks: Mapping[str, Tensor] | None,
        needed: Mapping[str, Mapping[str, Tensor]],
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        chosen: dict[str, Tensor] = {}
        notes: list[str] = []
        factors: dict[int, Any] = {}  # by Gram matrix: layers with the same input share one
        for name, view in self._views.items():
            held = None if masks is None else masks[name]
            shared = {}
            if solver.factorise is not None and (gram := needed[name].get("gram")) is not None:
                if id(gram) not in factors:
                    factors[id(gram)] = solver.factor_of(gram, self._options)
                shared["factor"] = factors[id(gram)]
            solution = solver.solve(
                view.matrix,
                sparsity=targets[name],
                pattern=self._pattern,
                mask=held,
                **needed[name],
                **shared,
                **self._options,
            )
            view.matrix.copy_(solution.weight)
            chosen[name] = solution.mask
            notes += [f"{name}: {note}" for note in solution.notes]
        return chosen, tuple(notes)

    def _record(
        self,
        step: int,
        targets: Mapping[str, float],
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        notes: tuple[str, ...],
    ) -> MaskUpdate:
        weights = {name: view.parameter.numel() for name, view in self._views.items()}
        zeros = {name: weights[name] - int(torch.count_nonzero(view.parameter)) for name, view in self._views.items()}
        return MaskUpdate(
            step=step,
            target=self._mean(targets),
            achieved=sum(zeros.values()) / max(sum(weights.values()), 1),
            by_tensor={name: count / max(weights[name], 1) for name, count in zeros.items()},
            closed=sum(int(torch.count_nonzero(before[name] & ~mask)) for name, mask in after.items()),
            opened=sum(int(torch.count_nonzero(mask & ~before[name])) for name, mask in after.items()),
            notes=notes,
        )


def _find(statistics: Mapping[str, Mapping[str, Tensor]], name: str, need: str) -> Tensor:
    found = statistics.get(name, {}).get(need)
    if found is None:
        raise PruningError(
            f"calibration must give {need} for every pruned weight, but not for {name}. "
            f"Leave that weight out of the targets: its module is not called in a forward pass."
        )
    return found


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
