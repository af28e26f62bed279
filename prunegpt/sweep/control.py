"""Wishes of other processes: files below ROOT/control, which whoever coordinates the root takes away and does."""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args
from uuid import uuid4

from prunegpt.errors import LaunchError
from prunegpt.root import Root, write_json
from prunegpt.sweep.lock import coordinator

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


def request(root: Root, action: Action) -> None:
    """Leaves a wish for the coordinator of a root.

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
    write_json(_folder(root) / f"{time.time_ns():020d}-{uuid4().hex}.json", asdict(action))


def take(root: Root) -> list[Action]:
    """The wishes there are, oldest first; they are gone afterwards."""
    with suppress(FileNotFoundError):
        files = sorted(path for path in _folder(root).iterdir() if path.suffix == ".json")
        return [action for action in map(_take, files) if action is not None]
    return []


def _take(file: Path) -> Action | None:
    """One wish; None where another process took it, or it is none that we know."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        action = Action(**found)
    except (OSError, ValueError, TypeError):
        with suppress(OSError):
            file.unlink()
        return None
    return action if action.kind in get_args(Kind) else None


def _folder(root: Root) -> Path:
    return root.path / "control"
