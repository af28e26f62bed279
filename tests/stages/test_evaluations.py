"""Several evaluations of a trial: each measured once, by name, and added to what is finished without training."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prunegpt.errors import SpecError
from prunegpt.planning.resolve import plan_data
from prunegpt.records import TaskScore, TrialResult
from prunegpt.report.columns import COLUMNS
from prunegpt.report.fields import TrialFields
from prunegpt.report.groups import grouped
from prunegpt.report.measure import stored_windows
from prunegpt.report.query import selected
from prunegpt.report.rows import Row
from prunegpt.report.scores import no_documents, paired, standings_of, stored_documents
from prunegpt.report.tables import build_table
from prunegpt.root import Root
from prunegpt.spec.columns import EVALUATED
from prunegpt.spec.schema import TableSpec
from tests.support.choices import NAME, write_task
from tests.support.results import evaluation, make_trial
from tests.support.running import RunTrials, run_attempt

needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")
HALF = {"name": "half", "stages": [{"prune": {"method": "magnitude", "sparsity": 0.5}}]}
TRAINED = {"name": "trained", "stages": [{"finetune": {"train": {"eval_strategy": "steps", "eval_steps": 3}}}]}


@pytest.fixture
def base(model_folder: Path, text_files: dict[str, str]) -> dict[str, Any]:
    return {
        "model": str(model_folder),
        "data": {"files": text_files, "block_size": 32},
        "train": {"max_steps": 6, "per_device_train_batch_size": 2},
    }


def test_each_is_measured_as_it_would_be_alone(run_trials: RunTrials) -> None:
    several = [{"max_windows": 4}, {"name": "train", "split": "train", "max_windows": 3}]
    both = run_trials(HALF, evaluate=several)["half"]
    alone = run_trials(HALF, evaluate=several[1], attempt=2)["half"]
    first = run_trials(HALF, evaluate=several[0], attempt=3)["half"]
    for stage, one, two in zip(both.stages, first.stages, alone.stages, strict=True):
        assert stage.evaluation == one.evaluation
        assert stage.also == {"train": two.evaluation}


def test_their_curves_carry_their_names(base: dict[str, Any], tmp_path: Path) -> None:
    base |= {"evaluate": [{"max_windows": 2}, {"name": "train", "split": "train", "max_windows": 2}]}
    root, plan = Root(tmp_path), plan_data({"name": "s", "base": base, "trials": [TRAINED]})
    record = run_attempt(root, plan.trials[0])
    assert record.state == "finished", record.error
    points = (root.attempt("s", "trained", 1) / "points.jsonl").read_text()
    assert '"name":"perplexity:train"' in points
    assert '"name":"eval_loss:train"' in points
    last = record.stages[-1]
    assert last.evaluation is not None
    assert last.evaluation.perplexity != last.also["train"].perplexity


@pytest.mark.parametrize("column", EVALUATED)
def test_every_measured_column_may_name_an_evaluation(column: str, finished: tuple[Root, list[TrialResult]]) -> None:
    root, results = finished
    columns = ("trial", column, f"{column}:train")
    table = build_table(TableSpec(title="t", rows=("*",), columns=columns), results, stored_windows(root))
    alone = [trial.under("train") for trial in results]
    swapped = build_table(TableSpec(title="t", rows=("*",), columns=("trial", column)), alone, stored_windows(root))
    assert table.columns[2].text == f"{COLUMNS[column].header} (train)"
    for row, same in zip(table.rows, swapped.rows, strict=True):
        assert row.cells[2].value == same.cells[1].value
        assert row.cells[2].marks == same.cells[1].marks


@pytest.fixture(scope="module")
def finished(
    model_folder: Path, text_files: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Root, list[TrialResult]]:
    """Three finished trials with two evaluations each."""
    base = {
        "model": str(model_folder),
        "data": {"files": text_files, "block_size": 32},
        "evaluate": [{"max_windows": 8}, {"name": "train", "split": "train", "max_windows": 6}],
    }
    trials = [{"name": f"p{n}", "stages": [{"prune": {"method": "magnitude", "sparsity": n / 10}}]} for n in (3, 5, 7)]
    plan = plan_data({"name": "s", "base": base, "trials": trials})
    root = Root(tmp_path_factory.mktemp("evaluations"))
    results = []
    for number, trial in enumerate(plan.trials):
        record = run_attempt(root, trial)
        assert record.state == "finished", record.error
        results.append(TrialResult(id=number, plan=trial, shown=True, state="finished", stages=record.stages))
    return root, results


def test_an_evaluation_that_is_added_measures_and_trains_nothing(base: dict[str, Any], tmp_path: Path) -> None:
    root = Root(tmp_path)
    before = plan_data({"name": "s", "base": {**base, "evaluate": {"max_windows": 2}}, "trials": [TRAINED]}).trials[0]
    assert run_attempt(root, before).state == "finished"
    more = [{"max_windows": 2}, {"name": "train", "split": "train", "max_windows": 2}]
    after = plan_data({"name": "s", "base": {**base, "evaluate": more}, "trials": [TRAINED]}).trials[0]
    assert [stage.key for stage in after.stages] == [stage.key for stage in before.stages]
    assert after.measured_by != before.measured_by
    record = run_attempt(root, after, number=2)
    assert all(stage.cached for stage in record.stages)
    assert all(set(stage.also) == {"train"} for stage in record.stages)


def test_fields_filters_and_groups_know_them(finished: tuple[Root, list[TrialResult]]) -> None:
    _, results = finished
    fields = TrialFields(results)
    field = fields.find("perplexity:train")
    values = [trial.final.also["train"].perplexity for trial in results if trial.final]
    assert [field.of(trial) for trial in results] == values
    bound = sorted(value for value in values if value)[1]
    found = selected(results, f"perplexity:train <= {bound!r}", fields)
    assert len(found) == 2
    (group,) = grouped(results, [fields.find("state")])
    assert group.spread(field).mean == pytest.approx(np.mean([value for value in values if value]))


def test_a_training_is_evaluated_where_its_models_are_not_measured(base: dict[str, Any], tmp_path: Path) -> None:
    base |= {"evaluate": {"skip": True}}
    record = run_attempt(Root(tmp_path), plan_data({"name": "s", "base": base, "trials": [TRAINED]}).trials[0])
    assert record.state == "finished", record.error
    with pytest.raises(SpecError, match="no split 'test'"):
        plan_data({"name": "s", "base": {**base, "evaluate": {"skip": True, "split": "test"}}, "trials": [TRAINED]})


@pytest.mark.parametrize(("other", "compared"), [("a", True), ("b", False)])
def test_means_are_compared_where_they_are_of_the_same_tasks(other: str, compared: bool) -> None:
    rows = []
    for name, task, value in (("one", "a", 0.5), ("two", other, 0.4)):
        score = TaskScore(task=task, metric="acc", value=value, stderr=None, documents=9)
        trial = make_trial(name, measured=evaluation())
        also = {"tasks": evaluation().model_copy(update={"scores": (score,)})}
        last = trial.stages[-1].model_copy(update={"also": also})
        rows.append(Row(name, name, (trial.model_copy(update={"stages": (last,)}),)))
    assert [one.best for one in standings_of("tasks:mean", rows, no_documents) if one] == [compared, False]


WRONG = {
    "equal names": ([{"name": "a"}, {"name": "a"}], "names of evaluations must differ; a is there more than once"),
    "two without a name": ([{}, {"split": "train"}], "one without a name"),
    "tasks and text": ([{}, {"name": "t", "tasks": ["x"], "split": "train"}], "split: belongs to a perplexity"),
    "text and shots": ({"num_fewshot": 3}, "num_fewshot: belongs to tasks"),
    "an empty list": ([], "at least one value"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_go_together_is_refused(case: str, base: dict[str, Any]) -> None:
    evaluate, message = WRONG[case]
    with pytest.raises(SpecError, match=message):
        plan_data({"name": "s", "base": {**base, "evaluate": evaluate}, "trials": [HALF]})


@pytest.mark.parametrize("metric", ["perplexity:c4", "task:x"])
def test_a_metric_that_nothing_measures_is_refused(metric: str, base: dict[str, Any]) -> None:
    space = {"stages.0.prune.sparsity": [0.3, 0.5]}
    trial = {**HALF, "name": "s-{number}", "search": {"space": space, "n_trials": 2, "objectives": [metric]}}
    with pytest.raises(SpecError, match=metric):
        plan_data({"name": "s", "base": base, "trials": [trial]})


def test_a_search_may_take_any_of_them(base: dict[str, Any]) -> None:
    space = {"stages.0.prune.sparsity": [0.3, 0.5]}
    search = {"space": space, "n_trials": 2, "objectives": ["perplexity:train"], "constraints": ["loss:train <= 9"]}
    base |= {"evaluate": [{}, {"name": "train", "split": "train"}]}
    plan = plan_data({"name": "s", "base": base, "trials": [{**HALF, "name": "s", "search": search}]})
    assert plan.searches[0].spec.measured == ("perplexity:train", "loss:train")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_scores_are_compared_by_the_exact_test_of_mcnemar(pairs: list[tuple[bool, bool]]) -> None:
    one, two = (np.array([pair[side] for pair in pairs], dtype=np.float64) for side in (0, 1))
    won = sum(a and not b for a, b in pairs)
    lost = sum(b and not a for a, b in pairs)
    tail = sum(stats.binom.pmf(count, won + lost, 0.5) for count in range(min(won, lost) + 1))
    assert paired(one, two) == pytest.approx(min(1.0, 2 * tail))


@needs_harness
def test_tasks_are_scored_as_the_harness_scores_them(base: dict[str, Any], tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    text = " ".join(f"{word} {word[::-1]}" for word in ("pruned", "model", "keeps", "half", "weight") * 40)
    folder = write_task(tmp_path / "tasks", text, documents=12)
    tasks = {"name": "tasks", "tasks": [NAME], "include_path": str(folder), "batch_size": 4}
    base |= {"evaluate": [{"max_windows": 2}, tasks]}
    plan = plan_data({"name": "s", "base": base, "trials": [HALF]})
    root = Root(tmp_path / "runs")
    record = run_attempt(root, plan.trials[0])
    assert record.state == "finished", record.error
    assert not record.stages[0].also  # scored after the last stage alone
    scores = {one.metric: one for one in record.stages[-1].also["tasks"].scores}

    model = str(root.stage(plan.trials[0].key) / "model")
    theirs = simple_evaluate(
        "hf",
        model_args={"pretrained": model, "dtype": "float32"},
        tasks=[NAME],
        batch_size=4,
        device="cpu",
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )
    assert theirs is not None
    found = theirs["results"][NAME]
    for metric in ("acc", "acc_norm"):
        assert scores[metric].value == found[f"{metric},none"]
        assert scores[metric].stderr == found[f"{metric}_stderr,none"]
        assert scores[metric].documents == 12
    result = TrialResult(id=1, plan=plan.trials[0], shown=True, state="finished", stages=record.stages)
    documents = stored_documents(root)(result)[f"{NAME}/acc/none"]
    assert documents.mean() == scores["acc"].value
    assert result.metrics[f"task:{NAME}"] == result.metrics["tasks:mean"] == scores["acc"].value


@needs_harness
def test_a_task_file_that_is_no_yaml_is_named(base: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("task: x\nmetric_list: [open\n", encoding="utf-8")
    base |= {"evaluate": {"tasks": ["x"], "include_path": str(tmp_path)}}
    with pytest.raises(SpecError, match=r"unknown task 'x'.*x\.yaml: .*line 3"):
        plan_data({"name": "s", "base": base, "trials": [HALF]})


@needs_harness
def test_files_of_one_name_in_two_folders_of_tasks_both_count(base: dict[str, Any], tmp_path: Path) -> None:
    folders = [write_task(tmp_path / place, "some words " * 40, documents=2, name=f"t{place}") for place in "ab"]
    shared = [folder / "common.yaml" for folder in folders]
    base |= {"evaluate": [{"max_windows": 2}, {"tasks": ["ta"], "include_path": str(tmp_path)}]}
    keys = set()
    for texts in (("x: 1", "x: 1"), ("x: 2", "x: 1"), ("x: 1", "x: 2")):
        for path, text in zip(shared, texts, strict=True):
            path.write_text(text)
        keys.add(plan_data({"name": "s", "base": base, "trials": [HALF]}).trials[0].also[0].key)
    assert len(keys) == 3


@needs_harness
@pytest.mark.parametrize(
    ("tasks", "message"), [(["continuatoin"], "Did you mean 'continuation'"), ([NAME], "no folder")]
)
def test_a_task_that_is_not_there_is_refused_when_planned(
    tasks: list[str], message: str, base: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_task(tmp_path / "tasks", "some words " * 40, documents=2)
    where = folder if message != "no folder" else tmp_path / "nowhere"
    base |= {"evaluate": [{}, {"tasks": tasks, "include_path": str(where)}]}
    with pytest.raises(SpecError, match=message):
        plan_data({"name": "s", "base": base, "trials": [HALF]})


def test_without_the_harness_the_command_is_named(base: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunegpt.planning.harness.HARNESS", "a_package_that_is_not_there")
    with pytest.raises(SpecError, match=r"pip install 'prunegpt\[tasks\]'"):
        plan_data({"name": "s", "base": {**base, "evaluate": [{}, {"tasks": ["x"]}]}, "trials": [HALF]})


def test_a_column_of_an_evaluation_that_no_trial_has_is_refused_when_planned(base: dict[str, Any]) -> None:
    table = {"title": "t", "rows": ["*"], "columns": ["trial", "perplexity:c4"]}
    base |= {"evaluate": [{}, {"name": "train", "split": "train"}]}
    with pytest.raises(SpecError, match=r"tables\.0\.columns\.1: unknown evaluation 'c4'\. Valid: train\."):
        plan_data({"name": "s", "base": base, "trials": [HALF], "tables": [table]})
