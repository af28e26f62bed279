"""Folders as people have them: what `sweep check`, `eval` and `prune` make of each, in a line where they refuse it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.errors import PruneGPTError
from prunegpt.lm.models import load_model, save_model
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.planning import hub
from prunegpt.planning.facts import model_facts
from prunegpt.planning.fingerprint import Files
from prunegpt.spec.schema import ModelSpec
from tests.support.families import tiny
from tests.support.small import write_spec

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
MLP = "model.layers.1.mlp.up_proj.weight"
INDEX = "model.safetensors.index.json"
Change = Callable[[Path], object]


def configure(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


def rewrite(folder: Path, **weights: torch.Tensor | None) -> None:
    stored = load_file(folder / "model.safetensors") | weights
    kept = {name: weight for name, weight in stored.items() if weight is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def shard(folder: Path) -> list[Path]:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return sorted(folder.glob("model-*.safetensors"))


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere", "peft_type": "LORA"}')


def adapter_alone(folder: Path) -> None:
    adapter(folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02")


def moved(folder: Path) -> None:
    inner = folder / "checkpoint-10"
    inner.mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        file.rename(inner / file.name)


SOUND: dict[str, Change] = {
    "bfloat16": lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16").save_pretrained(folder),
    "float16": lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype="float16").save_pretrained(folder),
    "shards": shard,
    "an unlisted file beside": lambda folder: save_file({"x": torch.ones(1)}, folder / "consolidated.safetensors"),
    "another variant beside": lambda folder: save_file({MLP: torch.ones(9, 9)}, folder / "model.fp16.safetensors"),
    "a whole file and shards": lambda folder: [file.write_bytes(b"old") for file in shard_and_keep(folder)],
    "code that is not needed": lambda folder: configure(folder, auto_map={"AutoModelForCausalLM": "own.Own"}),
    "buffers of old versions": lambda folder: rewrite(
        folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    ),
}


def shard_and_keep(folder: Path) -> list[Path]:
    whole = (folder / "model.safetensors").read_bytes()
    shards = shard(folder)
    (folder / "model.safetensors").write_bytes(whole)
    return shards


REFUSED: dict[str, tuple[Change, str]] = {  # when it is planned, and when it is loaded
    "a shard is missing": (lambda folder: shard(folder)[1].unlink(), r"lacks model-00002-of-\d+\.safetensors"),
    "shards without their index": (
        lambda folder: (shard(folder), (folder / INDEX).unlink()),
        r"must be in model\.safetensors, or in files that .*index\.json lists; .* has model-00001",
    ),
    "another name": (
        lambda folder: (folder / "model.safetensors").rename(folder / "model.fp16.safetensors"),
        r"has model\.fp16\.safetensors without it\. Check that .* or rename the file",
    ),
    "a folder below": (
        moved,
        r"must hold config\.json; .* holds checkpoint-10\. Give the folder .*checkpoint-10 itself",
    ),
    "an adapter alone": (adapter_alone, r"holds a PEFT adapter .*merge_and_unload"),
    "an adapter and a whole model": (adapter, r"holds a PEFT adapter .*merge_and_unload"),
    "pickles": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        r"only pickled ones \(pytorch_model\.bin\).*writes safetensors",
    ),
    "integers for weights": (
        lambda folder: rewrite(folder, **{MLP: torch.ones(64, 32, dtype=torch.int8)}),
        rf"stores {MLP} as I8, and no quantization_config explains it",
    ),
    "eight bits without a scale": (
        lambda folder: rewrite(folder, **{MLP: torch.ones(64, 32).to(torch.float8_e4m3fn)}),
        rf"stores {MLP} as F8_E4M3, and no quantization_config",
    ),
    "no tokeniser": (
        lambda folder: [(folder / name).unlink() for name in TOKENIZER],
        r"must have a vocabulary; .* has no tokenizer\.json",
    ),
    "settings of a tokeniser alone": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        r"must have a vocabulary; .* has no tokenizer\.json",
    ),
}
LOADED: dict[str, tuple[Change, str]] = {  # refused when it is loaded
    "a weight is missing": (lambda folder: rewrite(folder, **{MLP: None}), rf"lacks {MLP}\. Nothing is filled"),
    "a weight too many": (
        lambda folder: rewrite(folder, **{"v_head.summary.weight": torch.ones(1, 32)}),
        r"holds what the model has no place for: v_head\.summary\.weight",
    ),
    "no head although untied": (
        lambda folder: rewrite(folder, **{"lm_head.weight": None}),
        r"lacks lm_head\.weight\. Nothing is filled with random",
    ),
    "code that is needed": (
        lambda folder: configure(folder, model_type="own", auto_map={"AutoConfig": "own.Own"}),
        r"runs its own code\. Set trust_remote_code: true",
    ),
    "a format whose package is missing": (
        sentencepiece,
        r"must be stored as tokenizer\.json, or in a format whose package is installed; .* writes tokenizer\.json",
    ),
}


@pytest.fixture(scope="module")
def stored(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored") / "model"
    tokenizer = load_tokenizer(model_folder)
    save_model(tiny("llama", vocab_size=len(tokenizer)), tokenizer, folder)
    return folder


@pytest.fixture
def folder(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "model"))


def check(folder: Path, text: dict[str, str], place: Path) -> Any:
    spec = {
        "name": "folders",
        "base": {"model": str(folder), "data": {"files": text, "block_size": 32}},
        "trials": [{"name": "a", "stages": [{"prune": {"method": "magnitude", "sparsity": 0.5}}]}],
    }
    return invoke("sweep", "check", write_spec(place / "spec.yaml", spec), "--root", str(place / "runs"))


def evaluate(folder: Path, text: dict[str, str], place: Path) -> Any:
    given = ["--data", text["validation"], "--block-size", "32", "--max-windows", "2", "--json"]
    return invoke("eval", str(folder), *given, "--root", str(place / "runs"))


def prune(folder: Path, text: dict[str, str], place: Path, *more: str) -> Any:
    given = ["--method", "magnitude", "--sparsity", "0.5", "--json", *more]
    return invoke("prune", str(folder), str(place / "out"), *given, "--root", str(place / "runs"))


def invoke(*command: str) -> Any:
    return CliRunner().invoke(app, [*command])


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_folder_is_checked_measured_and_pruned(
    case: str, folder: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    expected = load_model(folder, device="cpu", dtype="float32").state_dict()
    SOUND[case](folder)
    for command in (check, evaluate, prune):
        done = command(folder, text_files, tmp_path)
        assert done.exit_code == 0, (command, done.output, done.exception)
    for name, weight in load_model(folder, device="cpu", dtype="float32").state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("case", [*REFUSED, *LOADED])
def test_what_cannot_be_loaded_is_refused_in_a_line(
    case: str, folder: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    change, message = {**REFUSED, **LOADED}[case]
    change(folder)
    for command in (check, evaluate, prune) if case in REFUSED else (evaluate, prune):
        done = command(folder, text_files, tmp_path)
        assert isinstance(done.exception, PruneGPTError), (command, done.output, done.exception)
        assert_matches(message, str(done.exception))
    assert not (tmp_path / "out").exists()


def assert_matches(message: str, text: str) -> None:
    with pytest.raises(PruneGPTError, match=message):
        raise PruneGPTError(text)


@pytest.mark.parametrize(("extra", "fits"), [(40, True), (-40, False)])
def test_an_embedding_may_have_more_rows_than_there_are_tokens_but_not_fewer(
    stored: Path, text_files: dict[str, str], tmp_path: Path, extra: int, fits: bool
) -> None:
    tokenizer = load_tokenizer(stored)
    save_model(tiny("llama", vocab_size=len(tokenizer) + extra), tokenizer, tmp_path / "model")
    for command in (check, evaluate, prune):
        done = command(tmp_path / "model", text_files, tmp_path)
        if fits:
            assert done.exit_code == 0, (command, done.exception)
        else:
            assert_matches("may use ids below the 984 rows of the model's embedding", str(done.exception))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_saved_as_float32_and_said_or_kept(
    dtype: str, folder: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    SOUND[dtype](folder)
    kind = getattr(torch, dtype)
    done = prune(folder, text_files, tmp_path)
    assert f"the weights are stored in {dtype} and were saved in float32; --keep-dtype saves theirs" in done.output
    assert {weight.dtype for weight in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}
    calibration = ["--method", "sparsegpt", "--calibration", text_files["train"], "--calibration-windows", "2"]
    measured = ["--data", text_files["validation"], "--block-size", "32", "--max-windows", "2"]
    more = ["--keep-dtype", "--overwrite", *calibration, *measured, "--precision", "float32"]
    report = json.loads(prune(folder, text_files, tmp_path, *more).stdout)
    assert {weight.dtype for weight in load_file(tmp_path / "out" / "model.safetensors").values()} == {kind}
    assert invoke("masks", "check", str(tmp_path / "out")).exit_code == 0
    again = json.loads(invoke("eval", str(tmp_path / "out"), *measured, "--precision", "float32", "--json").stdout)
    assert again["perplexity"] == report["perplexity_after"]


def test_a_streamed_model_stays_in_the_dtype_that_it_is_stored_in(
    folder: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    SOUND["bfloat16"](folder)
    calibration = ["--calibration", text_files["train"], "--calibration-windows", "2"]
    streamed = ["--stream", "--overwrite", "--device", "cpu", *calibration]
    done = prune(folder, text_files, tmp_path, *streamed, "--method", "sparsegpt")
    assert done.exit_code == 0, done.exception
    assert {one.dtype for one in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert invoke("masks", "check", str(tmp_path / "out")).exit_code == 0
    refused = prune(folder, text_files, tmp_path, *streamed, "--method", "magnitude", "--allocation", "global")
    assert "layers are streamed where one is done before the next one begins" in str(refused.exception)


def test_an_adapter_on_the_hub_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter(tmp_path)
    held = {"adapter_config.json": tmp_path / "adapter_config.json"}
    monkeypatch.setattr(hub, "commit", lambda *_: "commit")
    monkeypatch.setattr(hub, "cached_file", lambda name, revision, file, *_: held.get(file))
    for command in (lambda: model_facts(ModelSpec(source="a/b"), Files(None)), lambda: load_model("a/b", device="cpu")):
        with pytest.raises(PruneGPTError, match=r"a/b holds a PEFT adapter .*merge_and_unload"):
            command()
