"""Where the model of a trial is, and how to take it along."""

import shlex
from dataclasses import dataclass

from prunegpt.errors import removed
from prunegpt.records import TrialResult
from prunegpt.root import Root


@dataclass(frozen=True)
class StoredModel:
    """The model that a trial has come to; where it was removed, `removed` has the command that computes it again."""

    source: str  # a folder that transformers loads; of a model that was only measured, where it came from
    export: str  # command that writes it to a folder of one's own
    python: str  # the same as an object
    removed: str


def stored_model(trial: TrialResult, root: Root) -> StoredModel | None:
    """The model of a trial that has finished; None of others, and of W&B runs."""
    if trial.final is None or trial.plan.foreign:
        return None
    path = str(root.path)
    if root.lacks_model(trial.final.key):
        return StoredModel("", "", "", removed(trial.sweep, trial.name, path))
    folder = root.stage(trial.final.key) / "model"
    trust = trial.plan.model.trust_remote_code
    export = ["prunegpt", "export", trial.address, f"./{trial.name}", "--root", path]
    return StoredModel(
        source=str(folder) if folder.is_dir() else trial.plan.model.source,
        export=shlex.join([*export, *(["--trust-remote-code"] if trust else [])]),
        python=f"from prunegpt import Sweep\n\nmodel, tokenizer = Sweep({trial.sweep!r}, root={path!r})"
        f".model({trial.name!r}{', trust_remote_code=True' if trust else ''})",
        removed="",
    )
