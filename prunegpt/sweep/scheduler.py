"""Which trial may start now: the stage graph of a sweep, with what is published, what runs and what has failed.

The work of a trial is a list of units, each stage and its measurement in turn. Trials with equal keys share units; a
unit is done by one running trial at a time, and others that need it wait until it is published, not until that trial
ends.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan


class WorkUnit(NamedTuple):
    """A stage, or with an evaluation key its measurement."""

    stage: str
    evaluation: str | None = None


def name_of(trial: TrialPlan) -> str:
    """SWEEP/TRIAL."""
    return f"{trial.sweep}/{trial.name}"


def units_of(trial: TrialPlan) -> tuple[WorkUnit, ...]:
    """All the work of a trial, in order."""
    units: list[WorkUnit] = []
    for stage in trial.stages:
        units.append(WorkUnit(stage.key))
        units += [WorkUnit(stage.key, one.key) for one in trial.evaluations_after(stage.key)]
    return tuple(units)


class Published:
    """What is published under a root. What was seen once is remembered, for nothing is unpublished while we run."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._seen: dict[WorkUnit, None] = {}  # in the order they were found in

    def seen(self, unit: WorkUnit) -> bool:
        """Whether it was found published before; does not look."""
        return unit in self._seen

    def look(self, unit: WorkUnit) -> bool:
        """Whether it is published now."""
        if unit not in self._seen and self._is_there(unit):
            self._seen[unit] = None
        return unit in self._seen

    def _is_there(self, unit: WorkUnit) -> bool:
        if unit.evaluation is None:
            return self._root.is_published(unit.stage)
        return self._root.is_measured(unit.stage, unit.evaluation)

    def since(self, count: int) -> list[WorkUnit]:
        """What was found published after the first N units were."""
        return list(islice(self._seen, count, None)) if count < len(self._seen) else []


@dataclass(frozen=True)
class Blocked:
    """A trial that can never start, and why."""

    trial: TrialPlan
    need: str  # the stage key that nobody will publish
    culprit: TrialPlan | None  # the trial that should have; None: no trial computes it


class StageScheduler:
    """The trials of one run of a sweep.

    Args:
        trials: those to be run, in the order they shall start in where they may.
        published: what is published.
        others: trials that are not to be run, but may be named as the reason why one cannot.
    """

    def __init__(self, trials: Sequence[TrialPlan], published: Published, others: Iterable[TrialPlan] = ()) -> None:
        self._published = published
        self._order = {name_of(trial): index for index, trial in enumerate(trials)}
        self._units = {name_of(trial): units_of(trial) for trial in trials}
        self._reached = dict.fromkeys(self._units, 0)  # units of a trial that are known to be done
        self._at: dict[WorkUnit | None, list[str]] = {}  # unit when last asked -> trials; None: at the end
        self._heard = 0  # of what was found published
        self.waiting = {name_of(trial): trial for trial in trials}
        self.running: dict[str, TrialPlan] = {}
        self._diverged: dict[WorkUnit, TrialPlan] = {}
        self._producers: dict[str, list[TrialPlan]] = {need: [] for trial in trials for need in trial.needs}
        self._known: list[TrialPlan] = []
        for trial in [*trials, *others]:
            self._know(trial)
        for name in self._units:
            self._place(name)
        self.look()

    def add(self, trial: TrialPlan) -> None:
        """One trial more, or one that has ended and shall run again; nothing where it waits or runs already."""
        name = name_of(trial)
        if name in self.waiting or name in self.running:
            return
        self._order.setdefault(name, len(self._order))
        self._units[name], self._reached[name] = units_of(trial), 0
        self._place(name)
        for need in trial.needs:
            if need not in self._producers:
                self._producers[need] = [one for one in self._known if any(stage.key == need for stage in one.stages)]
        self._know(trial)
        self._diverged = {unit: one for unit, one in self._diverged.items() if name_of(one) != name}
        self.waiting[name] = trial
        self._sort()
        self.current(name, look=True)
        for need in trial.needs:
            self._published.look(WorkUnit(need))

    def _know(self, trial: TrialPlan) -> None:
        """It may publish what others need."""
        self._known.append(trial)
        for stage in reversed(trial.stages):
            if stage.key in self._producers:
                self._producers[stage.key].append(trial)

    def look(self) -> None:
        """Asks the disk for everything that was not seen yet; others may publish too."""
        stages = {unit for units in self._units.values() for unit in units if unit.evaluation is None}
        for unit in stages | {WorkUnit(need) for need in self._producers}:
            self._published.look(unit)
        for name in self._units:
            self.current(name, look=True)

    def current(self, name: str, *, look: bool = False) -> WorkUnit | None:
        """The first unit of a trial that is not done; None where all are.

        Args:
            look: ask the disk; otherwise what was seen counts.
        """
        units = self._units[name]
        reached = self._reached[name]
        done = self._published.look if look else self._published.seen
        while reached < len(units) and done(units[reached]):
            reached += 1
        if reached > self._reached[name]:
            self._reached[name] = reached
            self._place(name)
        return units[reached] if reached < len(units) else None

    def _place(self, name: str) -> None:
        units, reached = self._units[name], self._reached[name]
        self._at.setdefault(units[reached] if reached < len(units) else None, []).append(name)

    def done(self, name: str) -> int:
        """How many units of a trial were known to be done when last asked."""
        return self._reached[name]

    def complete(self) -> list[TrialPlan]:
        """Waiting trials that have nothing left to do; asks those whose unit was published since the last time."""
        while news := self._published.since(self._heard):
            self._heard += len(news)
            for unit in news:
                for name in self._at.pop(unit, ()):
                    self.current(name)
        done = [name for name in self._at.pop(None, ()) if self._reached[name] == len(self._units[name])]
        self._at[None] = [name for name in dict.fromkeys(done) if name in self.waiting or name in self.running]
        return sorted(
            (self.waiting[name] for name in self._at[None] if name in self.waiting),
            key=lambda trial: self._order[name_of(trial)],
        )

    def next(self) -> TrialPlan | None:
        """The first waiting trial that may start.

        Its teachers are there, nobody does its next unit, and nobody will do its next stage: two trials that measure
        a stage in different ways would meet at the stage after it.
        """
        taken = {unit for name in self.running for unit in (self.current(name), self._next_stage(name)) if unit}
        for name, trial in self.waiting.items():
            if self._may_start(name, trial, taken):
                self.current(name, look=True)  # somebody else may have published in between
                if self._may_start(name, trial, taken):
                    return trial
        return None

    def _may_start(self, name: str, trial: TrialPlan, taken: set[WorkUnit]) -> bool:
        unit = self.current(name)
        return (
            unit is not None
            and unit not in taken
            and self._next_stage(name) not in taken
            and all(self._published.seen(WorkUnit(need)) for need in trial.needs)
        )

    def _next_stage(self, name: str) -> WorkUnit | None:
        """The first stage of a trial that is not published."""
        rest = self._units[name][self._reached[name] :]
        return next((unit for unit in rest if unit.evaluation is None and not self._published.seen(unit)), None)

    def blocked(self) -> list[Blocked]:
        """Waiting trials with a teacher that nobody who waits or runs will publish."""
        dead = {
            need
            for need, producers in self._producers.items()
            if not any(self._is_alive(one) for one in producers) and not self._published.look(WorkUnit(need))
        }
        found = []
        for name, trial in self.waiting.items() if dead else ():
            need = next((need for need in trial.needs if need in dead), None)
            if need is not None and self.current(name) is not None:
                producers = self._producers[need]
                found.append(Blocked(trial, need, producers[0] if producers else None))
        return found

    def doomed(self) -> list[tuple[TrialPlan, TrialPlan]]:
        """Waiting trials whose next stage has diverged in another trial, and that trial: it would diverge again."""
        if not self._diverged:
            return []
        found = []
        for name, trial in self.waiting.items():
            unit = self.current(name)
            if unit is not None and unit in self._diverged:
                found.append((trial, self._diverged[unit]))
        return found

    def start(self, trial: TrialPlan) -> None:
        """It runs from now on."""
        self.running[name_of(trial)] = self.waiting.pop(name_of(trial))

    def end(self, trial: TrialPlan, *, diverged: bool = False) -> None:
        """It is over, whether it ran or not."""
        name = name_of(trial)
        unit = self.current(name, look=True)
        if diverged and unit is not None and unit.evaluation is None:
            self._diverged[unit] = trial
        self.waiting.pop(name, None)
        self.running.pop(name, None)

    def requeue(self, trial: TrialPlan) -> None:
        """It ran, and is requeued at its old place."""
        self.current(name_of(trial), look=True)
        self.waiting[name_of(trial)] = self.running.pop(name_of(trial))
        self._sort()

    def _sort(self) -> None:
        self.waiting = dict(sorted(self.waiting.items(), key=lambda item: self._order[item[0]]))

    def _is_alive(self, trial: TrialPlan) -> bool:
        return name_of(trial) in self.waiting or name_of(trial) in self.running


def select(
    trials: Sequence[TrialPlan], wanted: Iterable[TrialPlan], published: Published, barred: Iterable[str] = ()
) -> list[TrialPlan]:
    """The wanted trials, and those that their teachers need, in spec order.

    A teacher's stage that is published needs no trial. Of several trials that would publish it, one that is wanted
    already does, else the one whose last stage it is.

    Args:
        barred: names of trials that must not run again, because they would end as they did.
    """
    chosen = {name_of(trial): trial for trial in wanted}
    refused = set(barred)
    producers: dict[str, list[TrialPlan]] = {}
    for trial in trials:
        for stage in trial.stages:
            producers.setdefault(stage.key, []).append(trial)
    open_ = list(chosen.values())
    asked: set[str] = set()
    while open_:
        trial = open_.pop()
        if all(published.look(unit) for unit in units_of(trial)):
            continue
        for need in set(trial.needs) - asked:
            asked.add(need)
            able = [one for one in producers.get(need, []) if need not in one.needs]  # those wait for it themselves
            if published.look(WorkUnit(need)) or any(name_of(one) in chosen for one in able):
                continue
            able = [one for one in able if name_of(one) not in refused]
            if able:
                best = min(able, key=lambda one: (one.key != need, one.order))
                chosen[name_of(best)] = best
                open_.append(best)
    return [trial for trial in trials if name_of(trial) in chosen]
