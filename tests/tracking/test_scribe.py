"""Telling W&B: what is sent, what is kept, and that nobody waits or fails for it. The client itself is played."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.planning.resolve import plan_data
from prunegpt.points import Point
from prunegpt.records import AttemptRecord, Evaluation, SparsityRecord, StageRecord, TrialResult
from prunegpt.root import Root
from prunegpt.spec.plan import SweepPlan, TrialPlan
from prunegpt.spec.tracking import WandbSpec
from prunegpt.store import Store
from prunegpt.tracking import run_log
from prunegpt.tracking import uploader as module
from prunegpt.tracking.client import Server, TrackingError, register
from prunegpt.tracking.run_log import axes_of, rows_of, run_id, summary_of
from prunegpt.tracking.tracker import WandbTracker
from prunegpt.tracking.uploader import WandbUploader, posted, sync

ONLINE = WandbSpec(mode="online", project="mine")


def plan(**more: Any) -> SweepPlan:
    base = {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text", "block_size": 128}}
    stages = ["finetune", {"prune": {"sparsity": 0.5}}]
    return plan_data({"name": "small", "base": base, "trials": [{"name": "pruned", "stages": stages}], **more})


def point(stage: int, step: int, name: str, value: float | None, **more: Any) -> Point:
    return Point(
        stage=stage, step=step, epoch=more.get("epoch", 0.0), name=name, value=value, time=float(step), tokens=0
    )


POINTS = [
    point(1, 0, "total_steps", 4),
    point(1, 2, "loss", 3.0, epoch=0.5),
    point(1, 2, "learning_rate", 0.1, epoch=0.5),
    point(1, 4, "loss", None),
    point(1, 4, "perplexity", 20.0),
    point(2, 0, "perplexity", 21.0),
    point(2, 0, "sparsity", 0.5),
]


def stage(trial: TrialPlan, index: int) -> StageRecord:
    key = trial.stages[index].key
    measured = Evaluation(
        key="e", protocol="p", split="validation", perplexity=21.0, loss=3.04, bits_per_byte=1.5, word_perplexity=None,
        tokens=10, windows=1,
    )  # fmt: skip
    zeros = SparsityRecord(pruned=0.5, overall=0.25, selected=10, parameters=100, by_tensor={"h.0.mlp.weight": 0.5})
    return StageRecord(
        key=key, kind=trial.stages[index].kind, index=index, cached=False, train_tokens=7, seconds=2.0,
        evaluation=measured, sparsity=zeros,
    )  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root in which the sweep's only trial is running and has written its first points."""
    root = Root(tmp_path)
    with Store.open(root) as store:
        (saved,) = store.save_sweep(plan())
        started = store.start_attempt(saved.id)
        store.add_points(started.id, POINTS[:4])
    return root


def finish(root: Root, state: Any = "finished") -> None:
    trial = plan().trials[0]
    with Store.open(root) as store:
        attempt = store.attempts("small/pruned")[-1]
        store.add_points(attempt.id, POINTS)
        stages = tuple(stage(trial, index) for index in range(3))
        error = "" if state == "finished" else "no"
        record = AttemptRecord(
            sweep="small", trial="pruned", attempt=attempt.number, state=state, stages=stages, error=error
        )
        store.finish_attempt(record)


def result(root: Root) -> TrialResult:
    with Store.open(root) as store:
        return store.result("small/pruned")


class Cloud:
    """What W&B holds: rows of each run by step, and how runs ended."""

    address = "http://wandb.example"

    def __init__(self) -> None:
        self.rows: dict[str, dict[int, Any]] = {}
        self.ended: dict[str, str] = {}
        self.begun: list[tuple[str, str]] = []
        self.specs: list[WandbSpec] = []
        self.down = False
        self.refuses = ""

    def ask(self, query: str, variables: Any) -> dict[str, Any]:
        if self.down or self.refuses:
            raise TrackingError(self.refuses or "W&B cannot be reached")
        rows = self.rows.get(variables.get("name", ""), {})
        return {"model": {"bucket": {"historyLineCount": len(rows)} if rows else None}}


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    cloud = Cloud()

    class Log:
        def __init__(
            self, root: Root, spec: WandbSpec, result: TrialResult, mode: str, *, artifacts: bool = True
        ) -> None:
            if mode == "online" and cloud.down:
                raise ConnectionError("no route to host")
            self.id, self.mode, self.rows = run_id(result), mode, 0
            self.folder = f"wandb/offline-run-1-{self.id}" if mode == "offline" else ""
            if self.folder:
                (root.path / self.folder).mkdir(parents=True, exist_ok=True)
            cloud.begun.append((mode, self.id))
            cloud.specs.append(spec)

        def log(self, rows: list[Any]) -> None:
            if self.mode == "online" and not cloud.down:
                held = cloud.rows.setdefault(self.id, {})
                for index in range(len(held), len(rows)):
                    held[index] = rows[index]
            self.rows = len(rows)

        def finish(self, result: TrialResult, rows: list[Any]) -> None:
            self.log(rows)
            if self.mode == "online" and not cloud.down:
                cloud.ended[self.id] = result.state

        def abandon(self) -> None:
            return None

    monkeypatch.setattr(module, "RunLog", Log)
    monkeypatch.setattr(module, "log_tables", lambda *_: None)
    monkeypatch.setattr(module, "is_ours", lambda _: False)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return cloud


def scribe(root: Root, cloud: Any, said: list[str] | None = None, spec: WandbSpec = ONLINE) -> WandbUploader:
    tell = said.append if said is not None else lambda _: None
    return WandbUploader(root, "small", spec, cloud, tell)


def test_rows_are_one_a_stage_and_step_with_their_axes() -> None:
    trial = plan().trials[0]
    rows = rows_of(trial, POINTS)
    assert rows == [
        {
            "_timestamp": 2.0,
            "1-finetune/step": 2,
            "1-finetune/epoch": 0.5,
            "1-finetune/loss": 3.0,
            "1-finetune/learning_rate": 0.1,
        },
        {"_timestamp": 4.0, "1-finetune/step": 4, "1-finetune/perplexity": 20.0, "perplexity": 20.0},
        {
            "_timestamp": 0.0,
            "2-prune/step": 0,
            "2-prune/perplexity": 21.0,
            "perplexity": 21.0,
            "2-prune/sparsity": 0.5,
        },
    ]
    assert rows_of(trial, POINTS[:5])[:1] == rows[:1]  # what comes later changes no earlier row
    assert axes_of(trial)["2-prune/*"] == "2-prune/step"


def test_the_summary_has_the_metrics_that_searches_use(root: Root) -> None:
    finish(root)
    found = result(root)
    assert summary_of(found) == {name: value for name, value in found.metrics.items() if value is not None}


def test_a_trial_is_told_while_it_runs_and_when_it_has_ended(root: Root, cloud: Cloud) -> None:
    one = scribe(root, cloud)
    one.look()
    run = run_id(result(root))
    assert cloud.rows[run] == dict(enumerate(rows_of(plan().trials[0], POINTS[:4])[:-1]))
    finish(root)
    one.look()
    assert list(cloud.rows[run].values()) == rows_of(plan().trials[0], POINTS)
    assert cloud.ended == {run: "finished"}
    note = posted(root, run)
    assert note is not None
    assert (note.sent, note.state, note.rows) == (True, "finished", 3)
    one.look()
    scribe(root, cloud).look()  # another run of the sweep
    assert len(cloud.begun) == 1


def test_a_retried_trial_goes_on_in_the_same_run(root: Root, cloud: Cloud) -> None:
    finish(root, "failed")
    scribe(root, cloud).look()
    with Store.open(root) as store:
        store.retry("small", ["pruned"])
        store.start_attempt(result(root).id)
    finish(root)
    scribe(root, cloud).look()
    assert [mode for mode, _ in cloud.begun] == ["online", "online"]
    assert len(cloud.rows) == 1
    assert list(cloud.ended.values()) == ["finished"]
    assert len(next(iter(cloud.rows.values()))) == 3


@pytest.mark.parametrize("refusal", ["W&B refused with 401: the key is wrong", "W&B refused with 500: oops"])
def test_what_cannot_be_sent_is_kept_with_its_reason_and_sent_once_later(
    root: Root, cloud: Cloud, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.refuses = refusal
    said: list[str] = []
    finish(root)
    one = scribe(root, cloud, said)
    one.look()
    one.look()
    assert said == [f"W&B: {refusal}"]
    run = run_id(result(root))
    note = posted(root, run)
    assert note is not None
    assert (note.sent, note.problem) == (False, "kept to be sent")
    assert (root.path / note.folder).is_dir()
    monkeypatch.setattr(module.Server, "find", lambda: cloud)
    with pytest.raises(TrackingError):
        list(sync(root, say=said.append))
    cloud.refuses = ""
    (done,) = sync(root, say=said.append)
    assert (done.sweep, done.trial, done.sent) == ("small", "pruned", True)
    assert len(cloud.rows[run]) == 3
    assert not (root.path / note.folder).exists()
    assert list(sync(root, say=said.append)) == []
    assert cloud.begun.count(("online", run)) == 1


def test_sync_changes_nothing_but_what_it_is_given(root: Root, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.refuses = "W&B refused with 500: oops"
    finish(root)
    scribe(root, cloud).look()
    cloud.refuses = ""
    monkeypatch.setattr(module.Server, "find", lambda: cloud)
    (done,) = sync(root, entity="team")
    assert (done.project, done.entity, done.sent) == (ONLINE.project, "team", True)


def test_a_dry_run_lists_what_would_be_sent(root: Root) -> None:
    finish(root)
    found = CliRunner().invoke(app, ["wandb", "sync", "small", "--dry-run", "--root", str(root.path)])
    assert found.stdout == "small/pruned: finished, 0 rows: not sent\n"
    refused = CliRunner().invoke(app, ["wandb", "sync", "smal", "--dry-run", "--root", str(root.path)])
    assert "Did you mean 'small'?" in str(refused.exception)


def test_an_outage_in_mid_run_is_made_up_for_without_doubles(
    root: Root, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = scribe(root, cloud)
    with Store.open(root) as store:
        store.add_points(store.attempts("small/pruned")[-1].id, POINTS[:5])
    one.look()
    cloud.down = True
    finish(root)
    one.look()
    run = run_id(result(root))
    note = posted(root, run)
    assert note is not None
    assert not note.sent
    cloud.down = False
    monkeypatch.setattr(module.Server, "find", lambda: cloud)
    assert [done.sent for done in sync(root, say=lambda _: None)] == [True]
    assert list(cloud.rows[run].values()) == rows_of(plan().trials[0], POINTS)
    begun = list(cloud.begun)
    assert list(sync(root, say=lambda _: None)) == []
    assert cloud.begun == begun


def test_without_a_key_runs_are_kept(root: Root, cloud: Cloud) -> None:
    said: list[str] = []
    finish(root)
    scribe(root, None, said).look()
    assert said == ["W&B: there is no API key: set WANDB_API_KEY or run `wandb login`. Runs are kept until then"]
    assert cloud.begun[0][0] == "offline"


def test_offline_is_offline(root: Root, cloud: Cloud) -> None:
    finish(root)
    scribe(root, cloud, spec=WandbSpec(mode="offline")).look()
    assert [mode for mode, _ in cloud.begun] == ["offline"]
    assert cloud.rows == {}


def test_a_full_disk_is_told_and_breaks_nothing(root: Root, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "RunLog", full)
    said: list[str] = []
    finish(root)
    note_before = posted(root, run_id(result(root)))
    scribe(root, cloud, said).look()
    assert any("No space left on device" in line for line in said)
    assert note_before is None


def test_trials_of_which_nothing_could_be_noted_are_sent_later_as_the_spec_says(
    root: Root, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked = plan(tracking={"wandb": "online", "project": "mine", "group": "ours", "tags": ["a"]})
    monkeypatch.setattr(module.Server, "find", lambda: cloud)
    finish(root)
    assert list(sync(root, say=lambda _: None)) == []  # it is not tracked
    with Store.open(root) as store:
        store.save_sweep(tracked)
    said: list[str] = []
    lost = WandbTracker(tracked, root, command=[sys.executable, "-c", "raise SystemExit(3)"], say=said.append)
    lost.close()
    assert said == [f"W&B: 0 trials sent, 1 kept: `prunegpt wandb sync --root {root.path}` sends them."]
    assert [done.sent for done in sync(root, say=lambda _: None)] == [True]
    (spec,) = cloud.specs
    assert (spec.project, spec.group, spec.tags, spec.mode) == ("mine", "ours", ("a",), "online")
    assert list(sync(root, say=lambda _: None)) == []


def test_what_was_kept_is_sent_to_its_group(root: Root, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    tracked = plan(tracking={"wandb": "online", "project": "mine", "group": "ours"})
    with Store.open(root) as store:
        store.save_sweep(tracked)
    cloud.refuses = "W&B refused with 500: oops"
    finish(root)
    scribe(root, cloud, spec=tracked.tracking.wandb).look()
    cloud.refuses = ""
    monkeypatch.setattr(module.Server, "find", lambda: cloud)
    assert [done.sent for done in sync(root, say=lambda _: None)] == [True]
    assert cloud.specs[-1].group == "ours"


def test_a_sweep_that_was_removed_keeps_no_other_from_being_sent(
    root: Root, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(root)
    scribe(root, cloud, spec=WandbSpec(mode="offline")).look()
    with Store.open(root) as store:
        store.remove_sweep("small")
    monkeypatch.setattr(module.Server, "find", lambda: cloud)
    assert list(sync(root, say=lambda _: None)) == []


# -- the tracker ------------------------------------------------------------------------------------------------------


def tracker(root: Root, code: str, close: float = 5.0) -> tuple[WandbTracker, list[str]]:
    said: list[str] = []
    return WandbTracker(plan(), root, command=[sys.executable, "-c", code], close=close, say=said.append), said


@pytest.mark.realtime
def test_a_scribe_that_hangs_is_left_behind_after_a_while(root: Root) -> None:
    began = time.monotonic()
    found, said = tracker(root, "import time; time.sleep(600)", close=0.5)
    found.close()
    assert time.monotonic() - began < 5
    assert said == ["W&B: 0 trials sent."]


def test_a_scribe_that_dies_or_cannot_start_hurts_nobody(root: Root) -> None:
    found, said = tracker(root, "raise SystemExit(3)")
    found.close()
    assert said == ["W&B: 0 trials sent."]
    lost: list[str] = []
    WandbTracker(plan(), root, command=["/nowhere/python"], say=lost.append).close()
    later = f"`prunegpt wandb sync --root {root.path}` sends it later."
    assert lost == [f"W&B: nothing can be sent: No such file or directory. {later}"]


def test_the_scribe_is_told_how_and_hears_of_the_end(root: Root, tmp_path: Path) -> None:
    code = f"import sys; open({str(tmp_path / 'told')!r}, 'w').write(sys.stdin.readline() + sys.stdin.read() + 'end')"
    found, _ = tracker(root, code)
    found.close()
    first, end = (tmp_path / "told").read_text().splitlines()
    assert json.loads(first)["mode"] == "off"
    assert end == "end"


# -- a server that misbehaves -----------------------------------------------------------------------------------------


@contextmanager
def server(status: int, body: bytes, *, silent: bool = False) -> Iterator[str]:
    over = threading.Event()
    if not silent:
        over.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            over.wait()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return None

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        over.set()
        made.shutdown()
        made.server_close()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, b'{"errors": [{"message": "bad key"}]}', r"refused with 401: bad key Check WANDB_API_KEY"),
        (500, b"oops", r"refused with 500: .* Try again later"),
        (200, b"<html>", r"cannot be reached: .* Check WANDB_BASE_URL"),
        (200, b'{"errors": [{"message": "no such project"}]}', r"refused: no such project"),
    ],
)
def test_what_a_server_says_is_told(status: int, body: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(status, body) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        with pytest.raises(TrackingError, match=message):
            register({"method": "grid"}, project="p", entity=None)


def test_a_server_that_is_gone_or_slow_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunegpt.tracking.client.TIMEOUT", 0.2)
    with server(200, b"{}", silent=True) as address, pytest.raises(TrackingError, match="cannot be reached: timed out"):
        Server(address, "key").ask("query Viewer { viewer { id } }", {})
    with pytest.raises(TrackingError, match=r"cannot be reached: .*refused"):
        Server(address, "key").ask("query Viewer { viewer { id } }", {})


def test_the_key_is_looked_for_where_the_client_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(TrackingError, match=r"needs an API key; there is none\. Set WANDB_API_KEY"):
        Server.find()
    (tmp_path / ".netrc").write_text("machine wandb.example login user password kept\n")
    (tmp_path / ".netrc").chmod(0o600)
    (tmp_path / ".config" / "wandb").mkdir(parents=True)
    (tmp_path / ".config" / "wandb" / "settings").write_text("[default]\nbase_url = https://wandb.example\n")
    assert Server.find() == Server("https://wandb.example", "kept")


def test_help_of_the_commands_needs_neither_torch_nor_wandb() -> None:
    code = (
        "import sys; from prunegpt.cli import app; import typer.testing as t; "
        "r = t.CliRunner().invoke(app, ['wandb', '--help']); assert r.exit_code == 0, r.output; "
        "print([m for m in ('torch', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- what is sent at the end ------------------------------------------------------------------------------------------


class Run:
    """A run of the client that keeps what it is told."""

    def __init__(self, root: Root) -> None:
        self.dir = str(root.path / "wandb" / "run-1" / "files")
        self.starting_step = 0
        self.told: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.artifacts: list[Any] = []
        self.finished: list[int] = []

    def define_metric(self, *_: Any, **__: Any) -> None:
        return None

    def log(self, row: Any, step: int | None = None) -> None:
        self.told |= row

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)

    def finish(self, exit_code: int = 0) -> None:
        self.finished.append(exit_code)


def test_layers_are_a_table_and_published_stages_artifacts_by_reference(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    finish(root)
    found = result(root)
    published = root.stage(found.stages[1].key)
    published.mkdir(parents=True)
    (published / "weights").write_bytes(b"x" * 1000)
    run = Run(root)
    monkeypatch.setattr(run_log, "begin", lambda *_, **__: run)
    run_log.RunLog(root, ONLINE, found, "online").finish(found, rows_of(plan().trials[0], POINTS))
    assert run.told["sparsity_by_layer"].data == [["h.0.mlp.weight", 0.5]]
    (artifact,) = run.artifacts
    assert (artifact.name.split(":")[0], artifact.type) == (f"stage-{found.stages[1].key}", found.stages[1].kind)
    (entry,) = artifact.manifest.entries.values()
    assert entry.ref == (published / "weights").absolute().as_uri()
    assert entry.local_path is None  # nothing is copied
    assert run.finished == [0]


def test_tables_and_figures_of_a_sweep_are_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    root = Root(tmp_path)
    table = {"title": "All", "rows": ["pruned"], "columns": ["model", "perplexity"]}
    base = {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text", "block_size": 128}}
    stages = ["finetune", {"prune": {"sparsity": 0.5}}]
    made = {"name": "small", "base": base, "trials": [{"name": "pruned", "stages": stages}], "tables": [table]}
    with Store.open(root) as store:
        (saved,) = store.save_sweep(plan_data(made))
        store.start_attempt(saved.id)
        store.add_points(store.attempts("small/pruned")[-1].id, [point(1, 2, "perplexity", 30.0)])  # one is no curve
    finish(root)
    begun: list[tuple[str, Run]] = []

    def begin(root: Root, spec: WandbSpec, mode: str, run: str, **about: Any) -> Run:
        begun.append((run, Run(root)))
        return begun[-1][1]

    monkeypatch.setattr(run_log, "begin", begin)
    for _ in range(2):
        run_log.log_tables(root, ONLINE, "small", "online")
    (first, run), (second, _) = begun
    assert first == second  # the second time replaces the first
    (name,) = [name for name in run.told if name.startswith("table/")]
    assert isinstance(run.told[name], wandb.Table)
    assert any(21.0 in row for row in run.told[name].data)
    figures = [value for name, value in run.told.items() if name.startswith("figure/")]
    assert figures
    assert all(isinstance(figure, wandb.Image) for figure in figures)
    assert run.finished == [0]
