"""Ends a training run whose loss is lost, instead of letting it compute for hours."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from prunegpt.errors import DivergedError

WINDOW = 5
FACTOR = 3.0
REMEDY = (
    "Try a lower learning rate, warm-up steps or gradient clipping (max_grad_norm), a slower pruning schedule, "
    "and float32 in place of float16."
)


class DivergenceGuard:
    """Watches the terms of the training loss.

    A run has diverged when
    - any term is NaN or infinite, or
    - the cross-entropy `ce` exploded: the median of the last 5 values is more than 3 times the lowest such median so
      far, and is worse than guessing all tokens alike, ln(vocabulary). The median lets a single bad batch pass, the
      second condition a model that was pruned hard and is about to recover.

    Args:
        vocabulary: number of tokens; None: explosions are not judged.
        factor: how many times the best median.
        window: over how many values the median goes.
    """

    def __init__(self, vocabulary: int | None = None, *, factor: float = FACTOR, window: int = WINDOW) -> None:
        self.floor = math.log(vocabulary) if vocabulary else math.inf
        self.factor = factor
        self._recent: deque[float] = deque(maxlen=window)
        self._best = math.inf

    def check(self, step: int, terms: Mapping[str, Any]) -> None:
        """Takes the loss terms of a step, or their means over some steps; floats or tensors of one element.

        Raises:
            DivergedError: the run has diverged.
        """
        for name, value in terms.items():
            if not math.isfinite(float(value)):
                raise DivergedError(
                    f"the loss must stay finite; {name} is {float(value)} at step {step} ({_listed(terms)}). {REMEDY}"
                )
        if "ce" not in terms:
            return
        self._recent.append(float(terms["ce"]))
        if len(self._recent) < (self._recent.maxlen or 1):
            return
        middle = median(self._recent)
        self._best = min(self._best, middle)
        if middle > self.factor * self._best and middle > self.floor:
            raise DivergedError(
                f"the cross-entropy must not exceed {self.factor:g} times its best and that of guessing "
                f"({self.floor:.2f} nats); ce is {middle:.2f} at step {step} after {self._best:.2f} (medians of "
                f"{len(self._recent)} values; {_listed(terms)}). {REMEDY}"
            )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know; JSON can hold it."""
        return {"recent": list(self._recent), "best": self._best if math.isfinite(self._best) else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where :meth:`state_dict` left off."""
        self._recent.clear()
        self._recent.extend(state["recent"])
        self._best = math.inf if state["best"] is None else state["best"]


def _listed(terms: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {float(value):.4g}" for name, value in terms.items())
