"""Whether the disk has room for what a trial will write next, asked before it starts."""

import math
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prunegpt.errors import ModelError, in_bytes
from prunegpt.planning.budget import models_on_disk
from prunegpt.planning.sources import tensor_shapes, weight_files
from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan

_LEAST = 64 * 2**20  # bytes that are left free for the database, logs and curves; of a small disk a hundredth
_BYTES = 4  # of a weight that a stage publishes, in whatever precision it was read


def lack_of_room(root: Root, trial: TrialPlan) -> str:
    """Why a trial would fill the disk; empty where it has room, or nothing is known of its size.

    Its models are as large as the one it begins with, or as those of its stages that are published.
    """
    todo = [stage for stage in trial.stages if stage.kind != "load" and not root.is_published(stage.key)]
    size = max(_sizes(root, trial), default=0)
    disk = shutil.disk_usage(root.path)
    free, least = disk.free, min(_LEAST, disk.total // 100)
    need = least + size * max(map(models_on_disk, todo)) if todo else 0
    if free >= need:
        return ""
    there, wanted = in_bytes(free), in_bytes(need)
    return f"the disk of {root.path} has {there} free, and {trial.sweep}/{trial.name} needs about {wanted}"


def _sizes(root: Root, trial: TrialPlan) -> Iterator[int]:
    source = Path(trial.model.source)
    if source.is_dir():
        with suppress(ModelError):  # the trial will say what is wrong with it
            yield _BYTES * sum(math.prod(shape) for shape in tensor_shapes(source, weight_files(source)).values())
    for folder in (root.stage(stage.key) / "model" for stage in trial.stages):
        if folder.is_dir():
            yield sum(path.stat().st_size for path in folder.glob("*.safetensors"))
