"""What a training stage will do, decided before it starts and kept beside its checkpoints.

A job is computed once, from the model as the stage finds it, and read back by a resumed attempt: what training
does never depends on what a half-trained model happens to be.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from prunegpt.errors import PruneGPTError
from prunegpt.pruning.job import GradualJob
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.masks import masks_hash
from prunegpt.recipes.learning_rate import Segment
from prunegpt.root import write_text
from prunegpt.spec.part import Part, in_short

JOB = "job.json"


class TrainingJob(Part):
    """A training stage as it will run.

    Attributes:
        key: of the stage.
        steps: optimizer steps in all.
        per_epoch: optimizer steps of one pass over the dataset.
        seed: of everything random.
        arguments: names and values of transformers.TrainingArguments, of those that decide the result. What only
            decides what is written or how fast comes from the attempt that runs.
        learning_rate: a curve that is followed instead of `lr_scheduler_type`; empty: the scheduler's.
        prune: pruning on the way.
        held: hash of the masks that earlier stages closed, see :func:`~prunegpt.pruning.masks.masks_hash`.
        teacher: key of the stage whose model teaches.
    """

    key: str
    steps: int
    per_epoch: int
    seed: int = 0
    arguments: Mapping[str, Any] = {}
    learning_rate: tuple[Segment, ...] = ()
    prune: GradualJob | None = None
    held: str
    teacher: str | None = None

    def write(self, work: Path) -> None:
        """Writes job.json whole into a stage's work folder."""
        write_text(work / JOB, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, work: Path, *, key: str, held: Mapping[str, Mask]) -> Self | None:
        """The job that an earlier attempt has left in a work folder; None where there is none.

        Raises:
            PruneGPTError: it cannot be read, or is of another stage or of a model with other masks.
        """
        path = work / JOB
        if not path.exists():
            return None
        try:
            job = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, OSError, UnicodeDecodeError) as error:
            raise PruneGPTError(
                f"{JOB} must say what a stage is training; {path} cannot be read: {in_short(error)}. Remove the folder "
                f"{work}: the stage starts from scratch."
            ) from error
        if (job.key, job.held) != (key, masks_hash(held)):
            raise PruneGPTError(
                f"a stage must resume the job that it began; {path} is of stage {job.key} or of a model with other "
                f"masks. Remove the folder {work}: the stage starts from scratch."
            )
        return job
