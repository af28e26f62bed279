"""Wishes of other processes: files below ROOT/control, which whoever coordinates the root takes away and does."""

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

_UNHEARD = 30.0  # seconds after which a wish that nobody has taken is one that nobody will
_LOOK = 0.1  # seconds between looks at who coordinates

Kind = Literal["stop", "kill", "stop-trial", "retry"]


@dataclass(frozen=True)
class Action:
    """A wish.

    Args:
        kind: `stop`: running stages write a checkpoint and the sweep ends; `kill`: at once; `stop-trial`: one trial is
            given up; `retry`: a trial that failed, diverged or was stopped waits again.
        sweep: the sweep it is for.
        trial: its name in the sweep, for `stop-trial` and `retry`.
    """

    kind: Kind
    sweep: str
    trial: str | None = None


def request(root: Root, action: Action) -> Path:
    """Leaves a wish for the coordinator of a root; gives its file, which is gone once the coordinator has taken it.

    Raises:
        LaunchError: nobody coordinates the root, or another sweep than the one that is meant runs.
    """
    running = coordinator(root)
    if running is None:
        raise LaunchError(
            f"only a running sweep can be told to {action.kind}, but nothing runs under {root.path}. "
            f"`prunegpt sweep status` says what there is."
        )
    if action.kind != "retry" and running.sweep not in ("", action.sweep):
        raise LaunchError(
            f"only a running sweep can be told to {action.kind}, but the sweep that runs under {root.path} is "
            f"{running.sweep!r}, not {action.sweep!r}."
        )
    file = _folder(root) / f"{time.time_ns():020d}-{uuid4().hex}.json"
    write_json(file, asdict(action))
    return file


def wait_for_end(root: Root, wish: Path, *, clock: Callable[[], float] = time.monotonic, look: float = _LOOK) -> None:
    """Waits until nobody coordinates a root, having been asked to end.

    Raises:
        LaunchError: whoever does has not even taken the wish, which is withdrawn.
    """
    begun = clock()
    while (holder := coordinator(root)) is not None:
        if wish.exists() and clock() - begun > _UNHEARD:
            wish.unlink(missing_ok=True)
            raise LaunchError(
                f"a coordinator takes what it is asked within a second, but process {holder.pid} on {holder.host} has "
                f"not within {_UNHEARD:g} s: it hangs, or is stopped itself. End it there with `kill -9 {holder.pid}`; "
                f"`prunegpt sweep resume {holder.sweep}` then goes on from the last checkpoints."
            )
        time.sleep(look)


def take(root: Root) -> list[Action]:
    """The wishes there are, oldest first; they are gone afterwards."""
    with suppress(FileNotFoundError):
        files = sorted(path for path in _folder(root).iterdir() if path.suffix == ".json")
        return [action for action in map(_take, files) if action is not None]
    return []


def _take(file: Path) -> Action | None:
    """One wish; None where another process took it, or it is none that we know."""
    try:
        found = read_json(file)
        file.unlink()
        action = Action(**found)
    except (OSError, ValueError, TypeError):
        with suppress(OSError):
            file.unlink()
        return None
    return action if action.kind in get_args(Kind) else None


def _folder(root: Root) -> Path:
    return root.path / "control"
