"""A W&B sweep file written by hand is a spec for every command."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.planning.resolve import Planner
from prunegpt.root import Root
from prunegpt.spec.wandb_config import config_of
from prunegpt.spec.wandb_parameters import parameters
from prunegpt.store import Store
from prunegpt.tracking.agents import trial_of
from prunegpt.tracking.endpoint.choose import next_point
from prunegpt.tracking.endpoint.hosted import Hosted, HostedRun
from tests.support.small import make_model


def written(folder: Path, **more: Any) -> Path:
    """A grid of three sparsities of a tiny model."""
    from prunegpt.builtin.text import rows

    text = folder / "text.txt"
    text.write_text("\n".join([line for row in rows("train") for line in row.splitlines()][:60]) + "\n")
    data = {"files": {"train": str(text), "validation": str(text)}, "block_size": 32}
    body = {
        "base": {"model": {"source": str(folder / "tiny"), "label": "tiny"}, "data": data},
        "trials": [{"name": "pruned", "stages": [{"prune": {"sparsity": 0.5}}]}],
    }
    sparsity = {"parameters": {"sparsity": {"values": [0.2, 0.5, 0.8]}}}
    metric = {"name": "sparsity", "goal": "maximize", **more.pop("metric", {})}
    config = {"method": "grid", "metric": metric, "parameters": {"stages.0.prune": sparsity}, "prunegpt": body, **more}
    file = folder / "hand.yaml"
    file.write_text(json.dumps(config))
    return file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "tiny", layers=1)


def invoke(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_it_is_checked_and_registered(model: Path, tmp_path: Path) -> None:
    file = written(tmp_path, metric={"target": 0.5}, name="by hand", description="Three sparsities")
    told = json.loads(invoke("sweep", "check", file, "--root", tmp_path / "runs", "--json"))
    assert [trial["name"] for trial in told["trials"]] == [f"pruned-sparsity={value}" for value in (0.2, 0.5, 0.8)]
    made = json.loads(invoke("wandb", "create", file, "--root", tmp_path / "runs", "--print"))
    assert made["method"] == "grid"
    assert made["metric"] == {"name": "sparsity", "goal": "maximize", "target": 0.5}
    (found,) = parameters(made["parameters"])[0]
    assert (found.path, found.listed()) == ("stages.0.prune.sparsity", [0.2, 0.5, 0.8])
    assert made["command"][:2] == ["${env}", sys.executable]
    assert str(file) in made["command"]


def test_the_points_that_its_agents_get_are_its_trials(model: Path, tmp_path: Path) -> None:
    planner = Planner(written(tmp_path))
    hosted = Hosted(name="abc", entity="e", project="p", config=config_of(planner.plan, [], "hand.yaml"))
    found: list[str] = []
    while (point := next_point(hosted)) is not None:
        hosted.runs.append(HostedRun(id=str(len(found)), state="finished", **dict(point)))
        found.append(trial_of(planner, point.args, Root(tmp_path / "runs")).name)
    assert found == [trial.name for trial in planner.plan.trials]
    assert len(found) == 3


@pytest.mark.slow
def test_it_is_run_until_its_target_is_reached(model: Path, tmp_path: Path) -> None:
    file = written(tmp_path, metric={"target": 0.5})
    output = invoke("sweep", "run", file, "--root", tmp_path / "runs", "--slots", 1)
    assert "nothing more is started" in output
    assert "not started: 1 trial, as hand/pruned-sparsity=0.5 had reached the target." in output
    with Store.open(Root(tmp_path / "runs")) as store:
        states = {result.name: result.state for result in store.results("hand")}
    assert states == {
        "pruned-sparsity=0.2": "finished",
        "pruned-sparsity=0.5": "finished",
        "pruned-sparsity=0.8": "waiting",
    }
