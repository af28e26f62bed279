"""Model folders that are broken, or made to do harm: refused with what is wrong, before any number comes of them."""

import json
import pickle
import re
import shutil
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.errors import ModelError, PruneGPTError
from prunegpt.lm.models import load_model
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.planning.resolve import plan_data
from prunegpt.records import AttemptRecord
from prunegpt.root import Root
from tests.support.running import run_attempt
from tests.support.small import write_spec

CPU = {"device": "cpu", "dtype": "float32"}


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def configure(folder: Path, file: str = "config.json", **entries: Any) -> None:
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**config, **entries}))


def set_weight(folder: Path, value: float) -> str:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("mlp.c_fc.weight"))
    weights[name][3, 5] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return name


def spec_of(folder: Path, text: dict[str, str]) -> dict[str, Any]:
    base = {"model": str(folder), "data": {"files": text, "block_size": 32}}
    return {"name": "hostile", "base": base, "trials": [{"name": "zero-shot"}]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder: Path, value: float) -> None:
    name = set_weight(folder, value)
    with pytest.raises(ModelError, match=rf"weights must be finite numbers; .* NaN or infinity in {name}\. "):
        load_model(folder, **CPU)


def test_no_number_of_such_a_model_reaches_a_table(
    folder: Path, text_files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_weight(folder, float("nan"))
    (trial,) = plan_data(spec_of(folder, text_files)).trials
    root = Root(tmp_path / "runs")
    record = run_attempt(root, trial)
    assert record.state == "failed"
    assert "weights must be finite numbers" in record.error
    assert record.stages == ()
    assert AttemptRecord.read(root.attempt("hostile", "zero-shot", 1) / "record.json") == record
    assert not (tmp_path / "runs" / "stages").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"n_layer": 10**9}, "asks for 1000000000 layers and its files hold"),
        ({"n_layer": "many"}, "config|layers"),
        ({"vocab_size": 10**9}, r"asks for 32,0\d\d,\d\d\d,\d\d\d and its files hold"),
        ({"n_embd": 32 * 10**5, "n_head": 2}, "and its files hold"),
        ({"n_positions": 10**9}, "and its files hold"),
        ({"n_embd": 64}, "has another shape for"),
        ({"n_head": 3}, "divisible|failed"),
        ({"n_head": 0}, "failed"),
        ({"n_embd": -1}, "failed|hold"),
        ({"vocab_size": 1}, "has another shape for"),
        ({"model_type": "../../etc/passwd"}, "failed"),
        ({"activation_function": "__import__('os').system"}, "failed"),
    ],
)
def test_a_config_that_does_not_fit_its_weights_is_refused(folder: Path, entries: Any, message: str) -> None:
    configure(folder, **entries)
    with pytest.raises(ModelError, match=message):
        load_model(folder, **CPU)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 9) + b'{"a": {}}',
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 64) + b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4]}} ' + b"\0" * 4,
        struct.pack("<Q", 64) + b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4000000000]}}' + b"\0" * 4,
    ],
)
def test_damaged_safetensors_are_refused_when_planned_and_when_loaded(
    folder: Path, text_files: dict[str, str], content: bytes
) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot be read|did not load|failed|hold exactly its weights"):
        load_model(folder, **CPU)
    with pytest.raises(PruneGPTError, match=r"safetensors|lacks|tensor"):
        plan_data(spec_of(folder, text_files))


class Harm:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_beside_or_instead_of_the_weights_is_never_opened(
    folder: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    canary = tmp_path / "it-ran"
    harm = pickle.dumps({"transformer.wte.weight": Harm(canary)})
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(harm)
    load_model(folder, **CPU)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"only pickled ones .* which can run code when loaded"):
        load_model(folder, **CPU)
    with pytest.raises(PruneGPTError, match=r"only pickled ones .* never are"):
        plan_data(spec_of(folder, text_files))
    assert not canary.exists()


def test_code_in_a_folder_runs_neither_for_model_nor_for_tokeniser(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "it-ran"
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Own: pass\n")
    auto = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}
    configure(folder, auto_map=auto)
    configure(folder, "tokenizer_config.json", auto_map=auto, tokenizer_class="Own")
    for load in (lambda: load_model(folder, **CPU), lambda: load_tokenizer(folder)):
        with suppress(ModelError):
            load()  # a kind that transformers has itself is loaded with its own code
    assert not canary.exists()
    configure(folder, model_type="own")
    with pytest.raises(ModelError, match=r"runs its own code\. Set trust_remote_code: true where you have read"):
        load_model(folder, **CPU)
    assert not canary.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "BPE", "vocab": 3}}', "\0" * 50])
def test_a_damaged_tokeniser_is_told(folder: Path, text_files: dict[str, str], content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"the tokeniser did not load"):
        load_tokenizer(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 10**5, '{"model_type": "gpt2"', "\0", '{"n_layer": 1e999}'])
def test_a_damaged_config_is_told_on_the_command_line(
    folder: Path, text_files: dict[str, str], tmp_path: Path, content: str
) -> None:
    (folder / "config.json").write_text(content)
    path = write_spec(tmp_path / "spec.yaml", spec_of(folder, text_files))
    done = CliRunner().invoke(app, ["sweep", "check", path, "--root", str(tmp_path / "runs")])
    if content == '{"n_layer": 1e999}':  # what only loading can tell
        with pytest.raises(ModelError):
            load_model(folder, **CPU)
    else:
        assert isinstance(done.exception, PruneGPTError)
        assert re.search(r"config\.json (is not valid JSON|holds)", str(done.exception))


def test_a_sound_model_is_what_all_of_these_were_made_from(folder: Path) -> None:
    model = load_model(folder, **CPU)
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
