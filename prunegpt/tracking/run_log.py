"""One run of the W&B client for one trial. Only a process that may hang or die for it should use this."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunegpt.records import TrialResult
from prunegpt.root import Root
from prunegpt.spec.tracking import WandbSpec
from prunegpt.tracking.history import Row, axes_of
from prunegpt.tracking.posted import run_id
from prunegpt.tracking.summary import summary_of

FINISH = 60.0  # seconds that sending the rest of a run may take
_SETTINGS: dict[str, Any] = {
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "silent": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "init_timeout": 30,
    "finish_timeout": FINISH,
    "x_file_stream_retry_max": 4,
    "x_file_stream_retry_wait_max_seconds": 5,
    "x_graphql_retry_max": 3,
    "x_graphql_retry_wait_max_seconds": 5,
    "x_file_transfer_retry_max": 2,
}


class RunLog:
    """Sends a trial to W&B, or keeps it for later.

    Args:
        mode: online or offline; an offline run lies below ROOT/wandb.
        artifacts: name the folders of stages as artifacts.

    Raises:
        Exception: whatever the client raises where it cannot begin.
    """

    def __init__(self, root: Root, spec: WandbSpec, result: TrialResult, mode: str, *, artifacts: bool = True) -> None:
        self.id = run_id(result)
        self.mode = mode
        self._root = root
        self._artifacts = artifacts
        self._trial = result.plan
        group = spec.group or result.sweep
        about = {"name": result.name, "group": group, "job_type": "trial", "config": _config(result)}
        self._run = begin(root, spec, mode, self.id, **about)
        self.rows = 0
        self.folder = str(Path(self._run.dir).parent.relative_to(root.path)) if self._inside() else ""
        for curves, axis in axes_of(self._trial).items():
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(curves, step_metric=axis)

    def _inside(self) -> bool:
        return Path(self._run.dir).is_relative_to(self._root.path)

    def log(self, rows: Sequence[Row]) -> None:
        """Takes all rows so far; those that were taken are passed over, and the server passes over those it has."""
        first = max(self.rows, int(self._run.starting_step) if self.mode == "online" else 0)
        for index, row in enumerate(rows[first:], first):
            self._run.log(row, step=index)
        self.rows = max(len(rows), self.rows)

    def finish(self, result: TrialResult, rows: Sequence[Row]) -> None:
        """Takes the last rows, writes what the trial came to, and ends the run."""
        import wandb

        self.log(rows)
        self._run.summary.update({**summary_of(result.stages), "state": result.state})
        if result.error:
            self._run.summary["error"] = result.error
        zeros = result.sparsity.by_tensor if result.sparsity else {}
        if zeros:
            table = [[name, share] for name, share in zeros.items()]
            self._run.log({"sparsity_by_layer": wandb.Table(["tensor", "sparsity"], data=table)}, step=self.rows)
        if self._artifacts:
            self._name_stages(result)
        self._run.finish(exit_code=0 if result.state == "finished" else 1)

    def _name_stages(self, result: TrialResult) -> None:
        """Published stages as artifacts by reference: W&B holds where they lie, not what they hold."""
        import wandb

        for stage in result.stages:
            folder = self._root.stage(stage.key)
            if folder.is_dir():
                artifact = wandb.Artifact(f"stage-{stage.key}", type=stage.kind, metadata={"key": stage.key})
                artifact.add_reference(folder.absolute().as_uri(), checksum=False)
                self._run.log_artifact(artifact)

    def abandon(self) -> None:
        """Ends the run without a word of how the trial ended: it goes on elsewhere, or later."""
        self._run.finish(exit_code=0)


def begin(root: Root, spec: WandbSpec, mode: str, run: str, **about: Any) -> Any:
    """A run of the client, gone on with where the server knows it; its files lie below ROOT/wandb."""
    import wandb

    known = wandb.Settings.model_fields
    settings = {name: value for name, value in _SETTINGS.items() if name in known}
    return wandb.init(
        id=run,
        resume="allow" if mode == "online" else None,
        mode="online" if mode == "online" else "offline",
        dir=str(root.path),
        project=spec.project,
        entity=spec.entity,
        tags=list(spec.tags) or None,
        reinit="create_new",
        settings=wandb.Settings(**settings),
        **about,
    )


def forget_folder(root: Root, folder: str) -> None:
    """Removes the client's record of a run that was sent, or is kept again in another folder."""
    path = root.path / folder
    if folder and path.is_relative_to(root.path / "wandb") and path.name.startswith(("offline-run-", "run-")):
        shutil.rmtree(path, ignore_errors=True)


def quiet() -> None:
    """Keeps the client from asking questions and from reporting its own crashes, in this process."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def _config(result: TrialResult) -> dict[str, Any]:
    own = {
        "sweep": result.sweep,
        "trial": result.name,
        "seed": result.seed,
        "evaluation_key": result.evaluation_key,
        "stage_keys": [stage.key for stage in result.plan.stages],
        "swept": dict(result.swept),
    }
    return {**result.config, "prunegpt": own}
