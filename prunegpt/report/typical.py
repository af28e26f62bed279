"""Rows beside what is typical of a table: which layers are worse to prune than most layers are?"""

from collections.abc import Sequence
from dataclasses import dataclass

from prunegpt.report.measure import ALPHA, Measured
from prunegpt.report.statistics import Interval, compare_windows, holm


@dataclass(frozen=True)
class Typical:
    """A row beside the pruned row of median perplexity, of the same protocol."""

    ratio: Interval  # perplexity of the row over that of the median row
    p_value: float  # paired bootstrap over windows, adjusted for the number of rows (Holm)
    is_median: bool = False

    @property
    def differs(self) -> bool:
        return self.p_value < ALPHA


def beside_median(rows: Sequence[Measured | None], pruned: Sequence[bool]) -> list[Typical | None]:
    """For each row its place beside the median; None where it is not pruned, has several seeds or kept no windows.

    The median and not the mean: one layer that a model cannot do without makes a mean that no layer is near. Of an even
    number of rows the lower of the two in the middle is taken. Fewer than three rows have no median.
    """
    found: list[Typical | None] = [None] * len(rows)
    groups: dict[str, dict[int, Measured]] = {}
    for index, (measured, counted) in enumerate(zip(rows, pruned, strict=True)):
        if measured is not None and len(measured.windows) == 1 and counted:
            groups.setdefault(measured.protocol, {})[index] = measured
    for group in groups.values():
        if len(group) < 3:
            continue
        ranked = sorted(group, key=lambda index: group[index].perplexity)
        middle = ranked[(len(ranked) - 1) // 2]
        (median,) = group[middle].windows.values()
        others = {
            index: compare_windows(next(iter(measured.windows.values())), median)
            for index, measured in group.items()
            if index != middle
        }
        found[middle] = Typical(Interval(1.0, 1.0, 1.0), 1.0, is_median=True)
        adjusted = holm([comparison.p_value for comparison in others.values()])
        for (index, comparison), p_value in zip(others.items(), adjusted, strict=True):
            found[index] = Typical(comparison.ratio, p_value)
    return found
