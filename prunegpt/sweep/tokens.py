"""The clock that trials are compared on: training tokens over all stages of a chain, cached ones included."""

from prunegpt.points import Point
from prunegpt.spec.plan import TrialPlan


class TokenClock:
    """Tells what a trial had trained on at its points, which come stage by stage.

    The tokens of a stage that is over are the most that one of its points speaks of: every stage ends with a point of
    its own, and one that was found published has that point too. What a source stage was trained on does not count.
    """

    def __init__(self, trial: TrialPlan) -> None:
        self._counts = [stage.training is not None for stage in trial.stages]
        self._most = [0] * len(trial.stages)

    def at(self, point: Point) -> int:
        """Tokens at a point of one of the trial's stages."""
        before = sum(self._most[: point.stage])
        if not self._counts[point.stage]:
            return before
        self._most[point.stage] = max(self._most[point.stage], point.tokens)
        return before + point.tokens

    @property
    def total(self) -> int:
        """Tokens so far."""
        return sum(self._most)
