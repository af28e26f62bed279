"""Pruning in training: how a job's mask updates reach weights and optimizer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from prunegpt.errors import PruningError
from prunegpt.lm import ranks
from prunegpt.lm.device import exact_products
from prunegpt.lm.views import WeightView
from prunegpt.pruning.bisection import checked_together, refuse
from prunegpt.pruning.choose import Groups, choose
from prunegpt.pruning.enforce import Enforcer, HasState
from prunegpt.pruning.evidence import Evidence
from prunegpt.pruning.gradients import GATHERED, GatheredGradients
from prunegpt.pruning.job import GradualJob, load_method
from prunegpt.pruning.mask import Mask, Masks
from prunegpt.pruning.patterns import parse_pattern
from prunegpt.pruning.solvers.base import Solver

Statistics = Callable[[int], Groups]  # given a seed

_GRADIENTS, _MODE = "gradients/", "mode/"  # names in a state begin so
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
    notes: tuple[str, ...] = ()  # of a solver or a mode


class GradualPruner:
    """Prunes a model step by step while it trains.

    A training loop calls, for each optimizer step: :meth:`before_step`; forward and backward; :meth:`accumulate`;
    `enforcer.mask_gradients()`; clipping; `enforcer.before_optimizer()`; the optimizer; `enforcer.mask_weights()`.

    Args:
        job: what is pruned, when and to what.
        enforcer: holds the masks of the model. What they prune when this is made stays pruned.
        statistics: gives, when called with a seed, what the method needs of the present weights from calibration data
            (:func:`~prunegpt.pruning.evidence.evidence`); once an update. None where it needs nothing of them.

    Raises:
        PruningError: the method needs statistics, or the job is of other weights.
    """

    def __init__(self, job: GradualJob, enforcer: Enforcer, *, statistics: Statistics | None = None) -> None:
        self.job = job
        self.enforcer = enforcer
        self._clock = job.clock
        self._method = load_method(job.method)
        if missing := sorted(set(job.sparsities) - set(enforcer.views)):
            raise PruningError(f"every pruned weight must be one of the model; {missing[0]!r} is none of them.")
        self._views: dict[str, WeightView] = {name: enforcer.views[name] for name in job.sparsities}
        self._sizes = {name: view.matrix.numel() for name, view in self._views.items()}
        self._needs = self._method.needs - GATHERED
        if (looks := sorted(self._needs - {"generator"})) and statistics is None:
            raise PruningError(
                f"{job.method} needs {' and '.join(looks)} from calibration data, got none. Give it calibration data, "
                "or use magnitude."
            )
        self._statistics = statistics
        self._gradients = GatheredGradients(
            self._views, (self._method.needs | enforcer.needs) & GATHERED, enforcer.learning
        )
        self._last: int | None = None

    @property
    def done(self) -> bool:
        """Whether the last update has been made."""
        return self._last == self._clock.end

    def accumulate(self, gradients: Mapping[str, Tensor] | None = None, *, scale: float = 1.0) -> None:
        """Shows the criterion the gradients of a step: once an optimizer step, after its last backward pass.

        Args:
            gradients: parameter name -> [out, in]; None = those the parameters hold.
            scale: what the loss was multiplied by, as a gradient scaler does for float16.

        Raises:
            PruningError: a weight has no gradient, and the criterion needs it.
        """
        self._gradients.accumulate(gradients, scale=scale)

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
        self.enforcer.follow(self._clock.progress(step))
        due = self._clock.held(step)
        if due is None or (self._last is not None and due <= self._last):
            return None
        targets = self.job.targets(due)
        settled = self.job.mode == "projected" and (not self.job.regrow or self.job.schedule == "acdc")
        repeats = self._last is not None and settled and targets == self.job.targets(self._last)
        self._last = due
        if repeats:
            return None
        before = self.enforcer.chosen
        after, notes, finite = self._choose(targets, self.enforcer.held if self.job.regrow else before, due)
        both = {name: before[name] & mask for name, mask in after.items() if name in before}
        notes += self.enforcer.update(after, optimizer, last=due == self._clock.end)
        self.enforcer.mask_gradients()
        live = [torch.count_nonzero(view.matrix) for view in self._views.values()]
        found = Mask.count([*before.values(), *after.values(), *both.values()], [*finite, *live])  # the one wait
        if not all(found[: len(finite)]):
            refuse()
        self.enforcer.settle()
        self._gradients.close_window()
        return self._record(step, targets, before, after, both, found[len(finite) :], notes)

    def split(self) -> None:
        """Keeps our part of what is gathered, as :meth:`Enforcer.split` of masks."""
        self._gradients.split()

    def state_dict(self) -> dict[str, Tensor]:
        """The last update, gathered gradients and what the mode keeps: what resuming needs beside masks and weights."""
        parts = {_GRADIENTS: self._gradients.state_dict(), _MODE: self.enforcer.state_dict()}
        own = {f"{prefix}{name}": tensor for prefix, state in parts.items() for name, tensor in state.items()}
        return {"last": torch.tensor(-1 if self._last is None else self._last), **own}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what :meth:`state_dict` gave.

        Raises:
            PruningError: the state is of other weights or another criterion.
        """
        last = int(state["last"])
        self._last = None if last < 0 else last
        self._gradients.load_state_dict(_below(_GRADIENTS, state))
        self.enforcer.load_state_dict(_below(_MODE, state))

    @exact_products()
    def _choose(
        self, targets: Mapping[str, float], floor: Mapping[str, Mask], update: int
    ) -> tuple[Masks, tuple[str, ...], list[Tensor]]:
        """The masks of an update, our part of each, and the notes of a solver.

        What `floor` prunes stays pruned. Scores are compared over whole tensors, of which each process joins the parts.

        Last come flags, bool [] each: whether the scores were finite, where that is not known yet.
        """
        floor = {name: mask for name, mask in floor.items() if name in self._views}
        if not any(targets.values()):
            dense = {name: torch.ones_like(view.matrix, dtype=torch.bool) for name, view in self._views.items()}
            return {**{name: Mask(kept) for name, kept in dense.items()}, **floor}, (), []
        choices = choose(
            self._method,
            self._groups(self.job.seed * _SEED_STRIDE + update),
            targets=targets,
            pattern=parse_pattern(self.job.pattern),
            scope=self.job.scope,
            masks=_Joined(self._views, floor),
            options=self.job.options,
            gathered=lambda name: {need: self._gradients.of(name)[need] for need in self._method.needs & GATHERED},
            scored=lambda view: view.whole(self.enforcer.scored(view)),
            select=partial(self.enforcer.select, gathered=self._gradients.of),
        )
        chosen: Masks = {}
        notes: list[str] = []
        with checked_together() as flags:
            for choice in choices:
                ranks.share([choice.mask])
                view = self._views[choice.name]
                chosen[choice.name] = Mask(view.part(choice.mask), like=view.matrix)
                notes += [f"{choice.name}: {note}" for note in choice.notes]
            finite = [*flags]
            flags.clear()
        if missing := [name for name in self._views if name not in chosen]:
            raise PruningError(
                f"calibration must reach every pruned weight; it did not reach {missing[0]}. Leave that weight out of "
                "the targets: its module is not called in a forward pass."
            )
        if isinstance(self._method, Solver):
            ranks.share({id(view.parameter): view.parameter for view in self._views.values()}.values())
        return chosen, tuple(notes), finite

    def _groups(self, seed: int) -> Groups:
        """The layers and what is known of them, some at a time; all of them where calibration has no part in it."""
        if self._statistics is not None:
            return self._statistics(seed)
        generator = Generator().manual_seed(seed)
        return [{name: Evidence(view, self._needs, generator, None, None) for name, view in self._views.items()}]

    def _record(
        self,
        step: int,
        targets: Mapping[str, float],
        before: Mapping[str, Mask],
        after: Mapping[str, Mask],
        both: Mapping[str, Mask],
        live: Sequence[int],
        notes: tuple[str, ...],
    ) -> MaskUpdate:
        total = max(sum(self._sizes.values()), 1)
        closed = opened = 0
        for name, mask in after.items():
            was = before.get(name)
            either = mask.pruned if was is None else both[name].pruned  # by the mask of before, the new one, or both
            closed += either - (0 if was is None else was.pruned)
            opened += either - mask.pruned
        closed, opened, *live = (int(count) for count in self.enforcer.summed([closed, opened, *live]))
        zeros = {name: self._sizes[name] - count for name, count in zip(self._views, live, strict=True)}
        return MaskUpdate(
            step=step,
            target=_mean(targets, self._sizes),
            achieved=sum(zeros.values()) / total,
            by_tensor={name: count / max(self._sizes[name], 1) for name, count in zeros.items()},
            closed=closed,
            opened=opened,
            notes=notes,
        )


class _Joined(Mapping[str, Tensor]):
    """Whole masks, bool [out, in], of those that each process has a part of: each joined when it is asked for."""

    def __init__(self, views: Mapping[str, WeightView], masks: Mapping[str, Mask]) -> None:
        self._views, self._masks = views, masks

    def __getitem__(self, name: str) -> Tensor:
        return self._views[name].whole(self._masks[name].kept)

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __contains__(self, name: object) -> bool:  # without joining it
        return name in self._masks


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _mean(values: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """The mean over all weights; exactly the value where all have the same."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return sum(value * sizes[name] for name, value in values.items()) / max(sum(sizes.values()), 1)
