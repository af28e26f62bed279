"""A row of the table: what was measured, beside what, what was wanted, and what came out."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from tests.bench.harness import Ratio, Settings

Better = Literal["lower", "higher"]
Measure = Callable[[Settings], Iterator["Row"]]
TOLERANCE = 0.15  # share by which a figure may be worse before a check fails


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: of the row, unique.
        what: what of ours is measured.
        beside: the alternative.
        value: the ratio (ours over theirs), or seconds.
        low: and `high`, its spread.
        rounds: pairs behind it.
        wanted: what it should be at most, or at least where `better` is higher; None where nothing is asked.
        unit: × or s.
        floor: what cannot be beaten here, where that is worse than what was wanted; `note` says why.
        figures: what it was made of.
        note: what the time went to, and why it is not better.
        skipped: why there is no figure; everything above is 0 then.
    """

    name: str
    what: str
    beside: str
    value: float = 0.0
    low: float = 0.0
    high: float = 0.0
    rounds: int = 0
    wanted: float | None = None
    better: Better = "lower"
    unit: str = "×"
    floor: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    skipped: str = ""

    @classmethod
    def of(cls, name: str, what: str, beside: str, ratio: Ratio, **more: Any) -> Self:
        """A row of paired ratios."""
        return cls(name, what, beside, ratio.median, ratio.low, ratio.high, len(ratio.pairs), **more)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        return cls(**data)

    def written(self) -> dict[str, Any]:
        return asdict(self)

    def is_worse_than(self, other: float, by: float = 0.0) -> bool:
        """Whether it is worse than a figure by more than that share of it."""
        return self.value > other * (1 + by) if self.better == "lower" else self.value < other * (1 - by)

    @property
    def verdict(self) -> str:
        """Met, within its spread, missed (and whether that is as good as it gets), or not measured, so not met."""
        if self.skipped:
            return "not measured: not met"
        if self.wanted is None:
            return "–"
        if not self.is_worse_than(self.wanted):
            return "met"
        if self.low <= self.wanted <= self.high:
            return "within its spread"
        if self.floor is not None and not self.is_worse_than(self.floor, TOLERANCE):
            return "missed, at its floor"
        return "missed"

    def problems(self, last: "Row | None") -> list[str]:
        """Why a check fails: it was not measured, or is 15 % worse than it should be, or than it was the last time."""
        if self.skipped:
            return [f"{self.name} was not measured: {self.skipped}"]
        found = []
        bar = self.wanted
        if bar is not None and self.floor is not None:
            bar = max(bar, self.floor) if self.better == "lower" else min(bar, self.floor)
        if bar is not None and self.is_worse_than(bar, TOLERANCE):
            found.append(f"{self.name} is {self.shown}, and {bar:.3g} {self.unit} was wanted")
        if (
            last is not None
            and not last.skipped
            and last.what == self.what
            and self.is_worse_than(last.value, TOLERANCE)
        ):
            found.append(f"{self.name} is {self.shown}, and was {last.value:.3g} {self.unit} the last time")
        return found

    @property
    def is_met(self) -> bool | None:
        """Whether it is as wanted; a row that was not measured is not. None where nothing is asked."""
        return None if self.wanted is None and not self.skipped else self.verdict in ("met", "within its spread")

    @property
    def shown(self) -> str:
        return f"{self.value:.3g} {self.unit}"
