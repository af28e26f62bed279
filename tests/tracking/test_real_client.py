"""The unmodified W&B client against `prunegpt serve`, on loopback: nothing leaves the machine."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prunegpt.root import Root
from prunegpt.store import Store
from tests.e2e.conftest import make_model
from tests.tracking.wandb_versions import OLDER, client, version_of

pytestmark = pytest.mark.slow

KEY = "loopback" + "0123456789" * 4
CHECKOUT = Path(__file__).parents[2]
LONGEST = 240.0  # seconds that anything here may take


class World:
    """A server over a root, and clients with a home of their own."""

    def __init__(self, folder: Path, client: Path | None = None) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        self.root = Root(folder / "runs")
        (folder / "home").mkdir()
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WANDB_")},
            "HOME": str(folder / "home"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([*([str(client)] if client else []), str(CHECKOUT)]),
            "WANDB_API_KEY": KEY,
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_AGENT_REPORT_INTERVAL": "0",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        self.server = self.start("-m", "prunegpt", "serve", "--root", self.root.path, "--port", "0")
        assert self.server.stderr is not None
        line = self.server.stderr.readline()
        self.address = line.split(": ", 1)[1].split()[0].rstrip("/")
        self._environment["WANDB_BASE_URL"] = self.address

    def start(self, *command: object, at: str = ".", **environment: str) -> "subprocess.Popen[str]":
        where = self.folder / at
        where.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=where,
            env={**self._environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *command: object, at: str = ".") -> str:
        process = self.start(*command, at=at)
        output, errors = process.communicate(timeout=LONGEST)
        assert process.returncode == 0, output + errors
        return output + errors

    def sweep(self, config: dict[str, Any]) -> str:
        """`wandb sweep FILE`; gives the path that agents take."""
        file = self.folder / "sweep-config.yaml"
        file.write_text(json.dumps(config))
        told = self.run("-m", "wandb", "sweep", "--project", "mine", file)
        return next(line.split("wandb agent ")[1].strip() for line in told.splitlines() if "wandb agent " in line)

    def agent(self, sweep: str, at: str) -> "subprocess.Popen[str]":
        return self.start("-m", "wandb", "agent", sweep, at=at)

    def state(self, sweep: str) -> dict[str, Any]:
        """What the server keeps of a hosted sweep."""
        name = sweep.rsplit("/", 1)[-1]
        found: dict[str, Any] = json.loads((self.root.path / "wandb" / "sweeps" / f"{name}.json").read_text())
        return found


@contextmanager
def opened(folder: Path, client: Path | None = None) -> Iterator[World]:
    made = World(folder, client)
    try:
        yield made
    finally:
        for process in reversed(made.started):
            if process.poll() is None:
                process.terminate()
                process.wait(20)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    pytest.importorskip("wandb", reason="needs the W&B client")
    with opened(tmp_path) as made:
        yield made


def wait(condition: Callable[[], bool], what: str, seconds: float = LONGEST) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.3)


def small_spec(folder: Path) -> Path:
    from prunegpt.builtin.text import rows

    make_model(folder / "tiny", layers=2)
    files = {}
    for split, count in (("train", 200), ("validation", 40)):
        path = folder / f"{split}.txt"
        path.write_text("\n".join([line for row in rows(split) for line in row.splitlines()][:count]) + "\n")
        files[split] = str(path)
    spec = {
        "name": "small",
        "base": {
            "model": {"source": str(folder / "tiny"), "label": "tiny"},
            "data": {"files": files, "block_size": 32},
            "train": {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.003, "logging_steps": 2},
        },
        "trials": [
            {"name": "finetuned", "stages": ["finetune"]},
            {"name": "pruned", "stages": ["finetune", {"prune": {"sparsity": 0.5}}]},
            {"name": "distilled", "stages": [{"distill": {"teacher": "finetuned"}}]},
        ],
    }
    file = folder / "small.yaml"
    file.write_text(json.dumps(spec))
    return file


def test_two_agents_finish_a_sweep_with_the_results_of_sweep_run(world: World, tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    made = world.run("-m", "prunegpt", "wandb", "create", spec, "--root", world.root.path, "--print")
    sweep = world.sweep(json.loads(made))
    agents = [world.agent(sweep, "one"), world.agent(sweep, "two")]
    told = ""
    for agent in agents:
        output, errors = agent.communicate(timeout=LONGEST)
        told += output + errors
        assert agent.returncode == 0, told
    state = world.state(sweep)
    assert state["state"] == "FINISHED", told
    assert [run["state"] for run in state["runs"]] == ["finished"] * 3
    assert sorted(run["values"]["trial"] for run in state["runs"]) == ["distilled", "finetuned", "pruned"]

    world.run("-m", "prunegpt", "sweep", "run", spec, "--root", tmp_path / "other")
    with Store.open(world.root) as ours, Store.open(Root(tmp_path / "other")) as theirs:
        found = {result.name: result for result in ours.results("small")}
        expected = {result.name: result for result in theirs.results("small")}
        assert set(found) == set(expected) == {"finetuned", "pruned", "distilled"}
        for name, result in expected.items():
            assert result.evaluation is not None
            assert found[name].evaluation is not None
            assert found[name].evaluation.perplexity == result.evaluation.perplexity
            assert found[name].key == result.key
            assert {run["metric"] for run in state["runs"] if run["values"]["trial"] == name} == {
                result.evaluation.perplexity
            }
        for name in ("pruned", "distilled"):
            assert found[name].attempts == 1
        computed = [stage.computations for stage in ours.stages()]
    assert max(computed) == 1


@pytest.mark.parametrize("version", ["installed", OLDER])
def test_sweep_and_agent_of_two_versions_of_the_client(version: str, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the W&B client")
    folder = client(version)
    spec = small_spec(tmp_path)
    with opened(tmp_path, folder) as world:
        assert f"version {version_of(folder)}\n" in world.run("-m", "wandb", "--version")
        made = world.run("-m", "prunegpt", "wandb", "create", spec, "--root", world.root.path, "--print")
        sweep = world.sweep(json.loads(made))
        output, errors = world.agent(sweep, "one").communicate(timeout=LONGEST)
        state = world.state(sweep)
    assert state["state"] == "FINISHED", output + errors
    assert [run["state"] for run in state["runs"]] == ["finished"] * 3
    with Store.open(world.root) as store:
        metrics = {one.name: one.evaluation.perplexity for one in store.results("small") if one.evaluation is not None}
    assert {run["values"]["trial"]: run["metric"] for run in state["runs"]} == metrics
    assert set(metrics) == {"finetuned", "pruned", "distilled"}


SCRIPT = """
import os, signal, sys, time
name = sys.argv[1].partition("=")[2]
with open({told!r}, "a") as file:
    file.write(name + "\\n")
end = time.time() + {seconds}
while time.time() < end:
    time.sleep(0.1)
"""


def foreign(folder: Path, seconds: float, values: list[int]) -> tuple[dict[str, Any], Path]:
    told = folder / "told"
    told.touch()
    (folder / "script.py").write_text(SCRIPT.format(told=str(told), seconds=seconds))
    command = ["${env}", sys.executable, str(folder / "script.py"), "${args}"]
    parameters = {"number": {"values": values}}
    return {
        "name": "foreign",
        "method": "grid",
        "program": "script.py",
        "command": command,
        "parameters": parameters,
    }, told


def test_pause_resume_and_cancel(world: World, tmp_path: Path) -> None:
    config, told = foreign(tmp_path, 7, [1, 2, 3])
    sweep = world.sweep(config)
    agent = world.agent(sweep, "one")
    wait(lambda: told.read_text() == "1\n", "the first run")
    world.run("-m", "wandb", "sweep", "--pause", sweep)
    wait(lambda: world.state(sweep)["runs"][0]["state"] == "finished", "the end of the first run")
    time.sleep(8)  # longer than the agent's poll
    assert told.read_text() == "1\n"
    world.run("-m", "wandb", "sweep", "--resume", sweep)
    wait(lambda: told.read_text() == "1\n2\n", "the second run")
    world.run("-m", "wandb", "sweep", "--cancel", sweep)
    output, errors = agent.communicate(timeout=LONGEST)
    assert agent.returncode == 0, output + errors
    assert told.read_text() == "1\n2\n"
    assert world.state(sweep)["state"] == "CANCELED"
    assert world.state(sweep)["runs"][1]["state"] == "stopped"


ONLINE = """
import pathlib, time, wandb
run = wandb.init(project="elsewhere", name="mine", config={"lr": 0.1})
for step in range(300):
    run.log({"loss": 3.0 - 0.01 * step})
    time.sleep(0.3)
    if pathlib.Path("enough").exists():
        break
run.summary["perplexity"] = 9.5
run.finish()
"""


def test_a_script_that_knows_nothing_of_us_shows_its_curve_while_it_runs(world: World, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(ONLINE)
    script = world.start(tmp_path / "train.py", at="elsewhere")

    def live() -> bool:
        if not world.root.database.exists():
            return False
        with Store.open(world.root) as store:
            if "wandb-elsewhere" not in [sweep.name for sweep in store.sweeps()]:
                return False
            trials = store.results("wandb-elsewhere")
            return any(one.state == "running" and len(store.points(one.id, "loss")) > 2 for one in trials)

    wait(live, "points of a running script", 80)  # the client sends what it has every fifteen seconds
    assert script.poll() is None
    (tmp_path / "elsewhere" / "enough").touch()
    output, errors = script.communicate(timeout=LONGEST)
    assert script.returncode == 0, output + errors
    with Store.open(world.root) as store:
        (trial,) = store.results("wandb-elsewhere")
        assert (trial.state, trial.label, trial.config["lr"]) == ("finished", "mine", 0.1)
        losses = [point.value for point in store.points(trial.id, "loss")]
        assert trial.evaluation is not None
        assert trial.evaluation.perplexity == 9.5
    assert losses == pytest.approx([3.0 - 0.01 * step for step in range(len(losses))])


def test_a_tracked_sweep_survives_an_outage_and_sync_sends_it_once(world: World, tmp_path: Path) -> None:
    spec = json.loads(small_spec(tmp_path).read_text())
    spec["tracking"] = {"wandb": "online", "project": "tracked"}
    spec["trials"] = spec["trials"][:2]
    file = tmp_path / "tracked.yaml"
    file.write_text(json.dumps(spec))
    other = tmp_path / "other"
    gone = world.start("-m", "prunegpt", "sweep", "run", file, "--root", other, WANDB_BASE_URL="http://127.0.0.1:9")
    output, errors = gone.communicate(timeout=LONGEST)
    assert gone.returncode == 0, output + errors
    assert "2 kept: `prunegpt wandb sync` sends them" in errors
    assert "cannot be reached" in errors
    for _ in range(2):
        world.run("-m", "prunegpt", "wandb", "sync", "--root", other)
    with Store.open(world.root) as store, Store.open(Root(other)) as own:
        sent = {trial.label: trial for trial in store.results("wandb-tracked") if trial.label != "small-tables"}
        assert set(sent) == {"finetuned", "pruned"}
        for result in own.results("small"):
            curve = [point.value for point in own.points(result.id, "loss", stage=1)]
            assert [point.value for point in store.points(sent[result.name].id, "1-finetune/loss")] == curve
            assert result.evaluation is not None
            assert sent[result.name].evaluation is not None
            assert sent[result.name].evaluation.perplexity == result.evaluation.perplexity


BARE = """
import sys, uvicorn
from pathlib import Path
from starlette.applications import Starlette
from prunegpt.root import Root
from prunegpt.tracking.endpoint import routes
uvicorn.run(Starlette(routes=routes(Root(Path(sys.argv[1])))), port=int(sys.argv[2]), log_level="error")
"""


def test_an_agents_run_tells_a_server_that_does_not_see_the_root(world: World, tmp_path: Path) -> None:
    """A plain W&B server has the curves and the metric it searches by from the run itself."""
    spec = small_spec(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cloud = Root(tmp_path / "cloud")
    server = world.start("-c", BARE, cloud.path, port)
    try:
        (tmp_path / "arguments.json").write_text('{"trial": "finetuned"}')
        wait(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, "the server", 30)
        command = ("wandb", "trial", tmp_path / "arguments.json", "--spec", spec, "--root", tmp_path / "other")
        told = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_RUN_ID": "run1", "WANDB_PROJECT": "study"}
        run = world.start("-m", "prunegpt", *command, **told)
        output, errors = run.communicate(timeout=LONGEST)
        assert run.returncode == 0, output + errors
    finally:
        server.terminate()
        server.wait(20)
    with Store.open(cloud) as store, Store.open(Root(tmp_path / "other")) as own:
        sent, result = store.result("wandb-study/run1"), own.result("small/finetuned")
        assert sent.state == "finished"
        assert sent.evaluation is not None
        assert result.evaluation is not None
        assert sent.evaluation.perplexity == result.evaluation.perplexity
        curve = [point.value for point in own.points(result.id, "loss", stage=1)]
        assert curve
        assert [point.value for point in store.points(sent.id, "1-finetune/loss")] == curve
        perplexities = [point.value for point in store.points(sent.id, "perplexity")]
        assert perplexities[-1] == result.evaluation.perplexity
