"""Model folders, archives, specs and attempt folders that somebody made to do harm: a clear error, and nothing else.

Each is a sound one with drawn changes, read by the command line in a process of its own with little memory and time.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunegpt.cli import main
from prunegpt.planning.resolve import plan_data
from prunegpt.report.archive import Archive, write_archive
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep
from tests.support.here import Here
from tests.support.small import make_model

torch.set_num_threads(1)  # of the process that is forked: threads do not outlive it
MEMORY = 3 << 30  # bytes over what the process has already
SECONDS = 60
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**40,
    0.5,
    1e308,
    "",
    "\0",
    "a" * 100_000,
    "../../etc/passwd",
    "re:(a+)+$",
    "re:(" + "a?" * 60 + ")" + "a" * 60,
    "=1+1",
    [],
    {},
    [[[[[[[[]]]]]]]],
    {"a": {"a": {"a": {}}}},
    [0] * 10_000,
]


@pytest.fixture(scope="module")
def sound(text_files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each, in a folder: model, archive, spec, and the root of a sweep that was run."""
    place = tmp_path_factory.mktemp("sound")
    make_model(place / "model", layers=1, width=16, positions=32)
    for split, file in text_files.items():
        shutil.copy(file, place / f"{split}.txt")
    files = {split: str(place / f"{split}.txt") for split in text_files}
    spec = {
        "name": "hostile",
        "base": {
            "model": str(place / "model"),
            "data": {"files": files, "block_size": 16},
            "evaluate": {"max_windows": 2},
            "train": {"max_steps": 1},
        },
        "trials": [
            {"name": "pruned", "stages": [{"prune": {"sparsity": 0.5, "targets": ["re:.*attn.*"]}}]},
            {"name": "tuned", "stages": [{"finetune": {"train": {"learning_rate": 0.1}}}]},
        ],
        "tables": [{"title": "T", "rows": ["*"], "columns": ["trial", "perplexity"]}],
    }
    (place / "spec.yaml").write_text(json.dumps(spec))
    root = Root(place / "runs")
    plan = plan_data(spec, root=root)
    with Store.open(root) as store:
        run_sweep(plan, root, store, Here())
        results = store.results("hostile")
    assert {result.state for result in results} == {"finished"}
    windows = np.array([[30.0, 10.0], [31.0, 10.0]])
    write_archive(place / "archive", Archive("hostile", None, plan.tables, tuple(results), lambda _: windows))
    return place


def json_files(*names: str) -> Callable[[Path, random.Random], None]:
    """Changes one value somewhere in one of these files, or their bytes."""

    def change(place: Path, draw: random.Random) -> None:
        file = place / draw.choice(names)
        if draw.random() < 0.2:
            raw(file, draw)
            return
        data = json.loads(file.read_text(encoding="utf-8"))
        for _ in range(draw.randint(1, 2)):
            spots = list(places(data))
            if spots:
                owner, key = draw.choice(spots)
                owner[key] = draw.choice(ODD)
        file.write_text(json.dumps(data), encoding="utf-8")

    return change


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
        yield node, key
        if isinstance(value, (dict, list)):
            yield from places(value)


def raw(file: Path, draw: random.Random) -> None:
    """Other bytes: cut, flipped, emptied, nested without end, or something else altogether."""
    content = bytearray(file.read_bytes())
    how = draw.choice(["cut", "flip", "empty", "nested", "noise", "folder"])
    if how == "folder":
        file.unlink()
        file.mkdir()
        return
    if how == "cut":
        content = content[: draw.randrange(len(content) + 1)]
    elif how == "flip":
        for _ in range(8):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes({"empty": b"", "nested": b"[" * 200_000, "noise": draw.randbytes(1000)}.get(how, bytes(content)))


def binary(name: str) -> Callable[[Path, random.Random], None]:
    return lambda place, draw: raw(place / name, draw)


def bomb(place: Path, draw: random.Random) -> None:
    """An archive that is small and unpacks to gigabytes."""
    header = np.lib.format.magic(1, 0)
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d, 2), }" % (1 << 26)
    with (
        zipfile.ZipFile(place / "archive" / "windows.npz", "w", zipfile.ZIP_DEFLATED) as packed,
        packed.open("1.npy", "w", force_zip64=True) as out,
    ):
        out.write(header + len(text).to_bytes(2, "little") + text)
        for _ in range(256):
            out.write(bytes(1 << 22))


def tokeniser(place: Path, draw: random.Random) -> None:
    """Rules that make a thousand tokens of one sign."""
    file = place / "model" / "tokenizer.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    if draw.random() < 0.5:
        data["normalizer"] = {
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"String": "e"}, "content": "ee" * 40}] * 8,
        }
    else:
        token = next(iter(data["model"]["vocab"]))
        piece = {"SpecialToken": {"id": token, "type_id": 0}}
        data["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [piece] * 3000 + [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {token: {"id": token, "ids": [0], "tokens": [token]}},
        }
    file.write_text(json.dumps(data), encoding="utf-8")


ATTEMPT = "runs/trials/hostile/pruned/attempt-1"
# What is changed -> how, and the commands that read it.
KINDS: dict[str, tuple[Callable[[Path, random.Random], None], list[list[str]]]] = {
    "config of a model": (
        json_files("model/config.json"),
        [["sweep", "check", "spec.yaml"], ["eval", "model", "--data", "validation.txt", "--block-size", "16"]],
    ),
    "tokeniser of a model": (
        json_files("model/tokenizer.json", "model/tokenizer_config.json"),
        [["sweep", "check", "spec.yaml"], ["eval", "model", "--data", "validation.txt", "--block-size", "16"]],
    ),
    "rules of a tokeniser": (tokeniser, [["eval", "model", "--data", "validation.txt", "--block-size", "16"]]),
    "weights of a model": (
        binary("model/model.safetensors"),
        [["sweep", "check", "spec.yaml"], ["eval", "model", "--data", "validation.txt", "--block-size", "16"]],
    ),
    "records of an archive": (
        json_files("archive/results.json"),
        [["table", "archive"], ["table", "archive", "--json"]],
    ),
    "windows of an archive": (binary("archive/windows.npz"), [["table", "archive"]]),
    "size of an archive": (bomb, [["table", "archive"]]),
    "spec": (json_files("spec.yaml"), [["sweep", "check", "spec.yaml"], ["sweep", "check", "spec.yaml", "--json"]]),
    "plan of an attempt": (json_files(f"{ATTEMPT}/trial.json"), [["trial", "run", ATTEMPT]]),
    "stages of a root": (
        json_files(*(f"stage/{name}" for name in ("stage.json", "plan.json", "files.json"))),
        [["sweep", "status", "hostile"], ["doctor", "--repair"]],
    ),
}


def outcome(place: Path, command: list[str]) -> str:
    """What the command printed, run in a fork with little memory and time. Fails where it dies or shows a trace."""
    log = place / "output.txt"
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.chdir(place)
            used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            signal.alarm(SECONDS)
            with log.open("w", encoding="utf-8") as out:
                sys.stdout = sys.stderr = out
                sys.argv = ["prunegpt", *command, *([] if command[0] == "trial" else ["--root", "runs"])]
                try:
                    main()
                except SystemExit:
                    pass
                except BaseException:
                    traceback.print_exc()
                out.flush()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    assert os.waitstatus_to_exitcode(status) == 0, (command, text[-2000:])
    return text


def hostile(kind: str, number: int, sound: Path, tmp_path: Path) -> None:
    change, commands = KINDS[kind]
    place = tmp_path / "place"
    shutil.copytree(sound, place)
    for file in ("spec.yaml", f"{ATTEMPT}/trial.json"):
        written = place / file
        written.write_text(written.read_text(encoding="utf-8").replace(str(sound), str(place)), encoding="utf-8")
    if kind.startswith("stages"):
        (place / "stage").symlink_to(next((place / "runs" / "stages").iterdir()))
    change(place, random.Random(f"{kind} {number}"))
    for command in commands:
        text = outcome(place, command)
        if command[0] != "trial":  # whose log holds the trace of a failure, for whoever mends it
            assert "Traceback" not in text, (command, text[-3000:])
        assert "errors.pydantic.dev" not in text, (command, text[-3000:])


GATE, WHOLE = 1, 30


@pytest.mark.parametrize("number", range(GATE))
@pytest.mark.parametrize("kind", KINDS)
def test_hostile(kind: str, number: int, sound: Path, tmp_path: Path) -> None:
    hostile(kind, number, sound, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(GATE, WHOLE))
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_more(kind: str, number: int, sound: Path, tmp_path: Path) -> None:
    hostile(kind, number, sound, tmp_path)
