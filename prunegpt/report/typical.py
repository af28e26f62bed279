"""Rows beside what is typical of a table: which layers are worse to prune than layers are on average?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunegpt.report.measure import ALPHA, Measured
from prunegpt.report.statistics import Interval, Windows, compare_windows, holm


@dataclass(frozen=True)
class Typical:
    """A row beside the geometric mean of the pruned rows of its protocol."""

    ratio: Interval  # perplexity of the row over that mean
    p_value: float  # paired bootstrap over windows, adjusted for the number of rows (Holm)

    @property
    def differs(self) -> bool:
        return self.p_value < ALPHA


def beside_mean(rows: Sequence[Measured | None], pruned: Sequence[bool]) -> list[Typical | None]:
    """For each row its place beside the mean; None where it is not pruned, has several seeds or kept no windows.

    The mean is that of the rows' losses, window by window, so that it is compared with each row on the same draws of
    windows. Fewer than three rows have none.
    """
    found: list[Typical | None] = [None] * len(rows)
    groups: dict[str, dict[int, Windows]] = {}
    for index, (measured, counted) in enumerate(zip(rows, pruned, strict=True)):
        if measured is not None and len(measured.windows) == 1 and counted:
            groups.setdefault(measured.protocol, {})[index] = next(iter(measured.windows.values()))
    for group in groups.values():
        if len(group) >= 3 and len({len(windows) for windows in group.values()}) == 1:
            mean = np.mean(list(group.values()), axis=0)  # [windows, 2]
            compared = {index: compare_windows(windows, mean) for index, windows in group.items()}
            adjusted = holm([comparison.p_value for comparison in compared.values()])
            for (index, comparison), p_value in zip(compared.items(), adjusted, strict=True):
                found[index] = Typical(comparison.ratio, p_value)
    return found
