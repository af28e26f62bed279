"""The store: one object over the database of a root."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from prunegpt.errors import StoreError
from prunegpt.records import AttemptRecord, Point, StageRecord, TrialResult, TrialState
from prunegpt.root import Root
from prunegpt.store import notes, read, remove, watch, write
from prunegpt.store.engine import open_engine, writer
from prunegpt.store.migrate import prepare
from prunegpt.store.rows import AttemptRow, CurveRow, SavedTrial, StageRow, StartedAttempt, SweepRow
from prunegpt.store.schema import attempt, trial
from prunegpt.store.watch import LastPoint, Watch

if TYPE_CHECKING:
    from prunegpt.spec.plan import SweepPlan, TrialPlan
    from prunegpt.spec.schema import TableSpec
    from prunegpt.store.series import Series

_COORDINATOR = 5_108_437_002  # PostgreSQL's advisory lock of the one coordinator of a database
_IDS_AT_ONCE = 10_000  # SQLite takes 32,766 parameters


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
            prepare(engine)
        except DBAPIError as error:
            engine.dispose()
            raise StoreError(
                f"the database {engine.url.render_as_string()} cannot be opened: {str(error.orig).strip()}. "
                f"Check that it is a PruneGPT database and that you may read and write it; "
                f"`prunegpt doctor --repair` makes a damaged one again from the trials."
            ) from error
        except StoreError:
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

    def save_sweep(self, plan: "SweepPlan") -> list[SavedTrial]:
        """Writes a plan over what is known of its sweep; gives its trials, in the plan's order.

        Trials gone from the spec keep their rows and are no longer shown; what a search of the plan has suggested stays
        shown. A trial keeps its state where its key and
        evaluation key are unchanged, and waits again where they are not. Teachers of another sweep are saved as trials
        of that one; where it has the trial with another configuration, that stays and the teacher gets a name of its
        own.
        """
        with self._writer.begin() as connection:
            return write.save_sweep(connection, plan)

    def add_trial(self, one: "TrialPlan") -> SavedTrial:
        """One more trial of a sweep that was saved, such as a suggested one; it keeps its state as in `save_sweep`.

        Raises:
            StoreError: its sweep was not saved.
        """
        with self._writer.begin() as connection:
            return write.add_trial(connection, one)

    def keep_suggested(self, sweep: str, search: str, names: Collection[str]) -> None:
        """These trials are what a search has suggested; others of its trials keep their rows and are no longer shown.

        A spec may have changed so that the search as it is now could not have suggested them; one that changes back
        shows them again.
        """
        with self._writer.begin() as connection:
            write.keep_suggested(connection, sweep, search, names)

    def suggested(self, plan: "SweepPlan") -> list[SavedTrial]:
        """Trials that searches of a saved plan suggested earlier and that still wait, in spec order."""
        with self._reading() as connection:
            return write.suggested(connection, plan)

    def retry(self, name: str, trials: Sequence[str]) -> list[str]:
        """Lets trials of a sweep wait again that failed, diverged or were stopped; gives the names of those."""
        with self._writer.begin() as connection:
            return write.retry(connection, name, trials)

    def start_attempt(self, trial_id: int, *, at_least: int = 1) -> StartedAttempt:
        """A new attempt of a trial, numbered after the last one and from `at_least` on."""
        with self._writer.begin() as connection:
            return write.start_attempt(connection, trial_id, at_least)

    def add_points(self, attempt_id: int, points: Iterable[Point], *, offset: int | None = None) -> None:
        """Stores points of an attempt, all or none; one at the same stage, step and name is replaced.

        Args:
            offset: bytes of points.jsonl that are stored with these, for whoever goes on after a crash.
        """
        known = dict(self._curves.get(attempt_id, {}))
        with self._writer.begin() as connection:
            write.add_points(connection, attempt_id, points, offset, known)
        self._curves[attempt_id] = known

    def record_stage(self, record: StageRecord, attempt_id: int) -> None:
        """Notes that an attempt came through a stage; `record.cached` says whether somebody else computed it."""
        with self._writer.begin() as connection:
            write.record_stage(connection, record, attempt_id)

    def finish_attempt(
        self, record: AttemptRecord, *, state: TrialState | None = None, log: str = "", retried: bool = False
    ) -> None:
        """Stores how an attempt ended.

        Args:
            state: the trial's state from now on, where it is not the attempt's: `waiting` when it shall run again.
            log: the last lines of its log.
            retried: the trial runs again because of how this attempt ended.
        """
        with self._writer.begin() as connection:
            write.finish_attempt(connection, record, state, log, retried)
        self._curves.clear()

    def conclude(
        self, trial_id: int, state: TrialState, *, reason: str, error: str = "", stages: Sequence[StageRecord] = ()
    ) -> None:
        """Ends a trial that needed no worker, or can never get one."""
        with self._writer.begin() as connection:
            write.conclude(connection, trial_id, state, reason, error, stages)

    @contextmanager
    def sole_writer(self) -> Iterator[bool]:
        """Whether this process may coordinate; on PostgreSQL one a database may, while the block lasts.

        On SQLite the lock of the root says so, and this is always true.
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

    def remove_sweep(self, name: str, stages: Sequence[str] = ()) -> None:
        """Removes a sweep with its trials, attempts and curves, and the rows of these stages.

        Raises:
            StoreError: there is no such sweep.
        """
        with self._writer.begin() as connection:
            remove.remove(connection, name, stages)

    # Reads: anybody's.

    def held(self, name: str) -> remove.Held:
        """What a sweep has here, and which stages others have. Raises StoreError where there is no such sweep."""
        with self._reading() as connection:
            return remove.held(connection, name)

    def sweeps(self) -> list[SweepRow]:
        """All sweeps, in the order they were first run."""
        with self._reading() as connection:
            return read.sweeps(connection)

    def sweep(self, name: str) -> SweepRow:
        """One sweep. Raises StoreError with the nearest names where there is none."""
        with self._reading() as connection:
            found = read.find_sweep(connection, name)
            return next(row for row in read.sweeps(connection) if row.id == found)

    def tables(self, name: str) -> tuple["TableSpec", ...]:
        """The tables that a sweep's spec asks for."""
        from prunegpt.spec.schema import TableSpec

        return tuple(TableSpec.model_validate(table) for table in self.sweep(name).tables)

    def results(self, name: str, *, shown: bool | None = True) -> list[TrialResult]:
        """The trials of a sweep, in spec order.

        Args:
            shown: True: those of the spec; False: those that have gone from it; None: both.
        """
        with self._reading() as connection:
            return read.results(connection, trial.c.sweep_id == read.find_sweep(connection, name), shown=shown)

    def states(self, name: str) -> list[tuple[int, TrialState]]:
        """Id and state of the trials of a sweep that are shown, in spec order: much less than their results."""
        with self._reading() as connection:
            return read.states(connection, name)

    def result(self, reference: int | str) -> TrialResult:
        """One trial, by id or as SWEEP/TRIAL. Raises StoreError with the nearest names where there is none."""
        with self._reading() as connection:
            return read.result(connection, reference)

    def attempts(self, reference: int | str) -> list[AttemptRow]:
        """All attempts of a trial, oldest first, those of earlier configurations included."""
        with self._reading() as connection:
            return read.attempts(connection, trial.c.id == self._trial_id(connection, reference))

    def endings(self, trial_id: int) -> list[tuple[str, str]]:
        """Reason and outcome of the attempts of a trial's present configuration, oldest first.

        The outcome is the state that the trial got with it, or `retried`.
        """
        with self._reading() as connection:
            return read.endings(connection, trial_id)

    def running_attempts(self) -> list[AttemptRow]:
        """Attempts that were started and not finished, of all sweeps."""
        with self._reading() as connection:
            return read.attempts(connection, attempt.c.state == "running")

    def last_attempts(self, name: str | None = None, count: int = 10) -> list[AttemptRow]:
        """The attempts of a sweep, or of all, that ended last; the latest is the last one."""
        with self._reading() as connection:
            return read.last_attempts(connection, name, count)

    def stages(self) -> list[StageRow]:
        """Every stage that an attempt came through, oldest first."""
        with self._reading() as connection:
            return read.stages(connection)

    def points(self, reference: int | str, name: str | None = None, *, stage: int | None = None) -> list[Point]:
        """The curves of a trial, or the one of that name or stage, by stage, name and step.

        Later attempts override earlier ones at a step. Curves of a stage that another trial computed are there too.
        """
        with self._reading() as connection:
            return read.points(connection, self._trial_id(connection, reference), name, stage)

    def curves(self, reference: int | str) -> list[CurveRow]:
        """Which curves a trial has, by stage and name."""
        with self._reading() as connection:
            return read.curves(connection, self._trial_id(connection, reference))

    def series(self, trial_id: int, wanted: Callable[[int, str], bool]) -> list["Series"]:
        """The curves of a trial as arrays, those wanted by stage and name; see `store.series`."""
        from prunegpt.store.series import series

        with self._reading() as connection:
            return series(connection, trial_id, wanted)

    def results_of(self, ids: Sequence[int]) -> list[TrialResult]:
        """These trials, of whatever sweep, in spec order; those that are gone are left out."""
        with self._reading() as connection:
            chunks = [ids[begin : begin + _IDS_AT_ONCE] for begin in range(0, len(ids), _IDS_AT_ONCE)]
            return [one for chunk in chunks for one in read.results(connection, trial.c.id.in_(chunk))]

    def last_points(self, attempts: Collection[int]) -> list[LastPoint]:
        """The newest point of every curve of these attempts."""
        with self._reading() as connection:
            return watch.last_points(connection, attempts)

    def watch(self) -> Watch:
        """Tells cheaply what has changed; for one thread at a time, to be closed."""
        return Watch(self._engine)

    # Notes: anybody's.

    def note(self, trial_id: int) -> str:
        """What people wrote on a trial, as Markdown; empty where nothing."""
        with self._reading() as connection:
            return notes.read_note(connection, trial_id)

    def set_note(self, trial_id: int, text: str) -> None:
        """Replaces the note of a trial; an empty text removes it."""
        with self._writer.begin() as connection:
            notes.write_note(connection, trial_id, text)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            yield connection

    def _trial_id(self, connection: Connection, reference: int | str) -> int:
        return reference if isinstance(reference, int) else read.result(connection, reference).id
