"""What a reader that follows a database asks: has anything changed, in which trials, and what are the newest values."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, func, select, text

from prunegpt.store.engine import frozen
from prunegpt.store.schema import attempt, attempt_stage, curve, note, point, sweep, trial


@dataclass(frozen=True)
class LastPoint:
    """The newest value of a curve that is being written."""

    attempt: int
    stage: int  # position in the chain
    name: str
    step: int
    value: float | None
    tokens: int
    time: float


@dataclass(frozen=True)
class Marks:
    """What a database looks like now."""

    trials: Mapping[int, tuple[object, ...]]  # a trial -> its mark: where it is equal, nothing but points has changed
    running: Mapping[int, tuple[int, int]]  # attempt -> its trial, and the bytes of points.jsonl that are stored


class Watch:
    """Follows a database over one connection of its own; over a new one for each look where nothing can be written."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._frozen = frozen(engine)
        self._connection = engine.connect()
        self._version: int | None = None

    def look(self) -> Marks | None:
        """What there is now; None where nothing has been written since the last look."""
        if self._frozen:
            self._connection.close()
            self._connection = self._engine.connect()
            self._version = None
        with self._connection.begin():
            now = _version(self._connection)
            if now is not None and now == self._version:
                return None
            self._version = now
            return Marks(marks(self._connection), stored_bytes(self._connection))

    def close(self) -> None:
        self._connection.close()


def _version(connection: Connection) -> int | None:
    """A number that differs when another connection has written since; None where the database has none.

    It means something between calls on one and the same connection only.
    """
    if connection.dialect.name != "sqlite":
        return None
    return int(connection.execute(text("PRAGMA data_version")).scalar_one())


def marks(connection: Connection) -> dict[int, tuple[object, ...]]:
    """Every trial with its mark."""
    stages: dict[int, int] = defaultdict(int)
    query = select(attempt.c.trial_id, func.count()).join(attempt_stage, attempt_stage.c.attempt_id == attempt.c.id)
    for row in connection.execute(query.group_by(attempt.c.trial_id)):
        stages[row[0]] = row[1]
    columns = (func.max(attempt.c.id), func.count(attempt.c.ended), func.max(attempt.c.ended))
    attempts = {
        row[0]: tuple(row[1:])
        for row in connection.execute(select(attempt.c.trial_id, *columns).group_by(attempt.c.trial_id))
    }
    notes = {row.trial_id: row.updated for row in connection.execute(select(note.c.trial_id, note.c.updated))}
    own = (trial.c.state, trial.c.key, trial.c.evaluation_key, trial.c.shown, trial.c.position)
    trials = select(trial.c.id, sweep.c.updated, *own).join(sweep, sweep.c.id == trial.c.sweep_id)
    return {
        row.id: (*row[1:], attempts.get(row.id), stages[row.id], notes.get(row.id))
        for row in connection.execute(trials.order_by(trial.c.id))
    }


def stored_bytes(connection: Connection) -> Mapping[int, tuple[int, int]]:
    """Running attempts: id -> (trial, bytes of its points.jsonl that are stored); more bytes, new points."""
    query = select(attempt.c.id, attempt.c.trial_id, attempt.c.offset).where(attempt.c.state == "running")
    return {row.id: (row.trial_id, row.offset) for row in connection.execute(query)}


def last_points(connection: Connection, attempts: Collection[int]) -> list[LastPoint]:
    """The newest point of each curve of these attempts, by attempt, stage and name."""
    last = select(func.max(point.c.step)).where(point.c.curve_id == curve.c.id).scalar_subquery()  # one seek a curve
    newest = (
        select(curve.c.attempt_id, curve.c.stage, curve.c.name, curve.c.id, last.label("step"))
        .where(curve.c.attempt_id.in_(attempts))
        .subquery()
    )
    query = (
        select(newest.c.attempt_id, newest.c.stage, newest.c.name, newest.c.step, point.c.value, point.c.tokens)
        .add_columns(point.c.time)
        .join(point, (point.c.curve_id == newest.c.id) & (point.c.step == newest.c.step))
        .order_by(newest.c.attempt_id, newest.c.stage, newest.c.name)
    )
    return [LastPoint(*row) for row in connection.execute(query)]
