"""The catalogue of fields: of every kind of trial, each with a value of its kind, and groups of them."""

import math

import pytest

from prunegpt.records import StageRecord, TrialResult
from prunegpt.report.field import NUMERIC, display_name
from prunegpt.report.fields import FieldError, TrialFields, ordered
from prunegpt.report.format import is_number, number_style, written
from prunegpt.report.groups import grouped
from prunegpt.report.query import selected
from prunegpt.store import Store
from prunegpt.tracking.foreign import Keeper
from prunegpt.tracking.run_path import RunPath
from tests.support.results import evaluation, make_trial
from tests.support.study import make_root


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[TrialResult]:
    """Trials of every state, and runs of a W&B client."""
    root = make_root(tmp_path_factory.mktemp("root"), windows=False)
    with Store.open(root) as store:
        for place, name in enumerate(("aa11", "bb22")):
            keeper = Keeper(root, store, RunPath("me", "kd", name))
            summary = {"val/acc": 0.5 + place / 10, "loss": 3.0 + place, "best": {"step": place}, "note": "n" * place}
            keeper.update(label=f"run {place}", config={"lr": 0.1, "opt": {"name": "adam"}}, summary=summary)
            keeper.update(tags=("baseline",), notes="the first", group="small")
            keeper.end("finished")
        store.set_note(store.result("study/finetuned").id, "look here")
        return [result for sweep in store.sweeps() for result in store.results(sweep.name)]


def test_every_field_has_values_of_its_kind(results: list[TrialResult]) -> None:
    fields = list(TrialFields(results))
    assert len({field.key for field in fields}) == len(fields) > 60
    for field in fields:
        assert field.about
        values = [value for result in results if (value := field.of(result)) is not None]
        assert "" not in values or field.origin != "trial", field.key
        if field.kind in NUMERIC:
            assert all(is_number(value) for value in values), field.key
        if field.kind == "percent":
            assert all(0 <= value <= 1 for value in values), field.key
        how = number_style(field.kind, values)
        for value in values:
            text = written(value, field.kind, how)
            assert text
            assert "nan" not in text
        for descending in (False, True):
            assert len(ordered(results, field, descending)) == len(results)
        assert TrialFields(results).find(field.key).key == field.key


def test_what_a_foreign_run_has_logged_is_a_field_by_its_own_name(results: list[TrialResult]) -> None:
    runs = [result for result in results if result.plan.foreign]
    fields = TrialFields(runs)
    assert [display_name(run) for run in runs] == ["run 0", "run 1"]
    found = {
        name: [fields.find(name).of(run) for run in runs] for name in ("val/acc", "loss", "best.step", "lr", "opt.name")
    }
    assert found == {
        "val/acc": [0.5, 0.6],
        "loss": [3.0, 4.0],
        "best.step": [0, 1],
        "lr": [0.1] * 2,
        "opt.name": ["adam"] * 2,
    }
    assert {"perplexity", "sparsity", "seed"}.isdisjoint(fields.fixed), "nothing here is a figure of ours"
    assert [run.name for run in selected(runs, 'val/acc > 0.55 and "baseline" in tags')] == ["bb22"]
    assert [run.name for run in selected(runs, "run 1")] == ["bb22"]
    assert selected(runs, "'first' in note and group == 'small'") == runs
    mixed = TrialFields(results)
    assert mixed.find("seed").of(runs[0]) is None
    assert mixed.find("logged.loss").of(runs[1]) == 4.0


def test_notes_of_people_are_a_field(results: list[TrialResult]) -> None:
    tuned = next(result for result in results if result.name == "finetuned")
    assert selected(results, "'look' in note", TrialFields(results, notes={tuned.id: "look here"})) == [tuned]


def test_a_shared_stage_is_charged_once_to_the_trial_that_computed_it() -> None:
    def trial(name: str, cached: tuple[bool, ...], started: float, attempts: int = 1) -> TrialResult:
        chain = (("load", "load"), ("tuned", "finetune"), (name, "prune"))
        records = tuple(
            StageRecord(key=key, kind=kind, index=place, cached=cached[place], seconds=10.0 * (place + 1))
            for place, (key, kind) in enumerate(chain)
        )
        return make_trial(name).model_copy(update={"stages": records, "started": started, "attempts": attempts})

    first, second = trial("a", (False, False, False), 5.0), trial("b", (True, True, False), 1.0)
    fields = TrialFields([second, first])
    own, every = fields.find("own_seconds"), fields.find("seconds")
    assert [own.of(one) for one in (first, second)] == [60.0, 30.0]
    assert [every.of(one) for one in (first, second)] == [60.0, 60.0]
    retried = trial("c", (True, True, False), 2.0, attempts=2)  # its first attempt computed them, its last found them
    fields = TrialFields([second, retried])
    assert [fields.find("own_seconds").of(one) for one in (second, retried)] == [30.0, 60.0]


def test_a_group_has_mean_and_spread_of_what_can_be_averaged() -> None:
    def seeds(protocols: tuple[str, ...]) -> list[TrialResult]:
        figures = [evaluation(perplexity=20.0 + seed, protocol=protocol) for seed, protocol in enumerate(protocols)]
        return [
            make_trial(f"a-{seed}", group="a", seed=seed, pruned=0.5, measured=figure)
            for seed, figure in enumerate(figures)
        ]

    trials = seeds(("p", "p", "p"))
    fields = TrialFields(trials)
    (group,) = grouped(trials, [fields.find("group")])
    found = group.spread(fields.find("perplexity"))
    assert (found.count, found.mean, found.deviation) == (3, pytest.approx(21.0), pytest.approx(1.0))
    assert (found.low, found.high) == (pytest.approx(20.0), pytest.approx(22.0))
    assert group.where == "group == 'a'"
    other = seeds(("p", "p", "q"))
    (group,) = grouped(other, [fields.find("group")])
    refused = group.spread(fields.find("perplexity"))
    assert (refused.mean, refused.deviation) == (None, None)
    assert refused.why == "not comparable: the protocol is p in one and q in the other"
    assert group.spread(fields.find("sparsity")).mean == 0.5, "zeros are zeros, however a perplexity was measured"


def test_values_near_the_largest_have_a_mean() -> None:
    trials = [make_trial(f"t{place}", plan={"swept": {"x": value}}) for place, value in enumerate((1.7e308, 1.6e308))]
    field = TrialFields(trials).find("x")
    (group,) = grouped(trials, [TrialFields(trials).find("group")])[:1]
    whole = type(group)((), tuple(trials), "")
    assert math.isfinite(whole.spread(field).mean or math.inf)


def test_a_name_that_no_field_has_is_told_with_the_nearest(results: list[TrialResult]) -> None:
    with pytest.raises(FieldError, match="Did you mean 'perplexity'"):
        TrialFields(results).find("perplexty")


COLUMNS = {
    "number": ([1e-5, 3.5e-4, 0.001], ["1.0e-5", "3.5e-4", "1.0e-3"]),
    "loss": ([43.217, 9.0, 1234.5, 2.5e9], ["43.22", "9.00", "1,234.50", "2.50e9"]),
    "percent": ([0.5, 0.9, 0.9999, 0], ["50.00%", "90.00%", "99.99%", "0.00%"]),
    "count": ([1_638_400, 12], ["1,638,400", "12"]),
    "seconds": ([3, 200.4, 4000], ["0:03", "3:20", "1:06:40"]),
}


@pytest.mark.parametrize(("kind", "values", "texts"), [(kind, *pair) for kind, pair in COLUMNS.items()])
def test_a_column_has_one_notation(kind: str, values: list[float], texts: list[str]) -> None:
    how = number_style(kind, values)
    assert [written(value, kind, how) for value in values] == texts


def test_notation_of_nothing() -> None:
    for kind in (*NUMERIC, "text", "list", "flag"):
        assert written(None, kind, number_style(kind, [])) == "–"
