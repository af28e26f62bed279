"""Exports: every format appears whole and checked, or not at all; the plain folder is what transformers reads."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunegpt.exporting import run as runs
from prunegpt.exporting.base import Export, ExportError, ExportFormat, narrowest, sample_tokens
from prunegpt.exporting.card import model_card
from prunegpt.exporting.run import format_of, run
from prunegpt.lm.models import load_model, round_to
from prunegpt.lm.multimodal import read_text
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.planning.hub import license_of
from prunegpt.pruning.mask import Mask
from prunegpt.registry import EXPORT_FORMATS
from prunegpt.stages.base import ModelState, Pruned
from tests.support.families import tiny, tiny_multimodal
from tests.support.small import Invoke

FORMATS = EXPORT_FORMATS.builtin_names()
assert FORMATS


@pytest.fixture
def export(model_folder: Path) -> Callable[..., Export]:
    """A small model with half of one matrix pruned, on its way into a format."""

    def made(dtype: str = "float32", **given: Any) -> Export:
        model = load_model(model_folder, device="cpu", dtype="float32")
        weight = model.get_parameter("transformer.h.0.mlp.c_fc.weight")  # [in, out]
        mask = Mask((torch.arange(weight.numel()).view(weight.shape) % 2 == 0).T, like=weight.data.T)
        mask.apply(weight.data.T)
        pruned = Pruned({"transformer.h.0.mlp.c_fc.weight": mask}, "magnitude", "unstructured", 0.5)
        return Export(ModelState(model, load_tokenizer(model_folder), pruned), dtype, **given)

    return made


def exported(name: str, export: Export, out: Path) -> runs.Exported:
    form, _ = format_of(name, out, export.dtype)
    return run(form, export, out, replace=False)


def test_a_folder_is_what_transformers_reads(export: Callable[..., Export], tmp_path: Path) -> None:
    made = export(card="# A card\n", about={"model": "m"}, max_shard_size="40KB")
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    found = exported("folder", made, tmp_path / "out")
    assert [check.what for check in found.checks] == ["weights", "logits", "tokenizer", "masks"]
    assert all(check.equal for check in found.checks)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"README.md", "export.json", "masks.safetensors", "generation_config.json", "tokenizer.json"} <= names
    assert len([name for name in names if name.startswith("model-")]) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in before.items())
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "out")("the end").input_ids
        == made.state.tokenizer("the end").input_ids
    )
    assert found.size == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_folder_in_half_precision_is_half_as_large(dtype: str, export: Callable[..., Export], tmp_path: Path) -> None:
    made = export(dtype)
    exported("folder", made, tmp_path / "out")
    kinds = {str(value.dtype) for value in load_file(tmp_path / "out" / "model.safetensors").values()}
    assert kinds == {f"torch.{dtype}"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    assert made.model.dtype == torch.float32


@pytest.mark.parametrize("name", ["folder", "packed"])
def test_half_precision_rounds_weights_and_no_rotary_frequencies(name: str, tmp_path: Path) -> None:
    model = tiny("llama", vocab_size=1024, max_position_embeddings=64)
    model.model.layers[0].self_attn.q_proj.weight.data *= 40  # so that attention depends on positions
    state = ModelState(model, load_tokenizer("builtin:tiny-gpt2"), Pruned())
    found = exported(name, Export(state, "bfloat16"), tmp_path / "out")
    assert found.checks[1].equal


def test_the_narrowest_dtype_loses_nothing(export: Callable[..., Export]) -> None:
    model = export().model
    assert narrowest(model) == "float32"
    for dtype in ("float16", "bfloat16"):
        round_to(model, dtype)
        assert narrowest(model) == dtype
        model = export().model


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_that_fails_leaves_nothing(
    name: str, export: Callable[..., Export], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form: ExportFormat = EXPORT_FORMATS.load(name)
    out = tmp_path / f"out{form.suffix}"

    def broken(*_: Any) -> None:
        raise ExportError("the check fails")

    for fault in ({"check": broken}, {"holds": broken}, {"write": broken}):
        with pytest.raises(ExportError, match="the check fails"):
            run(replace(form, **fault), export(form.dtypes[0].replace("auto", "float32")), out, replace=False)
        assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1, free=10**7))
    with pytest.raises(ExportError, match=r"an export needs about 67 MB; the disk of .* has 10 MB free\. Free some"):
        run(form, export(), out, replace=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FORMATS)
def test_a_weight_that_changes_on_the_way_is_found(name: str, export: Callable[..., Export], tmp_path: Path) -> None:
    form: ExportFormat = EXPORT_FORMATS.load(name)

    def writing(export: Export, place: Path) -> None:
        weight = export.model.get_parameter("transformer.h.1.attn.c_attn.weight").data
        kept = weight.clone()
        weight[3, 5] += 1
        form.write(export, place)
        export.model.get_parameter("transformer.h.1.attn.c_attn.weight").data.copy_(kept)

    with pytest.raises(
        ExportError, match=r"must (hold the weights of its model; transformer\.h\.1\.attn\.c_attn|give)"
    ):
        run(replace(form, write=writing), export(), tmp_path / f"out{form.suffix}", replace=False)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_a_format_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--dtype of folder must be one of float32, .*, got q8_0"):
        format_of("folder", tmp_path / "out", "q8_0")
    with pytest.raises(ExportError, match=r"OUT of folder must be a folder, got .*out\.gguf\. Pass --to gguf"):
        format_of("folder", tmp_path / "out.gguf", None)


@pytest.mark.parametrize("name", FORMATS)
def test_export_from_the_shell(name: str, invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / f"out{EXPORT_FORMATS.load(name).suffix}"
    given = ("export", model_folder, "--to", name, out)
    found = json.loads(invoke(*given, "--json"))
    assert (found["format"], found["model"]) == (name, model_folder.name)
    assert found["bytes"] > 0
    assert {"weights", "logits", "tokenizer"} <= {check["what"] for check in found["checks"]}
    assert f"{out} exists already. Choose another" in invoke(*given, fails=True)
    shown = invoke(*given, "--overwrite", "--dtype", "float16")
    assert f"saved {out}: " in shown
    assert "weights: " in shown
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    for size in ("abc", "0KB", "-5GB", "5"):
        told = invoke("export", model_folder, tmp_path / "x", "--max-shard-size", size, fails=True)
        assert "a size is a number above 0 with KB, MB, GB or TB" in told
    assert "holds notes.txt" in invoke("export", model_folder, tmp_path / "mine", "--overwrite", fails=True)
    assert "unknown export format 'foldr'" in invoke(
        "export", model_folder, tmp_path / "x", "--to", "foldr", fails=True
    )


def test_the_card_names_the_license_of_its_base(tmp_path: Path) -> None:
    assert license_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text('---\nlicense: other\nlicense_name: "fair-ai"\n---\nlicense: no\n')
    assert license_of(str(tmp_path)) == "fair-ai"
    about: dict[str, Any] = {
        "model": "m",
        "format": "folder",
        "dtype": "float32",
        "parameters": 10,
        "nonzero": 5,
        "base": {"source": "org/base", "hub": True, "license": "mit"},
        "stages": [],
        "evaluation": None,
        "datasets": [],
        "versions": {},
    }
    card = model_card(about, "")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "license: mit\nbase_model: org/base\n---" in card
    assert "10 parameters, 5 of them not zero" in card
    about["base"] = {"source": "base", "hub": False, "license": None}
    assert "The license of base was not found" in model_card(about, "")


def test_a_model_that_sees_is_exported_whole(tmp_path: Path) -> None:
    """The tokens that logits are compared on are no places of images."""
    model = tiny_multimodal("paligemma", vocab_size=1024)
    model.config.image_token_id = 5
    model.config.text_config.image_token_id = 5
    assert not bool((sample_tokens(model) == 5).any())
    state = ModelState(read_text(model), load_tokenizer("builtin:tiny-gpt2"), Pruned())
    exported("folder", Export(state, "float32"), tmp_path / "out")
