"""A sweep of the real worker on a tiny model, long enough to be disturbed, and what the local launcher makes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunegpt.launch.base import Launcher
from prunegpt.launch.local import LocalLauncher
from prunegpt.planning.resolve import plan_data
from prunegpt.root import Root
from prunegpt.spec.plan import SweepPlan
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep
from prunegpt.sweep.events import Event, TrialFailed

STEPS = 400
GRADUAL = {"sparsity": 0.75, "unit": "steps", "start": 20, "end": 350, "every": 20}


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to: trial -> perplexity and sparsity; trial -> why its attempts were repeated."""

    figures: dict[str, tuple[float | None, float | None]]
    repeated: dict[str, list[str]]
    states: dict[str, str]


def small_plan(root: Root, model: Path, files: dict[str, str]) -> SweepPlan:
    """A model measured as it is, and one pruned while it is trained."""
    train = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.003,
        "logging_steps": 5,
        "save_strategy": "steps",
        "save_steps": 50,
    }
    base = {
        "model": str(model),
        "data": {"files": files, "block_size": 32},
        "evaluate": {"max_windows": 4},
        "train": train,
    }
    trials: list[dict[str, Any]] = [
        {"name": "pruned", "stages": [{"finetune": {"prune": GRADUAL}}]},
        {"name": "zero-shot"},
    ]
    return plan_data({"name": "small", "base": base, "trials": trials}, root=root)


def run(plan: SweepPlan, root: Root, launcher: Launcher, on_event: Callable[[Event], None] = lambda _: None) -> Outcome:
    """Runs a plan, and reads what it came to from the store."""
    repeated: dict[str, list[str]] = {}

    def hear(event: Event) -> None:
        if isinstance(event, TrialFailed):
            repeated.setdefault(event.trial, []).append(event.reason)
        on_event(event)

    with Store.open(root) as store:
        run_sweep(plan, root, store, launcher, on_event=hear)
        results = store.results(plan.name)
    figures = {
        result.name: (
            result.evaluation.perplexity if result.evaluation else None,
            result.sparsity.pruned if result.sparsity else None,
        )
        for result in results
    }
    return Outcome(figures, repeated, {result.name: result.state for result in results})


def run_locally(plan_of: Callable[[Root], SweepPlan], path: Path) -> Outcome:
    """The same sweep, undisturbed, in a root of its own."""
    root = Root(path)
    return run(plan_of(root), root, LocalLauncher(root))
