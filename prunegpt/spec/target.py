"""When a sweep is good enough."""

from collections.abc import Mapping

from pydantic import Field

from prunegpt.spec.search import DirectedMetric


class TargetSpec(DirectedMetric):
    """Once a trial of the sweep has reached it, nothing more is started; what runs is let end."""

    value: float = Field(allow_inf_nan=False, description="that is good enough")

    def reached(self, metrics: Mapping[str, float | None]) -> bool:
        """Whether a trial that came to these is good enough."""
        found = metrics.get(self.metric)
        if found is None:
            return False
        return found <= self.value if self.wanted == "minimize" else found >= self.value
