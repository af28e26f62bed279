"""What figures are drawn from: frozen, taken from trials and curve points, with nothing left to look up."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prunegpt.records import TrialResult
from prunegpt.report.columns import NOT_APPLICABLE, distilled, layer, method
from prunegpt.report.measure import WindowsOf, measure

if TYPE_CHECKING:
    from prunegpt.store.series import Series

DENSE = "not pruned"
CURVES = {"perplexity": 1.0, "sparsity": 100.0}  # that figures show of a training -> scale of their values
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
_POINTS = 500  # of a curve
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
    """What pruning one decoder layer did."""

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
    for group, height in _measured(results, windows):
        counted = [trial.sparsity.pruned for trial in group if trial.sparsity is not None]
        if not counted:
            continue
        name = method(group[0])
        line = DENSE if name == NOT_APPLICABLE else name
        line += ", distilled" if distilled(group[0]) == "Yes" else ""
        found.append(SparsityPoint(group[0].group, line, 100 * sum(counted) / len(counted), *height))
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
    """The points of configurations that pruned more than a single decoder layer, or nothing."""
    single = {trial.group for trial in results if trial.sparsity is not None and len(trial.sparsity.layers) == 1}
    return tuple(point for point in points if point.label not in single)


def layer_bars(results: Sequence[TrialResult], windows: WindowsOf) -> tuple[LayerBar, ...]:
    """A bar for every configuration that pruned exactly one decoder layer, by block."""
    measured = [(layer(group[0]), height) for group, height in _measured(results, windows)]
    bars = [LayerBar(index, *height) for index, height in measured if isinstance(index, int)]
    return tuple(sorted(bars, key=lambda bar: (bar.layer, bar.perplexity)))


def _measured(
    results: Sequence[TrialResult], windows: WindowsOf
) -> Iterator[tuple[list[TrialResult], tuple[float, float | None, float | None]]]:
    """Each configuration that has a perplexity: its seeds, the perplexity, and the ends of its interval."""
    groups: dict[tuple[str, str], list[TrialResult]] = {}
    for trial in sorted(results, key=lambda trial: (trial.sweep, trial.order, trial.seed, trial.name)):
        if trial.measured and trial.shown and not trial.implicit:
            groups.setdefault((trial.sweep, trial.group), []).append(trial)
    for group in groups.values():
        if found := measure(group, windows):
            ends = (found.interval.low, found.interval.high) if found.interval else (None, None)
            yield group, (found.perplexity, *ends)


def in_figures(_stage: int, name: str) -> bool:
    """Which curves figures show, as the store asks for them."""
    return name in CURVES


def curves(trial: TrialResult, found: "Sequence[Series]") -> dict[str, Curve]:
    """Those of a trial's curves that figures show, by name; what is not finite is left out."""
    last = {stage.index: stage.steps for stage in trial.stages}
    for one in found:
        last[one.stage] = max(last.get(one.stage, 0), int(one.steps.max()))
    made = {}
    for name, scale in CURVES.items():
        parts = [one for one in found if one.name == name]
        if not parts:
            continue
        before = [sum(steps for stage, steps in last.items() if stage < one.stage) for one in parts]
        steps = np.concatenate([one.steps + start for one, start in zip(parts, before, strict=True)])
        values = scale * np.concatenate([one.values for one in parts])
        finite = np.isfinite(values)
        steps, values = steps[finite].astype(np.float64), values[finite]
        kept = extremes(values, _POINTS)
        made[name] = Curve(trial.name, tuple(steps[kept].tolist()), tuple(values[kept].tolist()))
    return made


def extremes(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Which points to keep, by position, in order.

    The points are cut into stretches of equal number; of each the least and the greatest finite value stay, and one
    that is not finite where there is one, so that a gap stays a gap. The first and the last point stay.

    Args:
        values: [points], NaN where a value is not finite.
        count: how many to keep at most, at least 5; all where there are not more.
    """
    total = len(values)
    if total <= count:
        return np.arange(total, dtype=np.int64)
    buckets = max(1, (count - 2) // 3)
    edges = np.linspace(0, total, buckets + 1).astype(np.int64)  # [buckets + 1]
    starts = edges[:-1]
    missing = ~np.isfinite(values)
    low = np.where(missing, np.inf, values)
    high = np.where(missing, -np.inf, values)
    kept = np.zeros(total, dtype=bool)
    kept[[0, total - 1]] = True
    bucket = np.repeat(np.arange(buckets), np.diff(edges))  # [points]
    for flags in (
        low == np.minimum.reduceat(low, starts)[bucket],
        high == np.maximum.reduceat(high, starts)[bucket],
        missing,
    ):
        positions = np.flatnonzero(flags)
        _, first = np.unique(bucket[positions], return_index=True)
        kept[positions[first]] = True
    return np.flatnonzero(kept).astype(np.int64)


def heat_map(by_tensor: Mapping[str, float]) -> HeatMap:
    """Shares of zeros by decoder layer (down) and tensor (across), from a SparsityRecord's `by_tensor`."""
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
