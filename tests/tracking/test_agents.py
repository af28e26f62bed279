"""A run's arguments mean a trial, and a trial that ran alone is stored."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.errors import SpecError
from prunegpt.planning.suggested import Planner
from prunegpt.records import AttemptRecord, Point, PointWriter
from prunegpt.root import Root
from prunegpt.spec.plan import SweepPlan
from prunegpt.spec.wandb_config import config_of
from prunegpt.store import Store
from prunegpt.tracking.agents import read_arguments, trial_of
from prunegpt.tracking.endpoint.choose import next_point
from prunegpt.tracking.endpoint.hosted import Hosted, Run
from prunegpt.tracking.ingest import ingest, new_attempt, save_sweep

BASE: dict[str, Any] = {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text", "block_size": 128}}
STAGES: list[Any] = ["finetune", {"prune": {"sparsity": 0.5}}]


def planner(*trials: dict[str, Any]) -> Planner:
    return Planner({"name": "small", "base": BASE, "trials": list(trials)})


def points(plan: SweepPlan, count: int = 1000) -> list[dict[str, Any]]:
    """The arguments that a server would give to agents, point by point."""
    hosted = Hosted(name="abc", entity="e", project="p", config=config_of(plan, [], "small.yaml"))
    found: list[dict[str, Any]] = []
    while len(found) < count and (point := next_point(hosted)) is not None:
        hosted.runs.append(Run(id=str(len(found)), number=len(found), state="finished", metric=1.0, **dict(point)))
        found.append(point.args)
    return found


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from([0.3, 0.5, 0.7]), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=2, unique=True),
    st.lists(st.sampled_from([1.0, 1e-3]), min_size=1, max_size=2, unique=True),
)
def test_the_points_of_a_registered_grid_are_the_trials_of_the_plan(
    sparsities: list[float], seeds: list[int], rates: list[float]
) -> None:
    vary = {"stages.1.prune.sparsity": sparsities, "train.learning_rate": rates}
    made = planner({"name": "pruned", "stages": STAGES, "seeds": seeds, "vary": vary})
    given = json.loads(json.dumps(points(made.plan)), parse_float=lambda text: _wandb_number(text))
    found = [trial_of(made, arguments, Root(Path("nowhere"))) for arguments in given]
    assert sorted(trial.name for trial in found) == sorted(trial.name for trial in made.plan.trials)


def _wandb_number(text: str) -> float | int:
    """W&B's server turns 1.0 into 1."""
    value = float(text)
    return int(value) if value.is_integer() else value


def test_trials_by_name() -> None:
    made = planner({"name": "dense"}, {"name": "pruned", "stages": STAGES})
    given = points(made.plan)
    assert given == [{"trial": "dense"}, {"trial": "pruned"}]
    assert [trial_of(made, one, Root(Path("nowhere"))).name for one in given] == ["dense", "pruned"]
    with pytest.raises(SpecError, match="must name one of the spec's, but is 'prunde'"):
        trial_of(made, {"trial": "prunde"}, Root(Path("nowhere")))


def test_a_search_gives_each_new_point_a_number_and_an_old_one_its_own(tmp_path: Path) -> None:
    space = {"train.learning_rate": {"low": 1e-5, "high": 1.0, "log": True}, "stages.1.prune.sparsity": [0.3, 0.7]}
    search = {"space": space, "sampler": "random", "n_trials": 4}
    made = planner({"name": "found-{number}", "stages": STAGES, "search": search})
    given = points(made.plan, 4)
    assert len(given) == 4
    names = [trial_of(made, one, Root(tmp_path)).name for one in [*given, *given]]
    assert len(set(names[:4])) == 4
    assert names[:4] == names[4:]
    trial = trial_of(made, {"train": {"learning_rate": 1}, "stages.1": {"prune": {"sparsity": 0.3}}}, Root(tmp_path))
    assert trial.swept["train.learning_rate"] == 1.0
    assert isinstance(trial.swept["train.learning_rate"], float)
    assert trial.number == 5
    assert trial.search == "found-{number}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"stages.1": {"prune": {"sparsity": 0.4}}}, "means 0 of the 2"), ({}, "no argument means 0 of the 2")],
)
def test_arguments_that_mean_no_trial_are_refused(arguments: dict[str, Any], message: str) -> None:
    made = planner({"name": "pruned", "stages": STAGES, "vary": {"stages.1.prune.sparsity": [0.3, 0.5]}})
    with pytest.raises(SpecError) as caught:
        trial_of(made, arguments, Root(Path("nowhere")))
    assert message in str(caught.value)


def test_arguments_are_read_from_both_kinds_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"train": {"learning_rate": 0.1}}')
    (tmp_path / "b.yaml").write_text("wandb_version: 1\ntrain:\n  value: {learning_rate: 0.1}\n")
    assert read_arguments(tmp_path / "a.json") == {"train": {"learning_rate": 0.1}}
    assert read_arguments(tmp_path / "b.yaml") == {"train": {"learning_rate": 0.1}}
    with pytest.raises(SpecError, match="must be a readable JSON or YAML file"):
        read_arguments(tmp_path / "none.json")


def test_an_attempt_without_a_coordinator_is_stored_at_its_end(tmp_path: Path) -> None:
    root = Root(tmp_path)
    plan = planner({"name": "dense"}, {"name": "pruned", "stages": STAGES}).plan
    trial = plan.trials[1]
    folder = new_attempt(root, trial)
    other = new_attempt(root, trial)
    assert (folder.name, other.name) == ("attempt-1", "attempt-2")
    writer = PointWriter(other / "points.jsonl")
    writer.write(Point(stage=1, step=3, epoch=0.5, name="loss", value=2.0, time=1.0))
    writer.close()
    record = AttemptRecord(
        sweep="small", trial=trial.name, attempt=2, state="failed", reason="exception", error="no", started=time.time()
    )
    record.write(other / "record.json")
    assert ingest(root, plan, trial, record) == other
    with Store.open(root) as store:
        found = store.result(f"small/{trial.name}")
        assert (found.state, found.error, found.attempts) == ("failed", "no", 1)
        assert [point.value for point in store.points(found.id, "loss")] == [2.0]
        assert {result.name for result in store.results("small")} == {"dense", "pruned"}
    save_sweep(root, plan)
    with Store.open(root) as store:
        assert store.result(f"small/{trial.name}").state == "failed"


def test_an_attempt_whose_number_was_taken_meanwhile_gets_another(tmp_path: Path) -> None:
    root = Root(tmp_path)
    plan = planner({"name": "dense"}).plan
    (trial,) = plan.trials
    folder = new_attempt(root, trial)
    with Store.open(root) as store:
        (saved,) = store.save_sweep(plan)
        store.conclude(saved.id, "failed", reason="dependency")  # takes number 1, without a folder
    record = AttemptRecord(sweep="small", trial="dense", attempt=1, state="finished", started=1.0)
    record.write(folder / "record.json")
    assert ingest(root, plan, trial, record).name == "attempt-2"
    assert not folder.exists()
