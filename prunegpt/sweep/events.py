"""The events of a running sweep. Trials are named SWEEP/TRIAL."""

from dataclasses import dataclass
from typing import Literal

from prunegpt.records import TrialState


@dataclass(frozen=True)
class Queued:
    """The root runs another sweep, or one waits that goes first. Told at first and on every change."""

    sweep: str
    place: int  # in the queue; 1 is next
    waiting: int  # sweeps in the queue
    ahead: tuple[str, ...]  # sweeps in the queue that go first
    runs: str  # the sweep that runs; empty where that is not known
    by: str  # its process; empty where none runs
    done: int  # trials of the sweep that runs which have ended
    trials: int  # that it has so far


@dataclass(frozen=True)
class SweepStarted:
    """Told once, before anything runs."""

    sweep: str
    trials: int  # that are to be run or taken from the cache now
    finished: int  # that need nothing
    lost: tuple[str, ...] = ()  # trials whose attempt an earlier coordinator left behind
    outdated: tuple[str, ...] = ()  # trials that were finished under other keys, and wait to be computed again
    remeasured: tuple[str, ...] = ()  # those whose models stay, and that wait to be measured otherwise
    because: tuple[str, ...] = ()  # what has changed of them, in words
    replaced: str = ""  # trials that the spec takes out of sight, in words


@dataclass(frozen=True)
class CacheHit:
    """A trial is finished without a worker: all its stages were published and measured."""

    trial: str
    stages: int
    perplexity: float | None
    sparsity: float | None  # share of zeros in the selected tensors, 0 to 1


@dataclass(frozen=True)
class TrialStarted:
    """An attempt was submitted."""

    trial: str
    attempt: int
    folder: str  # below the root
    stages: int  # in the chain
    cached: int  # of them that are published already


@dataclass(frozen=True)
class StagePublished:
    """A running attempt has published a stage, so that others may use it."""

    trial: str
    index: int  # position in the chain
    kind: str
    key: str
    seconds: float  # that computing it took


@dataclass(frozen=True)
class AttemptProgress:
    """How far a running attempt is, sent when it has written new points."""

    trial: str
    index: int  # position of the stage in the chain
    kind: str
    step: int
    total: int | None  # steps of the stage, if the attempt reports it
    epoch: float
    tokens: int  # trained on so far in this stage
    loss: float | None
    perplexity: float | None  # the latest of this stage
    eta: float | None = None  # seconds until it has taken its steps, at its pace so far
    calibrated: float | None = None  # share of a calibration pass that is done, while it lasts


@dataclass(frozen=True)
class TrialFinished:
    """A worker has finished a trial."""

    trial: str
    attempt: int
    seconds: float  # of this attempt
    perplexity: float | None
    sparsity: float | None


@dataclass(frozen=True)
class TrialFailed:
    """An attempt ended otherwise, or a trial can never start."""

    trial: str
    attempt: int  # 0: no worker ran
    state: TrialState
    reason: str
    error: str
    log: str  # below the root; empty where there is none
    retried: bool  # it will be tried again


@dataclass(frozen=True)
class Stopping:
    """A stop was requested: running trials get time to write a checkpoint, or with `kill` none."""

    running: tuple[str, ...]
    kill: bool


@dataclass(frozen=True)
class TargetReached:
    """A trial has come to what the spec says is good enough: nothing more is started."""

    trial: str
    metric: str
    value: float  # that it came to
    target: float


Call = Literal["submit", "poll", "cancel", "close"]


@dataclass(frozen=True)
class LauncherTrouble:
    """The launcher has refused a call for now: it is made again. Told once for each new reason."""

    trial: str  # empty for `close`
    call: Call
    error: str
    seconds: float  # until it is made again


Event = (
    Queued
    | SweepStarted
    | CacheHit
    | TrialStarted
    | StagePublished
    | AttemptProgress
    | TrialFinished
    | TrialFailed
    | Stopping
    | TargetReached
    | LauncherTrouble
)


@dataclass(frozen=True)
class SweepOutcome:
    """What one run of a sweep came to. Trials are named SWEEP/TRIAL, in spec order."""

    sweep: str
    finished: tuple[str, ...]  # by a worker, in this run
    cached: tuple[str, ...]  # in this run, without a worker
    unchanged: tuple[str, ...]  # finished, diverged or stopped before
    failed: tuple[str, ...]  # failed, diverged or stopped by somebody, in this run
    given_up: tuple[str, ...]  # by the spec's early stop, in this run
    waiting: tuple[str, ...]  # not run, because the run was stopped, or the target was reached
    interrupted: bool
    reached: str = ""  # the trial that reached the spec's target
    no_room: str = ""  # why the disk had no room for more
    left_queue: bool = False  # it was interrupted before its turn

    @property
    def ok(self) -> bool:
        """Every trial that was asked for has finished, or one has reached the target."""
        return not self.failed and (bool(self.reached) or not self.waiting)
