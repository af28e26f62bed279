"""Plans on fake workers, in this process."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep
from prunegpt.sweep.events import Event, SweepOutcome
from tests.support import fake_worker
from tests.support.fork_launcher import ForkLauncher
from tests.support.sweep_plans import make_plan


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
