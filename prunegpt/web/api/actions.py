"""What a visitor may do: stop, resume, retry, and write a note."""

import subprocess
import sys
from typing import Literal

from pydantic import Field

from prunegpt.errors import LaunchError
from prunegpt.root import Root
from prunegpt.sweep.control import Action, request
from prunegpt.sweep.lock import coordinator, refusal
from prunegpt.web.api.trials import Note
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer, Asked, Call, Endpoint, Refused
from prunegpt.web.markdown import render

_LONGEST_NOTE = 20_000  # characters
_DIED_WITHIN = 1.0  # seconds in which a process that cannot start has ended


class SweepAction(Asked):
    action: Literal["stop", "kill", "resume"]


class TrialAction(Asked):
    action: Literal["stop", "retry"]


class Written(Asked):
    text: str = Field(max_length=_LONGEST_NOTE, description="Markdown; empty removes the note")


class Accepted(Answer):
    accepted: Literal[True] = True
    message: str


def on_sweep(dashboard: Dashboard, call: Call) -> Accepted:
    asked: SweepAction = call.body
    sweep = dashboard.source.sweep(call.path["name"])
    if asked.action == "resume":
        return Accepted(message=_resume(dashboard.root, sweep.name))
    _request(dashboard.root, Action(asked.action, sweep.name))
    told = "running stages write a checkpoint, then it stops" if asked.action == "stop" else "it stops at once"
    return Accepted(message=f"{sweep.name} was told: {told}.")


def _request(root: Root, action: Action) -> None:
    try:
        request(root, action)
    except LaunchError as error:
        raise Refused(409, str(error)) from error


def _resume(root: Root, name: str) -> str:
    """Starts a coordinator that outlives this server; its output goes to ROOT/control/NAME.log."""
    if coordinator(root) is not None:
        raise Refused(409, refusal(root))
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
        return f"{name} goes on in process {process.pid}; it writes to {log}."
    if code:
        raise Refused(409, f"{name} could not be resumed: {_last_line(log.read_bytes())} See {log}.")
    return f"{name} has nothing left to run."


def _last_line(log: bytes) -> str:
    lines = log[-4096:].decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "the process said nothing."


def on_trial(dashboard: Dashboard, call: Call) -> Accepted:
    asked: TrialAction = call.body
    trial = dashboard.source.trial(call.path["sweep"], call.path["trial"])
    if asked.action == "stop":
        if trial.state != "running":
            raise Refused(409, f"only a running trial can be stopped, but {trial.name} is {trial.state}.")
        _request(dashboard.root, Action("stop-trial", trial.sweep, trial.name))
        return Accepted(message=f"{trial.name} was told to stop; it writes a checkpoint first.")
    if trial.state not in ("failed", "diverged", "stopped"):
        raise Refused(
            409, f"only a trial that failed, diverged or was stopped can be retried, but {trial.name} is {trial.state}."
        )
    if coordinator(dashboard.root) is not None:
        _request(dashboard.root, Action("retry", trial.sweep, trial.name))
        return Accepted(message=f"{trial.name} waits to be tried again.")
    dashboard.source.store.retry(trial.sweep, [trial.name])
    return Accepted(message=f"{trial.name} waits; resume the sweep to run it.")


def on_note(dashboard: Dashboard, call: Call) -> Note:
    asked: Written = call.body
    trial = dashboard.source.trial(call.path["sweep"], call.path["trial"])
    text = asked.text.replace("\r\n", "\n").replace("\x00", "").strip()
    dashboard.source.store.set_note(trial.id, text)
    return Note(text=text, html=render(text))


ENDPOINTS = (
    Endpoint("/sweeps/{name}/actions", on_sweep, "Stop, kill or resume a sweep", Accepted, body=SweepAction),
    Endpoint("/trials/{sweep}/{trial}/actions", on_trial, "Stop or retry a trial", Accepted, body=TrialAction),
    Endpoint("/trials/{sweep}/{trial}/note", on_note, "Replace the note on a trial", Note, body=Written),
)
