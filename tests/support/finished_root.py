"""A finished root to break, and ways to run its sweep again."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep
from prunegpt.sweep.events import SweepOutcome
from tests.support import hashing_worker
from tests.support.fork_launcher import ForkLauncher
from tests.support.sweep_plans import make_plan, make_trial

TRIALS = (make_trial("a", "load ft pa"), make_trial("b", "load ft pb"))
MORE = (*TRIALS, make_trial("c", "load ft pa kd", needs="pb"))  # needs all that the first two have published
DULL = {".coordinator.lock", "log.txt", "heartbeat"}  # nobody reads what they held


def run(root: Root, *trials: TrialPlan, database: str | None = None) -> SweepOutcome:
    """As `sweep run` does; on the database of the root where no other is named."""
    with Store.open(database or root) as store:
        return run_sweep(make_plan(*trials), root, store, ForkLauncher(hashing_worker.run))


def figures(where: Root | str) -> dict[str, Any]:
    """Trial -> its state and all it came to."""
    with Store.open(where, create=False) as store:
        return {
            result.name: (
                result.state,
                [(stage.key, stage.evaluation, stage.sparsity and stage.sparsity.pruned) for stage in result.stages],
            )
            for result in store.results("words")
        }


@dataclass(frozen=True)
class Undisturbed:
    """A root in which the first two trials are finished, and what all three come to."""

    path: Path
    figures: dict[str, Any]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    path = tmp_path_factory.mktemp("undisturbed")
    run(Root(path / "runs"), *TRIALS)
    shutil.copytree(path / "runs", path / "more")
    assert run(Root(path / "more"), *MORE).ok
    return Undisturbed(path / "runs", figures(Root(path / "more")))


@pytest.fixture
def broken(undisturbed: Undisturbed, tmp_path: Path) -> Callable[[], Root]:
    """Gives a copy of the finished root."""
    return lambda: Root(Path(shutil.copytree(undisturbed.path, tmp_path / "runs")))
