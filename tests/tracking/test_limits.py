"""What one client may cost the server: bytes, packed bytes, values, memory, the event loop."""

import asyncio
import gzip
import itertools
import json
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from prunegpt.points import Point, read_points
from prunegpt.root import Root
from prunegpt.spec.read import bounded_value
from prunegpt.store import Store
from prunegpt.sweep.recovery import OUTSIDE, recover
from prunegpt.tracking import claims
from prunegpt.tracking.endpoint import intake
from prunegpt.tracking.endpoint.app import WandbServer
from tests.tracking.endpoint_client import GRID, Client

NINE = ", ".join(["*a{0}"] * 9)
STREAM = "/files/local/mine/abc123/file_stream"


@contextmanager
def at_most(megabytes: int) -> Iterator[None]:
    """Fails where the block takes more memory at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes << 20
    finally:
        tracemalloc.stop()


def packed(pattern: bytes, size: int) -> bytes:
    """Gzip of a pattern over and over, made in little memory."""
    packer = zlib.compressobj(9, wbits=31)
    block = pattern * (1_000_000 // len(pattern))
    return b"".join(packer.compress(block) for _ in range(size // len(block))) + packer.flush()


@pytest.mark.parametrize("path", ["/graphql", STREAM])
@pytest.mark.parametrize("pattern", [b" ", b"[" * 10])
def test_a_packed_bomb_is_refused_before_it_is_large(client: Client, path: str, pattern: bytes) -> None:
    body = packed(pattern, 1 << 27)
    with at_most(80):
        answer = client.http.post(path, content=body, headers={"content-encoding": "gzip"})
    assert answer.status_code == 413
    assert "when it is unpacked" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/graphql", STREAM])
@pytest.mark.parametrize("pattern", [b"[],", b"{},"])
def test_more_values_than_memory_should_hold_are_refused_before_they_are_made(
    client: Client, path: str, pattern: bytes
) -> None:
    body = b'{"query": [' + pattern * (intake.LARGEST // len(pattern) - 10) + b"1]}"
    with at_most(80):
        answer = client.http.post(path, content=gzip.compress(body, 1), headers={"content-encoding": "gzip"})
    assert (answer.status_code, "1000000 values" in answer.json()["error"]) == (413, True)


@pytest.mark.parametrize(
    "text",
    [
        "method: grid\na0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{NINE.format(n - 1)}]\n" for n in range(1, 9)),
        "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{NINE.format(n - 1)}], y{n}: 1}}\n" for n in range(1, 12)),
        "method: grid\nparameters: &a {x: *a}\n",
        "[" * 5000,
    ],
    ids=["aliases", "merges", "a loop", "brackets"],
)
def test_a_config_that_grows_when_it_is_read_is_refused(client: Client, text: str) -> None:
    query = "mutation ($c: String) { upsertSweep(input: {config: $c}) { sweep { name } } }"
    with at_most(80):
        answer = client.http.post("/graphql", json={"query": query, "variables": {"c": text}})
    assert answer.status_code < 500
    assert len(answer.json()["errors"][0]["message"]) < 2000
    assert len(list((client.root.path).rglob("*.json"))) == 0


def test_aliases_that_clients_write_are_read() -> None:
    assert bounded_value("a: &id001 [1, 2]\nb: *id001\n") == {"a": [1, 2], "b": [1, 2]}


def test_requests_that_are_read_at_once_have_a_bound(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MOST_HELD", 1000)
    answer = client.http.post(STREAM, content=b"x" * 2000)
    assert (answer.status_code, "again later" in answer.json()["error"]) == (503, True)
    assert client.http.post(STREAM, json={}).status_code == 200  # what was refused is held no longer


def test_a_body_is_parsed_away_from_the_event_loop(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    parse = json.loads

    def parsed(text: Any, **more: Any) -> Any:
        try:
            asyncio.get_running_loop()
            seen.append(True)
        except RuntimeError:
            seen.append(False)
        return parse(text, **more)

    monkeypatch.setattr(intake.json, "loads", parsed)
    for path in ("/graphql", STREAM):
        client.http.post(path, content=gzip.compress(b'{"query": "{ viewer }"}'), headers={"content-encoding": "gzip"})
    assert seen
    assert not any(seen)
    assert threading.active_count() < 50


# -- numbers that a database cannot hold ------------------------------------------------------------------------------

TOO_LARGE = [2**63, 10**30, 10**400, 1e300, -1]


def test_a_step_that_is_none_is_refused_with_all_of_its_rows(client: Client) -> None:
    client.ask("UpsertBucket", name="abc123", project="mine", config="{}")
    for step in TOO_LARGE:
        lines = [json.dumps({"_step": 0, "loss": 1.0}), json.dumps({"_step": step, "loss": 1.0})]
        answer = client.http.post(STREAM, json={"files": {"wandb-history.jsonl": {"offset": 0, "content": lines}}})
        assert answer.status_code == 400
        assert "_step must be a whole number from 0 to" in answer.json()["error"]
    with Store.open(client.root) as store:
        assert store.points("wandb-mine/abc123", "loss") == []


def test_any_other_number_is_kept_in_its_bounds_and_a_coordinator_can_begin(client: Client) -> None:
    names = ("global_step", "tokens", "epoch", "loss", "_timestamp", "_runtime", "nested")
    values = [*TOO_LARGE, float("nan"), float("inf")]
    for number, (name, value) in enumerate(itertools.product(names, values)):
        run = f"run{number}"
        client.ask("UpsertBucket", name=run, project="mine", config=json.dumps({"a": {"value": value}}))
        row = {"_step": 3, "other": 1.0, name: {"in": value} if name == "nested" else value}
        summary = {"offset": 0, "content": [json.dumps({"perplexity": 2.0, "sparsity": 0.5, name: value})]}
        client.stream(run, [row], files={"wandb-summary.json": summary})
    with Store.open(client.root) as store:
        trials = store.results("wandb-mine")
        for trial in trials:
            assert len(store.points(trial.id, "other")) == 1
            (client.root.path / trial.folder / OUTSIDE).unlink()
        assert len(recover(client.root, store)) == len(trials) == len(names) * len(values)


def test_a_point_that_an_earlier_version_took_in_is_passed_over(tmp_path: Path) -> None:
    good = Point(stage=0, step=1, epoch=0.0, name="loss", value=1.0, time=0.0)
    odd: list[dict[str, int]] = [{"step": 2**63}, {}, {"tokens": 2**63}, {"stage": 2**31}]
    lines = [json.dumps({**good.model_dump(), **more}) for more in odd]
    (tmp_path / "points.jsonl").write_text("\n".join(lines) + "\n")
    assert read_points(tmp_path / "points.jsonl")[0] == [good]


# -- what is sent again, and what is kept -----------------------------------------------------------------------------


def test_printed_lines_that_are_sent_again_are_kept_once_also_after_a_restart(client: Client) -> None:
    client.ask("UpsertBucket", name="abc123", project="mine", config="{}")
    for offset, lines in ((0, ["a", "b"]), (0, ["a", "b", "c"]), (2, ["c"])):
        client.stream("abc123", [], files={"output.log": {"offset": offset, "content": lines}})
    again = client.after_restart()
    assert again.ask("RunResumeStatus", name="abc123", project="mine")["model"]["bucket"]["logLineCount"] == 3
    again.stream("abc123", [], files={"output.log": {"offset": 1, "content": ["b", "c", "d"]}})
    with Store.open(client.root) as store:
        folder = client.root.path / store.result("wandb-mine/abc123").folder
    assert (folder / "log.txt").read_text() == "a\nb\nc\nd\n"


def test_rows_that_were_half_kept_are_kept_once_when_they_are_sent_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.ask("UpsertBucket", name="abc123", project="mine", config="{}")
    client.stream("abc123", [{"_step": 0, "loss": 0.0}])
    with monkeypatch.context() as broken:
        broken.setattr(Store, "add_points", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space left"):
            client.stream("abc123", [{"_step": 1, "loss": 1.0}], offset=1)
    client.stream("abc123", [{"_step": 1, "loss": 1.0}], offset=1)
    with Store.open(client.root) as store:
        folder = client.root.path / store.result("wandb-mine/abc123").folder
    assert [point.step for point in read_points(folder / "points.jsonl")[0]] == [0, 1]


def test_a_run_goes_on_where_the_database_is_a_new_one(client: Client) -> None:
    client.ask("UpsertBucket", name="abc123", project="mine", displayName="first", config="{}")
    rows = [{"_step": step, "loss": float(step)} for step in range(3)]
    client.stream("abc123", rows[:2], files={"output.log": {"offset": 0, "content": ["a"]}})
    client.endpoints[0].close()
    for file in client.root.path.glob("prunegpt.db*"):
        file.unlink()
    again = client.after_restart()
    again.stream("abc123", rows[:2], files={"output.log": {"offset": 0, "content": ["a"]}})
    again.stream("abc123", rows[2:], offset=2)
    with Store.open(client.root) as store:
        trial = store.result("wandb-mine/abc123")
        assert trial.label == "first"
        assert [point.step for point in store.points(trial.id, "loss")] == [0, 1, 2]
    folder = client.root.path / trial.folder
    assert [point.step for point in read_points(folder / "points.jsonl")[0]] == [0, 1, 2]
    assert (folder / "log.txt").read_text() == "a\n"


def test_values_of_many_runs_are_not_kept_in_memory_and_no_file_stays_open(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "MOST_READ", 3)
    name = client.sweep({**GRID, "metric": {"name": "loss"}, "parameters": {"lr": {"values": list(range(12))}}})
    agent = client.ask("CreateAgent", sweep=name, host="h")["createAgent"]["agent"]["id"]
    files = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for _ in range(10):
        ((run),) = client.heartbeat(agent)
        client.ask("UpsertBucket", name=run["run_id"], project="mine", config="{}", sweep=name)
        rows = [{"_step": step, "loss": float(step), "other": 0.0} for step in range(20)]
        client.stream(run["run_id"], rows, complete=True, exitcode=0)
    runs = client.endpoints[0]._runs
    assert sum(len(values) for _, values in runs._statuses._read.values()) <= 3 * 20
    if files:
        assert len(list(Path("/proc/self/fd").iterdir())) - files < 8


def test_runs_that_have_ended_count_for_early_terminate_though_their_curves_are_gone(client: Client) -> None:
    stop = {"type": "hyperband", "min_iter": 2, "eta": 3}
    name = client.sweep({**GRID, "metric": {"name": "loss"}, "early_terminate": stop})
    agent = client.ask("CreateAgent", sweep=name, host="h")["createAgent"]["agent"]["id"]
    ((good),) = client.heartbeat(agent)
    client.ask("UpsertBucket", name=good["run_id"], project="mine", config="{}", sweep=name)
    client.stream(good["run_id"], [{"_step": step, "loss": 1.0} for step in range(3)], complete=True, exitcode=0)
    ((bad),) = client.heartbeat(agent)
    again = Client(client.root)
    client.endpoints.append(again.endpoints[0])
    again.ask("UpsertBucket", name=bad["run_id"], project="mine", config="{}", sweep=name)
    again.stream(bad["run_id"], [{"_step": step, "loss": 9.0} for step in range(3)])
    assert again.heartbeat(agent, bad["run_id"]) == [{"type": "stop", "run_id": bad["run_id"]}]


# -- files that are uploaded ------------------------------------------------------------------------------------------

FILES = "/files/local/mine/abc123/upload"


def test_the_files_of_a_run_have_a_bound_in_all(tmp_path: Path) -> None:
    root = Root(tmp_path / "runs")
    endpoint = WandbServer(root, uploads=100_000)
    server = TestClient(Starlette(routes=endpoint.routes()))
    kept = root.trial("wandb-mine", "abc123")
    try:
        assert server.put(f"{FILES}/a.bin", content=b"x" * 60_000).status_code == 200
        answer = server.put(f"{FILES}/b.bin", content=b"x" * 60_000)
        assert answer.status_code == 413
        assert "the files of a run may take 100000 bytes here" in answer.json()["error"]
        assert "--upload-limit" in answer.json()["error"]
        assert server.put(f"{FILES}/a.bin", content=b"y" * 90_000).status_code == 200, "in place of the first"
        many = [server.put(f"{FILES}/{index}", content=b"").status_code for index in range(30)]
        assert many[0] == 200
        assert many[-1] == 413, "a file without content takes room, too"
        assert server.put(f"{FILES.replace('abc123', 'other')}/b.bin", content=b"x" * 60_000).status_code == 200
        assert sum(file.stat().st_size for file in kept.rglob("files/*")) <= 100_000
    finally:
        endpoint.close()


def test_one_file_has_a_bound_and_none_is_held_in_memory(tmp_path: Path) -> None:
    endpoint = WandbServer(Root(tmp_path / "runs"), uploads=60_000_000)
    server = TestClient(Starlette(routes=endpoint.routes()))
    try:
        answer = server.put(f"{FILES}/a.bin", content=b"x" * 60_000_001)
        assert answer.status_code == 413
        assert "may have 60000000 bytes here; it has more" in answer.json()["error"]
        assert server.put(f"{FILES}/b.bin", content=b"x" * 40_000_000).status_code == 200
        kept = Root(tmp_path / "runs").trial("wandb-mine", "abc123") / "attempt-1" / "files" / "b.bin"
        assert kept.stat().st_size == 40_000_000
        assert list((tmp_path / "runs" / "wandb" / "incoming").iterdir()) == []
    finally:
        endpoint.close()
