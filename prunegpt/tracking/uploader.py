"""Sends trials to W&B from a process of its own: it reads the root, and nothing waits for it.

What was sent and what waits is a file per trial below ROOT/wandb/posted.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prunegpt.errors import PruneGPTError, StoreError
from prunegpt.points import read_points
from prunegpt.records import AttemptRecord, Record, TrialResult
from prunegpt.root import Root
from prunegpt.spec.naming import slug
from prunegpt.spec.plan import TrialPlan
from prunegpt.spec.tracking import TrackingSpec, WandbSpec
from prunegpt.store import Store
from prunegpt.tracking.client import VIEWER, Server, is_ours
from prunegpt.tracking.run_log import RunLog, forget_folder, log_tables, rows_of, run_id

ENDED = ("finished", "failed", "diverged", "stopped")  # states of a trial whose run is over
_LOOK = 3.0  # seconds between polls of the root
_LAZY = 10  # rest between polls, as a multiple of their duration
_OFFLINE = 300.0  # seconds after a failure in which nothing is sent
_LINES = """
query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) { bucket(name: $name, missingOk: true) { historyLineCount } }
}
"""


class Posted(Record):
    """One trial's run at W&B.

    Args:
        rows: of its history that were given to the client.
        sent: the server has them all, and how the trial ended.
        problem: why not.
        folder: of the client's own record of the run, below the root.
    """

    run: str
    sweep: str
    trial: str
    key: str
    project: str
    entity: str | None = None
    state: str = "running"
    rows: int = 0
    sent: bool = False
    problem: str = ""
    folder: str = ""


def _notes(root: Root) -> Path:
    return root.path / "wandb" / "posted"


def posted(root: Root, run: str) -> Posted | None:
    """What is known of a run; None where it was never sent anywhere."""
    try:
        return Posted.read(_notes(root) / f"{slug(run)}.json")
    except (OSError, ValidationError):
        return None


def all_posted(root: Root) -> Iterator[Posted]:
    """Every run that was sent or shall be."""
    for path in sorted(_notes(root).glob("*.json")):
        if (found := posted(root, path.stem)) is not None:
            yield found


@dataclass
class WandbUploader:
    """Follows one sweep.

    Args:
        spec: what shall be sent, and where.
        server: W&B; None where there is no key. Unused offline.
        say: takes lines for people.
    """

    root: Root
    sweep: str
    spec: WandbSpec
    server: Server | None
    say: Callable[[str], None] = print
    _open: dict[str, RunLog] = field(default_factory=dict)
    _offline_until: float = 0.0
    _told: set[str] = field(default_factory=set)
    _done: set[tuple[str, str]] = field(default_factory=set)  # run and state that nothing more is to be said of

    def follow(self, over: Callable[[float], bool]) -> None:
        """Polls until `over`, which waits a number of seconds for the end, is true; then once more."""
        while True:
            began = time.monotonic()
            self.look()
            if over(max(_LOOK, _LAZY * (time.monotonic() - began))):
                break
        self.look()
        for log in self._open.values():
            self._guarded(log.abandon)
        self.tables()

    def tables(self) -> None:
        """Sends the sweep's tables and figures as they are now."""
        self._guarded(lambda: log_tables(self.root, self.spec, self.sweep, self._mode()))

    def look(self) -> None:
        """Sends what is new of every trial that runs or has ended."""
        try:
            with Store.open(self.root, create=False) as store:
                for result in store.results(self.sweep):
                    if result.state == "running" and (log := self._log(result)) is not None:
                        rows = _rows(store, result)[:-1]  # the last may not be whole
                        self._guarded(partial(log.log, rows))
                    elif result.state in ENDED and (run_id(result), result.state) not in self._done:
                        if not self._is_kept(result):
                            self.send(store, result)
                        self._done.add((run_id(result), result.state))
        except StoreError:
            return  # nothing has run yet

    def _is_kept(self, result: TrialResult) -> bool:
        """Whether nothing more is to be done for a trial now: it was sent, or is pending."""
        before = posted(self.root, run_id(result))
        if before is None or before.state != result.state or before.run in self._open:
            return False
        return before.sent or (self._mode() == "offline" and bool(before.folder))

    def send(self, store: Store, result: TrialResult) -> Posted:
        """Sends a trial that has ended, or keeps it; returns the outcome."""
        run, rows = run_id(result), _rows(store, result)
        before, log = posted(self.root, run), self._log(result)
        note = self._note(result, rows=len(rows), problem="no run could begin")
        if log is not None:
            del self._open[run]
            finished = self._guarded(lambda: log.finish(result, rows))
            sent = finished and log.mode == "online" and self._has(run, len(rows))
            problem = "" if sent else ("kept to be sent" if log.mode == "offline" else "the server has not all of it")
            note = note.model_copy(update={"sent": sent, "problem": problem, "folder": "" if sent else log.folder})
        if note.sent or note.folder:
            for folder in {one.folder for one in (before, log) if one is not None} - {note.folder}:
                forget_folder(self.root, folder)
        self._write(note)
        return note

    def _note(self, result: TrialResult, **more: Any) -> Posted:
        return Posted(
            run=run_id(result),
            sweep=result.sweep,
            trial=result.name,
            key=result.key,
            project=self.spec.project,
            entity=self.spec.entity,
            state=result.state,
            **more,
        )

    def _write(self, note: Posted) -> None:
        self._guarded(lambda: note.write(_notes(self.root) / f"{note.run}.json"))

    def _has(self, run: str, rows: int) -> bool:
        """Whether the server has all rows of a run."""
        if self.server is None:
            return False
        variables = {"project": self.spec.project, "entity": self.spec.entity, "name": run}
        for wait in (0.0, 1.0, 3.0):
            time.sleep(wait)
            try:
                model = self.server.ask(_LINES, variables).get("model") or {}
            except PruneGPTError as error:
                self._tell(str(error))
                return False
            if int((model.get("bucket") or {}).get("historyLineCount") or 0) >= rows:
                return True
        return False

    def _log(self, result: TrialResult) -> RunLog | None:
        """The open run of a trial; None where not even an offline one can be begun, such as on a full disk."""
        run = run_id(result)
        if run in self._open:
            return self._open[run]
        for mode in dict.fromkeys((self._mode(), "offline")):
            if posted(self.root, run) is None:
                self._write(self._note(result))
            artifacts = mode == "offline" or (self.server is not None and not is_ours(self.server.address))
            try:
                self._open[run] = RunLog(self.root, self.spec, result, mode, artifacts=artifacts)
                break
            except Exception as error:  # whatever the client or the disk can think of
                self._failed(error)
        return self._open.get(run)

    def _mode(self) -> str:
        if self.spec.mode == "offline" or time.monotonic() < self._offline_until:
            return "offline"
        if self.server is None:
            self._tell("there is no API key: set WANDB_API_KEY or run `wandb login`. Runs are kept until then")
            return "offline"
        try:
            self.server.ask(VIEWER, {})
        except PruneGPTError as error:
            self._failed(error)
            return "offline"
        return "online"

    def _guarded(self, act: Callable[[], object]) -> bool:
        """Does something that may fail in any way the client or the disk can think of; whether it went well."""
        try:
            act()
        except Exception as error:
            self._failed(error)
            return False
        return True

    def _failed(self, error: Exception) -> None:
        self._offline_until = time.monotonic() + _OFFLINE
        self._tell(next(iter(str(error).strip().splitlines()), type(error).__name__))

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.say(f"W&B: {text}")


def _rows(store: Store, result: TrialResult) -> list[dict[str, Any]]:
    return rows_of(result.plan, store.points(result.id))


# -- later ------------------------------------------------------------------------------------------------------------


def sync(
    root: Root,
    *,
    sweep: str | None = None,
    project: str | None = None,
    entity: str | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[Posted]:
    """Sends trials that wait to be sent, from the store, and gives what became of each.

    Args:
        sweep: as of `pending`.
        project, entity: where to; default the recorded one of each trial.

    Raises:
        TrackingError: there is no API key, or the server cannot be reached.
    """
    server = Server.find()
    server.ask(VIEWER, {})  # before anything is begun
    given = {name: value for name, value in {"project": project, "entity": entity}.items() if value}
    with Store.open(root, create=False) as store:
        uploaders: dict[tuple[str, WandbSpec], WandbUploader] = {}
        for own, result, before in pending(root, store, sweep):
            kept = {"project": before.project, "entity": before.entity} if before else {}
            wanted, name = own.model_copy(update={"mode": "online", **kept, **given}), result.sweep
            uploader = uploaders.setdefault((name, wanted), WandbUploader(root, name, wanted, server, say))
            yield uploader.send(store, result)
    for uploader in uploaders.values():
        uploader.tables()


def pending(root: Root, store: Store, sweep: str | None) -> Iterator[tuple[WandbSpec, TrialResult, Posted | None]]:
    """The trials that `sync` sends: the settings of their sweep, the trial, and what is known of it at W&B.

    One that W&B has already is not sent again. Those of a sweep that is tracked wait even where nothing could be noted
    of them, as on a full disk.

    Args:
        sweep: this one only, and all of its trials, whether they were to be tracked or not.

    Raises:
        StoreError: there is no such sweep.
    """
    known = {(one.sweep, one.trial): one for one in all_posted(root)}
    tracked = {row.name: _tracking(row.spec) for row in store.sweeps()}
    noted = {one.sweep for one in known.values()}
    waiting = [name for name, own in tracked.items() if own.mode != "off" or name in noted]
    for name in [sweep] if sweep else waiting:
        own = tracked.get(name, WandbSpec())
        for result in store.results(name):
            before = known.get((name, result.name))
            if result.state not in ENDED or (before is None and sweep is None and own.mode == "off"):
                continue
            if before is None or not before.sent or before.state != result.state or before.key != result.key:
                yield own, result, before


def _tracking(spec: Mapping[str, Any]) -> WandbSpec:
    """The W&B settings of a sweep's spec."""
    try:
        return TrackingSpec.model_validate(spec.get("tracking") or {}).wandb
    except ValidationError:
        return WandbSpec()  # of another version


# -- a run of an agent's ----------------------------------------------------------------------------------------------


def upload_attempt(folder: Path, over: Callable[[float], bool]) -> None:
    """Follows an attempt that an agent runs until it is over, under the run that W&B has given the agent.

    Args:
        folder: of the attempt.
        over: waits a number of seconds for the end; whether it has come.
    """
    root = Root(folder.absolute().parents[3])
    trial = TrialPlan.model_validate_json((folder / "trial.json").read_text(encoding="utf-8"))
    with Store.open(root, create=False) as store:
        result = store.result(f"{trial.sweep}/{trial.name}")
    spec = WandbSpec(project=os.environ.get("WANDB_PROJECT", "prunegpt"), entity=os.environ.get("WANDB_ENTITY"))
    mode = "offline" if os.environ.get("WANDB_MODE") == "offline" else "online"
    log = RunLog(root, spec, result, mode, artifacts=False, run=os.environ["WANDB_RUN_ID"])
    ended = False
    while not ended:
        ended = over(_LOOK)
        rows = rows_of(trial, read_points(folder / "points.jsonl")[0])
        log.log(rows if ended else rows[:-1])
    log.finish(AttemptRecord.read(folder / "record.json"), rows)
