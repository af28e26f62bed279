"""What a run that an agent started records on disk: its start, its trial and its result.

The endpoint reads this: an agent's heartbeat says neither how a run ended nor that one as short as its poll ever ran.
"""

import math
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from prunegpt.points import HEARTBEAT, read_points
from prunegpt.records import Record
from prunegpt.root import Root
from prunegpt.spec.naming import slug

POINTS = "points.jsonl"  # in the folder of an attempt
MOST_READ = 256  # runs whose curves stay in memory


class Claim(Record):
    """One run of an agent."""

    run: str  # W&B's id of it
    sweep: str = ""  # W&B's id of its sweep
    trial: str = ""  # SWEEP/TRIAL
    folder: str = ""  # of the attempt, below the root
    state: str = "running"  # or finished, failed, diverged, stopped
    error: str = ""
    metrics: Mapping[str, float] = Field(default_factory=dict)  # of a finished trial


def claim_path(root: Root, run: str) -> Path:
    return root.path / "wandb" / "claims" / f"{slug(run)}.json"


def read_claim(root: Root, run: str) -> Claim | None:
    """What a run has recorded; None if nothing."""
    try:
        return Claim.read(claim_path(root, run))
    except (OSError, ValidationError):
        return None


def claim(root: Root, **said: Any) -> None:
    """Tells what is new of the agent's run that this process is; nothing where it is none."""
    run = os.environ.get("WANDB_RUN_ID", "")
    if run:
        known = read_claim(root, run) or Claim(run=run, sweep=os.environ.get("WANDB_SWEEP_ID", ""))
        known.model_copy(update=said).write(claim_path(root, run))


@dataclass(frozen=True)
class RunStatus:
    """What is known of a run beside what its agent says.

    Args:
        started: it has begun.
        ended: finished, failed, diverged or stopped, if it reported that itself.
        curve: finite values of the sweep's metric, in order.
        value: of the sweep's metric in the end.
        active: when it last gave a sign, seconds since the epoch.
    """

    started: bool = False
    ended: str = ""
    curve: Sequence[float] = ()
    value: float | None = None
    active: float = 0.0


class Statuses:
    """Reads the statuses of runs from the folders of their attempts, of each file only what it has grown by.

    The values of one curve are kept, eight bytes each, and those of `MOST_READ` runs.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._read: dict[tuple[Path, str], tuple[int, array[float]]] = {}  # folder and curve -> bytes read, values

    def claimed(self, run: str, metric: str) -> RunStatus | None:
        """The status of a run that is one of our trials; None where it is not."""
        claim = read_claim(self._root, run)
        if claim is None:
            return None
        folder = self._root.path / claim.folder if claim.folder else None
        files = [claim_path(self._root, run), *(folder / name for name in (HEARTBEAT, POINTS) if folder)]
        active = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
        return self.of(folder, "" if claim.state == "running" else claim.state, claim.metrics, metric, active)

    def of(self, folder: Path | None, ended: str, metrics: Mapping[str, Any], metric: str, active: float) -> RunStatus:
        """The status of a run that has begun.

        Args:
            folder: of its attempt; None where it has none yet.
            metrics: what it came to, as far as it says.
        """
        curve = self._curve(folder, metric) if folder else ()
        value = metrics.get(metric)
        known = isinstance(value, (int, float)) and math.isfinite(value)
        return RunStatus(True, ended, curve, value if known else next(reversed(curve), None), active)

    def _curve(self, folder: Path, metric: str) -> Sequence[float]:
        offset, values = self._read.pop((folder, metric), (0, array("d")))
        points, offset = read_points(folder / POINTS, offset)
        values.extend(point.value for point in points if point.name == metric and point.value is not None)
        self._read[folder, metric] = (offset, values)
        if len(self._read) > MOST_READ:
            del self._read[next(iter(self._read))]
        return values
