"""The unmodified W&B client against `prunegpt serve`, on loopback: nothing leaves the machine."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from prunegpt.root import Root
from prunegpt.store import Store
from tests.support.small import make_model
from tests.support.waiting import until
from tests.tracking.wandb_versions import OLDER, client, version_of

pytestmark = pytest.mark.slow

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
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_AGENT_REPORT_INTERVAL": "0",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        self.server = self.start("-m", "prunegpt", "serve", "--root", self.root.path, "--port", "0")
        assert self.server.stderr is not None
        link = self.server.stderr.readline().split(": ", 1)[1].split()[0]
        address, _, token = link.partition("#")
        self.address = address.removesuffix("/login")
        self._environment |= {"WANDB_BASE_URL": self.address, "WANDB_API_KEY": token}

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

    def tell(self, name: str, *command: object) -> "tuple[subprocess.Popen[str], Path]":
        """Starts something in a folder of its own, whose output goes into a file: nobody reads a pipe meanwhile."""
        (self.folder / name).mkdir()
        file = self.folder / name / "output"
        with file.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=file.parent,
                env=self._environment,
                stdout=output,
                stderr=output,
                text=True,
            )
        self.started.append(process)
        return process, file

    def run(self, *command: object, at: str = ".", seconds: float = LONGEST) -> str:
        process = self.start(*command, at=at)
        output, errors = process.communicate(timeout=seconds)
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


def text_files(folder: Path) -> dict[str, str]:
    from prunegpt.builtin.text import rows

    files = {}
    for split, count in (("train", 200), ("validation", 40)):
        path = folder / f"{split}.txt"
        path.write_text("\n".join([line for row in rows(split) for line in row.splitlines()][:count]) + "\n")
        files[split] = str(path)
    return files


def small_spec(folder: Path) -> Path:
    make_model(folder / "tiny", layers=2)
    spec = {
        "name": "small",
        "base": {
            "model": {"source": str(folder / "tiny"), "label": "tiny"},
            "data": {"files": text_files(folder), "block_size": 32},
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


QUICKSTART = CHECKOUT / "sweeps" / "quickstart.yaml"
LONG = 900.0  # seconds that eleven trials by two agents may take on a machine that is busy


def test_two_agents_finish_the_quickstart_with_the_results_of_sweep_run(world: World, tmp_path: Path) -> None:
    """The whole grid as the README runs it, on a model and a text that are far smaller."""
    model = make_model(tmp_path / "tiny", layers=4)  # each of which a trial prunes
    data = json.dumps({"files": text_files(tmp_path), "block_size": 32})
    overrides = ["--set", f"base.model={model}", "--set", f"base.data={data}"]
    made = world.run("-m", "prunegpt", "wandb", "create", QUICKSTART, "--root", world.root.path, *overrides)
    sweep = made.splitlines()[0]
    told = [world.tell(f"agent-{name}", "-m", "wandb", "agent", sweep) for name in ("one", "two")]
    world.run("-m", "prunegpt", "sweep", "run", QUICKSTART, "--root", tmp_path / "other", *overrides, seconds=LONG)
    for agent, log in told:
        assert agent.wait(LONG) == 0, log.read_text()

    runs = world.state(sweep)["runs"]
    assert world.state(sweep)["state"] == "FINISHED"
    assert [run["state"] for run in runs] == ["finished"] * len(runs)
    assert len({run["agent"] for run in runs}) == 2
    points = [run["values"]["trial"] for run in runs]
    assert len(points) == len(set(points)) > 10
    with Store.open(world.root) as ours, Store.open(Root(tmp_path / "other")) as theirs:
        found = {one.name: one for one in ours.results("quickstart")}
        expected = {one.name: one for one in theirs.results("quickstart")}
        assert sorted(points) == sorted(found) == sorted(expected)
        for name, result in expected.items():
            assert (found[name].state, result.state) == ("finished", "finished")
            assert found[name].key == result.key
            assert result.evaluation is not None
            assert found[name].evaluation is not None
            assert found[name].evaluation.perplexity == result.evaluation.perplexity, name
            assert found[name].sparsity == result.sparsity, name
            assert [run["metric"] for run in runs if run["values"]["trial"] == name] == [result.evaluation.perplexity]
        for name, result in found.items():
            taught = name == "finetuned"  # it may have been made as a teacher before it was run
            assert result.attempts == 1 or taught, name
        assert max(stage.computations for stage in ours.stages()) == 1


def test_an_agents_trial_is_live_and_one_that_is_killed_is_lost_and_tried_again(world: World, tmp_path: Path) -> None:
    spec = json.loads(small_spec(tmp_path).read_text())
    spec["trials"] = spec["trials"][:1]
    spec["base"]["train"] |= {"max_steps": 1_000_000, "eval_strategy": "steps", "eval_steps": 20, "save_steps": 20}
    file = tmp_path / "long.yaml"
    file.write_text(json.dumps(spec))
    made = world.run("-m", "prunegpt", "wandb", "create", file, "--root", world.root.path)
    agent, log = world.tell("agent", "-m", "wandb", "agent", made.splitlines()[0])

    def shown(what: str) -> Any:
        with urllib.request.urlopen(f"{world.address}/api/v1/trials/small/finetuned{what}", timeout=30) as answer:
            return json.load(answer)

    def lengths() -> dict[str, int]:
        return {curve["name"]: curve["total"] for curve in shown("/curves")["curves"] if curve["stage"] == 1}

    until(lambda: shown("")["state"] == "running", "a trial that runs")
    until(lambda: lengths().get("loss", 0) > 2 and lengths().get("perplexity", 0) > 1, "curves of a trial that runs")
    before = lengths()
    until(lambda: all(lengths()[name] > before[name] for name in ("loss", "perplexity")), "curves that grow")
    with Store.open(world.root) as store:
        (running,) = store.running_attempts()
        process = json.loads((world.root.path / running.folder / "outside.json").read_text())["pid"]
        os.kill(process, signal.SIGKILL)
        assert agent.wait(LONGEST) == 0, log.read_text()
        until(lambda: store.result("small/finetuned").state == "waiting", "the server's verdict")
        (lost,) = store.attempts("small/finetuned")
        assert (lost.state, lost.reason) == ("failed", "lost")
        resumed = world.start("-m", "prunegpt", "sweep", "resume", "small", "--root", world.root.path)
        until(lambda: [row.number for row in store.running_attempts()] == [2], "another attempt")
        reached = max(point.step for point in store.points("small/finetuned", "loss"))
        until(lambda: grown(store, reached), "its points")
        resumed.send_signal(signal.SIGINT)
        resumed.communicate(timeout=LONGEST)


def grown(store: Store, reached: int) -> bool:
    return max(point.step for point in store.points("small/finetuned", "loss")) > reached


def test_a_trial_of_an_agents_that_fails_says_why_with_its_log(world: World, tmp_path: Path) -> None:
    spec = json.loads(small_spec(tmp_path).read_text())
    prune = {"sparsity": 0.5, "start": 1, "end": 1000, "every": 1, "schedule": "cubic"}  # there are not so many epochs
    spec["trials"] = [{"name": "finetuned", "stages": [{"finetune": {"prune": prune}}]}]
    file = tmp_path / "failing.yaml"
    file.write_text(json.dumps(spec))
    made = world.run("-m", "prunegpt", "wandb", "create", file, "--root", world.root.path)
    agent, log = world.tell("agent", "-m", "wandb", "agent", made.splitlines()[0])
    assert agent.wait(LONGEST) == 0, log.read_text()
    (run,) = world.state(made.splitlines()[0])["runs"]
    assert run["state"] == "failed"
    with Store.open(world.root) as store:
        found = store.result("small/finetuned")
        assert (found.state, found.reason) == ("failed", "exception")
        assert "must end before training does" in found.error
        (row,) = store.attempts(found.id)
    assert found.error in row.log


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


@pytest.mark.realtime
def test_pause_resume_and_cancel(world: World, tmp_path: Path) -> None:
    config, told = foreign(tmp_path, 7, [1, 2, 3])
    sweep = world.sweep(config)
    agent = world.agent(sweep, "one")
    until(lambda: told.read_text() == "1\n", "the first run")
    world.run("-m", "wandb", "sweep", "--pause", sweep)
    until(lambda: world.state(sweep)["runs"][0]["state"] == "finished", "the end of the first run")
    time.sleep(8)  # longer than the agent's poll
    assert told.read_text() == "1\n"
    world.run("-m", "wandb", "sweep", "--resume", sweep)
    until(lambda: told.read_text() == "1\n2\n", "the second run")
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

    until(live, "points of a running script")  # the client sends what it has every fifteen seconds
    assert script.poll() is None
    (tmp_path / "elsewhere" / "enough").touch()
    output, errors = script.communicate(timeout=LONGEST)
    assert script.returncode == 0, output + errors
    with Store.open(world.root) as store:
        (trial,) = store.results("wandb-elsewhere")
        assert (trial.state, trial.label, trial.config["lr"]) == ("finished", "mine", 0.1)
        losses = [point.value for point in store.points(trial.id, "loss")]
        assert (trial.evaluation, trial.logged["perplexity"]) == (None, 9.5), "what a script calls so"
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
            assert sent[result.name].logged["perplexity"] == result.evaluation.perplexity


class Proxy:
    """Stands between clients and a server, and fails as it is told to.

    Args:
        how: `fine`, a status that everything is answered with, `slow`, or `gone`: connections are closed.
        streams: after so many file streams that came through, it is `gone`.
    """

    def __init__(self, address: str, how: str, streams: int | None = None) -> None:
        self.how, self.streams = how, streams
        self.over = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if proxy.how == "slow":
                    proxy.over.wait(LONGEST)
                if proxy.how in ("slow", "gone"):
                    self.close_connection = True
                    return
                status, answer = (int(proxy.how), b"oops") if proxy.how.isdigit() else self.forwarded(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
                if proxy.streams is not None and self.path.endswith("/file_stream"):
                    proxy.streams -= 1
                    proxy.how = proxy.how if proxy.streams > 0 else "gone"

            do_GET = do_PUT = do_POST

            def forwarded(self, body: bytes) -> tuple[int, bytes]:
                kept = ("Content-Type", "Authorization", "Content-Encoding")
                headers = {name: self.headers[name] for name in kept if self.headers[name]}
                request = urllib.request.Request(address + self.path, body or None, headers, method=self.command)
                try:
                    with urllib.request.urlopen(request, timeout=60) as answer:
                        return answer.status, answer.read()
                except urllib.error.HTTPError as error:
                    return error.code, error.read()

            def log_message(self, *_: Any) -> None:
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A file system with room for nothing."""
    place.mkdir(parents=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {made.stderr.strip()}")
    try:
        with suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(512))
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("gone mid-run", "W&B: .+"),  # the client or we may be the first to notice
        ("401", "W&B: .*refused with 401"),
        ("500", "W&B: .*refused with 500"),
        ("slow", "W&B: .*cannot be reached"),
        ("full disk", "W&B: .*No space left on device"),
    ],
)
def test_whatever_fails_trials_finish_the_reason_is_told_and_sync_sends_each_once(
    world: World, tmp_path: Path, how: str, reason: str
) -> None:
    spec = json.loads(small_spec(tmp_path).read_text())
    spec["tracking"] = {"wandb": "online", "project": "tracked", "group": "ours"}
    spec["trials"] = spec["trials"][:2]
    file = tmp_path / "tracked.yaml"
    file.write_text(json.dumps(spec))
    other = tmp_path / "other"
    midway = how == "gone mid-run"
    proxy = Proxy(world.address, "fine" if midway or how == "full disk" else how, 1 if midway else None)
    try:
        with small_disk(other / "wandb") if how == "full disk" else nullcontext():
            run = world.start("-m", "prunegpt", "sweep", "run", file, "--root", other, WANDB_BASE_URL=proxy.address)
            output, errors = run.communicate(timeout=LONGEST)
    finally:
        proxy.close()
    assert run.returncode == 0, output + errors
    assert re.search(rf"[12] kept: `prunegpt wandb sync` sends them\. {reason}", errors), errors
    for _ in range(2):
        world.run("-m", "prunegpt", "wandb", "sync", "--root", other)
    with Store.open(world.root) as store, Store.open(Root(other)) as own:
        results = own.results("small")
        assert [result.state for result in results] == ["finished"] * 2
        sent = {trial.label: trial for trial in store.results("wandb-tracked") if trial.label != "small-tables"}
        assert set(sent) == {"finetuned", "pruned"}
        for result in results:
            assert (sent[result.name].state, sent[result.name].group) == ("finished", "ours")
            curve = [point.value for point in own.points(result.id, "loss", stage=1)]
            assert curve
            assert [point.value for point in store.points(sent[result.name].id, "1-finetune/loss")] == curve


BARE = """
import sys, uvicorn
from pathlib import Path
from starlette.applications import Starlette
from prunegpt.root import Root
from prunegpt.tracking.endpoint.app import WandbServer
uvicorn.run(Starlette(routes=WandbServer(Root(Path(sys.argv[1]))).routes()), port=int(sys.argv[2]), log_level="error")
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
        until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, "the server", 30)
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
        assert result.evaluation is not None
        assert sent.logged["perplexity"] == result.evaluation.perplexity
        curve = [point.value for point in own.points(result.id, "loss", stage=1)]
        assert curve
        assert [point.value for point in store.points(sent.id, "1-finetune/loss")] == curve
        perplexities = [point.value for point in store.points(sent.id, "perplexity")]
        assert perplexities[-1] == result.evaluation.perplexity
