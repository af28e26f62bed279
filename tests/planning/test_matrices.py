"""What the files of a model say of its weight matrices is what the loaded model says."""

from pathlib import Path
from typing import Any

import pytest
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from prunegpt.builtin import BUILTIN_MODELS
from prunegpt.builtin.model import build
from prunegpt.lm.models import load_model
from prunegpt.lm.views import matrices
from prunegpt.planning.facts import model_facts
from prunegpt.planning.fingerprint import Files
from prunegpt.planning.outlines import stored_matrices
from prunegpt.spec.names import Matrix
from prunegpt.spec.schema import ModelSpec


def seen(source: str) -> set[Matrix]:
    found = stored_matrices(model_facts(ModelSpec(source=source), Files(None)))
    assert found is not None
    return set(found)


@pytest.mark.parametrize("family", ["tiny_gpt2", "tiny_llama", "tiny_opt"])
def test_a_stored_model(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    request.getfixturevalue(family).save_pretrained(tmp_path / "model")
    loaded = matrices(load_model(tmp_path / "model"))
    assert len(loaded) > 4
    assert seen(str(tmp_path / "model")) == set(loaded)


def test_a_model_with_a_head_of_another_name(tmp_path: Path) -> None:
    config = GPTNeoXConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "model")
    assert seen(str(tmp_path / "model")) == set(matrices(load_model(tmp_path / "model")))


@pytest.mark.parametrize("name", BUILTIN_MODELS)
def test_a_built_in_model(name: str) -> None:
    model: Any = build(0, name)
    assert seen(name) == set(matrices(model))


def test_the_shape_that_distillation_asks_for(tiny_gpt2: Any, tmp_path: Path) -> None:
    tiny_gpt2.save_pretrained(tmp_path / "model")
    shape = model_facts(ModelSpec(source=str(tmp_path / "model")), Files(None)).shape
    assert (shape.blocks, shape.width, shape.heads, shape.vocabulary) == (2, 32, 4, 128)
