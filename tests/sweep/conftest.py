"""A root with its store, and a way to run plans on fake workers."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep
from prunegpt.sweep.events import Event, SweepOutcome
from tests.sweep import fake_worker
from tests.sweep.fork_launcher import ForkLauncher
from tests.sweep_plans import make_plan

HERE = Path(__file__).parent


@dataclass
class Bench:
    """Runs plans in a root on fake workers, and counts what the workers did."""

    root: Root
    store: Store
    events: list[Event] = field(default_factory=list)
    listen: Callable[[Event], None] = lambda _: None

    def run(self, *trials: TrialPlan, slots: int = 1, name: str = "words", **options: Any) -> SweepOutcome:
        def hear(event: Event) -> None:
            self.events.append(event)
            self.listen(event)

        self.events.clear()
        launcher = options.pop("launcher", None) or ForkLauncher(fake_worker.run, slots)
        plan = make_plan(*trials, name=name)
        if "failures" in options:
            plan = plan.model_copy(update={"failures": options.pop("failures")})
        return run_sweep(plan, self.root, self.store, launcher, on_event=hear, **options)

    def noted(self, what: str) -> list[str]:
        """What workers have `computed` or `measured`, in order."""
        file = self.root.path / f"{what}.txt"
        return file.read_text().split() if file.exists() else []

    def heard(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def states(self, sweep: str = "words") -> dict[str, str]:
        return {result.name: result.state for result in self.store.results(sweep, shown=None)}


@pytest.fixture(autouse=True)
def package_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are processes of their own and must find the package where this one does."""
    checkout = str(HERE.parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([checkout, *filter(None, [os.environ.get("PYTHONPATH")])]))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    root = Root(tmp_path / "runs")
    with Store.open(root) as store:
        yield Bench(root, store)
