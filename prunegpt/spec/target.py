"""When a sweep is good enough."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from prunegpt.errors import unknown
from prunegpt.spec.part import Part
from prunegpt.spec.search import METRICS


class TargetSpec(Part):
    """Once a trial of the sweep has reached it, nothing more is started; what runs is let end."""

    metric: str = Field(description=", ".join(METRICS))
    value: float = Field(allow_inf_nan=False, description="that is good enough")
    direction: Literal["minimize", "maximize"] | None = Field(
        None, description="maximize for sparsity and sparsity_all, minimize for the others where not given"
    )

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METRICS:
            raise ValueError(unknown("metric", value, METRICS))
        return value

    @property
    def wanted(self) -> Literal["minimize", "maximize"]:
        """The direction, the metric's own where none is given."""
        return self.direction or METRICS[self.metric][0]

    def reached(self, metrics: Mapping[str, float | None]) -> bool:
        """Whether a trial that came to these is good enough."""
        found = metrics.get(self.metric)
        if found is None:
            return False
        return found <= self.value if self.wanted == "minimize" else found >= self.value
