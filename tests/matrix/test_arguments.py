"""Every argument of the installed transformers: in a key, without effect on the bits, or refused with its reason."""

import random
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from prunegpt.errors import SpecError
from prunegpt.planning import rehearsed
from prunegpt.planning.resolve import plan_data
from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan
from prunegpt.spec.schema import FinetuneSpec
from prunegpt.spec.sharding import sharding_problems
from prunegpt.spec.training_arguments import CHOOSING, DECISIVE, NEUTRAL, REFUSED, choices, chooses
from tests.matrix.cases import BATCH, BLOCKS, EPOCHS, SCHEDULERS, STEPS
from tests.matrix.runs import Result, run
from tests.support.training_arguments import BEST, DECISIVE_VALUES, ELSEWHERE, EVALUATED, NEUTRAL_VALUES


def plan_of(train: Mapping[str, Any], model: Path, texts: dict[str, str], root: Root, **evaluate: Any) -> TrialPlan:
    base = {
        "model": str(model),
        "data": {"files": texts, "block_size": 16, "max_train_blocks": BLOCKS},
        "evaluate": {"max_windows": 2, "block_size": 16, **evaluate},
        "train": {"per_device_train_batch_size": BATCH, "learning_rate": 0.003, "logging_steps": 5},
    }
    stages: list[Any] = [
        {"prune": {"method": "magnitude", "sparsity": 0.3}},
        {"finetune": {"train": {"num_train_epochs": EPOCHS, **train}}},
    ]
    return plan_data(
        {"name": "matrix", "base": base, "trials": [{"name": "case", "stages": stages}]}, root=root
    ).trials[0]


def outcome(
    way: Any, train: Mapping[str, Any], model: Path, texts: dict[str, str], prepared: Path, folder: Path
) -> Result:
    shutil.copytree(prepared, folder)
    root = Root(folder)
    return run([plan_of(train, model, texts, root)], root, way, random.Random(str(train)).randrange(1, STEPS // 2))


@pytest.fixture(scope="session")
def usual(
    small_model: Path, text_files: dict[str, str], prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    folder = tmp_path_factory.mktemp("usual") / "runs"
    found = outcome("undisturbed", {}, small_model, text_files, prepared, folder)
    assert found.record.state == "finished", found.record.trace
    return found


def test_every_argument_of_the_installed_transformers_is_in_one_table() -> None:
    from transformers import TrainingArguments

    tables = [set(DECISIVE), set(NEUTRAL), set(REFUSED)]
    assert set.union(*tables) == {item.name for item in fields(TrainingArguments) if item.init}
    assert sum(map(len, tables)) == len(set.union(*tables))
    assert CHOOSING < NEUTRAL


def test_every_argument_that_is_taken_has_a_value_here() -> None:
    assert set(NEUTRAL_VALUES) == NEUTRAL
    assert {*DECISIVE_VALUES, *ELSEWHERE} == DECISIVE
    assert all(
        name in value for name, values in NEUTRAL_VALUES.items() for value in values if name != "dataloader_num_workers"
    )


def together() -> list[dict[str, Any]]:
    """The values of neutral arguments in as few trainings as do not ask for two values of one argument."""
    groups: list[dict[str, Any]] = []
    for value in ALONE:
        group = next((group for group in groups if _fit(group, value)), None)
        if group is None:
            groups.append(dict(value))
        else:
            group.update(value)
    return groups


def _fit(group: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    alike = all(group.get(name, given) == given for name, given in value.items())
    return alike and not any(sharding_problems(FinetuneSpec(), {**group, **value}, "float32"))


ALONE = [value for values in NEUTRAL_VALUES.values() for value in values]


@pytest.mark.parametrize(
    "value", [*together(), *(pytest.param(value, marks=pytest.mark.slow) for value in ALONE)], ids=str
)
def test_neutral_arguments_change_no_bit_whether_or_not_they_are_killed(
    value: Mapping[str, Any],
    usual: Result,
    small_model: Path,
    text_files: dict[str, str],
    prepared: Path,
    tmp_path: Path,
) -> None:
    found = outcome("killed", value, small_model, text_files, prepared, tmp_path / "runs")
    assert found.record.state == "finished", found.record.trace
    assert found.files == usual.files
    assert found.evaluations == usual.evaluations
    assert found.stages == usual.stages


@pytest.mark.parametrize("name", sorted(DECISIVE))
def test_a_decisive_argument_is_in_the_key(
    name: str, small_model: Path, text_files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsed, "answer", lambda _: None)  # also what this machine could not begin with
    given = dict({**DECISIVE_VALUES, **ELSEWHERE}[name])
    with_it = plan_of(given, small_model, text_files, Root(tmp_path)).key
    del given[name]
    if name == "load_best_model_at_end":
        given["metric_for_best_model"] = "loss"
    assert with_it != plan_of(given, small_model, text_files, Root(tmp_path)).key


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DECISIVE_VALUES))
def test_a_decisive_argument_outlasts_a_stop_and_a_kill(
    name: str, small_model: Path, text_files: dict[str, str], prepared: Path, tmp_path: Path
) -> None:
    found = {
        way: outcome(way, DECISIVE_VALUES[name], small_model, text_files, prepared, tmp_path / way)
        for way in ("undisturbed", "stopped", "killed")
    }
    assert found["undisturbed"].record.state == "finished", found["undisturbed"].record.trace
    for way in ("stopped", "killed"):
        assert found[way].files == found["undisturbed"].files, way
        assert found[way].evaluations == found["undisturbed"].evaluations, way


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_argument_is_refused_with_its_reason(
    name: str, small_model: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as caught:
        plan_of({name: True}, small_model, text_files, Root(tmp_path))
    assert f"{name} is not taken: {REFUSED[name]}" in str(caught.value)


@pytest.mark.parametrize("scheduler", choices()["SchedulerType"])
@pytest.mark.parametrize("choosing", [False, True])
@pytest.mark.parametrize("name", sorted({*CHOOSING, "logging_steps"}))
def test_where_evaluations_decide_what_decides_evaluations_is_in_the_key(
    name: str, choosing: bool, scheduler: str, small_model: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    """A schedule that watches a metric, and the choice of the best checkpoint, follow what is measured and when."""
    given = {**SCHEDULERS[f"scheduler {scheduler}"], **(BEST if choosing else EVALUATED)}
    if not choosing:
        given |= {"save_strategy": "steps", "save_steps": 2}
    if name == "logging_steps":  # the usual value of eval_steps
        del given["eval_steps"]
        given["logging_steps"] = 2
    other = {**given, **_OTHER[name]}
    decide = choosing or scheduler in ("reduce_lr_on_plateau", "greedy")
    assert chooses(given) is decide
    keys = {plan_of(train, small_model, text_files, Root(tmp_path)).key for train in (given, other)}
    assert (len(keys) == 2) is decide
    measured = {plan_of(given, small_model, text_files, Root(tmp_path), max_windows=count).key for count in (1, 2)}
    assert (len(measured) == 2) is decide


_OTHER: Mapping[str, Mapping[str, Any]] = {
    "eval_strategy": {"eval_strategy": "epoch", "save_strategy": "epoch"},
    "eval_steps": {"eval_steps": 1},
    "eval_delay": {"eval_delay": 2},
    "eval_on_start": {"eval_on_start": True},
    "save_strategy": {"eval_strategy": "epoch", "save_strategy": "epoch"},
    "save_steps": {"save_steps": 4},
    "logging_steps": {"logging_steps": 1},
}
