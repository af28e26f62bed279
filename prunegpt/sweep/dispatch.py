"""Starts what may start, ends what needs no worker or can never start, and asks for more where there is room."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from prunegpt.errors import ModelError, in_bytes
from prunegpt.planning.budget import models_on_disk, passing_on_disk
from prunegpt.planning.sources import tensor_shapes, weight_files
from prunegpt.records import StageRecord, TrialState, published_record
from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan
from prunegpt.store import Store
from prunegpt.sweep.attempt import Attempt, last_number, readable
from prunegpt.sweep.events import TrialStarted
from prunegpt.sweep.failures import divided
from prunegpt.sweep.patience import PatientLauncher
from prunegpt.sweep.scheduler import Blocked, Published, StageScheduler, WorkUnit, name_of
from prunegpt.sweep.states import TrialStates

_LEAST = 64 * 2**20  # bytes that are left free for the database, logs and curves; of a small disk a hundredth
_BYTES = 4  # of a weight that a stage publishes, in whatever precision it was read


@dataclass
class Dispatcher:
    """Fills the slots of a launcher.

    Args:
        halted: asked before every start; True starts nothing more.
        attempts: those that run or are to be taken, by trial.
    """

    root: Root
    store: Store
    launcher: PatientLauncher
    scheduler: StageScheduler
    published: Published
    states: TrialStates
    halted: Callable[[], bool]
    attempts: dict[str, Attempt] = field(default_factory=dict)
    no_room: str = ""  # why nothing more is started, where that is the disk

    def fill(self) -> None:
        """Starts and ends what there is to start and end now."""
        while not self.halted():
            for complete in self.scheduler.complete():
                self._finish_from_cache(complete)
            if self._settle_hopeless():
                continue  # what they would have published may be what others wait for
            free = len(self.attempts) < self.launcher.slots
            trial = self.scheduler.next() if free else None
            if trial is not None and (lack := lack_of_room(self.root, trial)):
                if not self.attempts:
                    self.no_room = lack
                return  # asked again when a running one has ended
            if trial is not None:
                self._start(trial)
            elif free and self._suggest():
                continue
            elif self.attempts or not self.scheduler.waiting or not self._unstick():
                return

    def end(self, trial: TrialPlan, reason: str, message: str, *, state: TrialState = "failed") -> None:
        """A waiting trial ends without a worker."""
        self.scheduler.end(trial, diverged=state == "diverged")
        self.states.cannot(trial, reason, message, state=state)

    def record_stage(self, attempt: Attempt, index: int) -> StageRecord | None:
        """Stores that an attempt is through a stage; None where that is not published as it should be."""
        try:
            record = published_record(self.root, attempt.trial, index, cached=index < attempt.cached)
        except (OSError, ValueError):
            return None  # not there yet, or not as it should be: the attempt's own record will show it
        self.store.record_stage(record, attempt.id)
        return record

    def _suggest(self) -> bool:
        """Adds a trial that was not planned; whether there was one."""
        trial = self.states.searches.suggest() if self.states.searches else None
        if trial is None or name_of(trial) in self.scheduler.waiting or name_of(trial) in self.attempts:
            return False
        if self.states.suggested(trial):
            self.scheduler.add(trial)
        return True

    def _unstick(self) -> bool:
        """Nothing runs and nothing may start: others have published, or the teachers that are left form a circle."""
        self.scheduler.look()
        if self.scheduler.complete() or self.scheduler.next():
            return True
        message = (
            "it needs a teacher that only trials which wait for it in turn could still publish. "
            "Fix the failed trials, or distil one of them from something else."
        )
        for trial in list(self.scheduler.waiting.values()):
            self.end(trial, "dependency", message)
        return False

    def _start(self, trial: TrialPlan) -> None:
        name = name_of(trial)
        home = self.root.trial(trial.sweep, trial.name)
        given = divided(trial, self.states.endings(trial))
        started = self.store.start_attempt(self.states.ids[name], at_least=last_number(home) + 1)
        attempt = Attempt(started.id, started.number, given, self.root.path / started.folder)
        self.scheduler.start(trial)
        self.attempts[name] = attempt
        self.states.states[name] = "running"
        attempt.cached = sum(1 for stage in trial.stages if self.published.look(WorkUnit(stage.key)))
        for index in range(attempt.cached):
            self.record_stage(attempt, index)
        self.states.on_event(TrialStarted(name, started.number, started.folder, len(trial.stages), attempt.cached))
        self.launcher.submit(attempt)

    def _finish_from_cache(self, trial: TrialPlan) -> None:
        try:
            stages = [published_record(self.root, trial, index, cached=True) for index in range(len(trial.stages))]
        except (OSError, ValueError) as error:
            message = (
                "a published stage must have a stage.json and evaluation.json that can be read; of "
                f"{', '.join(stage.key for stage in trial.stages)} one has not: {readable(error)}. Delete its folder "
                f"under {self.root.stages}, and it is computed again."
            )
            self.end(trial, "cache", message)
            return
        self.scheduler.end(trial)
        self.states.from_cache(trial, stages)

    def _settle_hopeless(self) -> bool:
        """Fails trials that can never start, or would fail as others have; whether there were any."""
        blocked, doomed = self.scheduler.blocked(), self.scheduler.doomed()
        for one in blocked:
            self.end(one.trial, "dependency", self._lack(one))
        for trial, first in doomed:
            if name_of(trial) in self.scheduler.waiting:
                message = f"its next stage is the one that diverged in {name_of(first)}, and would diverge again."
                self.end(trial, "diverged", message, state="diverged")
        return bool(blocked or doomed)

    def _lack(self, blocked: Blocked) -> str:
        if blocked.culprit is None:
            return (
                f"it needs the stage {blocked.need} as its teacher, but that is not published, and no trial of this "
                f"sweep computes it. Run the sweep it belongs to first."
            )
        name = name_of(blocked.culprit)
        why = f": {self.states.why[name]}" if self.states.why.get(name) else ""
        return (
            f"it needs the model of {name} as its teacher, but that trial is {self.states.states[name]}{why} "
            f"Fix that one and run the sweep again."
        )


def lack_of_room(root: Root, trial: TrialPlan) -> str:
    """Why a trial would fill the disk; empty where it has room, or nothing is known of its size.

    Its models are as large as the one it begins with, or as those of its stages that are published.
    """
    todo = [stage for stage in trial.stages if stage.kind != "load" and not root.is_published(stage.key)]
    shapes = _shapes(trial)
    size = max(_sizes(root, trial, shapes))
    disk = shutil.disk_usage(root.path)
    free, least = disk.free, min(_LEAST, disk.total // 100)
    most = (size * models_on_disk(stage) + passing_on_disk(stage, shapes) for stage in todo)
    need = least + max(most) if todo else 0
    if free >= need:
        return ""
    there, wanted = in_bytes(free), in_bytes(need)
    return f"the disk of {root.path} has {there} free, and {trial.sweep}/{trial.name} needs about {wanted}"


def _shapes(trial: TrialPlan) -> dict[str, tuple[int, ...]]:
    """Those of the tensors that the trial begins with; none where they are not here."""
    source = Path(trial.model.source)
    if source.is_dir():
        with suppress(ModelError):  # the trial will say what is wrong with it
            return tensor_shapes(source, weight_files(source))
    return {}


def _sizes(root: Root, trial: TrialPlan, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[int]:
    yield _BYTES * sum(map(math.prod, shapes.values()))
    for folder in (root.stage(stage.key) / "model" for stage in trial.stages):
        if folder.is_dir():
            yield sum(path.stat().st_size for path in folder.glob("*.safetensors"))
