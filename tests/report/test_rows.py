from prunegpt.report.rows import select_rows
from prunegpt.report.tables import build_table
from prunegpt.spec.schema import TableSpec
from tests.support.results import evaluation, make_trial


def spec(*rows: object, reported: dict[str, object] | None = None) -> TableSpec:
    return TableSpec.model_validate(
        {"title": "T", "rows": list(rows), "columns": ["model"], "reported": reported or {}}
    )


def done(name: str, **fields: object) -> object:
    return make_trial(name, measured=evaluation(), **fields)  # type: ignore[arg-type]


def names(table: TableSpec, results: list, sweep: str | None = None) -> list[str]:
    return [row.name for row in select_rows(table, results, sweep)[0]]


def test_patterns_in_order_and_each_trial_once() -> None:
    results = [done("b", order=2), done("a-2", order=1), done("a-1", order=0)]
    assert names(spec("b", "a-*"), results) == ["b", "a-1", "a-2"]
    assert names(spec("a-2", "*"), results) == ["a-2", "a-1", "b"]
    assert names(spec("*", "a-1"), results) == ["a-1", "a-2", "b"]


def test_seeds_fold_into_one_row() -> None:
    results = [done(f"a@{seed}", group="a", seed=seed) for seed in (2, 1, 3)]
    (row,) = select_rows(spec("a"), results)[0]
    assert row.name == "a"
    assert [trial.seed for trial in row.trials] == [1, 2, 3]
    assert names(spec("a@2", "a"), results) == ["a@2", "a"]


def test_a_pattern_that_matches_nothing_is_a_missing_row() -> None:
    (row,) = select_rows(spec({"trial": "nowhere", "label": "GPT"}), [done("a")])[0]
    assert (row.name, row.label, row.state, row.trials) == ("nowhere", "GPT", "missing", ())


def test_published_figures_stand_for_trials_that_are_not_there() -> None:
    table = spec("layer-*", reported={"layer-0": 23.62, "layer-1": 22.94, "other": 1.0})
    rows, unplaced = select_rows(table, [])
    assert [(row.name, row.reported["perplexity"].value) for row in rows if row.reported] == [
        ("layer-0", 23.62),
        ("layer-1", 22.94),
    ]
    assert unplaced == ["other"]


def test_figures_go_to_names_before_globs() -> None:
    table = spec("*", reported={"p*": {"text": "inf"}, "pruned": 156.08})
    rows, unplaced = select_rows(table, [done("pruned"), done("pruned-b")])
    assert [row.reported["perplexity"].value for row in rows if row.reported] == [156.08, None]
    assert unplaced == []


def test_hidden_trials_are_shown_only_by_name() -> None:
    results = [done("a"), done("teacher-gpt2", implicit=True), done("gone", shown=False)]
    assert names(spec("*"), results) == ["a"]
    assert names(spec("*", "teacher-gpt2", "gone"), results) == ["a", "teacher-gpt2", "gone"]


def test_only_the_best_of_a_pattern() -> None:
    results = [
        make_trial(f"s-{index}", order=1, measured=evaluation(perplexity=value))
        for index, value in enumerate([30.0, 10.0, 20.0, 15.0])
    ]
    results += [make_trial("s-4", order=1, state="stopped", measured=evaluation(perplexity=1.0)), done("base")]
    assert names(spec("base", {"trial": "s-*", "best": 2}), results) == ["base", "s-1", "s-3"]
    assert names(spec({"trial": "s-*", "best": 9}), results) == ["s-1", "s-3", "s-2", "s-0", "s-4"]


def test_what_breaks_a_constraint_of_its_search_is_not_the_best() -> None:
    plan = {"search": "s", "constraints": ("sparsity >= 0.85",)}
    results = [
        make_trial(f"s-{share}", pruned=share, plan=plan, measured=evaluation(perplexity=value))
        for share, value in ((0.1, 10.0), (0.86, 20.0), (0.95, 30.0))
    ]
    best = spec({"trial": "s-*", "best": 1})
    assert names(best, results) == ["s-0.86"]
    assert names(best, results[:1]) == ["s-0.1"]  # nothing else is there
    shown = TableSpec.model_validate({"title": "T", "rows": ["s-*"], "columns": ["perplexity"]})
    table = build_table(shown, results, lambda _: None)
    assert ["best" in row.cells[0].marks for row in table.rows] == [False, True, False]
    [note] = [note for note in table.footnotes if "sparsity >= 0.85" in note.text]
    assert note.text == "not fulfilled: sparsity >= 0.85; neither best nor compared"


def test_other_sweeps_are_named() -> None:
    results = [done("zero-shot"), done("zero-shot", sweep="wikitext103")]
    assert len(names(spec("zero-shot"), results)) == 2
    rows, _ = select_rows(spec("zero-shot", "wikitext103/*"), results, "wikitext2")
    assert [row.trials[0].sweep for row in rows] == ["wikitext2", "wikitext103"]


def test_states() -> None:
    def state(*states: str) -> tuple[str, str]:
        results = [
            make_trial(f"a@{i}", group="a", seed=i, state=name, measured=evaluation())  # type: ignore[arg-type]
            for i, name in enumerate(states)
        ]
        (row,) = select_rows(spec("a"), results)[0]
        return row.state, row.state_text

    assert state("finished") == ("finished", "finished")
    assert state("finished", "running") == ("partial", "partial")
    assert state("waiting") == ("waiting", "not run")
    assert state("stopped") == ("stopped", "stopped early")
    assert state("waiting", "running", "failed") == ("running", "running")
    assert state("failed", "diverged") == ("diverged", "diverged")


def test_a_finished_trial_needs_a_number_to_count() -> None:
    results = [make_trial("a", measured=evaluation(finite=False)), make_trial("b", measured=None)]
    assert [row.state for row in select_rows(spec("a", "b"), results)[0]] == ["not finite", "not measured"]


def test_remarks_say_what_is_left_out() -> None:
    results = [
        done("a@1", group="a", seed=1),
        make_trial("a@2", group="a", seed=2, state="diverged"),
        make_trial("a@3", group="a", seed=3, state="waiting"),
        make_trial("b", state="failed", reason="out-of-memory"),
    ]
    first, second = select_rows(spec("a", "b"), results)[0]
    assert first.remarks == ("1 of 3 seeds; not in the mean: 1 diverged, 1 not run",)
    assert second.remarks == ("failed: out-of-memory",)
