"""Tells W&B what a sweep does, from a process of its own: it looks at the store, and nobody waits for it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prunegpt.errors import PruneGPTError, StoreError
from prunegpt.records import TrialResult
from prunegpt.root import Root
from prunegpt.spec.tracking import WandbSpec
from prunegpt.store import Store
from prunegpt.tracking.client import Server, is_ours
from prunegpt.tracking.history import rows_of
from prunegpt.tracking.posted import ENDED, Posted, posted, run_id
from prunegpt.tracking.run_log import RunLog, forget_folder
from prunegpt.tracking.sheets import log_sheets

_LOOK = 3.0  # seconds between looks at the store
_LAZY = 10  # a look that takes a second is followed by so many of rest
_OFFLINE = 300.0  # seconds after a failure in which nothing is sent
_LINES = """
query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) { bucket(name: $name, missingOk: true) { historyLineCount } }
}
"""


@dataclass
class Scribe:
    """Follows one sweep.

    Args:
        spec: what shall be told, and where.
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
        """Looks until `over`, which waits so many seconds for the end, says that it has come; then once more."""
        while True:
            began = time.monotonic()
            self.look()
            if over(max(_LOOK, _LAZY * (time.monotonic() - began))):
                break
        self.look()
        for log in self._open.values():
            self._guarded(log.abandon)
        self.sheets()

    def sheets(self) -> None:
        """Sends the sweep's tables and figures as they are now."""
        self._guarded(lambda: log_sheets(self.root, self.spec, self.sweep, self._mode()))

    def look(self) -> None:
        """Tells what is new of every trial that runs or has ended."""
        try:
            with Store.open(self.root, create=False) as store:
                for result in store.results(self.sweep):
                    if result.state == "running":
                        self._live(store, result)
                    elif result.state in ENDED:
                        self._ended(store, result)
        except StoreError:
            return  # nothing has run yet

    def _live(self, store: Store, result: TrialResult) -> None:
        log = self._log(result)
        if log is None:
            return
        rows = rows_of(result.plan, store.points(result.id))
        self._guarded(lambda: log.log(rows[:-1]))  # the last may not be whole

    def _ended(self, store: Store, result: TrialResult) -> None:
        run = run_id(result)
        if (run, result.state) in self._done:
            return
        before = posted(self.root, run)
        if before is not None and before.state == result.state and run not in self._open and self._is_kept(before):
            self._done.add((run, result.state))
            return
        self.send(store, result)
        self._done.add((run, result.state))

    def _is_kept(self, before: Posted) -> bool:
        """Whether nothing more is to be done for a run now: it was sent, or lies there to be sent later."""
        return before.sent or (self._mode() == "offline" and bool(before.folder))

    def send(self, store: Store, result: TrialResult) -> Posted:
        """Sends a trial that has ended, or keeps it; what came of it."""
        run = run_id(result)
        before = posted(self.root, run)
        rows = rows_of(result.plan, store.points(result.id))
        log = self._log(result)
        told = {"rows": len(rows), "folder": log.folder if log else "", "problem": "" if log else "no run could begin"}
        note = self._note(result).model_copy(update=told)
        if log is not None:
            self._open.pop(run, None)
            finished = self._guarded(lambda: log.finish(result, rows))
            sent = finished and log.mode == "online" and self._has(run, len(rows))
            problem = "" if sent else ("kept to be sent" if log.mode == "offline" else "the server has not all of it")
            note = note.model_copy(update={"sent": sent, "problem": problem})
            if sent:
                forget_folder(self.root, note.folder)
                note = note.model_copy(update={"folder": ""})
        if before is not None and before.folder != note.folder and (note.sent or note.folder):
            forget_folder(self.root, before.folder)
        self._guarded(lambda: note.write_to(self.root))
        return note

    def _note(self, result: TrialResult) -> Posted:
        return Posted(
            run=run_id(result),
            sweep=result.sweep,
            trial=result.name,
            key=result.key,
            project=self.spec.project,
            entity=self.spec.entity,
            state=result.state,
        )

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
        if run not in self._open:
            for mode in dict.fromkeys((self._mode(), "offline")):
                artifacts = mode == "offline" or (self.server is not None and not is_ours(self.server.address))
                log = self._begun(result, mode, artifacts)
                if log is not None:
                    self._open[run] = log
                    break
        return self._open.get(run)

    def _begun(self, result: TrialResult, mode: str, artifacts: bool) -> RunLog | None:
        if posted(self.root, run_id(result)) is None:
            self._guarded(lambda: self._note(result).write_to(self.root))
        try:
            return RunLog(self.root, self.spec, result, mode, artifacts=artifacts)
        except Exception as error:
            self._failed(error)
            return None

    def _mode(self) -> str:
        if self.spec.mode == "offline" or time.monotonic() < self._offline_until:
            return "offline"
        if self.server is None:
            self._tell("there is no API key: set WANDB_API_KEY or run `wandb login`. Runs are kept until then")
            return "offline"
        try:
            self.server.ask("query Viewer { viewer { id } }", {})
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
        self._tell(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.say(f"W&B: {text}")
