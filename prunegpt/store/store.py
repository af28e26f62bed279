"""The store: one object over the database of a root."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, text

from prunegpt.points import Point
from prunegpt.root import Root
from prunegpt.store import curves as of_curves
from prunegpt.store import read, watch, write
from prunegpt.store.engine import open_engine, told, understood, writer
from prunegpt.store.migrate import prepare
from prunegpt.store.watch import Watch

if TYPE_CHECKING:
    from prunegpt.store.series import Series

_COORDINATOR = 5_108_437_002  # PostgreSQL's advisory lock of the one coordinator of a database
_MOST_FOLLOWED = 256  # attempts whose curves' numbers are kept, so that they need not be asked for
_Asked = ParamSpec("_Asked")
_Given = TypeVar("_Given")


def _reading(
    question: Callable[Concatenate[Connection, _Asked], _Given],
) -> Callable[Concatenate["Store", _Asked], _Given]:
    """The question as a method: asked on a connection of its own."""

    @wraps(question)
    def method(self: "Store", /, *args: _Asked.args, **named: _Asked.kwargs) -> _Given:
        with told(self._engine), understood(self._engine), self._engine.connect() as connection:
            return question(connection, *args, **named)

    return method


def _writing(
    statement: Callable[Concatenate[Connection, _Asked], _Given],
) -> Callable[Concatenate["Store", _Asked], _Given]:
    """The statement as a method: in a transaction of its own."""

    @wraps(statement)
    def method(self: "Store", /, *args: _Asked.args, **named: _Asked.kwargs) -> _Given:
        with told(self._engine), self._writer.begin() as connection:
            return statement(connection, *args, **named)

    return method


class Store:
    """What was planned, tried and measured. The coordinator writes; anybody may read at the same time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = writer(engine)
        self._curves: dict[int, write.CurveIds] = {}  # of attempts that are being followed

    @classmethod
    def open(cls, where: Root | str, *, create: bool = True) -> "Store":
        """Opens the database of a root (SQLite), or the one a URL names.

        Args:
            where: a root, or postgresql://USER@HOST/DATABASE.
            create: make it where there is none; commands that only look say False.

        Raises:
            StoreError: there is none and `create` is False, it cannot be reached, or a newer PruneGPT wrote it.
        """
        engine = open_engine(where, create)
        try:
            with told(engine, "opened"):
                prepare(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Writes: the coordinator's.

    save_sweep = _writing(write.save_sweep)
    add_trial = _writing(write.add_trial)
    keep_suggested = _writing(write.keep_suggested)
    retry = _writing(write.retry)
    let_wait = _writing(write.let_wait)
    correct_stages = _writing(write.correct_stages)
    start_attempt = _writing(write.start_attempt)
    reopen_attempt = _writing(write.reopen_attempt)
    record_stage = _writing(write.record_stage)
    finish_attempt = _writing(write.finish_attempt)
    conclude = _writing(write.conclude)
    remove_sweep = _writing(write.remove_sweep)
    set_note = _writing(write.set_note)  # anybody's

    def add_points(self, attempt_id: int, points: Iterable[Point], *, offset: int | None = None) -> None:
        """Stores points of an attempt, all or none; one at the same stage, step and name is replaced.

        Args:
            offset: bytes of points.jsonl that are stored with these, for resuming after a crash.
        """
        known = dict(self._curves.get(attempt_id, {}))
        with told(self._engine), self._writer.begin() as connection:
            write.add_points(connection, attempt_id, points, offset, known)
        self._curves.pop(attempt_id, None)
        self._curves[attempt_id] = known
        if len(self._curves) > _MOST_FOLLOWED:
            del self._curves[next(iter(self._curves))]  # the one that was written to least recently

    @contextmanager
    def sole_writer(self) -> Iterator[bool]:
        """Whether this process may coordinate; on PostgreSQL one a database may, while the block lasts.

        On SQLite the lock of the root guarantees that, and this is always true.
        """
        if self._engine.dialect.name != "postgresql":
            yield True
            return
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            asked = {"number": _COORDINATOR}
            held = bool(connection.execute(text("SELECT pg_try_advisory_lock(:number)"), asked).scalar())
            try:
                yield held
            finally:
                if held:
                    connection.execute(text("SELECT pg_advisory_unlock(:number)"), asked)

    # Reads: anybody's.

    suggested = _reading(read.suggested)
    held = _reading(read.held)
    note = _reading(read.note)
    names = _reading(read.names)
    notes = _reading(read.every_note)
    sweeps = _reading(read.sweeps)
    sweep = _reading(read.sweep_row)
    tables = _reading(read.tables)
    results = _reading(read.results)
    results_of = _reading(read.results_of)
    states = _reading(read.states)
    outdated = _reading(read.outdated)
    replaced = _reading(read.replaced)
    result = _reading(read.result)
    attempts = _reading(read.attempts)
    endings = _reading(read.endings)
    running_attempts = _reading(read.running_attempts)
    last_attempts = _reading(read.last_attempts)
    stages = _reading(read.stages)
    points = _reading(read.points)
    curves = _reading(read.curves)
    metrics = _reading(of_curves.metrics)
    curve_ends = _reading(of_curves.curve_ends)
    stages_with = _reading(read.stages_with)
    last_points = _reading(watch.last_points)

    def series(self, trial_id: int, wanted: Callable[[int, str], bool]) -> "list[Series]":
        """The curves of a trial as arrays, those wanted by stage and name; see `store.series`."""
        from prunegpt.store.series import series  # here: most who read need no arrays

        with told(self._engine), self._engine.connect() as connection:
            return series(connection, trial_id, wanted)

    def watch(self) -> Watch:
        """Tells cheaply what has changed; for one thread at a time, to be closed."""
        return Watch(self._engine)
