"""Checkpoints of quantised weights: made floating point where transformers can on any device, else refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.errors import ModelError, PruneGPTError
from prunegpt.lm.models import load_model, save_model
from prunegpt.planning.resolve import plan_data
from prunegpt.planning.sources import origin
from prunegpt.spec.schema import ModelSpec
from tests.support.families import tiny

TOKENS = torch.arange(2, 14)[None]
BLOCK = 16  # rows and columns that share a factor
LEVELS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
FOUR_BITS = torch.cat([LEVELS, -LEVELS])  # of mxfp4, by code
REFUSED = [
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
    ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "awq"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes"),
    ({"load_in_8bit": True}, "bitsandbytes"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
    ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8"),
    ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, "torchao"),
    ({"quant_method": "hqq"}, "hqq"),
    ({"quant_method": "of-tomorrow"}, "of-tomorrow"),
]


def configure(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def refused(folder: Path, text: dict[str, str], tmp_path: Path, method: str) -> None:
    """By all that take a model, in a line, before anything is computed."""
    line = rf"^weights must be floating point to be pruned; .* is quantised \({method}\)\. Use the model it was"
    with pytest.raises(ModelError, match=line):
        load_model(folder, device="cpu")
    spec = {
        "name": "quantised",
        "base": {"model": str(folder), "data": {"files": text, "block_size": 32}},
        "trials": [{"name": "zero-shot"}],
    }
    with pytest.raises(PruneGPTError, match=rf"is quantised \({method}\)"):
        plan_data(spec)
    rest = ["--data", text["validation"], "--root", str(tmp_path / "runs"), "--block-size", "32"]
    out = tmp_path / "out"
    for command in (["eval", str(folder)], ["prune", str(folder), str(out), "--method", "magnitude", "-s", "0.5"]):
        done = CliRunner().invoke(app, [*command, *rest])
        assert isinstance(done.exception, ModelError)
        assert f"is quantised ({method})" in str(done.exception)
    assert not out.exists()


@pytest.mark.parametrize(("given", "method"), REFUSED)
def test_what_cannot_be_made_floating_point_is_refused(
    folder: Path, text_files: dict[str, str], tmp_path: Path, given: dict[str, Any], method: str
) -> None:
    configure(folder, quantization_config=given)
    refused(folder, text_files, tmp_path, method)


@pytest.mark.parametrize(
    ("file", "method"),
    [("quantize_config.json", "gptq"), ("quant_config.json", "awq"), ("hf_quant_config.json", "modelopt")],
)
def test_files_of_old_tools_say_it_too(
    folder: Path, text_files: dict[str, str], tmp_path: Path, file: str, method: str
) -> None:
    (folder / file).write_text("{}")
    refused(folder, text_files, tmp_path, method)


def test_compression_and_parts_count(folder: Path, text_files: dict[str, str], tmp_path: Path) -> None:
    configure(folder, compression_config={"format": "pack-quantized"})
    refused(folder, text_files, tmp_path, "compressed-tensors")
    configure(folder, compression_config=None, text_config={"quantization_config": {"quant_method": "fp8"}})
    refused(folder, text_files, tmp_path, "fp8 in its text_config")


def test_fp8_is_made_floating_point(tmp_path: Path) -> None:
    model = tiny("llama")
    model.save_pretrained(tmp_path / "fp8")
    stored = load_file(tmp_path / "fp8" / "model.safetensors")
    expected = {}
    for name, weight in list(stored.items()):
        if name.endswith("proj.weight"):
            rows, columns = (size // BLOCK for size in weight.shape)
            blocks = weight.view(rows, BLOCK, columns, BLOCK)
            factor = blocks.abs().amax(dim=(1, 3)) / 448  # [rows, columns]
            stored[name] = (blocks / factor[:, None, :, None]).view(weight.shape).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = factor
            back = stored[name].float().view_as(blocks) * factor[:, None, :, None]
            expected[name] = back.view(weight.shape)
    save_file(stored, tmp_path / "fp8" / "model.safetensors", metadata={"format": "pt"})
    configure(tmp_path / "fp8", quantization_config={"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]})
    comes_back_plain(tmp_path, "fp8", {**model.state_dict(), **expected})


def test_mxfp4_is_made_floating_point(tmp_path: Path) -> None:
    """As gpt-oss is stored: 32 numbers of four bits share a power of two."""
    model = tiny("gpt_oss", hidden_size=64)
    model.save_pretrained(tmp_path / "mxfp4")
    stored = load_file(tmp_path / "mxfp4" / "model.safetensors")
    random = torch.Generator().manual_seed(0)
    expected = {}
    for name, weight in list(stored.items()):
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, out = weight.shape
            packed = torch.randint(0, 256, (experts, out, inputs // 32, 16), generator=random, dtype=torch.uint8)
            powers = torch.randint(118, 124, (experts, out, inputs // 32), generator=random, dtype=torch.uint8)
            codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).long()  # [experts, out, groups, 32]
            values = FOUR_BITS[codes] * torch.exp2(powers.float() - 127)[..., None]
            expected[name] = values.flatten(-2).transpose(1, 2)  # [experts, inputs, out]
            del stored[name]
            stored |= {f"{name}_blocks": packed, f"{name}_scales": powers}
    save_file(stored, tmp_path / "mxfp4" / "model.safetensors", metadata={"format": "pt"})
    configure(tmp_path / "mxfp4", quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    comes_back_plain(tmp_path, "mxfp4", {**model.state_dict(), **expected})


def comes_back_plain(place: Path, method: str, expected: dict[str, Tensor]) -> None:
    """A stored model loads with the weights that it stands for, says so, and is saved as an ordinary one."""
    loaded = load_model(place / method, dtype="float32", device="cpu")
    assert loaded.state_dict().keys() == expected.keys()
    for name, weight in loaded.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0, msg=name)
    loaded(TOKENS, labels=TOKENS).loss.backward()
    (note,) = origin(ModelSpec(source=str(place / method)))[1]
    assert note == f"the weights are stored as {method}, and were dequantised when they were loaded"
    save_model(loaded, None, place / "saved")
    assert "quantization_config" not in json.loads((place / "saved" / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(place / "saved").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(TOKENS).logits, loaded(TOKENS).logits, rtol=0, atol=0)
