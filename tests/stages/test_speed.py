"""Speed as an evaluation of trials: what it is measured beside, where its figures are, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunegpt.errors import ReportError, SpecError
from prunegpt.planning.resolve import plan_data
from prunegpt.records import Speed, TrialResult
from prunegpt.report.columns import COLUMNS
from prunegpt.report.compare import compare
from prunegpt.report.fields import TrialFields
from prunegpt.report.groups import grouped
from prunegpt.report.panels import lines
from prunegpt.report.query import selected
from prunegpt.report.tables import build_table, usual_table
from prunegpt.root import Root
from prunegpt.spec.metrics import METRICS, SPEEDS, direction_of, evaluation_of
from prunegpt.spec.plan import PlannedEvaluation, TrialPlan
from prunegpt.spec.schema import EvaluateSpec, TableSpec
from prunegpt.spec.search import TargetSpec
from tests.support.results import evaluation, make_trial
from tests.support.running import run_attempt
from tests.support.timed import speed, timed_evaluation

C4 = EvaluateSpec(name="c4")
SHORT = {"prompt": 8, "generate": 3, "repeats": 6}
HALF = {"name": "half", "stages": [{"prune": {"method": "magnitude", "sparsity": 0.5}}]}
DENSE = {"name": "dense"}


@pytest.fixture
def base(model_folder: Path, text_files: dict[str, str]) -> dict[str, Any]:
    return {"model": str(model_folder), "data": {"files": text_files, "block_size": 32}}


def planned(base: dict[str, Any], *trials: dict[str, Any], speed: Any = SHORT, **spec: Any) -> dict[str, TrialPlan]:
    asked = {**base, "evaluate": [{"max_windows": 2}, {"speed": speed}]}
    plan = plan_data({"name": "s", "base": asked, "trials": list(trials), **spec})
    return {trial.name: trial for trial in plan.trials}


def test_models_are_measured_beside_the_one_they_come_from(base: dict[str, Any], tmp_path: Path) -> None:
    root = Root(tmp_path)
    trial = planned(base, HALF)["half"]
    record = run_attempt(root, trial)
    assert record.state == "finished", record.error
    assert not record.stages[0].also  # after the last stage alone
    found = record.stages[-1].also["speed"]
    assert found.speed is not None
    assert trial.also[0].reference == trial.stages[0].key
    assert found.protocol.endswith(f"against {trial.also[0].called}")
    assert found.speed.repeats == 6
    with np.load(root.evaluation(trial.key, found.key) / "times.npz") as times:
        assert {name: times[name].shape for name in times.files} == {"model": (6, 3), "reference": (6, 3)}
    for stage in record.stages:
        files = (tmp_path / "stages" / stage.key / "model").glob("*.safetensors")
        assert stage.bytes == (sum(file.stat().st_size for file in files) or record.stages[0].bytes)
        assert stage.stored == "float32"
    again = run_attempt(root, trial, number=2)
    assert all(stage.cached for stage in again.stages)
    assert again.stages[-1].also["speed"] == found


def test_a_trial_may_be_the_reference(base: dict[str, Any], tmp_path: Path) -> None:
    more = {"name": "more", "stages": [{"prune": {"method": "magnitude", "sparsity": 0.7}}]}
    trials = planned(base, more, HALF, speed={**SHORT, "against": "half"})
    assert trials["more"].needs == (trials["half"].key,)
    assert trials["half"].needs == ()  # beside itself
    assert {trial.also[0].reference for trial in trials.values()} == {trials["half"].key}
    assert {trial.also[0].called for trial in trials.values()} == {"s/half"}
    root = Root(tmp_path)
    for trial in sorted(trials.values(), key=lambda one: len(one.needs)):
        record = run_attempt(root, trial)
        assert record.state == "finished", record.error
    assert record.stages[-1].also["speed"].protocol.endswith("against s/half")


def test_what_decides_a_speed_is_in_its_key(base: dict[str, Any]) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"threads": 1},
        *({name: 7} for name in ("prompt", "generate", "batch", "repeats")),
    ]
    keys = {planned(base, HALF, speed={**SHORT, **change})["half"].also[0].key for change in changes}
    keys.add(planned(base, HALF, DENSE, speed={**SHORT, "against": "half"})["dense"].also[0].key)
    keys.add(planned({**base, "device": "cpu"}, HALF)["half"].also[0].key)
    keys.add(planned({**base, "precision": "bfloat16"}, HALF)["half"].also[0].key)
    assert len(keys) == len(changes) + 3
    plain = plan_data({"name": "s", "base": {**base, "evaluate": {"max_windows": 2}}, "trials": [HALF]}).trials[0]
    timed = planned(base, HALF)["half"]
    assert (plain.evaluation_key, plain.key) == (timed.evaluation_key, timed.key)


WRONG = {
    "no such trial": (
        {"speed": {"against": "hlaf"}},
        r"evaluate\.1\.speed\.against: a reference must be a trial.*half",
    ),
    "too long": ({"speed": {"prompt": 60}}, r"must fit the 64 positions .* they are 124\. Set a shorter prompt"),
    "too few repeats": ({"speed": {"repeats": 5}}, "repeats"),
    "a text": ({"speed": {}, "split": "train"}, "split: belongs to a perplexity, and this evaluates speed"),
    "windows at a time": ({"speed": {}, "batch_size": 2}, "batch_size: belongs to .*, and this evaluates speed"),
    "tasks": ({"speed": {}, "tasks": ["x"]}, "of tasks or of speed, and this has both. Make two of it"),
    "a taken name": ({"speed": {}, "name": "prefill"}, "name: must not be prefill"),
    "two of one name": ({"speed": {}, "name": ""}, "names of evaluations must differ; speed is there more than once"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_go_together_is_refused(case: str, base: dict[str, Any]) -> None:
    asked, message = WRONG[case]
    evaluate = [{}, asked, *([{"speed": {}}] if case == "two of one name" else [])]
    with pytest.raises(SpecError, match=message):
        plan_data({"name": "s", "base": {**base, "evaluate": evaluate}, "trials": [HALF]})


def test_references_in_a_circle_are_refused(base: dict[str, Any]) -> None:
    trials = [
        {**HALF, "name": name, "evaluate": {"speed": {**SHORT, "against": other}}} for name, other in ("ab", "ba")
    ]
    with pytest.raises(SpecError, match=r"references must not form a circle: a → b → a\. Measure one beside"):
        plan_data({"name": "s", "base": base, "trials": trials})


@pytest.mark.parametrize("metric", SPEEDS)
def test_searches_targets_and_columns_need_an_evaluation_of_speed(metric: str, base: dict[str, Any]) -> None:
    space = {"stages.0.prune.sparsity": [0.3, 0.5]}
    searched = {**HALF, "name": "s", "search": {"space": space, "n_trials": 2, "objectives": ["perplexity", metric]}}
    table = {"title": "t", "rows": ["*"], "columns": ["trial", metric]}
    target = {"metric": metric, "value": 1}
    assert planned(base, searched, target=target, tables=[table]) == {}
    plain = {"name": "s", "base": base, "trials": [HALF]}
    for wrong in ({"trials": [searched]}, {"tables": [table]}, {"target": target}):
        with pytest.raises(SpecError, match=f"{metric} is a speed, and evaluate measures none. Add evaluate.speed"):
            plan_data({**plain, **wrong})
    with pytest.raises(SpecError, match=r"unknown evaluation 'long'\. Valid: speed\."):
        planned(base, HALF, target={**target, "metric": f"{metric}:long"})


def test_metrics_know_their_evaluation_and_direction() -> None:
    assert [evaluation_of(f"{metric}:long") for metric in SPEEDS] == ["long"] * len(SPEEDS)
    assert {evaluation_of(metric) for metric in SPEEDS} == {"speed"}
    assert [direction_of(metric) for metric in ("speedup:prefill", "decode:long", "memory")] == [
        "maximize", "maximize", "minimize"
    ]  # fmt: skip
    assert not set(SPEEDS) & set(METRICS)


# -- what is shown -----------------------------------------------------------------------------------------------------


def timed(name: str, found: Speed | None, *, protocol: str = "speed/here", **fields: Any) -> TrialResult:
    planned = {"evaluate": {"speed": {}}, "key": "k", "reference": "r"}
    trial = make_trial(name, measured=evaluation(), plan={"also": [planned]}, **fields)
    if found is None:
        return trial
    also = {"speed": timed_evaluation(found, protocol)}
    last = trial.stages[-1].model_copy(update={"also": also, "bytes": 77_000_000, "stored": "float32"})
    return trial.model_copy(update={"stages": (*trial.stages[:-1], last)})


def table(*trials: TrialResult, columns: tuple[str, ...]) -> Any:
    spec = TableSpec(title="t", rows=("*",), columns=columns, provenance=False)
    return build_table(spec, trials, lambda _: None)


def test_a_table_shows_ratios_with_intervals_and_what_they_are_of() -> None:
    made = table(timed("a", speed()), timed("b", None), columns=("trial", *SPEEDS, "parameters", "nonzero", "bytes"))
    first, second = ([cell.text for cell in row.cells] for row in made.rows)
    assert first[1:7] == ["× 1.200 [1.180, 1.220]"] * 2 + ["24.00", "24.00", "0.5000", "5.0 MB"]
    assert first[7:] == ["124,439,808", "124,439,808", "77.0 MB"]
    assert second[1:7] == ["not measured"] * 6
    assert second[9] == "–"
    assert [note.text for note in made.footnotes if note.text.startswith("Speed")] == [
        "Speed: speed/here",
        "Speed-up: median over pairs of runs in turns; in brackets its 95% interval by the sign test",
    ]


def test_a_noisy_machine_is_in_the_table() -> None:
    made = table(timed("a", speed(noise=0.031)), timed("b", speed()), columns=("trial", "speedup", "memory"))
    assert [row.cells[1].footnotes for row in made.rows] == [("¶",), ()]
    assert made.rows[0].cells[1].details["noise"] == 0.031
    assert not made.rows[0].cells[2].footnotes
    assert "a reference beside itself came out more than 3% off" in made.footnotes[0].text


def test_speeds_of_two_machines_are_told_apart_and_have_no_mean() -> None:
    here, there = timed("a", speed()), timed("b", speed(), protocol="speed/there")
    made = table(here, there, columns=("trial", "decode"))
    numbered = {note.symbol: note.text for note in made.footnotes}
    assert [numbered[row.cells[1].footnotes[0]] for row in made.rows] == [
        "protocol speed/here",
        "protocol speed/there",
    ]
    seeds = [here.model_copy(update={"plan": here.plan.model_copy(update={"group": "g"})}) for here in (here, there)]
    with pytest.raises(ReportError, match="seeds of one row must be measured alike; between a and b the protocol"):
        table(*seeds, columns=("trial", "decode"))
    fields = TrialFields([here, there])
    (group,) = grouped([here, there], [fields.find("state")])
    assert "not comparable" in group.spread(fields.find("decode")).why
    decode = next(one for one in compare(here, there, lambda _: None).metrics if one.name == "decode")
    assert (decode.first, decode.second, decode.difference) == (24, 24, None)


def test_fields_filters_and_the_usual_table_know_them() -> None:
    trials = [timed("a", speed()), timed("b", speed(0.9)), timed("c", None)]
    fields = TrialFields(trials)
    found = selected(trials, "speedup >= 1 and speedup:prefill > 1 and nonzero > 9 and bytes < 80000000", fields)
    assert [one.name for one in found] == ["a"]
    assert {fields.find(metric).label for metric in SPEEDS} == {COLUMNS[metric].header for metric in SPEEDS}
    assert trials[0].metrics["speedup:prefill"] == 1.2
    assert trials[0].metrics["nonzero"] == trials[0].metrics["size"]
    assert [column.value for column in usual_table("s", trials).columns][-4:] == [
        "speedup", "decode", "tokens", "seconds"
    ]  # fmt: skip


def test_figures_of_columns_show_the_evaluation_that_a_column_names() -> None:
    trials = [timed("a", speed()), timed("b", speed(0.9))]
    points = lines(trials, x="speedup", y="decode", by=None, band=False).data[0]
    assert (points["x"], points["y"]) == ([0.9, 1.2], [18.0, 24.0])
    named = []
    for one, perplexity in zip(trials, (7.0, 8.0), strict=True):
        last = one.stages[-1].model_copy(update={"also": {"c4": evaluation(perplexity=perplexity)}})
        plan = one.plan.model_copy(update={"also": (PlannedEvaluation(evaluate=C4, key="c"),)})
        named.append(one.model_copy(update={"stages": (*one.stages[:-1], last), "plan": plan}))
    found = lines(named, x="perplexity", y="perplexity:c4", by=None, band=False).data[0]
    assert found["y"] == pytest.approx([7.0, 8.0])


def test_a_trial_that_measures_speed_alone_is_finished() -> None:
    trial = timed("a", speed())
    alone = trial.plan.model_copy(update={"evaluate": trial.plan.evaluate.model_copy(update={"skip": True})})
    last = trial.stages[-1].model_copy(update={"evaluation": None})
    assert trial.model_copy(update={"plan": alone, "stages": (*trial.stages[:-1], last)}).is_evaluated


def test_a_target_is_reached_by_a_measured_speed() -> None:
    target = TargetSpec(metric="speedup", value=1.1)
    assert target.reached(timed("a", speed()).metrics)
    assert not target.reached(timed("a", speed(1.05)).metrics)
    assert not target.reached(timed("a", None).metrics)
