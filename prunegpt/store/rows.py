"""What the store hands out beside `records.TrialResult`: frozen rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunegpt.errors import counted, listed
from prunegpt.records import TrialState

if TYPE_CHECKING:
    from prunegpt.spec.plan import TrialPlan


@dataclass(frozen=True)
class SweepRow:
    """A sweep and how far it is."""

    id: int
    name: str
    title: str
    source: str | None  # the spec's file
    folder: str  # working directory of the run, where relative paths of the spec begin; empty: not known
    spec: Mapping[str, Any]
    tables: tuple[Mapping[str, Any], ...]  # each a TableSpec, as JSON
    unchecked: tuple[str, ...]
    created: float  # seconds since the epoch
    updated: float
    states: Mapping[TrialState, int]  # trials that are shown and not implicit, by state

    @property
    def trials(self) -> int:
        return sum(self.states.values())


@dataclass(frozen=True)
class SavedTrial:
    """A trial of a plan as it was saved."""

    id: int
    plan: "TrialPlan"  # under the name it has in the store
    state: TrialState


@dataclass(frozen=True)
class Replaced:
    """Trials that a spec takes out of sight, because the sweep of its name had them and it does not."""

    before: str | None  # the file that the sweep was run from
    now: str | None
    trials: tuple[str, ...]

    def __str__(self) -> str:
        other = f"; they came from another spec of its name, {self.before}" if self.before != self.now else ""
        return (
            f"not in the spec: {counted(len(self.trials), 'trial')} of the sweep ({listed(self.trials, 4)}){other}. "
            "Tables and lists leave them out from this run on; their results stay, and come back with a spec that has "
            "them. Give one of the specs another name to see both."
        )


@dataclass(frozen=True)
class StartedAttempt:
    """A new attempt and its folder."""

    id: int
    number: int
    folder: str  # below the root


@dataclass(frozen=True)
class AttemptRow:
    """One attempt of a trial."""

    id: int
    trial_id: int
    sweep: str
    trial: str
    number: int
    state: str
    reason: str
    error: str
    trace: str
    folder: str  # below the root; empty where no worker ran
    chain: tuple[str, ...]  # the stage keys the trial had then
    started: float
    ended: float | None
    device: str
    versions: Mapping[str, str]
    offset: int  # bytes of points.jsonl that are stored
    log: str = ""  # the last lines of its log, where it did not finish
    outcome: str = ""  # the state that the trial got with it, or `retried`; empty while it runs


@dataclass(frozen=True)
class StageRow:
    """A stage that some attempt asked for."""

    key: str
    kind: str
    computed_by: str | None  # SWEEP/TRIAL/attempt-N; None: outside this database
    published: float
    computations: int  # attempts that computed it to the end
    uses: int  # attempts that found it published


@dataclass(frozen=True)
class CurveRow:
    """One curve of a trial."""

    stage: int  # position in the chain
    name: str
    points: int
    last_step: int


@dataclass(frozen=True)
class Held:
    """What a sweep has in the database."""

    trials: int
    attempts: int
    stages: frozenset[str]  # keys that its trials have or had in their chains
    elsewhere: frozenset[str]  # keys that trials of other sweeps have, had, or learn from
