"""What every request is answered from."""

from dataclasses import dataclass, field

from prunegpt.records import TrialResult
from prunegpt.report.measure import stored_windows
from prunegpt.root import Root
from prunegpt.web.intervals import Intervals
from prunegpt.web.kept import Kept
from prunegpt.web.source import Source


@dataclass(frozen=True)
class Dashboard:
    """One root, its store as it is followed, and what was made of it."""

    root: Root
    source: Source
    intervals: Intervals
    kept: Kept
    budgets: dict[str, int | None] = field(default_factory=dict)  # stage key -> tokens it trains on, once counted

    @classmethod
    def open(cls, root: Root) -> "Dashboard":
        source = Source(root)
        return cls(root, source, Intervals(stored_windows(root), source.touch), Kept())

    def close(self) -> None:
        self.intervals.close()
        self.source.close()


def address(trial: TrialResult) -> str:
    """What a trial is called across sweeps."""
    return f"{trial.sweep}/{trial.name}"
