"""The table of a sweep whose spec declares none."""

from typing import Any

from prunegpt.records import TrialResult
from prunegpt.report.cells import Table
from prunegpt.report.tables import build_table, usual_table
from tests.support.results import evaluation, make_trial


def swept(name: str, perplexity: float = 20.0, **values: Any) -> TrialResult:
    config = {"train": {key.removeprefix("train."): value for key, value in values.items() if "train." in key}}
    trial = make_trial(name, config=config, measured=evaluation(perplexity=perplexity))
    return trial.model_copy(update={"plan": trial.plan.model_copy(update={"swept": values})})


def built(trials: list[TrialResult]) -> Table:
    return build_table(usual_table("wikitext2", trials), trials, lambda _: None, sweep="wikitext2")


def headings(trials: list[TrialResult]) -> list[str]:
    return [heading.text for heading in built(trials).columns]


def test_all_trials_stand_in_it_with_what_was_swept() -> None:
    trials = [swept(f"a-{rate}", **{"train.learning_rate": rate}) for rate in (0.1, 0.2)]
    found = built([*trials, make_trial("dense", measured=evaluation())])
    assert [heading.text for heading in found.columns][3] == "learning rate"
    assert len(found.rows) == 3


def test_what_cannot_be_a_cell_or_is_nowhere_configured_gets_no_column() -> None:
    without = headings([make_trial("dense", measured=evaluation())])
    assert headings([swept("a", **{"train.optim": ["adamw"], "elsewhere.rate": 1})]) == without


def test_headings_stay_apart() -> None:
    paths = {"train.sparsity": 0.1, "train.a.rate": 1, "train.b.rate": 2}
    found = headings([swept("a", **paths)])
    assert [text for text in found if text.startswith("train.")] == list(paths)
    assert len(set(found)) == len(found)


def test_a_search_over_whole_chains_has_the_column_of_stages_alone() -> None:
    trial = swept("a", stages="short")
    plan = trial.plan.model_copy(update={"config": {**trial.plan.config, "stages": ["finetune"]}})
    found = headings([trial.model_copy(update={"plan": plan})])
    assert found == headings([make_trial("dense", measured=evaluation())])


def test_of_many_the_best_are_shown() -> None:
    found = built([swept(f"t{index}", perplexity=20.0 + index) for index in range(201)])
    assert found.title == "The best 50 of 201 trials of wikitext2"
    assert len(found.rows) == 50


def test_a_stored_sweep_without_tables_has_one(tmp_path: Any) -> None:
    from prunegpt.api import stored
    from prunegpt.report.declared import tables_of
    from prunegpt.root import Root
    from tests.support.many_trials import make_many

    root = Root(tmp_path / "runs")
    make_many(root, 3)
    (table,) = tables_of(stored("many", root))
    assert (table.title, len(table.rows)) == ("All trials of many", 3)
