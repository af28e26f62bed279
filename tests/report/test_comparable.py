"""Two figures are compared where they were measured alike, and nowhere else: every field of the key, everywhere."""

from typing import Any

import pytest

from prunegpt.records import ComparisonKey, Evaluation, TrialResult, comparable
from prunegpt.report.compare import compare
from prunegpt.report.gallery import figures_of
from prunegpt.report.measure import beside_median, measure, standings
from prunegpt.report.rows import select_rows
from prunegpt.report.statistics import WindowLosses
from prunegpt.report.tables import build_table
from prunegpt.spec.schema import TableSpec
from prunegpt.sweep.curves import point_of
from prunegpt.web.api.graph import made
from prunegpt.web.api.sweeps import best_of
from tests.support.results import draw_windows, evaluation, make_trial

PRUNE = {"kind": "prune", "prune": {"method": "magnitude", "sparsity": 0.5}}
AS_MOST = {"text": "0" * 24, "split": "validation", "protocol": "blocks/32"}
OTHERWISE = {
    name: {**AS_MOST, name: value} for name, value in zip(AS_MOST, ("1" * 24, "train", "sliding/32"), strict=True)
}
OTHERWISE["key"] = {**AS_MOST, "text": "", "key": "of an earlier version"}
assert {*ComparisonKey._fields} == {*AS_MOST}

odd = pytest.mark.parametrize("odd", OTHERWISE.values(), ids=OTHERWISE)


class Kept:
    """Trials and their windows; every one has its own, though they are as many and as long."""

    def __init__(self) -> None:
        self.of: dict[int, WindowLosses] = {}

    def trial(self, name: str, loss: float, how: dict[str, str], **fields: Any) -> TrialResult:
        windows = draw_windows(loss, seed=1)
        measured = evaluation(windows).model_copy(update={"key": "e", "text": "", **how})
        trial = make_trial(name, measured=measured, **fields)
        self.of[trial.id] = windows
        return trial

    def __call__(self, trial: TrialResult) -> WindowLosses | None:
        return self.of.get(trial.id)


@odd
def test_a_table_marks_the_best_of_those_alone_and_says_what_the_others_are(odd: dict[str, str]) -> None:
    kept = Kept()
    trials = [kept.trial("a", 3.0, AS_MOST), kept.trial("b", 3.2, AS_MOST), kept.trial("odd", 2.0, odd)]
    spec = TableSpec.model_validate({"title": "T", "rows": ["*"], "columns": ["perplexity", "difference"]})
    shown = {row.trial: row.cells for row in build_table(spec, trials, kept).rows}
    assert {name: cells[0].marks for name, cells in shown.items()} == {"a": ("best",), "b": (), "odd": ()}
    assert shown["odd"][1].value is None
    assert all(cells[0].footnotes for cells in shown.values())
    assert shown["a"][0].footnotes == shown["b"][0].footnotes != shown["odd"][0].footnotes


@odd
def test_two_trials_are_not_compared(odd: dict[str, str]) -> None:
    kept = Kept()
    found = compare(kept.trial("a", 3.0, AS_MOST), kept.trial("odd", 2.0, odd), kept)
    assert found.test is None
    assert "can be compared where they were measured alike; the" in found.reason
    by_name = {metric.name: metric.difference for metric in found.metrics}
    assert [by_name[name] for name in ("perplexity", "word_perplexity", "bits_per_byte")] == [None] * 3


@odd
def test_seeds_have_no_mean(odd: dict[str, str]) -> None:
    kept = Kept()
    trials = [kept.trial("a@1", 3.0, AS_MOST, seed=1), kept.trial("a@2", 2.0, odd, seed=2)]
    with pytest.raises(Exception, match="must be measured alike; between a@1 and a@2 the"):
        measure(trials, kept)


@odd
def test_standings_and_medians_are_among_those_alone(odd: dict[str, str]) -> None:
    kept = Kept()
    trials = [kept.trial(f"t{index}", 3.0 + index / 10, AS_MOST) for index in range(3)] + [kept.trial("odd", 2.0, odd)]
    rows = [measure([trial], kept) for trial in trials]
    found = standings(rows)
    assert [one is not None and one.best for one in found] == [True, False, False, False]
    assert found[3] is None
    placed = beside_median(rows, [True] * 4)
    assert [one is not None and one.is_median for one in placed] == [False, True, False, False]
    assert placed[3] is None


@odd
def test_the_best_of_a_sweep_and_its_best_rows_are_of_those_measured_as_most_are(odd: dict[str, str]) -> None:
    kept = Kept()
    trials = [kept.trial("a", 3.0, AS_MOST), kept.trial("b", 3.2, AS_MOST), kept.trial("odd", 2.0, odd)]
    assert [trial.name for trial in comparable(trials)] == ["a", "b"]
    best = best_of(trials)
    assert best is not None
    assert best.trial == "wikitext2/a"
    spec = TableSpec.model_validate({"title": "T", "rows": [{"trial": "*", "best": 2}], "columns": ["perplexity"]})
    assert [row.name for row in select_rows(spec, trials)[0]] == ["a", "b"]


@odd
def test_no_figure_holds_the_odd_one(odd: dict[str, str]) -> None:
    kept = Kept()
    trials = [kept.trial(f"p{s}", 3.0 + s, AS_MOST, stages=[PRUNE], pruned=s) for s in (0.2, 0.5, 0.7)]
    figures = figures_of([*trials, kept.trial("odd", 1.0, odd, stages=[PRUNE], pruned=0.9)], kept)
    assert [figure.name for figure in figures] == ["perplexity-over-sparsity", "pareto"]
    drawn = [float(y) for figure in figures for line in figure.figure.axes[0].lines for y in line.get_ydata()]
    assert min(drawn) > 10


@odd
def test_a_sensitivity_is_not_taken_between_them(odd: dict[str, str]) -> None:
    kept = Kept()
    trial = kept.trial("a", 3.0, AS_MOST, stages=[PRUNE], pruned=0.5, layers=[1])
    before = trial.stages[0].model_copy(update={"evaluation": kept.trial("dense", 2.5, odd).evaluation})
    assert point_of(trial.model_copy(update={"stages": (before, trial.stages[1])})) is None
    alike = trial.stages[0].model_copy(update={"evaluation": kept.trial("dense", 2.5, AS_MOST).evaluation})
    assert point_of(trial.model_copy(update={"stages": (alike, trial.stages[1])})) is not None


@pytest.mark.parametrize("how", [AS_MOST, *OTHERWISE.values()], ids=["as most", *OTHERWISE])
def test_a_shared_stage_shows_a_figure_where_all_measured_it_alike(how: dict[str, str]) -> None:
    kept = Kept()
    shared = {**PRUNE, "key": "shared"}
    trials = [kept.trial("a", 3.0, AS_MOST, stages=[shared]), kept.trial("b", 3.0, how, stages=[shared])]
    (node,) = (node for node in made(trials).nodes if node.key == "shared")
    assert (node.perplexity is not None) is (how == AS_MOST)


@pytest.mark.parametrize("name", sorted(Evaluation.model_fields.keys() - {"text", "split", "protocol"}))
def test_nothing_else_keeps_figures_apart(name: str) -> None:
    one = evaluation(draw_windows(3.0)).model_copy(update={"text": "t"})
    assert one.model_copy(update={name: "other"}).comparison_key == one.comparison_key
