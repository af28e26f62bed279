"""What a visitor may do: stop, resume, retry, and write a note."""

import subprocess
import sys
from typing import Literal

from pydantic import Field

from prunegpt.root import Root
from prunegpt.sweep.control import Action
from prunegpt.sweep.lock import coordinator, refusal
from prunegpt.sweep.queue import waiting
from prunegpt.web.api.trials import TrialNote, noted
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer, ApiRequest, RequestError, endpoint

_LONGEST_NOTE = 20_000  # characters
_DIED_WITHIN = 1.0  # seconds in which a process that cannot start has ended


class SweepAction(ApiRequest):
    action: Literal["stop", "kill", "resume"]


class TrialAction(ApiRequest):
    action: Literal["stop", "retry"]


class Written(ApiRequest):
    text: str = Field(max_length=_LONGEST_NOTE, description="Markdown; empty removes the note")


class Accepted(Answer):
    accepted: Literal[True] = True
    message: str


@endpoint("/sweeps/{name}/actions")
def on_sweep(dashboard: Dashboard, name: str, posted: SweepAction) -> Accepted:
    """Stop, kill or resume a sweep, or take one out of the queue."""
    queued = any(waiter.sweep == name for waiter in waiting(dashboard.root))
    if posted.action == "resume" or not queued:
        dashboard.source.sweep(name)  # one that waits for its first run is in no store yet
    if posted.action == "resume":
        return Accepted(message=_resume(dashboard.root, name))
    if not dashboard.ask(Action(posted.action, name)):
        return Accepted(message=f"{name} has left the queue.")
    told = "running stages write a checkpoint, then it stops" if posted.action == "stop" else "it stops at once"
    return Accepted(message=f"{name}: {told}.")


def _resume(root: Root, name: str) -> str:
    """Starts a coordinator that outlives this server, or queues where another runs; it writes ROOT/control/NAME.log."""
    holder = coordinator(root)
    if holder is not None and holder.sweep in ("", name):
        raise RequestError(409, refusal(root))
    if any(waiter.sweep == name for waiter in waiting(root)):
        raise RequestError(
            409, f"a sweep is resumed once; {name} is in the queue already and starts when it is its turn."
        )
    log = root.path / "control" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "prunegpt", "sweep", "resume", name, "--root", str(root.path)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd=root.path
        )
    try:
        code = process.wait(_DIED_WITHIN)
    except subprocess.TimeoutExpired:
        starts = f"resumes when {holder.sweep} has ended," if holder else "resumes"
        return f"{name} {starts} in process {process.pid}; it writes to {log}."
    if code:
        said = log.read_bytes()[-4096:].decode("utf-8", "replace").strip().splitlines() or [
            "the process printed nothing."
        ]
        raise RequestError(409, f"{name} could not be resumed: {said[-1]} See {log}.")
    return f"{name} has nothing left to run."


@endpoint("/trials/{sweep}/{trial}/actions")
def on_trial(dashboard: Dashboard, sweep: str, trial: str, posted: TrialAction) -> Accepted:
    """Stop or retry a trial."""
    found = dashboard.source.trial(sweep, trial)
    if found.plan.foreign:
        raise RequestError(409, f"only a trial of a spec can be stopped or retried; {found.name} is a W&B run.")
    if posted.action == "stop":
        if found.state != "running":
            raise RequestError(409, f"only a running trial can be stopped; {found.name} is {found.state}.")
        dashboard.ask(Action("stop-trial", found.sweep, found.name))
        return Accepted(message=f"{found.name} is stopping; it writes a checkpoint first.")
    if found.state not in ("failed", "diverged", "stopped"):
        raise RequestError(
            409, f"only a trial that failed, diverged or was stopped can be retried; {found.name} is {found.state}."
        )
    holder = coordinator(dashboard.root)
    if holder is not None:
        dashboard.ask(Action("retry", found.sweep, found.name))
    else:
        dashboard.source.store.retry(found.sweep, [found.name])
    picked_up = holder is not None and holder.sweep == found.sweep
    return Accepted(message=f"{found.name} is requeued{'' if picked_up else '; resume the sweep to run it'}.")


@endpoint("/trials/{sweep}/{trial}/note")
def on_note(dashboard: Dashboard, sweep: str, trial: str, posted: Written) -> TrialNote:
    """Replace the note on a trial."""
    found = dashboard.source.trial(sweep, trial)
    text = posted.text.replace("\r\n", "\n").replace("\x00", "").strip()
    dashboard.source.store.set_note(found.id, text)
    return noted(text)
