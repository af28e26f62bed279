"""What the figures of a sweep are drawn from: its trials, and their curves as they are stored."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from prunegpt.errors import UnknownPartError, unknown
from prunegpt.records import EARLY_STOP, TrialResult, comparable
from prunegpt.report.measure import WindowsOf
from prunegpt.report.plot import need
from prunegpt.report.plots import (
    Curve,
    LayerBar,
    curves,
    in_figures,
    layer_bars,
)
from prunegpt.report.quality import (
    SPARSITY,
    QualityAxis,
    QualityPoint,
    dense_perplexity,
    quality_points,
    whole_models,
)
from prunegpt.report.searched import Searched, searches

if TYPE_CHECKING:
    from prunegpt.store import Store

CurvesOf = Callable[[TrialResult], Mapping[str, Curve]]  # `plots.curves` of what a store has

_MOST_CURVES = 16
LEADING = "perplexity"  # the curve that a trial has if figures show any of its curves
_MOST_INTERMEDIATE = 100  # trials whose curves are asked for
_MOST_INTERVALS = 200  # configurations up to which intervals are drawn: more would take minutes, and hide all
_TRAIN = ("finetune", "distill", "pretrain")  # kinds of stages whose curves have a length


@dataclass(frozen=True)
class FigureChoice:
    """Which figure is drawn of those that a drawing makes; what is empty is the first one that there is."""

    search: str = ""
    objective: str = ""
    x: str = ""
    y: str = ""


def stored_curves(store: "Store", stages: Collection[str] | None = None) -> CurvesOf:
    """The curves of a trial that figures show, as a store has them; none without one of perplexity.

    Args:
        store: asked for the curves of those trials alone that have one.
        stages: keys of the stages that have one, where they are known; else the store is asked at once.
    """
    leading = store.stages_with(LEADING) if stages is None else stages

    def of(trial: TrialResult) -> Mapping[str, Curve]:
        if not any(stage.key in leading for stage in trial.plan.stages):
            return {}
        return curves(trial, store.series(trial.id, in_figures))

    return of


class Material:
    """What the figures of some trials are drawn from: those measured as most of them are.

    Args:
        results: the trials.
        windows: gives the per-window losses of one.
        curves: gives the curves of one.
        spec: of the sweep as it is stored, which declares its searches.
    """

    def __init__(
        self,
        results: Sequence[TrialResult],
        windows: WindowsOf,
        curves: CurvesOf,
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        self.trials = comparable([trial for trial in results if not trial.implicit])
        self._spec = spec or {}
        many = len({trial.group for trial in self.trials}) > _MOST_INTERVALS
        self._windows: WindowsOf = (lambda trial: None) if many else windows
        self._curves_of = curves
        self._made: dict[QualityAxis, Sequence[QualityPoint]] = {}

    @cached_property
    def sizes(self) -> set[int]:
        """Different numbers of parameters."""
        return {trial.sparsity.parameters for trial in self.trials if trial.measured and trial.sparsity}

    def whole(self, axis: QualityAxis = SPARSITY) -> Sequence[QualityPoint]:
        """A point for every configuration that pruned more than a single decoder layer, or nothing."""
        return tuple(whole_models(self._points(axis), self.trials))

    def _points(self, axis: QualityAxis) -> Sequence[QualityPoint]:
        if axis not in self._made:
            self._made[axis] = tuple(quality_points(self.trials, self._windows, axis))
        return self._made[axis]

    @cached_property
    def bars(self) -> Sequence[LayerBar]:
        return layer_bars(self.trials, self._windows)

    def each_whole(self, axis: QualityAxis = SPARSITY) -> Iterator[QualityPoint]:
        """What `whole` has, one after the other and without intervals."""
        return whole_models(quality_points(self.trials, lambda trial: None, axis), self.trials)

    @property
    def dense(self) -> float | None:
        return dense_perplexity(self._points(SPARSITY))

    @cached_property
    def curves(self) -> Sequence[Mapping[str, Curve]]:
        """Of trials that trained, those of a shared chain once; what runs now comes first."""
        found: list[Mapping[str, Curve]] = []
        seen: set[tuple[str, ...]] = set()
        for trial in sorted(self.trials, key=lambda trial: (trial.state != "running", not trial.stages)):
            trained = tuple(stage.key for stage in trial.plan.stages if stage.kind in _TRAIN)
            if trial.state == "waiting" or trained in seen or len(found) == _MOST_CURVES:
                continue
            made = self._curves_of(trial)
            if "perplexity" in made and len(made["perplexity"].steps) > 1:
                seen.add(trained)
                found.append(made)
        return found

    @cached_property
    def searches(self) -> Sequence[Searched]:
        return searches(self.trials, self._spec)

    @property
    def search_names(self) -> list[str]:
        return [one.label for one in self.searches]

    def searched(self, choice: FigureChoice) -> Searched:
        """The search that is chosen. Raises ReportError where there is none."""
        need(self.searches, "trials with searched values")
        return next(one for one in self.searches if one.label == chosen("search", choice.search, self.search_names))

    def intermediate(self, searched: Searched) -> Iterator[tuple[TrialResult, Curve]]:
        """The trials of a search that were measured while they trained, with their perplexity."""
        for trial in sorted(searched.trials, key=lambda trial: trial.reason != EARLY_STOP)[:_MOST_INTERMEDIATE]:
            curve = self._curves_of(trial).get("perplexity") if trial.state != "waiting" else None
            if curve is not None and len(curve.steps) > 1:
                yield trial, curve

    @property
    def heat_maps(self) -> list[TrialResult]:
        """Trials whose tensors have different shares of zeros."""
        counted = [trial for trial in self.trials if trial.measured and trial.sparsity is not None]
        return [trial for trial in counted if trial.sparsity and len(set(trial.sparsity.by_tensor.values())) > 1]


def chosen(what: str, name: str, valid: Sequence[str]) -> str:
    """What is named, or the first. Raises UnknownPartError where there is no such."""
    if name and name not in valid:
        raise UnknownPartError(unknown(what, name, valid))
    return name or valid[0]
