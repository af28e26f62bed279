"""The harness of the peers with pretended ones: no network, and none of them is installed."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.bench.harness import Settings
from tests.bench.peers import PEERS, completed, environments, llmcompressor, lmeval, raytune
from tests.bench.peers.environments import REQUIREMENTS, Unavailable, python_of, version
from tests.bench.peers.processes import Finished, in_turn, run
from tests.bench.rows import Row
from tests.bench.spent import MARK, Spent


@pytest.fixture
def quick(tmp_path: Path) -> Settings:
    work = tmp_path / "work"
    work.mkdir()
    return Settings(True, "cpu", 1, "processor", work, environments=tmp_path / "environments")


def measured(name: str, settings: Settings) -> dict[str, Row]:
    module, *way = PEERS[name].split(":", maxsplit=1)
    return {row.name: row for row in import_module(module).measure(settings, *way)}


def planned(name: str) -> list[str]:
    return [row.name for row in completed([]) if row.name.startswith(name)]


class Pip:
    """Stands for the processes of an installation."""

    def __init__(self, code: int = 0) -> None:
        self.commands: list[str] = []
        self.code = code

    def __call__(self, command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        self.commands.append(command[2])
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)
            return subprocess.CompletedProcess(command, 0, "", "")
        return subprocess.CompletedProcess(command, self.code, "", "warning\nERROR: no such version\n\n")


def test_an_environment_is_made_once_for_what_it_requires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip()
    monkeypatch.setattr(environments.subprocess, "run", pip)
    (tmp_path / "fake.txt").write_text("fake[more]==1.0\n")
    first = python_of("fake", tmp_path / "kept", install=True, requirements=tmp_path)
    assert python_of("fake", tmp_path / "kept", install=False, requirements=tmp_path) == first
    assert pip.commands == ["venv", "pip"]
    assert version("fake", "fake", requirements=tmp_path) == "1.0"
    (tmp_path / "fake.txt").write_text("fake==2.0\n")
    assert python_of("fake", tmp_path / "kept", install=True, requirements=tmp_path) != first


def test_what_cannot_be_installed_says_why_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip(code=1)
    monkeypatch.setattr(environments.subprocess, "run", pip)
    (tmp_path / "fake.txt").write_text("fake==1.0\n")
    for _ in range(2):
        with pytest.raises(Unavailable, match="cannot be installed: ERROR: no such version"):
            python_of("fake", tmp_path / "kept", install=True, requirements=tmp_path)
    assert pip.commands == ["venv", "pip"] * 2


@pytest.mark.parametrize("name", PEERS)
def test_a_quick_run_installs_nothing(name: str, quick: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a quick run must start no process without its environment")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    found = measured(name, quick).values()
    assert found
    assert all("--quick installs nothing" in row.skipped and row.is_met is False for row in found)
    assert not quick.environments.exists()


def test_rows_that_were_never_measured_are_in_the_table_as_not_met() -> None:
    first, *others = completed([])
    assert {row.is_met for row in (first, *others)} == {False}
    kept = Row(first.name, "measured", "", 0.5, 0.5, 0.5, 1, wanted=0.7)
    assert list(completed([kept])) == [kept, *others]


def test_every_peer_is_pinned_and_measured() -> None:
    files = sorted(REQUIREMENTS.glob("*.txt"))
    assert {path.stem for path in files} == {spec.split(":")[0].rpartition(".")[2] for spec in PEERS.values()}
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines
        assert all("==" in line for line in lines), path


def test_a_process_is_measured_by_itself() -> None:
    code = "held = bytearray(b'1') * (80 << 20); x = sum(range(3_000_000)); print('noise'); print('{\"a\": 1}')"
    found = run([sys.executable, "-c", code], environments.outside())
    assert found.result == {"a": 1}
    assert found.processor > 0
    assert found.wall > 0
    assert 80 < found.peak < 200  # MiB; this process has more
    with pytest.raises(RuntimeError, match="ended with 3:\nsaid"):
        run([sys.executable, "-c", "print('said'); raise SystemExit(3)"], environments.outside())


def test_processes_take_turns() -> None:
    called: list[str] = []

    def lane(name: str) -> Finished:
        called.append(name)
        return Finished(1.0, 1.0, 1.0, {})

    in_turn({"a": lambda: lane("a"), "b": lambda: lane("b")}, 2)
    assert called == ["a", "b", "b", "a"]


def test_rows_beside_a_pretended_llm_compressor(quick: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def pretend(command: list[Any], env: dict[str, str], **_: Any) -> Finished:
        words = [str(word) for word in command]
        commands.append(words)
        is_theirs = str(llmcompressor.SCRIPT) in words
        place = next(index for index, word in enumerate(words) if word.endswith(".npy"))
        model, out = Path(words[place - 1]), Path(words[place + 1])
        shutil.copytree(model, out, dirs_exist_ok=True)
        weights = load_file(out / "model.safetensors")
        for name, weight in weights.items():
            if "layers" in name and weight.dim() == 2:
                weight[:, ::2] = 0
        if words[-1] == llmcompressor.HEAD_BY_NAME:
            weights["model.embed_tokens.weight"][:, ::2] = 0
        if is_theirs:
            weights["model.layers.1.mlp.down_proj.weight"][:, :2] = torch.tensor([1.0, 0.0])
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
        seconds = 2.0 if is_theirs else 1.0
        return Finished(seconds * 3, seconds * 2, 100 * seconds, {"wall": seconds, "processor": seconds})

    monkeypatch.setattr(llmcompressor, "python_of", lambda *_, **__: Path(sys.executable))
    monkeypatch.setattr(llmcompressor, "run", pretend)
    found = measured("llmcompressor-wanda-50%", quick)
    assert list(found) == planned("llmcompressor-wanda-50%")
    values = {name.rpartition("-")[2]: row for name, row in found.items()}
    assert (values["time"].value, values["memory"].value) == (0.5, 0.5)
    figures = values["perplexity"].figures
    assert (figures["matrices"], figures["matrices with equal masks"]) == (14, 13)
    assert figures["the same with the dense embedding put back"] == figures["perplexity of theirs"]
    assert figures["perplexity of theirs, ignore: [lm_head]"] != figures["perplexity of theirs"]
    assert "13 of 14 masks are equal" in values["perplexity"].note
    assert {"-P" in command for command in commands if str(llmcompressor.SCRIPT) in command} == {True}


def test_rows_beside_a_pretended_harness(quick: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [{"metric": name, "value": 0.5, "stderr": 0.25} for name in ("acc", "acc_norm")]

    def pretend(command: list[Any], env: dict[str, str], *, parse: Any) -> Finished:
        is_ours = "prunegpt" in command
        if not is_ours:
            out = Path(command[-1]) / "model"
            out.mkdir(parents=True)
            theirs = {"acc,none": 0.5, "acc_stderr,none": 0.25, "acc_norm,none": 0.75, "acc_norm_stderr,none": 0.25}
            (out / "results_1.json").write_text(json.dumps({"results": {lmeval.NAME: theirs}}))
        printed = json.dumps({"scores": scores}, indent=2)
        return Finished(1.0 if is_ours else 2.0, 1.0 if is_ours else 4.0, 1.0, parse(printed))

    monkeypatch.setattr(lmeval, "python_of", lambda *_, **__: Path(sys.executable))
    monkeypatch.setattr(lmeval, "run", pretend)
    found = measured("lmeval", quick)
    assert list(found) == planned("lmeval")
    assert (found["lmeval-time"].value, found["lmeval-time"].verdict) == (0.25, "met")
    assert (found["lmeval-figures"].value, found["lmeval-figures"].verdict) == (0.25, "missed")


def test_rows_beside_a_pretended_ray(quick: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(command: list[Any], env: dict[str, str]) -> Finished:
        of_grid = {"ours": 5.0, "theirs": 20.0}
        taken = of_grid[env[MARK]] if raytune.GRID in command else [0.0, 10.0, 20.0]
        return Finished(1.0, 1.0, 1.0, {"wall": None, "processor": taken})

    monkeypatch.setattr(raytune, "python_of", lambda *_, **__: Path(sys.executable))
    monkeypatch.setattr(raytune, "run", pretend)
    monkeypatch.setattr(raytune, "suggested", lambda *_: [1.0, 1.0])
    found = {**measured("raytune-trials", quick), **measured("raytune-grid", quick)}
    assert list(found) == planned("raytune")
    assert [row.value for row in found.values()] == [0.1, 0.1, 0.25]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux counts what processes took")
def test_what_marked_processes_took_is_counted_whoever_started_them() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True); input()"
    spent = Spent("marked")
    for mark in ("marked", "another"):
        with subprocess.Popen(
            [sys.executable, "-c", burn], env={**os.environ, MARK: mark}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            taken = spent()
            process.communicate(b"\n")
        assert 0.15 < taken < 5
        assert spent() == taken
