"""Measured speeds in tables: with their intervals, beside what, and where the machine was too noisy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from prunegpt.records import Speed
from prunegpt.report.cells import TOO_NOISY, Cell, Detail, Footnotes
from prunegpt.report.format import together
from prunegpt.report.rows import Row
from prunegpt.report.statistics import LEVEL
from prunegpt.spec.metrics import SPEEDS

NOISY = 0.03  # of a reference beside itself: two measurements may then differ by more than 3%
_TOO_NOISY = (
    f"the machine was too noisy: a reference beside itself came out more than {NOISY:.0%} off; measure again on an "
    "idle one"
)


def speed_cell(name: str, cell: Cell, row: Row, notes: Footnotes, decimals: int | None) -> Cell:
    """A measured speed of one run with its interval, and a note where the machine was too noisy.

    Args:
        name: of `SPEEDS`.
        row: seen under the evaluation of the column.
    """
    speeds = _speeds(row)
    if name != "memory" and speeds:
        noise = max(one.noise_of(name) for one in speeds)
        cell = replace(cell, details={**cell.details, "noise": noise})
        if noise > NOISY:
            cell = replace(cell, footnotes=(*cell.footnotes, notes.legend(TOO_NOISY, _TOO_NOISY)))
    timed = speeds[0].timed.get(name) if len(speeds) == 1 else None
    if timed is None:
        return cell
    details: dict[str, Detail] = {**cell.details, "interval": (timed.low, timed.high)}
    if not name.startswith("speedup"):
        return replace(cell, details=details)
    ends = together("ratio", timed.value, timed.low, timed.high, decimals=decimals)
    return replace(cell, text="× {} [{}, {}]".format(*ends), details=details)


def speed_notes(rows: Mapping[str, Sequence[Row]], columns: Sequence[str]) -> Iterator[str]:
    """What readers of a table must know of its speeds: how and beside what they were measured.

    Args:
        rows: by the evaluation that they are seen under.
    """
    if not any(name in SPEEDS for name in columns):
        return
    keys = dict.fromkeys(row.key.protocol for some in rows.values() for row in some if _speeds(row) and row.key)
    if len(keys) == 1:
        yield f"Speed: {next(iter(keys))}"
    if "speedup" in columns or "speedup:prefill" in columns:
        yield f"Speed-up: median over pairs of runs in turns; in brackets its {LEVEL:.0%} interval by the sign test"


def _speeds(row: Row) -> list[Speed]:
    return [trial.measured.speed for trial in row.finished if trial.measured and trial.measured.speed]
