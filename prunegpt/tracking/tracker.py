"""Processes beside a sweep or an agent's run, which send it to W&B. Nothing here waits but the end, and not long."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from prunegpt.errors import StoreError, counted
from prunegpt.root import Root
from prunegpt.spec.plan import SweepPlan
from prunegpt.store import Store
from prunegpt.tracking.client import CLOUD, is_ours
from prunegpt.tracking.run_log import run_id
from prunegpt.tracking.uploader import ENDED, all_posted

_CLOSE = 90.0  # seconds that a process gets to send what is left
_PRUNEGPT = (sys.executable, "-P", "-m", "prunegpt", "wandb")


class Helper:
    """A process that hears of the end by the close of its standard input.

    Args:
        log: takes what it says.
        first: a line that it can read first.

    Raises:
        OSError: it cannot be started, or its log cannot be written.
    """

    def __init__(self, command: Sequence[str], log: Path, first: str = "") -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                text=True,
                start_new_session=True,  # Ctrl-C is for the sweep; the helper hears of the end from us
            )
        assert self._process.stdin is not None
        self._input = self._process.stdin
        with suppress(BrokenPipeError):  # it has ended already
            self._input.write(first)
            self._input.flush()

    def close(self, wait: float = _CLOSE) -> None:
        """Lets it send the rest, for a number of seconds."""
        try:
            self._input.close()
            self._process.wait(wait)
        except (OSError, subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.kill()
            self._process.wait()


class WandbTracker:
    """Starts the uploader of a sweep and ends it: what happens is in the store, where the uploader reads it.

    Args:
        command: what runs the uploader; it reads the sweep's tracking as a line of JSON.
        close: seconds that it gets at the end.
    """

    def __init__(
        self,
        plan: SweepPlan,
        root: Root,
        *,
        command: Sequence[str] = (),
        close: float = _CLOSE,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ) -> None:
        self._sweep = plan.name
        self._root = root
        self._close = close
        self._say = say
        self._log = root.path / "wandb" / "upload.log"
        self._helper: Helper | None = None
        own = (*_PRUNEGPT, "upload", plan.name, "--root", str(root.path))
        try:
            spec = json.dumps(plan.tracking.wandb.model_dump(mode="json"))
            self._helper = Helper(command or own, self._log, spec + "\n")
        except OSError as error:
            told = f"W&B: nothing can be sent: {error.strerror or error}. `prunegpt wandb sync` sends it later."
            say(root.located(told))

    def close(self) -> None:
        """Lets the uploader send what is left, for a while, and says what was sent and what waits."""
        if self._helper is not None:
            self._helper.close(self._close)
            self._say(self._outcome())

    def _outcome(self) -> str:
        found = {one.run: one.sent for one in all_posted(self._root) if one.sweep == self._sweep}
        with suppress(StoreError), Store.open(self._root, create=False) as store:
            for result in store.results(self._sweep):  # nothing may be noted of some, as on a full disk
                if result.state in ENDED:
                    found.setdefault(run_id(result), False)
        sent, kept = sum(found.values()), len(found) - sum(found.values())
        told = f"W&B: {counted(sent, 'trial')} sent"
        if not kept:
            return f"{told}."
        later = self._root.located("`prunegpt wandb sync` sends them.")
        return f"{told}, {kept} kept: {later} {self._reason()}".rstrip()

    def _reason(self) -> str:
        """The last complaint in the uploader's log, or why it could not even write one."""
        try:
            with self._log.open("a+", encoding="utf-8", errors="replace") as log:
                log.seek(0)
                complaints = [line.rstrip() for line in log if line.startswith("W&B: ")]
                log.write("\n")
                log.flush()
        except OSError as error:
            return f"W&B: {self._log} cannot be written: {error.strerror or error}"
        return complaints[-1] if complaints else ""


def open_attempt(folder: Path) -> Helper | None:
    """What sends the attempt in a folder while an agent runs it; None where W&B sees it without that."""
    address = os.environ.get("WANDB_BASE_URL") or CLOUD
    wanted = bool(os.environ.get("WANDB_RUN_ID")) and os.environ.get("WANDB_MODE") not in ("disabled", "dryrun")
    if wanted and not is_ours(address):
        with suppress(OSError):
            return Helper((*_PRUNEGPT, "upload-attempt", str(folder)), folder / "wandb.log")
    return None
