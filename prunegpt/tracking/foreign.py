"""Runs that were made elsewhere, each a trial of its own kind: what a W&B client has logged, by the names it used.

A run has a folder below ROOT/trials like any other trial, and rows in the store. Its one stage, `logged`, is no model
of ours: nothing that it logs becomes a perplexity or a sparsity, and it cannot be run here.
"""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, Literal

from pydantic import ConfigDict

from prunegpt.errors import StoreError
from prunegpt.launch.log import LOG, append
from prunegpt.planning.fingerprint import digest
from prunegpt.points import PointWriter, read_points
from prunegpt.records import AttemptRecord, Record, StageRecord
from prunegpt.root import Root, write_text
from prunegpt.spec.naming import MAX_NAME, slug
from prunegpt.spec.plan import LoggedRun, StagePlan, SweepPlan, TrialPlan
from prunegpt.spec.schema import DataSpec, EvaluateSpec, ModelSpec
from prunegpt.store import Store
from prunegpt.sweep.attempt import last_number
from prunegpt.sweep.recovery import OUTSIDE, planned
from prunegpt.tracking.claims import POINTS
from prunegpt.tracking.history import EVENTS, HISTORY, RowFile, begins_anew, unknown
from prunegpt.tracking.ingest import start
from prunegpt.tracking.run_path import RunPath, place_of
from prunegpt.tracking.values import numbers_of, plain, points_of

_RECORD = "record.json"  # in the folder of an attempt that has ended
_FAST = 600.0  # seconds without a word after which a run may have been closed meanwhile

ForeignState = Literal["finished", "failed", "stopped"]


class StoredRun(Record):
    """What is kept of a run beside its trial and rows; the file is touched when the run speaks."""

    model_config = ConfigDict(extra="ignore")  # earlier versions kept more

    attempt: int  # the store's number of it
    started: float = 0.0
    began: float = 0.0  # when a client last said that it begins the run, seconds since the epoch
    lines: int = 0  # rows of the history
    size: int | None = None  # bytes of points.jsonl that hold them; earlier versions did not say
    history: int = 0  # bytes of history.jsonl that count
    output: int = 0  # lines of what it has printed
    events: int = 0  # rows of system metrics
    event_bytes: int = 0  # of events.jsonl that count
    last_step: int = -1  # `_step` of the last row
    summary: Mapping[str, Any] = {}
    stop: bool = False  # it was asked to end, which its client looks up
    client: Mapping[str, Any] = {}  # what the client keeps of itself in the configuration, as `_wandb`


class Keeper:
    """Keeps one run: its folder, its points, its rows. An existing run is resumed.

    Nothing of it stays in memory, and no file stays open.

    Args:
        store: written in short transactions.
        created: when it began, seconds since the epoch; default now.
    """

    def __init__(self, root: Root, store: Store, at: RunPath, created: float = 0.0) -> None:
        self.at = at
        self._root = root
        self._store = store
        self._place = place_of(root, at, claim=True)
        number = last_number(root.trial(*self._place)) or 1
        self.folder = root.attempt(*self._place, number)
        kept: StoredRun | None = None
        with suppress(OSError, ValueError):  # the run is new
            kept = StoredRun.read(self.folder / OUTSIDE)
        self.plan = (planned(self.folder) if kept else None) or self._first_plan()
        if kept is None or not self._is_known(kept):
            attempt = start(root, store, self._sweep(), self.plan, number)
            if kept is not None and attempt.folder == self.folder:  # the database is another one
                kept = kept.model_copy(update={"attempt": attempt.id})
                store.add_points(attempt.id, read_points(self.folder / POINTS)[0])
            else:
                kept = StoredRun(attempt=attempt.id, started=created or time.time())
            self.folder = attempt.folder
            kept.write(self.folder / OUTSIDE)
        self.kept = kept

    @property
    def run(self) -> LoggedRun:
        """How the run describes itself."""
        if self.plan.run is not None:
            return self.plan.run
        named = self.plan.group not in (self.plan.name, slug(self.plan.label)[:MAX_NAME])  # by an earlier version
        return _described(self.at).model_copy(update={"group": self.plan.group if named else ""})

    @property
    def active(self) -> float:
        """When the run last spoke, seconds since the epoch."""
        return (self.folder / OUTSIDE).stat().st_mtime

    @property
    def ended(self) -> str:
        """How the run ended, where it has."""
        try:
            return AttemptRecord.read(self.folder / _RECORD).state
        except (OSError, ValueError):
            return ""

    @property
    def history(self) -> RowFile:
        """Its rows."""
        return RowFile(self.folder / HISTORY, self.kept.history)

    @property
    def events(self) -> RowFile:
        """The system metrics of its machine."""
        return RowFile(self.folder / EVENTS, self.kept.event_bytes)

    def touch(self) -> None:
        """The run has spoken: it runs, whatever was thought of it."""
        closed = (self.folder / _RECORD).exists() or time.time() - self.active > _FAST
        os.utime(self.folder / OUTSIDE)
        if closed:
            (self.folder / _RECORD).unlink(missing_ok=True)
            self._store.reopen_attempt(self.kept.attempt)

    def add(self, rows: Sequence[Mapping[str, Any]], offset: int) -> None:
        """Keeps rows of the history; those that are kept already are passed over.

        Rows that begin the run again, as a client that does not resume sends them, make another attempt of it.

        Args:
            offset: number of the first of them, from 0.

        Raises:
            ValueError: they are nested too deep, or are at a step that is none; none of them is kept.
        """
        new = [plain(row) for row in rows]
        if offset < self.kept.lines:
            if not self.kept.history:  # an earlier version kept no rows to compare with
                new = new[self.kept.lines - offset :]
            elif offset == 0 and begins_anew(self.history, new, self.kept.began):
                self._begin_anew()
        new = unknown(self.history, new, self.kept.last_step)
        if not new:
            return
        history = self.history
        points = [point for row in new for point in points_of(row)]
        history.append(new)
        size = self._write_points(points)
        self._keep(lines=self.kept.lines + len(new), size=size, history=history.size, last_step=new[-1]["_step"])

    def add_events(self, rows: Sequence[Mapping[str, Any]], offset: int) -> None:
        """Keeps system metrics, which are numbered and not at steps.

        Raises:
            ValueError: they are nested too deep.
        """
        new = [plain(row) for row in rows[max(self.kept.events - offset, 0) :]]
        if not new:
            return
        events = self.events
        points = [point for number, row in enumerate(new, self.kept.events) for point in points_of(row, number)]
        events.append(new)
        size = self._write_points(points)
        self._keep(events=self.kept.events + len(new), event_bytes=events.size, size=size)

    def update(
        self,
        *,
        label: str | None = None,
        config: Mapping[str, Any] | None = None,
        swept: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
        client: Mapping[str, Any] | None = None,
        begins: bool = False,
        **about: Any,
    ) -> None:
        """The run continues with further values. A configuration is merged.

        Args:
            begins: a client has begun it, or begins to send what it has logged earlier.
            about: fields of `LoggedRun`; None leaves them as they are.
        """
        before = self.plan
        run = self.run.model_copy(update={name: value for name, value in about.items() if value is not None})
        config = plain({**before.config, **(config or {})})
        seed = config.get("seed")
        self.plan = before.model_copy(
            update={
                "label": plain(label or before.label),
                "group": slug(run.group)[:MAX_NAME] if run.group else before.name,
                "seed": seed if isinstance(seed, int) and 0 <= seed < 2**32 else 0,
                "config": config,
                "swept": before.swept if swept is None else plain(swept),
                "run": LoggedRun.model_validate(plain(run.model_dump())),
            }
        )
        if self.plan != before:
            write_text(self.folder / "trial.json", self.plan.model_dump_json(indent=2) + "\n")
            self._store.add_trial(self.plan)
        kept: dict[str, Any] = {"client": plain(client)} if client else {}
        kept |= {"began": time.time()} if begins else {}
        if summary is not None:
            self._keep(summary=plain(summary), **kept)
            self._store.record_stage(self._stage(), self.kept.attempt)
        elif kept:
            self._keep(**kept)

    def log(self, lines: Sequence[str], offset: int) -> None:
        """Appends to the log what it does not have yet.

        Args:
            offset: number of the first line, from 0.
        """
        new = lines[max(self.kept.output - offset, 0) :]
        if new:
            with (self.folder / LOG).open("a", encoding="utf-8", errors="replace") as file:
                file.writelines(line if line.endswith("\n") else line + "\n" for line in new)
            self._keep(output=offset + len(lines))

    def ask_to_stop(self) -> None:
        """The run's client ends it when it looks next."""
        self._keep(stop=True)

    def note(self, line: str) -> None:
        """Adds a line to the log that the run has not printed."""
        append(self.folder / LOG, line)

    def end(self, state: ForeignState, message: str = "") -> None:
        """The run is over. It can still be resumed."""
        record = AttemptRecord(
            sweep=self.plan.sweep,
            trial=self.plan.name,
            attempt=last_number(self.folder.parent),
            state=state,
            reason="" if state == "finished" else ("stopped" if state == "stopped" else "exit"),
            error=message,
            stages=(self._stage(),),
            started=self.kept.started,
            ended=time.time(),
        )
        record.write(self.folder / _RECORD)
        self._store.finish_attempt(record)

    def _begin_anew(self) -> None:
        """Another execution takes the run's name; what the one before it has logged stays with its attempt."""
        if not self.ended:
            self.end("stopped", "another execution has taken its id.")
        number = last_number(self.folder.parent) + 1
        stage = self.plan.stages[0]
        self.plan = self.plan.model_copy(update={"stages": (stage.model_copy(update={"key": _key(self.at, number)}),)})
        attempt = start(self._root, self._store, self._sweep(), self.plan, number)
        self.folder = attempt.folder
        self.kept = StoredRun(attempt=attempt.id, started=time.time(), client=self.kept.client)
        self.kept.write(self.folder / OUTSIDE)

    def _write_points(self, points: Sequence[Any]) -> int:
        """Stores points; gives the bytes of points.jsonl that count."""
        file = self.folder / POINTS
        if self.kept.size is not None and file.exists():
            os.truncate(file, self.kept.size)  # rows that could not be kept to the end are sent again
        with closing(PointWriter(file)) as writer:
            for point in points:
                writer.write(point)
        size = file.stat().st_size
        self._store.add_points(self.kept.attempt, points, offset=size)
        return size

    def _stage(self) -> StageRecord:
        """What the run came to, as it says itself."""
        flat = dict(numbers_of(self.kept.summary))
        return StageRecord(
            key=self.plan.stages[0].key,
            kind=self.plan.stages[0].kind,
            index=0,
            cached=False,
            seconds=flat.get("_runtime") or 0.0,
            steps=max(self.kept.last_step, 0),
            logged=self.kept.summary,
        )

    def _first_plan(self) -> TrialPlan:
        model = ModelSpec(source=self.at.source, label=plain(self.at.id))
        return TrialPlan(
            sweep=self._place.sweep,
            name=self._place.trial,
            group=self._place.trial,
            seed=0,
            label=plain(self.at.id),
            order=self._order(),
            model=model,
            data=DataSpec(),
            evaluate=EvaluateSpec(),
            evaluation_key="wandb",
            stages=(StagePlan(key=_key(self.at), kind="logged", model=model),),
            run=_described(self.at),
        )

    def _sweep(self) -> SweepPlan:
        title = f"{self.at.entity}/{self.at.project}, logged to W&B"
        return SweepPlan(name=self._place.sweep, title=title, trials=())

    def _order(self) -> int:
        """The place of a new trial in its sweep."""
        try:
            return len(self._store.results(self._place.sweep, shown=None))
        except StoreError:
            return 0

    def _is_known(self, kept: StoredRun) -> bool:
        """Whether the database has what was kept."""
        try:
            return any(row.id == kept.attempt for row in self._store.attempts("/".join(self._place)))
        except StoreError:
            return False

    def _keep(self, **changed: Any) -> None:
        self.kept = self.kept.model_copy(update=changed)
        self.kept.write(self.folder / OUTSIDE)


def _described(at: RunPath) -> LoggedRun:
    entity, project, run = plain(at)
    return LoggedRun(entity=entity, project=project, id=run)


def _key(at: RunPath, number: int = 1) -> str:
    """The key of what one execution of a run has logged."""
    return f"wandb-{digest([*at, number])}"
