"""What a plan writes to the disk, and what may be overlooked in it."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunegpt.errors import in_bytes
from prunegpt.planning.budget import models_on_disk, passing_on_disk
from prunegpt.planning.corpus import column_in
from prunegpt.planning.facts import ModelFacts
from prunegpt.planning.inputs import text_files
from prunegpt.planning.sources import MASKS, stored_zeros
from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan
from prunegpt.stages.counting import total

_NOTABLE = 0.01  # of a model's weights: more zeros than training leaves by chance


@dataclass(frozen=True)
class DiskNeeds:
    """Bytes that a plan writes to the disk of its root. None where a model's size is not known."""

    models: int | None  # published models that are not there yet
    running: int | None  # what one trial has there while it runs, checkpoints and its model
    free: int
    keep: str

    def __str__(self) -> str:
        rest = "" if self.keep == "all" else f" (keep: {self.keep} removes models of finished trials)"
        checkpoints = f", and up to {in_bytes(self.running)} for each trial while it runs" if self.running else ""
        said = "an unknown size" if self.models is None else in_bytes(self.models)
        short = self.models is not None and (self.models + (self.running or 0) > self.free) and self.keep == "all"
        hint = " That is more than there is: set `keep`, or use another --root." if short else ""
        return f"about {said} of models{rest}{checkpoints}; {in_bytes(self.free)} are free.{hint}"


def disk_needs(
    trials: Sequence[tuple[TrialPlan, ModelFacts]], root: Root, keep: str, done: Callable[[str], bool]
) -> DiskNeeds:
    """What these trials write: each stage that is not there yet publishes its model in float32, once.

    Args:
        done: whether the stage of a key is computed already.
    """
    sizes: dict[str, int | None] = {}
    running: list[int | None] = [0]
    for trial, facts in trials:
        known = facts.tensors
        size = None if known is None else 4 * sum(math.prod(shape) for shape in known.values())
        for stage in trial.stages:
            if stage.kind != "load" and stage.key not in sizes and not done(stage.key):
                sizes[stage.key] = size
                beside = passing_on_disk(stage, known or {})
                running.append(None if size is None else models_on_disk(stage) * size + beside)
    there = next(folder for folder in (root.path, *root.path.parents) if folder.exists())
    highest = None if None in running else max(count or 0 for count in running)
    return DiskNeeds(total(sizes.values()), highest, shutil.disk_usage(there).free, keep)


def lost_zeros(trials: Sequence[TrialPlan]) -> list[str]:
    """Models that are pruned already, without masks, in trials that train them: what is zero there would be filled."""
    trained: dict[str, None] = {}
    for trial in trials:
        training = [stage.training for stage in trial.stages if stage.training]
        stored = trial.model.weights == "stored" and Path(trial.model.source).is_dir()
        if stored and training and not any(stage.keep_zeros for stage in training):
            trained[trial.model.source] = None
    shares = {source: stored_zeros(Path(source)) for source in trained if not (Path(source) / MASKS).exists()}
    return [
        f"about {share:.1%} of the weights in the layers of {source} are zero, and no {MASKS} beside them says that "
        f"they were pruned: training fills them. `keep_zeros: true` in the first stage that trains keeps them zero."
        for source, share in shares.items()
        if share > _NOTABLE
    ]


def text_columns(trials: Sequence[TrialPlan]) -> list[str]:
    """Columns that are taken for the text of local files though they are not called so, for there is no other."""
    unnamed: dict[tuple[Path, ...], None] = {}  # datasets, which trials share
    for trial in trials:
        texts = [(one.evaluate.data, one.evaluate.split) for one in trial.evaluations]
        texts += [(stage.data, stage.data.train_split) for stage in trial.stages if stage.training and stage.data]
        for data, split in texts:
            plain = data is not None and data.text_column is None and data.messages is None
            if data and plain and data.files and (files := text_files(data, split)):
                unnamed[tuple(files)] = None
    taken = {files[0]: column_in(files, None) for files in unnamed}
    return [
        f"the text of {file} is its column {column}. Set text_column to it, or to another."
        for file, column in taken.items()
        if column not in (None, "text")
    ]
