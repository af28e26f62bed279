"""What a sweep is doing now, read from the store alone: from any terminal, and from any machine that sees the root."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from prunegpt.planning.budget import train_tokens
from prunegpt.points import Point
from prunegpt.records import CALIBRATED, LAYERS_PRUNED, TOTAL_STEPS, TrialResult, TrialState
from prunegpt.root import Root
from prunegpt.spec.plan import StagePlan
from prunegpt.store import Store
from prunegpt.store.watch import LastPoint
from prunegpt.sweep.lock import Holder, coordinator
from prunegpt.sweep.queue import Waiter, stored_sweeps, waiting


@dataclass(frozen=True)
class Slot:
    """An attempt that runs."""

    trial: str  # SWEEP/TRIAL
    id: int  # of the trial
    attempt: int
    stage: int  # position in the chain
    stages: int  # in the chain
    kind: str
    started: float | None  # seconds since the epoch
    step: int
    total: int | None  # steps of this stage
    tokens: int  # trained on so far in this stage
    tokens_total: int | None
    calibrated: float | None  # share of a calibration pass that is done, while it lasts
    eta: float | None  # seconds until the stage is trained or pruned, at its pace so far
    loss: float | None
    perplexity: float | None
    sparsity: float | None


@dataclass(frozen=True)
class End:
    """An attempt that has ended."""

    trial: str
    attempt: int
    ended: float
    outcome: str  # the state that the trial got with it, or `retried`
    reason: str
    error: str


@dataclass(frozen=True)
class Frame:
    """A sweep, or all of them, at one instant."""

    states: Mapping[TrialState, int]
    slots: tuple[Slot, ...]
    ends: tuple[End, ...]  # newest last
    coordinator: Holder | None
    queue: tuple[Waiter, ...]  # who waits to coordinate the root, in order


def look(root: Root, store: Store, name: str | None = None, *, ends: int = 6) -> Frame:
    """What there is to see now.

    Args:
        name: one sweep; default all.
        ends: how many ended attempts are listed.

    Raises:
        StoreError: there is no such sweep, and none waits.
    """
    sweeps = stored_sweeps(root, store, name)
    states: dict[TrialState, int] = {}
    for sweep in sweeps:
        for state, count in sweep.states.items():
            states[state] = states.get(state, 0) + count
    running = [attempt for attempt in store.running_attempts() if name in (None, attempt.sweep)]
    points = store.last_points([attempt.id for attempt in running]) if running else []
    results = {one.address: one for one in store.results_of([attempt.trial_id for attempt in running])}
    slots = [
        slot(
            results[f"{attempt.sweep}/{attempt.trial}"],
            [point for point in points if point.attempt == attempt.id],
            attempt.number,
        )
        for attempt in running
    ]
    ended = [
        End(f"{one.sweep}/{one.trial}", one.number, one.ended or 0.0, one.outcome or one.state, one.reason, one.error)
        for one in store.last_attempts(name, ends)
    ]
    return Frame(states, tuple(slots), tuple(ended), coordinator(root), tuple(waiting(root)))


def slot(trial: TrialResult, points: Collection[LastPoint], attempt: int) -> Slot:
    """A running attempt of a trial, by the newest points of its curves."""
    newest = max(points, key=lambda point: (point.stage, point.step, point.time), default=None)
    stage = newest.stage if newest else 0
    values = {point.name: point for point in points if point.stage == stage}
    planned = trial.plan.stages
    tokens = _total(planned[stage], values) if newest and stage < len(planned) else None

    def value(name: str) -> float | None:
        return values[name].value if name in values else None

    steps = value(TOTAL_STEPS)
    return Slot(
        trial=trial.address,
        id=trial.id,
        attempt=attempt,
        stage=stage,
        stages=len(planned),
        kind=planned[stage].kind if stage < len(planned) else "",
        started=trial.started,
        step=newest.step if newest else 0,
        total=None if steps is None else round(steps),
        tokens=newest.tokens if newest else 0,
        tokens_total=tokens,
        calibrated=share if (share := value(CALIBRATED)) != 1 and LAYERS_PRUNED not in values else None,
        eta=eta_of(values.get(TOTAL_STEPS), newest),
        loss=value("loss"),
        perplexity=value("perplexity"),
        sparsity=value("sparsity"),
    )


def _total(plan: StagePlan, values: Mapping[str, LastPoint]) -> int | None:
    """Tokens of a stage, by its config, or from its steps and how many tokens one has had so far."""
    tokens = train_tokens(plan, plan.declared_blocks)
    if tokens is not None:
        return tokens or None
    steps, loss = values.get(TOTAL_STEPS), values.get("loss")
    if steps is None or steps.value is None or loss is None or not loss.step:
        return None
    return round(steps.value * loss.tokens / loss.step)


def eta_of(begun: Point | LastPoint | None, newest: Point | LastPoint | None) -> float | None:
    """Seconds until a stage has taken its steps, at its pace so far; None where that is not known.

    Args:
        begun: the point with their number, reported when the first one begins, or the first after a resumption.
        newest: of the points of this stage.
    """
    if begun is None or begun.value is None or newest is None or newest.step <= begun.step:
        return None
    pace = (newest.time - begun.time) / (newest.step - begun.step)
    return max(0.0, begun.value - newest.step) * pace if pace > 0 else None  # a clock was set back meanwhile
