"""What a run that an agent started tells on disk: that it began, which trial it is, and what it came to.

The endpoint reads this: an agent's heartbeat says neither how a run ended nor that one as short as its poll ever ran.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from prunegpt.records import Record, read_points
from prunegpt.root import Root
from prunegpt.spec.naming import slug


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
    """What a run has told; None where nothing."""
    try:
        return Claim.read(claim_path(root, run))
    except (OSError, ValidationError):
        return None


def curve_of(root: Root, claim: Claim, metric: str) -> list[float]:
    """The finite values of one curve of a claimed run, in order."""
    if not claim.folder:
        return []
    points, _ = read_points(root.path / claim.folder / "points.jsonl")
    return [point.value for point in points if point.name == metric and point.value is not None]
