"""A run's arguments mean a trial, and a trial that runs without a coordinator is in the store from its start."""

import json
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from prunegpt.errors import SpecError
from prunegpt.planning.resolve import Planner
from prunegpt.points import Point, PointWriter
from prunegpt.records import AttemptRecord, StageRecord
from prunegpt.root import Root, write_json
from prunegpt.spec.plan import SweepPlan
from prunegpt.spec.wandb_config import config_of
from prunegpt.store import Store
from prunegpt.sweep.attempt import Attempt
from prunegpt.sweep.recovery import OUTSIDE, recover, recover_agents
from prunegpt.tracking.agents import read_arguments, trial_of
from prunegpt.tracking.endpoint.choose import next_point
from prunegpt.tracking.endpoint.hosted import Hosted, HostedRun
from prunegpt.tracking.ingest import Follower, StaleRunReaper, begin, save_sweep
from tests.support.waiting import until

BASE: dict[str, Any] = {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text", "block_size": 128}}
STAGES: list[Any] = ["finetune", {"prune": {"sparsity": 0.5}}]


def planner(*trials: dict[str, Any]) -> Planner:
    return Planner({"name": "small", "base": BASE, "trials": list(trials)})


def points(plan: SweepPlan, count: int = 1000) -> list[dict[str, Any]]:
    """The arguments that a server would give to agents, point by point."""
    hosted = Hosted(name="abc", entity="e", project="p", config=config_of(plan, [], "small.yaml"))
    found: list[dict[str, Any]] = []
    while len(found) < count and (point := next_point(hosted)) is not None:
        hosted.runs.append(HostedRun(id=str(len(found)), state="finished", metric=1.0, **dict(point)))
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
    with pytest.raises(SpecError, match="must name one of the spec's, got 'prunde'"):
        trial_of(made, {"trial": "prunde"}, Root(Path("nowhere")))


def test_varied_trials_that_are_listed_by_name(tmp_path: Path) -> None:
    vary = {"stages.1.prune.sparsity": [0.3, 0.5]}
    made = planner({"name": "dense"}, {"name": "pruned", "stages": STAGES, "vary": vary, "seeds": [1, 2]})
    given = points(made.plan)
    names = [trial_of(made, one, Root(tmp_path)).name for one in given]
    assert names == [one["trial"] for one in given]
    assert sorted(names) == sorted(trial.name for trial in made.plan.trials)
    assert len(names) == 5
    with pytest.raises(SpecError, match=r"sparsity=0\.9 means 0 of the 1"):
        trial_of(made, {**given[-1], "stages.1": {"prune": {"sparsity": 0.9}}}, Root(tmp_path))


@pytest.mark.parametrize(
    "spec", sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_points_of_each_kept_spec_are_its_trials(spec: Path, tmp_path: Path) -> None:
    try:
        made = Planner(spec)
        given = points(made.plan)
    except SpecError as error:
        pytest.skip(f"W&B has nothing like it, or what it names is not here: {str(error).splitlines()[-1]}")
    if made.plan.searches:
        pytest.skip("a search has no fixed points")
    found = [trial_of(made, one, Root(tmp_path)).name for one in given]
    own = [trial.name for trial in made.plan.trials if trial.sweep == made.plan.name and not trial.implicit]
    assert own
    assert sorted(found) == sorted(own)


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


def test_an_attempt_without_a_coordinator_is_in_the_store_while_it_runs(tmp_path: Path) -> None:
    root = Root(tmp_path)
    plan = planner({"name": "dense"}, {"name": "pruned", "stages": STAGES}).plan
    trial = plan.trials[1]
    attempt = begin(root, plan, trial)
    follower = Follower(root, attempt)
    writer = PointWriter(attempt.folder / "points.jsonl")
    with Store.open(root) as store:
        assert {one.name: one.state for one in store.results("small")} == {"dense": "waiting", trial.name: "running"}
        with follower.following(every=0.01) as through:
            for step in range(3):
                writer.write(Point(stage=1, step=step, epoch=0.5, name="loss", value=2.0 - step, time=1.0))
                wait_for_points(store, f"small/{trial.name}", step + 1)
            through(StageRecord(key=trial.stages[0].key, kind="load", index=0, cached=False))
            until(lambda: len(store.result(f"small/{trial.name}").stages) == 1)
            assert store.result(f"small/{trial.name}").state == "running"
        writer.write(Point(stage=1, step=3, epoch=0.5, name="loss", value=-1.0, time=1.0))
        writer.close()
        (attempt.folder / "log.txt").write_text("first\nlast words\n")
        record = AttemptRecord(
            sweep="small", trial=trial.name, attempt=1, state="failed", reason="exception", error="no", started=1.0
        )
        follower.end(record)
        found = store.result(f"small/{trial.name}")
        assert (found.state, found.reason, found.error, found.attempts) == ("failed", "exception", "no", 1)
        assert [point.value for point in store.points(found.id, "loss")] == [2.0, 1.0, 0.0, -1.0]
        (row,) = store.attempts(found.id)
        assert "last words" in row.log
    save_sweep(root, plan)
    with Store.open(root) as store:
        assert store.result(f"small/{trial.name}").state == "failed"


def test_a_new_attempt_has_a_number_of_its_own(tmp_path: Path) -> None:
    root = Root(tmp_path)
    plan = planner({"name": "dense"}).plan
    (trial,) = plan.trials
    with Store.open(root) as store:
        (saved,) = store.save_sweep(plan)
        store.conclude(saved.id, "failed", reason="dependency")  # takes number 1, without a folder
    assert begin(root, plan, trial).folder == root.attempt("small", "dense", 2)
    assert begin(root, plan, trial).folder == root.attempt("small", "dense", 3)
    root.attempt("small", "dense", 7).mkdir()
    assert begin(root, plan, trial).number == 8


def test_an_attempt_whose_folder_cannot_be_made_has_failed(tmp_path: Path) -> None:
    root = Root(tmp_path)
    plan = planner({"name": "dense"}).plan
    (tmp_path / "trials").write_text("a file")
    with pytest.raises(OSError, match="trials"):
        begin(root, plan, plan.trials[0])
    with Store.open(root) as store:
        found = store.result("small/dense")
    assert (found.state, found.reason) == ("failed", "launch")
    assert "its folder cannot be made" in found.error


def test_a_database_that_is_locked_for_long_ends_no_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Root(tmp_path)
    plan = planner({"name": "dense"}).plan
    attempt = begin(root, plan, plan.trials[0])
    follower = Follower(root, attempt)
    looks = []

    def locked(store: Store) -> None:
        looks.append(store)
        if len(looks) < 3:
            raise OperationalError("UPDATE", {}, Exception("database is locked"))

    monkeypatch.setattr(attempt, "store_points", locked)
    with follower.following(every=0.01):
        until(lambda: len(looks) > 3)


def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def abandon(attempt: Attempt, pid: int | None = None, host: str | None = None, silent: float = 0.0) -> None:
    """Makes it look as if another process ran the attempt."""
    file = attempt.folder / OUTSIDE
    found = json.loads(file.read_text())
    write_json(file, {"pid": pid or found["pid"], "host": host or found["host"]})  # whole, for a reaper may be reading
    os.utime(file, (time.time() - silent,) * 2)


@pytest.mark.parametrize("how", ["next agent", "next coordinator", "server"])
def test_the_attempt_of_a_dead_agent_is_lost_and_its_trial_waits(tmp_path: Path, how: str) -> None:
    root = Root(tmp_path)
    plan = planner({"name": "dense"}, {"name": "pruned", "stages": STAGES}).plan
    attempt = begin(root, plan, plan.trials[0])
    beside = begin(root, plan, plan.trials[1])  # of an agent that lives: this process
    PointWriter(attempt.folder / "points.jsonl").write(
        Point(stage=0, step=1, epoch=0.5, name="loss", value=2.0, time=1.0)
    )
    abandon(attempt, pid=dead())
    with Store.open(root) as store:
        if how == "next agent":
            begin(root, plan, plan.trials[1])
        elif how == "next coordinator":
            assert recover(root, store) == ["small/dense"]
        else:
            with closing(StaleRunReaper(root, every=0.01, linger=0.0)) as reaper:
                reaper.wake()
                until(lambda: store.result("small/dense").state == "waiting")
                abandon(beside, pid=dead())  # it looks on as long as one is left
                until(lambda: store.running_attempts() == [])
            return
        (row,) = store.attempts("small/dense")
        assert (row.state, row.reason, row.outcome) == ("failed", "lost", "waiting")
        assert store.result("small/dense").state == "waiting"
        assert [point.value for point in store.points("small/dense", "loss")] == [2.0]
        assert beside.id in [one.id for one in store.running_attempts()]


def test_a_server_that_agents_speak_to_looks_before_they_run_anything(tmp_path: Path) -> None:
    root = Root(tmp_path)
    plan = planner({"name": "dense"}).plan
    save_sweep(root, plan)
    with closing(StaleRunReaper(root, every=0.01, linger=60.0)) as reaper, Store.open(root) as store:
        reaper.wake()  # and nobody wakes it again
        attempt = begin(root, plan, plan.trials[0])
        assert store.result("small/dense").state == "running"
        abandon(attempt, pid=dead())
        until(lambda: store.result("small/dense").state == "waiting")


def test_an_agent_of_another_machine_is_lost_when_it_is_silent(tmp_path: Path) -> None:
    root = Root(tmp_path)
    plan = planner({"name": "dense"}).plan
    attempt = begin(root, plan, plan.trials[0])
    with Store.open(root) as store:
        abandon(attempt, pid=dead(), host="another", silent=500)
        assert recover_agents(root, store)
        assert store.result("small/dense").state == "running"
        abandon(attempt, silent=700)
        assert not recover_agents(root, store)
        assert store.result("small/dense").state == "waiting"


def test_a_lost_attempt_does_not_undo_what_a_later_one_came_to(tmp_path: Path) -> None:
    root = Root(tmp_path)
    plan = planner({"name": "dense"}).plan
    attempt = begin(root, plan, plan.trials[0])
    later = begin(root, plan, plan.trials[0])
    Follower(root, later).end(AttemptRecord(sweep="small", trial="dense", attempt=2, state="finished"))
    abandon(attempt, pid=dead())
    with Store.open(root) as store:
        assert not recover_agents(root, store)
        assert store.result("small/dense").state == "finished"
        assert [row.reason for row in store.attempts("small/dense")] == ["lost", ""]


def test_an_agents_attempt_that_left_its_record_counts_as_that_says(tmp_path: Path) -> None:
    """Its process ended between the record and the store."""
    root = Root(tmp_path)
    plan = planner({"name": "dense"}).plan
    attempt = begin(root, plan, plan.trials[0])
    AttemptRecord(sweep="small", trial="dense", attempt=1, state="failed", reason="exception", error="no").write(
        attempt.folder / "record.json"
    )
    abandon(attempt, pid=dead())
    with Store.open(root) as store:
        recover_agents(root, store)
        found = store.result("small/dense")
    assert (found.state, found.reason, found.error) == ("failed", "exception", "no")


def test_a_coordinators_attempt_is_none_of_an_agents_business(tmp_path: Path) -> None:
    root = Root(tmp_path)
    plan = planner({"name": "dense"}, {"name": "pruned", "stages": STAGES}).plan
    with Store.open(root) as store:
        saved = store.save_sweep(plan)
        store.start_attempt(saved[0].id)
        begin(root, plan, plan.trials[1])
        assert recover_agents(root, store)
        assert store.result("small/dense").state == "running"


def wait_for_points(store: Store, trial: str, count: int) -> None:
    until(lambda: len(store.points(trial, "loss")) == count)
