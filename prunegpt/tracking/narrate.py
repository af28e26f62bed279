"""Tells W&B of one attempt that an agent runs, under the run that W&B has given it, from a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from prunegpt.records import AttemptRecord, read_points
from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan
from prunegpt.spec.tracking import WandbSpec
from prunegpt.tracking.client import CLOUD, is_ours
from prunegpt.tracking.history import axes_of, rows_of
from prunegpt.tracking.run_log import begin, quiet
from prunegpt.tracking.summary import summary_of

_LOOK = 2.0  # seconds between looks at the attempt's files
_CLOSE = 90.0  # seconds that it gets at the end


def narrate(folder: Path, over: Callable[[float], bool]) -> None:
    """Follows an attempt's points until it is over, then writes what it came to.

    Args:
        folder: of the attempt.
        over: waits so many seconds for the end; whether it has come.
    """
    quiet()
    root = Root(folder.absolute().parents[3])
    trial = TrialPlan.model_validate_json((folder / "trial.json").read_text(encoding="utf-8"))
    spec = WandbSpec(project=os.environ.get("WANDB_PROJECT", "prunegpt"), entity=os.environ.get("WANDB_ENTITY"))
    mode = "offline" if os.environ.get("WANDB_MODE") == "offline" else "online"
    about = {"sweep": trial.sweep, "trial": trial.name, "stage_keys": [stage.key for stage in trial.stages]}
    run = begin(root, spec, mode, os.environ["WANDB_RUN_ID"], name=trial.name, config={"prunegpt": about})
    for curves, axis in axes_of(trial).items():
        run.define_metric(axis, hidden=True)
        run.define_metric(curves, step_metric=axis)
    told, ended = 0, False
    while not ended:
        ended = over(_LOOK)
        rows = rows_of(trial, read_points(folder / "points.jsonl")[0])
        for index, row in enumerate(rows[told : len(rows) if ended else -1], told):
            run.log(row, step=index)
            told = index + 1
    record: AttemptRecord = AttemptRecord.read(folder / "record.json")
    run.summary.update({**(summary_of(record.stages) if record.state == "finished" else {}), "state": record.state})
    run.finish(exit_code=0 if record.state == "finished" else 1)


class Narrator:
    """A process that narrates one attempt; none where W&B needs no telling."""

    def __init__(self, folder: Path) -> None:
        address = os.environ.get("WANDB_BASE_URL") or CLOUD
        wanted = bool(os.environ.get("WANDB_RUN_ID")) and os.environ.get("WANDB_MODE") not in ("disabled", "dryrun")
        self._process: subprocess.Popen[bytes] | None = None
        if wanted and not is_ours(address):
            command = (sys.executable, "-m", "prunegpt", "wandb", "narrate", str(folder))
            with suppress(OSError), (folder / "wandb.log").open("ab") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
                )

    def close(self, wait: float = _CLOSE) -> None:
        """Lets it tell the end, for a while."""
        if self._process is None:
            return
        try:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(wait)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
