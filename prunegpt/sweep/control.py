"""Requests of other processes: files below ROOT/control, which the root's coordinator takes and handles."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args
from uuid import uuid4

from prunegpt.errors import LaunchError
from prunegpt.root import Root, read_json, write_json
from prunegpt.sweep.lock import coordinator
from prunegpt.sweep.queue import take_out

_UNHEARD = 30.0  # seconds after which a request that nobody has taken counts as unanswered
_LOOK = 0.1  # seconds between checks of who coordinates

CommandKind = Literal["stop", "kill", "stop-trial", "retry"]


@dataclass(frozen=True)
class Action:
    """A request.

    Args:
        kind: `stop`: running stages write a checkpoint and the sweep ends; `kill`: at once; `stop-trial`: one trial is
            abandoned; `retry`: a trial that failed, diverged or was stopped is requeued.
        sweep: the sweep it is for.
        trial: its name in the sweep, for `stop-trial` and `retry`.
    """

    kind: CommandKind
    sweep: str
    trial: str | None = None


def request(root: Root, action: Action) -> Path | None:
    """Leaves a request for the coordinator of a root; gives its file, which is gone once the coordinator has taken it.

    A sweep that is to stop leaves the queue, too; None where that is all there was to do.

    Raises:
        LaunchError: nobody coordinates the root, or another sweep than the one that is meant runs.
    """
    left = action.kind in ("stop", "kill") and take_out(root, action.sweep)
    running = coordinator(root)
    if left and (running is None or running.sweep != action.sweep):
        return None
    if running is None:
        raise LaunchError(
            f"`{action.kind}` needs a running sweep; nothing runs under {root.path}. `prunegpt sweep status` says what "
            "there is."
        )
    if action.kind != "retry" and running.sweep not in ("", action.sweep):
        raise LaunchError(
            f"`{action.kind}` needs a running sweep; the sweep that runs under {root.path} is {running.sweep!r}, not "
            f"{action.sweep!r}."
        )
    file = _folder(root) / f"{time.time_ns():020d}-{uuid4().hex}.json"
    write_json(file, asdict(action))
    return file


def wait_for_end(root: Root, wish: Path, *, clock: Callable[[], float] = time.monotonic, look: float = _LOOK) -> None:
    """Waits until who coordinates a root, having been asked to end, does so no longer; another sweep may be next.

    Raises:
        LaunchError: the coordinator has not taken the request, which is withdrawn.
    """
    begun, asked = clock(), coordinator(root)
    while (holder := coordinator(root)) is not None and (wish.exists() or holder == asked):
        if wish.exists() and clock() - begun > _UNHEARD:
            wish.unlink(missing_ok=True)
            raise LaunchError(
                f"a coordinator takes what it is asked within a second; process {holder.pid} on {holder.host} has not "
                f"within {_UNHEARD:g} s: it hangs, or is stopped itself. End it there with `kill -9 {holder.pid}`; "
                f"`prunegpt sweep resume {holder.sweep}` then resumes from the last checkpoints."
            )
        time.sleep(look)


def take(root: Root) -> list[Action]:
    """Takes the pending requests, oldest first."""
    with suppress(FileNotFoundError):
        files = sorted(path for path in _folder(root).iterdir() if path.suffix == ".json")
        return [action for action in map(_take, files) if action is not None]
    return []


def _take(file: Path) -> Action | None:
    """One request; None if another process took it or its kind is unknown."""
    try:
        found = read_json(file)
        file.unlink()
        action = Action(**found)
    except (OSError, ValueError, TypeError):
        with suppress(OSError):
            file.unlink()
        return None
    return action if action.kind in get_args(CommandKind) else None


def _folder(root: Root) -> Path:
    return root.path / "control"
