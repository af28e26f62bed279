"""Where the model of a trial is, and how to take it along."""

from dataclasses import dataclass

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
    if root.lacks_model(trial.final.key):
        return StoredModel("", "", "", removed(trial, root, always=True))
    folder = root.stage(trial.final.key) / "model"
    trust = trial.plan.model.trust_remote_code
    export = ["export", trial.address, f"./{trial.name}", *(["--trust-remote-code"] if trust else [])]
    return StoredModel(
        source=str(folder) if folder.is_dir() else trial.plan.model.source,
        export=root.command(*export, always=True),
        python=f"from prunegpt import Sweep\n\nmodel, tokenizer = Sweep({trial.sweep!r}, root={str(root.path)!r})"
        f".model({trial.name!r}{', trust_remote_code=True' if trust else ''})",
        removed="",
    )


def removed(trial: TrialResult, root: Root, *, always: bool = False) -> str:
    """What to say of a finished trial whose model was removed to save space."""
    again = commands_to_run(trial, root, retry=True, always=always)
    return f"the model of {trial.address} was removed to save space; its results are kept. To compute it again: {again}"


def commands_to_run(trial: TrialResult, root: Root, *, retry: bool, always: bool = False) -> str:
    """The commands that run a trial; one that a search has suggested, with what that may suggest next."""
    resume = ("resume", trial.sweep, *(() if trial.plan.search else ("--only", trial.name)))
    needed = (("retry", trial.sweep, trial.name), resume) if retry else (resume,)
    return " && ".join(root.command("sweep", *one, always=always) for one in needed)
