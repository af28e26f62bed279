"""What was sent to W&B and what waits: a file a trial below ROOT/wandb/posted."""

from collections.abc import Iterator

from pydantic import ValidationError

from prunegpt.planning.fingerprint import digest
from prunegpt.records import Record, TrialResult
from prunegpt.root import Root

ENDED = ("finished", "failed", "diverged", "stopped")  # states of a trial whose run is over


class Posted(Record):
    """One trial's run at W&B.

    Args:
        rows: of its history that were given to the client.
        sent: the server has them all, and how the trial ended.
        problem: why not.
        folder: of the client's own record of the run, below the root.
    """

    run: str
    sweep: str
    trial: str
    key: str
    project: str
    entity: str | None = None
    state: str = "running"
    rows: int = 0
    sent: bool = False
    problem: str = ""
    folder: str = ""

    def write_to(self, root: Root) -> None:
        self.write(root.path / "wandb" / "posted" / f"{self.run}.json")


def run_id(result: TrialResult) -> str:
    """The run of a trial: the same for each of its attempts, another for another configuration."""
    return digest([result.sweep, result.name, result.key, result.evaluation_key])[:16]


def posted(root: Root, run: str) -> Posted | None:
    """What is known of a run; None where it was never sent anywhere."""
    try:
        return Posted.read(root.path / "wandb" / "posted" / f"{run}.json")
    except (OSError, ValidationError):
        return None


def all_posted(root: Root) -> Iterator[Posted]:
    """Every run that was sent or shall be."""
    for path in sorted((root.path / "wandb" / "posted").glob("*.json")):
        found = posted(root, path.stem)
        if found is not None:
            yield found
