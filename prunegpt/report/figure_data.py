"""What figures are drawn from: frozen, taken from trials and curve points, with nothing left to look up."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunegpt.records import Point, TrialResult
from prunegpt.report.columns import NOT_APPLICABLE, distilled, layer, method
from prunegpt.report.measure import WindowsOf, measure

DENSE = "not pruned"
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
_BLOCK = re.compile(r"(?:^|\.)(\d+)\.(.+)$")


@dataclass(frozen=True)
class SparsityPoint:
    """A configuration where sparsity and perplexity were measured."""

    label: str
    method: str  # one line of the figure each
    sparsity: float  # percent of the pruned tensors
    perplexity: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class LayerBar:
    """What pruning one decoder block did."""

    layer: int
    perplexity: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """Values over training; steps count on through the stages of a chain."""

    label: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class HeatMap:
    """Shares of zeros, percent, by block and tensor; None where a block has no such tensor."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


def sparsity_points(results: Sequence[TrialResult], windows: WindowsOf) -> tuple[SparsityPoint, ...]:
    """A point for every configuration with a perplexity and counted zeros; seeds are averaged."""
    found = []
    for group in _groups(results):
        measured = measure(group, windows)
        counted = [trial.sparsity.pruned for trial in group if trial.sparsity is not None]
        if measured is None or not counted:
            continue
        name = method(group[0])
        line = DENSE if name == NOT_APPLICABLE else name
        interval = measured.interval
        found.append(
            SparsityPoint(
                label=group[0].group,
                method=f"{line}, distilled" if distilled(group[0]) == "Yes" else line,
                sparsity=100 * sum(counted) / len(counted),
                perplexity=measured.perplexity,
                low=interval.low if interval else None,
                high=interval.high if interval else None,
            )
        )
    return tuple(found)


def dense_perplexity(points: Sequence[SparsityPoint]) -> float | None:
    """The lowest of models that were not pruned; None where there is none."""
    return min((point.perplexity for point in points if point.method == DENSE), default=None)


def pareto(points: Sequence[SparsityPoint]) -> list[SparsityPoint]:
    """The points that no other equals or beats in both, and beats in one; by sparsity."""
    front: list[SparsityPoint] = []
    for point in sorted(points, key=lambda point: (-point.sparsity, point.perplexity)):
        if not front or point.perplexity < front[-1].perplexity:
            front.append(point)
    return front[::-1]


def whole_models(points: Sequence[SparsityPoint], results: Sequence[TrialResult]) -> tuple[SparsityPoint, ...]:
    """The points of configurations that pruned more than a single decoder block, or nothing."""
    single = {trial.group for trial in results if trial.sparsity is not None and len(trial.sparsity.layers) == 1}
    return tuple(point for point in points if point.label not in single)


def layer_bars(results: Sequence[TrialResult], windows: WindowsOf) -> tuple[LayerBar, ...]:
    """A bar for every configuration that pruned exactly one decoder block, by block."""
    found = []
    for group in _groups(results):
        index = layer(group[0])
        measured = measure(group, windows)
        if measured is None or not isinstance(index, int):
            continue
        interval = measured.interval
        found.append(
            LayerBar(
                index,
                measured.perplexity,
                interval.low if interval else None,
                interval.high if interval else None,
            )
        )
    return tuple(sorted(found, key=lambda bar: (bar.layer, bar.perplexity)))


def _groups(results: Sequence[TrialResult]) -> list[list[TrialResult]]:
    groups: dict[tuple[str, str], list[TrialResult]] = {}
    for trial in sorted(results, key=lambda trial: (trial.sweep, trial.order, trial.seed, trial.name)):
        if trial.measured and trial.shown and not trial.implicit:
            groups.setdefault((trial.sweep, trial.group), []).append(trial)
    return list(groups.values())


def curve(points: Sequence[Point], name: str, label: str, *, scale: float = 1.0) -> Curve:
    """The points of one name as a curve; what is not finite is left out.

    Args:
        points: of one attempt, all names.
        name: perplexity, sparsity, ...
        label: what the legend says.
        scale: multiplies the values; 100 makes percent of shares.
    """
    last: dict[int, int] = {}
    for point in points:
        last[point.stage] = max(last.get(point.stage, 0), point.step)
    before = {stage: sum(steps for other, steps in last.items() if other < stage) for stage in last}
    chosen = sorted(
        (before[point.stage] + point.step, scale * point.value)
        for point in points
        if point.name == name and point.value is not None
    )
    return Curve(label, tuple(float(step) for step, _ in chosen), tuple(value for _, value in chosen))


def heat_map(by_tensor: Mapping[str, float]) -> HeatMap:
    """Shares of zeros by decoder block (down) and tensor (across), from a SparsityRecord's `by_tensor`."""
    cells: dict[str, dict[str, float]] = {}
    columns: dict[str, None] = {}
    for name, share in by_tensor.items():
        found = _BLOCK.search(name.removesuffix(".weight"))
        row, column = (found[1], found[2]) if found else ("outside", name.removesuffix(".weight"))
        cells.setdefault(row, {})[column] = 100 * share
        columns[column] = None
    rows = sorted(cells, key=lambda row: (not row.isdigit(), int(row) if row.isdigit() else 0))
    return HeatMap(
        rows=tuple(rows),
        columns=tuple(columns),
        values=tuple(tuple(cells[row].get(column) for column in columns) for row in rows),
    )
