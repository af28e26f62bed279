"""The tracker of a sweep: starts the scribe, and ends it. Nothing here waits for W&B but the end, and that not long."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from prunegpt.errors import StoreError
from prunegpt.records import Point
from prunegpt.root import Root
from prunegpt.spec.plan import SweepPlan, TrialPlan
from prunegpt.store import Store
from prunegpt.sweep.events import Event
from prunegpt.tracking.posted import ENDED, all_posted, run_id

_CLOSE = 90.0  # seconds that the scribe gets to send what is left
_LOG = "scribe.log"


class ScribeTracker:
    """Looks on through a process of its own: what happens is in the store, where the scribe reads it.

    Args:
        command: what runs the scribe; told the sweep's tracking as a line on standard input, and the end by its close.
        close: seconds that it gets at the end.
    """

    def __init__(
        self,
        plan: SweepPlan,
        root: Root,
        *,
        command: Sequence[str] | None = None,
        close: float = _CLOSE,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ) -> None:
        self._plan = plan
        self._root = root
        self._close = close
        self._say = say
        self._log = root.path / "wandb" / _LOG
        own = (sys.executable, "-m", "prunegpt", "wandb", "scribe", plan.name, "--root", str(root.path))
        self._process = self._start(tuple(command or own))

    def event(self, event: Event) -> None:
        """Nothing to do: the scribe sees it in the store."""

    on_event = event

    def points(self, trial: TrialPlan, points: Sequence[Point]) -> None:
        """Nothing to do: the scribe sees them in the store."""

    def close(self) -> None:
        """Lets the scribe send what is left, for a while, and says what was sent and what waits."""
        process = self._process
        if process is None:
            return
        try:
            if process.stdin is not None:
                process.stdin.close()
            process.wait(self._close)
        except (OSError, subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()
        self._say(self._told())

    def _start(self, command: Sequence[str]) -> "subprocess.Popen[str] | None":
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    text=True,
                    start_new_session=True,  # Ctrl-C is for the sweep; the scribe hears of the end from us
                )
            assert process.stdin is not None
            process.stdin.write(json.dumps(self._plan.tracking.wandb.model_dump(mode="json")) + "\n")
            process.stdin.flush()
        except OSError as error:
            self._say(f"W&B: nothing can be sent: {error.strerror or error}. `prunegpt wandb sync` sends it later.")
            return None
        return process

    def _told(self) -> str:
        found = {one.run: one.sent for one in all_posted(self._root) if one.sweep == self._plan.name}
        with suppress(StoreError), Store.open(self._root, create=False) as store:
            for result in store.results(self._plan.name):  # nothing may be noted of some, as on a full disk
                if result.state in ENDED:
                    found.setdefault(run_id(result), False)
        sent, kept = sum(found.values()), len(found) - sum(found.values())
        waiting = f", {kept} kept: `prunegpt wandb sync` sends them" if kept else ""
        reason = next((line for line in reversed(_lines(self._log)) if line.startswith("W&B: ")), self._unwritten())
        return f"W&B: {sent} trials sent{waiting}." + (f" {reason}" if kept and reason else "")

    def _unwritten(self) -> str:
        """Why the scribe could not even say what was wrong."""
        try:
            with self._log.open("a", encoding="utf-8") as log:
                log.write("\n")
        except OSError as error:
            return f"W&B: {self._log} cannot be written: {error.strerror or error}"
        return ""


def open_trackers(plan: SweepPlan, root: Root, store: Store) -> ScribeTracker:
    """The tracker that a plan asks for."""
    del store  # its scribe opens the store itself
    return ScribeTracker(plan, root)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-200:]
    except OSError:
        return []
