"""`doctor --model`: what a model is, from its config and the headers of its files."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from transformers import AutoModelForCausalLM

from prunegpt.cli import app
from prunegpt.lm.models import save_model
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.lm.views import block_matrices, memory_sizes, outline
from prunegpt.planning.memory import Memory, Sizes
from prunegpt.registry import INPUTS
from tests.support.families import tiny
from tests.support.small import Invoke


def folder_of(family: str, place: Path, **sizes: int) -> Path:
    save_model(tiny(family, vocab_size=1024, **sizes), load_tokenizer("builtin:tiny-gpt2"), place / family)
    return place / family


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "mamba"])
def test_what_is_said_of_a_model_is_what_it_is(invoke: Invoke, tmp_path: Path, family: str) -> None:
    folder = folder_of(family, tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    found = json.loads(invoke("doctor", "--model", folder, "--json"))
    assert found["architecture"] == type(model).__name__
    assert found["parameters"] == model.num_parameters()
    views = block_matrices(model)
    assert sum(kind["count"] for kind in found["pruned"]) == len(views)
    assert sum(kind["weights"] for kind in found["pruned"]) == sum(view.matrix.numel() for view in views.values())
    assert found["problems"] == [] or (family == "mamba" and "stays dense" in found["problems"][0])
    estimated = Memory(memory_sizes(outline(model), model.config))
    assert found["memory"]["training"] == estimated.training(8 * found["memory_for"]["tokens"])
    shown = invoke("doctor", "--model", folder)
    assert type(model).__name__ in shown
    assert f"Coverage: {found['coverage']:.1%}" in shown


def test_experts_are_one_line_and_routers_stand_apart(invoke: Invoke, tmp_path: Path) -> None:
    found = json.loads(invoke("doctor", "--model", folder_of("qwen2_moe", tmp_path), "--json"))
    kinds = {kind["tensors"]: kind["count"] for kind in found["pruned"]}
    assert kinds["model.layers.*.mlp.experts.down_proj[*]"] == 8  # two layers of four
    routers = {f"model.layers.*.mlp.{name}.weight" for name in ("gate", "shared_expert_gate")}
    assert {kind["tensors"] for kind in found["left_alone"]} == set(found["outside"]) == routers


def test_patterns_that_do_not_fit_are_said(invoke: Invoke, tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path, intermediate_size=30)
    problems = json.loads(invoke("doctor", "--model", folder, "--json"))["problems"]
    assert any(text.startswith("2:4 ") and "mlp.down_proj" in text and "q_proj" not in text for text in problems)


def test_no_weight_is_read(invoke: Invoke, tmp_path: Path) -> None:
    folder = folder_of("gpt2", tmp_path)
    before = invoke("doctor", "--model", folder, "--json")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    file.write_bytes(content[:header] + bytes(len(content) - header))
    assert invoke("doctor", "--model", folder, "--json") == before


def test_a_device_that_is_not_here_may_be_asked_about(invoke: Invoke, tmp_path: Path) -> None:
    folder = folder_of("gpt2", tmp_path)
    found = json.loads(invoke("doctor", "--model", folder, "--device", "24GiB", "--json"))
    assert found["devices"]["24GiB"] == 24 * 2**30
    assert "fits 24GiB" in invoke("doctor", "--model", folder, "--device", "24GiB")
    for size in ("big", "0GiB"):
        refused = invoke("doctor", "--model", folder, "--device", size, fails=True)
        assert f"a size must be a number of GiB or GB above 0, got '{size}'" in refused


def test_what_would_have_no_effect_is_refused(invoke: Invoke) -> None:
    command: Any = typer.main.get_command(app)
    options = {parameter.name: parameter for parameter in command.commands["doctor"].params}
    of_models = [name for name, option in options.items() if str(option.help).startswith("With --model")]
    assert {"device", "windows"} <= set(of_models)
    for name in of_models:
        option = options[name].opts[0]
        assert f"got {option} 24 alone. Add --model MODEL." in invoke("doctor", option, "24", fails=True)
    assert "Leave one of the two out" in invoke("doctor", "--model", "./nowhere", "--repair", fails=True)


def test_what_is_no_decoder_is_refused(invoke: Invoke, tmp_path: Path) -> None:
    assert "not there" in invoke("doctor", "--model", "./nowhere", fails=True)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    assert "bert" in invoke("doctor", "--model", tmp_path / "bert", fails=True)


def memory_of(**sizes: int) -> Memory:
    model = tiny("llama", vocab_size=1024, **sizes)
    return Memory(memory_sizes(outline(model), model.config))


def test_estimates_grow_as_they_must() -> None:
    memory = memory_of()
    weights, training = memory.weights, memory.training(128)
    assert weights < memory.evaluation(128) < training
    assert memory.one_shot("wanda", INPUTS, 16, 64) < memory.one_shot("sparsegpt", INPUTS, 64, 64)
    asked = "sparsegpt", frozenset({"gram"}), 16, 64
    assert memory_of(num_hidden_layers=8).streamed(*asked) == memory.streamed(*asked)  # one layer at a time
    assert memory.training(256) - 3 * weights == 2 * (training - 3 * weights)
    assert memory.training(128, checkpointing=True) < training
    assert memory.training(128, frozen=True) < training
    assert memory.training(128, distilled=weights) > training
    on_cpu = Memory(memory.sizes, device="cpu")
    hidden = 4 * 64 * memory.sizes.width
    assert on_cpu.one_shot("wanda", INPUTS, 17, 64) - on_cpu.one_shot("wanda", INPUTS, 16, 64) >= hidden


def test_of_experts_those_that_a_token_reaches_count() -> None:
    model = tiny("mixtral", vocab_size=1024)
    found = outline(model)
    one, two = (Sizes.of(found, width=model.config.hidden_size, vocabulary=1024, active=active) for active in (1, 2))
    assert one.parameters == two.parameters == pytest.approx(model.num_parameters(), rel=0.01)
    assert one.gated
    assert one.outputs < two.outputs
    assert one.grams == two.grams  # of all experts
