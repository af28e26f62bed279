"""Runs of the W&B client: a trial's curves and outcome as one, a sweep's tables and figures as another.

The client may hang or die: only a process of its own should use this.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prunegpt.planning.fingerprint import digest
from prunegpt.points import Point
from prunegpt.records import AttemptRecord, StageRecord, TrialResult, chain_metrics
from prunegpt.registry import RENDERERS
from prunegpt.root import Root
from prunegpt.spec.names import by_parameter
from prunegpt.spec.plan import TrialPlan
from prunegpt.spec.tracking import WandbSpec
from prunegpt.store import Store

FINISH = 60.0  # seconds that sending the rest of a run may take
_MOST_FIGURES = 12
_NO_CURVES = ("total_steps",)  # points that say something else than a value over time
_PLAIN = ("perplexity",)  # also without the stage before it: what sweeps of W&B search and stop by
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

LogRow = dict[str, Any]


class RunLog:
    """Sends a trial to W&B, or keeps it for later.

    Args:
        mode: online or offline; an offline run is below ROOT/wandb.
        artifacts: name the folders of stages as artifacts.
        run: the id that W&B has given an agent's run, whose configuration W&B has; default that of the trial.

    Raises:
        Exception: whatever the client raises where it cannot begin.
    """

    def __init__(
        self, root: Root, spec: WandbSpec, result: TrialResult, mode: str, *, artifacts: bool = True, run: str = ""
    ) -> None:
        self.id = run or run_id(result)
        self.mode = mode
        self.rows = 0
        self._root = root
        self._artifacts = artifacts
        about: dict[str, Any] = {"name": result.name, "config": {"prunegpt": _own(result)}}
        if not run:
            config = {**result.config, **about["config"]}
            about |= {"group": spec.group or result.sweep, "job_type": "trial", "config": config}
        self._run = begin(root, spec, mode, self.id, **about)
        folder = Path(self._run.dir).parent
        self.folder = str(folder.relative_to(root.path)) if folder.is_relative_to(root.path) else ""
        for curves, axis in axes_of(result.plan).items():
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(curves, step_metric=axis)

    def log(self, rows: Sequence[LogRow]) -> None:
        """Takes all rows so far; those that were taken are passed over, and the server passes over those it has."""
        first = max(self.rows, int(self._run.starting_step) if self.mode == "online" else 0)
        for index, row in enumerate(rows[first:], first):
            self._run.log(row, step=index)
        self.rows = max(len(rows), self.rows)

    def finish(self, ended: TrialResult | AttemptRecord, rows: Sequence[LogRow]) -> None:
        """Takes the last rows, writes what the trial came to, and ends the run."""
        import wandb

        self.log(rows)
        self._run.summary.update({**summary_of(ended), "state": ended.state})
        if ended.error:
            self._run.summary["error"] = ended.error
        sparsity = ended.stages[-1].sparsity if ended.stages and ended.state == "finished" else None
        if sparsity is not None and sparsity.by_tensor:
            table = wandb.Table(
                ["tensor", "sparsity"], data=[list(item) for item in by_parameter(sparsity.by_tensor).items()]
            )
            self._run.log({"sparsity_by_layer": table}, step=self.rows)
        if self._artifacts:
            self._name_stages(ended.stages)
        self._run.finish(exit_code=0 if ended.state == "finished" else 1)

    def _name_stages(self, stages: Iterable[StageRecord]) -> None:
        """Published stages as artifacts by reference: W&B holds their paths, not their content."""
        import wandb

        for stage in stages:
            folder = self._root.stage(stage.key)
            if folder.is_dir():
                artifact = wandb.Artifact(f"stage-{stage.key}", type=stage.kind, metadata={"key": stage.key})
                artifact.add_reference(folder.absolute().as_uri(), checksum=False)
                self._run.log_artifact(artifact)

    def abandon(self) -> None:
        """Ends the run without a word of how the trial ended: it continues elsewhere, or later."""
        self._run.finish(exit_code=0)


def begin(root: Root, spec: WandbSpec, mode: str, run: str, **about: Any) -> Any:
    """A run of the client, resumed if the server knows it; its files are below ROOT/wandb."""
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


# -- what a trial is at W&B -------------------------------------------------------------------------------------------


def run_id(result: TrialResult) -> str:
    """The run of a trial: the same for each of its attempts, another for another configuration."""
    return digest([result.sweep, result.name, result.key, result.plan.measured_by])[:16]


def rows_of(trial: TrialPlan, points: Iterable[Point]) -> list[LogRow]:
    """A trial's curves as rows of a history, one per stage and step, in the order they come to be.

    A further point of an attempt adds to the last row or comes behind it. A row's place is its `_step`: a sender that
    it again, sends the same.
    """
    found: dict[tuple[int, int], LogRow] = {}
    for point in points:
        if point.name in _NO_CURVES:
            continue
        stage = _stage_name(trial, point.stage)
        row = found.setdefault((point.stage, point.step), {f"{stage}/step": point.step})
        row["_timestamp"] = max(float(row.get("_timestamp", 0.0)), point.time)
        if point.value is None:
            continue
        row[f"{stage}/{point.name}"] = point.value
        if point.name in _PLAIN:
            row[point.name] = point.value
        if point.tokens:
            row[f"{stage}/tokens"] = point.tokens
        if point.epoch:
            row[f"{stage}/epoch"] = point.epoch
    return [found[place] for place in sorted(found)]


def axes_of(trial: TrialPlan) -> Mapping[str, str]:
    """Glob of curves -> the one they are drawn over."""
    names = [_stage_name(trial, index) for index in range(len(trial.stages))]
    return {f"{name}/*": f"{name}/step" for name in names}


def _stage_name(trial: TrialPlan, index: int) -> str:
    """`1-prune`: what the curves of a stage begin with."""
    kind = trial.stages[index].kind if 0 <= index < len(trial.stages) else "stage"
    return f"{index}-{kind}"


def summary_of(ended: TrialResult | AttemptRecord) -> dict[str, float]:
    """What a trial came to, by the names that searches and tables know.

    What was not measured, or is not finite, is left out; of one that did not finish so is all but its costs: what
    earlier stages came to is no result of it.
    """
    found = chain_metrics(ended.stages)
    names = found if ended.state == "finished" else ("tokens", "seconds")
    return {name: value for name in names if (value := found[name]) is not None} if ended.stages else {}


def _own(result: TrialResult) -> dict[str, Any]:
    return {
        "sweep": result.sweep,
        "trial": result.name,
        "seed": result.seed,
        "evaluation_key": result.evaluation_key,
        "stage_keys": [stage.key for stage in result.plan.stages],
        "swept": dict(result.swept),
    }


# -- tables and figures of a sweep ------------------------------------------------------------------------------------


def log_tables(root: Root, spec: WandbSpec, sweep: str, mode: str) -> None:
    """Sends what the sweep's tables and figures are now, as a run of their own in its group; nothing where there is
    none yet.
    """
    import wandb

    from prunegpt.report.curve_fields import with_curves
    from prunegpt.report.figures import png  # here: a coordinator, and an agent's run, need no matplotlib
    from prunegpt.report.gallery import figures_of
    from prunegpt.report.material import stored_curves
    from prunegpt.report.measure import stored_windows
    from prunegpt.report.scores import stored_documents
    from prunegpt.report.tables import build_table
    from prunegpt.store.curves import Summaries

    with Store.open(root, create=False) as store:
        declared = store.tables(sweep)
        results = with_curves(store.results(sweep), lambda: Summaries(store, sweep), declared)
        windows = stored_windows(root)
        tables = [
            build_table(table, results, windows, documents=stored_documents(root), sweep=sweep) for table in declared
        ]
        written = store.sweep(sweep).spec
        figures = figures_of(results, windows, stored_curves(store), written)
        figures = figures[:_MOST_FIGURES]
    if not tables and not figures:
        return
    own = digest([sweep, "tables"])[:16]
    for earlier in (root.path / "wandb").glob(f"*run-*-{own}"):
        forget_folder(root, str(earlier.relative_to(root.path)))
    run = begin(root, spec, mode, own, name=f"{sweep}-tables", group=spec.group or sweep, job_type="tables")
    content: dict[str, Any] = {}
    for table in json.loads(RENDERERS.load("json")(tables))["tables"]:
        if rows := table["rows"]:
            columns = list(rows[0])
            data = [[_cell(row.get(column)) for column in columns] for row in rows]
            content[f"table/{table['name']}"] = wandb.Table(columns=columns, data=data)
    with TemporaryDirectory() as folder:
        for figure in figures:
            path = Path(folder) / f"{figure.name}.png"
            path.write_bytes(png(figure.figure))
            content[f"figure/{figure.name}"] = wandb.Image(str(path), caption=figure.caption)
        run.log(content)
        run.finish()


def _cell(value: Any) -> Any:
    """A value that a column of mixed kinds can hold."""
    if value is None or isinstance(value, (int, float, str, bool)):
        return value
    return json.dumps(value, ensure_ascii=False)
