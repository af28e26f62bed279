"""kill -9 of the coordinator at every point where it touches the world: the next run ends as if nothing had been."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import alembic.command  # noqa: F401  here once, and not in every process that is forked
import optuna.storages  # noqa: F401  the same
import pytest

from prunegpt.planning.resolve import Planner
from prunegpt.root import Root
from prunegpt.spec.plan import SweepPlan
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep
from prunegpt.sweep.repair import examine
from prunegpt.sweep.search.open import open_search
from tests.robust.killing import Points, SteppedLauncher, coordinate, listener
from tests.support.searches import Faked, GiveUp
from tests.support.sweep_plans import make_plan, make_trial

SEARCH = """\
name: words
base:
  model: builtin:tiny-gpt2
  data: {path: builtin:text, block_size: 128}
  train: {max_steps: 40, per_device_train_batch_size: 8}
trials:
  - name: dense
    stages: [finetune]
  - name: found
    search:
      n_trials: 5
      sampler: tpe
      sampler_options: {n_startup_trials: 2}
      space:
        stages:
          values:
            gradual: [finetune: {prune: {sparsity: 0.9}}]
            distilled: [distill: {teacher: dense, prune: {sparsity: 0.9}}]
        train.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
"""
LISTED = (
    make_trial("student", "load kd", needs="p1", steps=2),
    make_trial("a", "load ft", steps=2),
    make_trial("b", "load ft p1", steps=2),
    make_trial("dies", "load ft p3", kill="p3", once=True),
    make_trial("other", "load x", evaluation_key="other"),
    make_trial("fails", "load bad", fail="bad"),
    make_trial("child", "load y", needs="bad"),
    make_trial("given-up", "load g", steps=3),
)
PARTS = 8  # of the points, each a test
FINISHED = {"student", "a", "b", "dies", "other"}


@dataclass(frozen=True)
class Case:
    """A sweep, run to its end once."""

    run: Callable[[Root, Points], None]
    path: Path
    points: list[str]


def listed(slots: int) -> Callable[[Root, Points], None]:
    """A shared stage, a teacher, a worker that dies and is tried again, a failure and who needs it, one given up."""

    def run(root: Root, points: Points) -> None:
        with Store.open(root) as store:
            run_sweep(
                make_plan(*LISTED),
                root,
                store,
                SteppedLauncher(slots, points.reach),
                early_stopper=GiveUp("given-up"),
                on_event=listener(points.reach),
            )

    return run


def searching(planner: Faked) -> Callable[[Root, Points], None]:
    plan: SweepPlan = planner.plan

    def run(root: Root, points: Points) -> None:
        with Store.open(root) as store:
            run_sweep(
                plan,
                root,
                store,
                SteppedLauncher(1, points.reach),
                suggester=open_search(plan, store, planner),
                on_event=listener(points.reach),
            )

    return run


@pytest.fixture(scope="module", params=["one-slot", "two-slots", "search"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "search":
        (folder / "spec.yaml").write_text(SEARCH)
        run = searching(Faked(Planner(folder / "spec.yaml", root=Root(folder / "runs"))))
    else:
        run = listed(1 if request.param == "one-slot" else 2)
    points = coordinate(Root(folder / "runs"), run)
    assert points is not None
    return Case(run, folder / "runs", points)


def came_to(root: Root) -> dict[str, Any]:
    """Trial -> what it came to and what it was, and how often an attempt of it finished."""
    with Store.open(root, create=False) as store:
        assert store.running_attempts() == []
        return {
            result.name: (
                result.state,
                result.reason,
                dict(result.swept),
                result.shown,
                [(stage.key, stage.evaluation, stage.sparsity) for stage in result.stages],
                sum(attempt.state == "finished" for attempt in store.attempts(result.id)),
                [(point.stage, point.step, point.value) for point in store.points(result.id, "loss")],
            )
            for result in store.results("words", shown=None)
        }


def noted(root: Root, what: str) -> Counter[str]:
    return Counter((root.path / f"{what}.txt").read_text().split())


def killed(case: Case, home: Path, points: Iterable[int]) -> None:
    undisturbed, once = came_to(Root(case.path)), noted(Root(case.path), "computed")
    assert set(once.values()) == {1}
    for at in points:
        root = Root(home / f"at-{at}")
        assert coordinate(root, case.run, at) is None, f"point {at} was not reached"
        assert coordinate(root, case.run) is not None
        what = f"killed at point {at}, {case.points[at]}"
        assert came_to(root) == undisturbed, what
        assert noted(root, "computed") == once, what
        assert noted(root, "measured") == noted(Root(case.path), "measured"), what
        with Store.open(root) as store:
            assert {stage.key: stage.computations for stage in store.stages()} == dict.fromkeys(once, 1), what
        assert [finding for finding in examine(root) if finding.kind != "leftover"] == [], what
        shutil.rmtree(root.path)


def test_a_run_has_the_same_points_every_time(case: Case, tmp_path: Path) -> None:
    assert len(case.points) > 150
    assert {point.split()[0] for point in case.points} >= {
        "commit",
        "open",
        "fsync",
        "os.rename",
        "submit",
        "poll",
        "tell",
    }
    assert coordinate(Root(tmp_path / "runs"), case.run) == case.points
    assert came_to(Root(tmp_path / "runs")) == came_to(Root(case.path))


def test_the_undisturbed_run_is_what_it_should_be(case: Case) -> None:
    states = {name: found[0] for name, found in came_to(Root(case.path)).items()}
    if "dense" in states:
        assert states == dict.fromkeys(["dense", *(f"found-{number:03d}" for number in range(1, 6))], "finished")
        return
    others = {"fails": "failed", "child": "failed", "given-up": "stopped"}
    assert states == {**dict.fromkeys(FINISHED, "finished"), **others}
    assert "cancel" in case.points


def test_killed_at_some_points(case: Case, tmp_path: Path) -> None:
    killed(case, tmp_path, range(7, len(case.points), 113))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_killed_at_every_point(case: Case, tmp_path: Path, part: int) -> None:
    killed(case, tmp_path, range(part, len(case.points), PARTS))
