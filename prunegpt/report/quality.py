"""Figures of what a model keeps of its quality for what it costs: perplexity against sparsity, measured speed, size."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prunegpt.records import TrialResult
from prunegpt.report.columns import NOT_APPLICABLE, distilled, method
from prunegpt.report.format import percent
from prunegpt.report.measure import WindowsOf, measure
from prunegpt.report.plot import DENSE, GREY, LOG_FROM, Plot, escaped, hover, layout_of, leading, looks, need, trace_of
from prunegpt.spec.metrics import SPEED

Bounded = tuple[float, float | None, float | None]  # a value and the ends of its interval, where it has one


@dataclass(frozen=True)
class QualityAxis:
    """What goes across, beside perplexity.

    Attributes:
        of: the value of a trial, and the ends of its interval where it has one; None where it has no value.
        larger: whether more of it is better.
        title: of the figure.
        label: of the axis.
        shown: a value for people.
        needs: what a figure needs that has no points.
        sized: whether it says something of models of different sizes alone.
        alike: what must be equal of trials that are in one figure; it has those that most are equal to.
    """

    of: Callable[[TrialResult], Bounded | None]
    larger: bool
    title: str
    label: str
    shown: Callable[[float], str]
    needs: str = "measured trials"
    alike: Callable[[TrialResult], object] = lambda trial: None
    sized: bool = False


def _sparsity(trial: TrialResult) -> Bounded | None:
    return (100 * trial.sparsity.pruned, None, None) if trial.sparsity else None


def _speedup(trial: TrialResult) -> Bounded | None:
    found = trial.under(SPEED).measured
    return (one.value, one.low, one.high) if found and found.speed and (one := found.speed.speedup) else None


def _measured_as(trial: TrialResult) -> object:
    found = trial.under(SPEED).measured
    return found.comparison_key if found else None


def _size(trial: TrialResult) -> Bounded | None:
    return (trial.sparsity.nonzero / 1e6, None, None) if trial.sparsity else None


def _bytes(trial: TrialResult) -> Bounded | None:
    return (trial.final.bytes / 1e6, None, None) if trial.final and trial.final.bytes else None


SPARSITY = QualityAxis(
    of=_sparsity,
    larger=True,
    title="Sparsity against perplexity",
    label="sparsity of the pruned tensors, %",
    shown=lambda value: f"{percent(value)}% sparse",
)
AXES: Mapping[str, QualityAxis] = {
    "pareto": SPARSITY,
    "speed": QualityAxis(
        of=_speedup,
        larger=True,
        title="Perplexity against measured speed",
        label="measured speed-up of decoding, ×",
        shown=lambda value: f"× {value:.3f}",
        needs="trials whose speed was measured",
        alike=_measured_as,
    ),
    "size": QualityAxis(
        of=_size,
        larger=False,
        title="Perplexity against size",
        label="parameters that are not zero, millions",
        shown=lambda value: f"{value:,.1f} million parameters",
        sized=True,
    ),
    "bytes": QualityAxis(
        of=_bytes,
        larger=False,
        title="Perplexity against bytes on disk",
        label="files of the weights, MB",
        shown=lambda value: f"{value:,.1f} MB",
        sized=True,
        needs="trials whose files were measured",
        alike=lambda trial: trial.final.stored if trial.final else None,
    ),
}  # by figure


class WithInterval(Protocol):
    """A perplexity with the ends of its interval."""

    @property
    def perplexity(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


@dataclass(frozen=True)
class QualityPoint:
    """A configuration where perplexity and what goes across were measured."""

    label: str
    method: str  # one line of the figure each
    x: float  # on its axis
    perplexity: float
    low: float | None = None
    high: float | None = None
    series: str = ""  # all but how sparse: a line joins what is equal in it
    trials: tuple[str, ...] = ()  # addresses, one per seed
    swept: Mapping[str, Any] = field(default_factory=dict)
    x_low: float | None = None
    x_high: float | None = None


def quality_points(
    results: Sequence[TrialResult], windows: WindowsOf, axis: QualityAxis = SPARSITY
) -> Iterator[QualityPoint]:
    """A point for every configuration with a perplexity and what goes across; seeds are averaged.

    Of speeds those that were measured as most are, of bytes those of the most common dtype.
    """
    counts = Counter(axis.alike(trial) for trial in results if axis.of(trial) is not None)
    most = max(counts, key=counts.__getitem__, default=None)
    for group, height in measured_groups(results, windows):
        known = [value for trial in group if axis.alike(trial) == most and (value := axis.of(trial)) is not None]
        if not known:
            continue
        x = sum(value for value, _, _ in known) / len(known)
        ends = known[0][1:] if len(known) == 1 else (None, None)
        yield QualityPoint(
            group[0].group, _line(group[0]), x, *height, apart_from_sparsity(group[0]), *leads(group), *ends
        )


def _line(trial: TrialResult) -> str:
    """What made it smaller, and whether it was distilled."""
    pruned = method(trial)
    ways = [pruned] * (pruned != NOT_APPLICABLE) + ["shrunk"] * any(one.kind == "shrink" for one in trial.plan.stages)
    return (" + ".join(ways) or DENSE) + (", distilled" if distilled(trial) == "Yes" else "")


def apart_from_sparsity(trial: TrialResult) -> str:
    """All settings of a trial's stages but how sparse they prune: trials that are equal in it differ in sparsity alone.

    Seeds do not count.
    """
    settings = []
    for stage in trial.plan.stages:
        found = stage.model_dump(mode="json", exclude={"key", "parent", "seed", "neutral"}, exclude_defaults=True)
        training = found.get(stage.kind, {})
        for pruning in (training, training.get("prune")):
            if isinstance(pruning, dict):
                pruning.pop("sparsity", None)
        settings.append(found)
    swept = {path: value for path, value in trial.swept.items() if not path.endswith(".sparsity")}
    return json.dumps([settings, swept], sort_keys=True, default=str)


def leads(group: Sequence[TrialResult]) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """Where a point of these trials leads, and their swept values."""
    return tuple(trial.address for trial in group), group[0].swept


def dense_perplexity(points: Sequence[QualityPoint]) -> float | None:
    """The lowest of models that were not pruned; None where there is none."""
    return min((point.perplexity for point in points if point.method == DENSE), default=None)


def pareto(points: Sequence[QualityPoint], *, larger: bool = True) -> list[QualityPoint]:
    """The points that no other equals or beats in both, and beats in one; by what goes across."""
    front: list[QualityPoint] = []
    for point in sorted(points, key=lambda point: (-point.x if larger else point.x, point.perplexity)):
        if not front or point.perplexity < front[-1].perplexity:
            front.append(point)
    return sorted(front, key=lambda point: point.x)


def whole_models(points: Iterable[QualityPoint], results: Sequence[TrialResult]) -> Iterator[QualityPoint]:
    """The points of configurations that pruned more than a single decoder layer, or nothing."""
    single = {trial.group for trial in results if trial.sparsity is not None and len(trial.sparsity.layers) == 1}
    return (point for point in points if point.label not in single)


def measured_groups(
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


def over_sparsity(points: Sequence[QualityPoint], title: str = "Perplexity over sparsity") -> Plot:
    """Lines through trials that differ in sparsity alone, in the colour of their method; other trials are points."""
    need(points, "measured trials")
    data: list[dict[str, Any]] = []
    joined = False
    for name, (colour, symbol, dash) in looks(point.method for point in points).items():
        mine = sorted((point for point in points if point.method == name), key=lambda point: point.x)
        line = {"color": colour, "dash": dash, "width": 2}
        for through in _joined(mine) if name != DENSE else ():
            trace = trace_of([one.x for one in through], [one.perplexity for one in through], name, mode="lines")
            data.append(trace | {"line": line, "showlegend": False, "hoverinfo": "skip", "legendgroup": name})
            joined = True
        marked = _points(mine, name, colour, symbol)
        data.append(marked | {"error_y": intervals(mine, colour, 4)})
    need(data if joined else (), "trials that differ in sparsity alone")
    layout = layout_of(
        title, {"title": {"text": SPARSITY.label}}, perplexity_axis(point.perplexity for point in points)
    )
    dense = [point.perplexity for point in points if point.method == DENSE]
    if dense:
        across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": min(dense), "y1": min(dense)}
        layout["shapes"] = [across | {"line": {"color": GREY, "dash": "dot", "width": 1}}]
    return Plot(data=data, layout=layout)


def have_lines(points: Iterable[QualityPoint]) -> bool:
    """Whether `over_sparsity` joins any of them; no more are taken than show it."""
    found: dict[tuple[str, str], set[float]] = {}
    for point in points:
        places = found.setdefault((point.method, point.series), set())
        places.add(round(point.x, 1))
        if len(places) > 1 and point.method != DENSE:
            return True
    return False


def _joined(points: Sequence[QualityPoint]) -> list[list[QualityPoint]]:
    """The points of each line, by sparsity; of several at one sparsity the lowest."""
    lines: dict[str, dict[float, QualityPoint]] = {}
    for point in sorted(points, key=lambda point: (point.x, -point.perplexity)):
        lines.setdefault(point.series, {})[round(point.x, 1)] = point
    return [list(line.values()) for line in lines.values() if len(line) > 1]


def front(points: Sequence[QualityPoint], axis: QualityAxis = SPARSITY) -> Plot:
    """All configurations, and the front of those that no other beats in both perplexity and what goes across."""
    need(points, axis.needs)
    best = pareto(points, larger=axis.larger)
    data = [
        trace_of(
            [point.x for point in best],
            [point.perplexity for point in best],
            "front",
            mode="lines",
            # up to a point's sparsity, and from its size on, its perplexity is attainable
            line={"color": GREY, "width": 1.5, "shape": "vh" if axis.larger else "hv"},
        )
        | {"hoverinfo": "skip", "text": [escaped(point.label) for point in best]}
    ]
    for name, (colour, symbol, _) in looks(point.method for point in points).items():
        mine = [point for point in points if point.method == name]
        data.append(_points(mine, name, colour, symbol, axis) | _across(mine, colour))
    across = {"title": {"text": axis.label}}
    return Plot(data=data, layout=layout_of(axis.title, across, perplexity_axis(point.perplexity for point in points)))


def _across(points: Sequence[QualityPoint], colour: str) -> dict[str, Any]:
    """The intervals of what goes across, where any has one."""
    if all(point.x_high is None for point in points):
        return {}
    beyond = [None if point.x_high is None else point.x_high - point.x for point in points]
    before = [None if point.x_low is None else point.x - point.x_low for point in points]
    look = {"color": colour, "thickness": 1.2, "width": 4}
    return {"error_x": {"type": "data", "symmetric": False, "array": beyond, "arrayminus": before, **look}}


def intervals(points: Sequence[WithInterval], colour: str, width: int) -> dict[str, Any]:
    """The interval of each point as bars over and below it; none where it has none."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if point.high is None else point.high - point.perplexity for point in points],
        "arrayminus": [None if point.low is None else point.perplexity - point.low for point in points],
        "color": colour,
        "thickness": 1.2,
        "width": width,
    }


def _points(
    points: Sequence[QualityPoint], name: str, colour: str, symbol: str, axis: QualityAxis = SPARSITY
) -> dict[str, Any]:
    marker = {"color": colour, "symbol": symbol, "size": 9}
    found = trace_of(
        [point.x for point in points],
        [point.perplexity for point in points],
        name,
        mode="markers",
        marker=marker,
    )
    shown = [f"{axis.shown(point.x)}, perplexity {point.perplexity:.4g}" for point in points]
    return found | {
        "text": [escaped(point.label) for point in points],
        "legendgroup": name,
        **leading(
            [point.trials for point in points],
            [
                hover(point.label, line, *(point.trials if len(point.trials) > 1 else ()), swept=point.swept)
                for point, line in zip(points, shown, strict=True)
            ],
        ),
    }


def perplexity_axis(values: Iterable[float]) -> dict[str, Any]:
    positive = [value for value in values if value > 0]
    wide = bool(positive) and max(positive) / min(positive) >= LOG_FROM
    return {"title": {"text": "perplexity"}, **({"type": "log", "dtick": "D2"} if wide else {})}
