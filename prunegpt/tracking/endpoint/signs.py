"""What is known of a run beside what its agent says."""

from dataclasses import dataclass, field

from prunegpt.root import Root
from prunegpt.tracking.claims import claim_path, curve_of, read_claim


@dataclass(frozen=True)
class Signs:
    """Signs of life of a run.

    Args:
        started: it has begun.
        ended: finished, failed, diverged or stopped, where it says so itself.
        curve: finite values of the sweep's metric, in order.
        value: of the sweep's metric in the end.
        active: when it last gave a sign, seconds since the epoch.
    """

    started: bool = False
    ended: str = ""
    curve: list[float] = field(default_factory=list)
    value: float | None = None
    active: float = 0.0


def claimed(root: Root, run: str, metric: str) -> Signs:
    """Signs of a run that is one of our trials: what it has written under the root."""
    claim = read_claim(root, run)
    if claim is None:
        return Signs()
    ended = "" if claim.state == "running" else claim.state
    files = [claim_path(root, run)]
    if claim.folder:
        files += [root.path / claim.folder / name for name in ("heartbeat", "points.jsonl")]
    active = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
    curve = curve_of(root, claim, metric)
    value = claim.metrics.get(metric)
    if value is None and ended:
        value = curve[-1] if curve else None
    return Signs(True, ended, curve, value, active)
