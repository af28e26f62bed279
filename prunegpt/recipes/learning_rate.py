"""Learning-rate curves of recipes: what they are at each step, and the transformers scheduler that does the same."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from prunegpt.errors import PruneGPTError
from prunegpt.spec.part import Part

_EXACT = 1e-9


class CurveError(PruneGPTError, ValueError):
    """A learning-rate curve that cannot be computed."""


class Segment(Part):
    """A part of a learning-rate curve. Times are epochs."""

    shape: Literal["constant", "linear", "cosine", "cyclic_linear", "cosine_restarts", "step"] = Field(
        description="constant (`first` from start on), linear or cosine (`first` to `last`), cyclic_linear or "
        "cosine_restarts (that again every `cycle`), step (times `factor` every `cycle`)"
    )
    start: float = Field(0.0, ge=0, description="epoch it begins at")
    end: float | None = Field(None, gt=0, description="epoch it ends at, exclusive; its last rate is held afterwards")
    first: float = Field(ge=0, description="learning rate at its start")
    last: float | None = Field(None, ge=0, description="learning rate at its end (default: `first`)")
    cycle: float | None = Field(None, gt=0, description="epochs of a cycle or between steps")
    factor: float | None = Field(None, gt=0, le=1, description="what the rate is multiplied by at each step")

    @model_validator(mode="after")
    def _complete(self) -> "Segment":
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end must come after start; start is {self.start:g} and end {self.end:g}.")
        if self.shape in {"linear", "cosine", "cyclic_linear"} and self.end is None:
            raise ValueError(f"a {self.shape} segment needs an end.")
        if self.shape in {"cyclic_linear", "cosine_restarts", "step"} and self.cycle is None:
            raise ValueError(f"a {self.shape} segment needs a cycle.")
        if self.shape == "step" and self.factor is None:
            raise ValueError("a step segment needs a factor.")
        return self

    def rate(self, epoch: float, steps_per_epoch: int) -> float:
        """The learning rate at an epoch inside it; its last one afterwards."""
        last = self.first if self.last is None else self.last
        if self.end is not None and epoch >= self.end:
            if self.shape in {"linear", "cosine"}:
                return last
            epoch = self.end - 1 / steps_per_epoch
        since = max(epoch - self.start, 0.0)
        step = math.floor(since * steps_per_epoch + _EXACT)
        interval = max(round((self.cycle or 1.0) * steps_per_epoch), 1)
        if self.shape == "constant":
            return self.first
        if self.shape == "step":
            return self.first * (self.factor or 1.0) ** (step // interval)
        if self.shape == "cosine_restarts":
            return _cosine((step % interval) / interval, self.first, last)
        assert self.end is not None
        if self.shape == "cyclic_linear":
            return self._cyclic(
                since * steps_per_epoch, (self.end - self.start) * steps_per_epoch, last, steps_per_epoch
            )
        share = since / (self.end - self.start)
        if self.shape == "cosine":
            return _cosine(share, self.first, last)
        return self.first + share * (last - self.first)

    def _cyclic(self, step: float, whole: float, last: float, steps_per_epoch: int) -> float:
        """SparseML's cyclic_linear: a cycle reaches `last` at its own last step.

        Steps after the last whole cycle are counted modulo what is left, from the segment's start on and not from that
        cycle's end, so that their phase is off unless the one divides the other.
        """
        length = (self.cycle or 1.0) * steps_per_epoch
        done = math.floor(whole / length + _EXACT) * length  # steps of whole cycles
        if step > done + _EXACT and whole - done > _EXACT:
            length = whole - done
        position = step % length
        if length - position < _EXACT:  # a cycle's start, missed by rounding
            position = 0.0
        return self.first if length <= 1 else self.first + min(position / (length - 1), 1.0) * (last - self.first)


class LearningRateCurve(Part):
    """A learning rate over time, made of segments. Where two overlap, the later one holds."""

    segments: tuple[Segment, ...] = Field(min_length=1)

    def learning_rate_at(self, step: int, *, steps_per_epoch: int) -> float | None:
        """The learning rate of an optimizer step, counted from 0; None before the first segment: the optimizer's own.

        Raises:
            CurveError: fewer than one step an epoch.
        """
        if steps_per_epoch < 1:
            raise CurveError(f"an epoch has 1 or more optimizer steps, got {steps_per_epoch}.")
        epoch = step // steps_per_epoch + (step % steps_per_epoch) / steps_per_epoch
        begun = [segment for segment in self.segments if segment.start <= epoch]
        if not begun:
            return None
        moving = [item for item in begun if item.shape != "constant" and (item.end is None or epoch < item.end)]
        if moving:
            current = max(moving, key=lambda item: item.start)
        else:
            current = max(begun, key=lambda item: item.start if item.shape == "constant" else item.end or item.start)
        return current.rate(epoch, steps_per_epoch)


def as_arguments(curve: LearningRateCurve, epochs: float | None) -> Mapping[str, Any] | None:
    """The arguments of transformers.TrainingArguments under which its scheduler gives the same learning rates.

    Args:
        curve: of a recipe.
        epochs: of the whole training, where the recipe says it.

    Returns:
        learning_rate, lr_scheduler_type and where needed warmup_steps and lr_scheduler_kwargs; None where no scheduler
        gives this curve.
    """
    *before, body = sorted(curve.segments, key=lambda item: item.start)
    arguments = _scheduler(body, epochs)
    if arguments is None or len(before) > 1 or (before or [body])[0].start > 0:
        return None
    for warmup in before:
        rises = (warmup.shape, warmup.first, warmup.last, warmup.end) == ("linear", 0, body.first, body.start)
        if not rises or epochs is None or warmup.end is None or warmup.end >= epochs:
            return None
        if arguments["lr_scheduler_type"] == "constant":
            arguments["lr_scheduler_type"] = "constant_with_warmup"
        arguments["warmup_steps"] = warmup.end / epochs * (1 - 1e-12)  # a share; rounding up must not add a step
    return arguments


def _scheduler(body: Segment, epochs: float | None) -> dict[str, Any] | None:
    """The scheduler of a curve that begins with training, or after a warm-up."""
    last = body.first if body.last is None else body.last
    found: dict[str, Any] = {"learning_rate": body.first, "lr_scheduler_type": body.shape}
    if body.shape == "constant" or (body.shape in {"linear", "cosine"} and last == body.first):
        return {**found, "lr_scheduler_type": "constant"}
    if body.shape not in {"linear", "cosine"} or body.end != epochs or last >= body.first:
        return None
    if last == 0:
        return found
    if body.shape == "linear":
        return {**found, "lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": last, "power": 1.0}}
    return {**found, "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": last}}


def _cosine(share: float, first: float, last: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2
