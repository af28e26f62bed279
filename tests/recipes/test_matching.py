from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prunegpt.errors import ModelError
from prunegpt.recipes.matching import (
    PRUNABLE,
    MatchingError,
    TensorInfo,
    Tensors,
    as_target,
    block_matrices,
    is_class,
    match_params,
    match_targets,
    prunable,
    versions_differ,
)
from prunegpt.recipes.tensors import read_tensors
from prunegpt.spec.names import matches


def tensors_of(model: Any) -> dict[str, TensorInfo]:
    """The parameters of a loaded model, tied ones under each name, as SparseML walks modules."""
    modules = dict(model.named_modules())
    return {
        name: TensorInfo(tuple(weight.shape), type(modules[name.rpartition(".")[0]]).__name__)
        for name, weight in model.named_parameters(remove_duplicate=False)
    }


@pytest.fixture
def gpt2(tiny_gpt2: Any) -> Tensors:
    return tensors_of(tiny_gpt2)


@pytest.fixture
def llama(tiny_llama: Any) -> Tensors:
    return tensors_of(tiny_llama)


def named(tensors: Tensors, kind: type) -> Iterator[str]:
    return (name for name, info in tensors.items() if info.module_type == kind.__name__)


def test_block_matrices_of_gpt2(gpt2: Tensors) -> None:
    parts = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert set(block_matrices(gpt2)) == {f"transformer.h.{block}.{part}.weight" for block in (0, 1) for part in parts}


def test_block_matrices_of_llama(llama: Tensors) -> None:
    linear = set(named(llama, torch.nn.Linear))
    assert set(block_matrices(llama)) == linear - {"lm_head.weight"}


def test_what_each_version_matched_in_gpt2(gpt2: Tensors) -> None:
    blocks = set(block_matrices(gpt2))
    assert prunable(gpt2, "0.6-0.9") == ("lm_head.weight",)
    assert prunable(gpt2, "0.10-1.2") == ("lm_head.weight",)
    assert set(prunable(gpt2, "1.3-1.8")) == blocks | {"lm_head.weight"}
    assert set(prunable(gpt2, "1.9")) == blocks | {"lm_head.weight", "transformer.wte.weight", "transformer.wpe.weight"}
    assert set(versions_differ(gpt2)) == set(PRUNABLE)  # all four


def test_keywords(gpt2: Tensors) -> None:
    assert match_params("__ALL_PRUNABLE__", gpt2) == block_matrices(gpt2)
    assert match_params("__ALL__", gpt2) == block_matrices(gpt2)
    assert match_params("__ALL__", gpt2, "1.9") == tuple(gpt2)
    assert match_targets("__ALL__", gpt2) == block_matrices(gpt2)
    with pytest.raises(MatchingError, match=r"must be one of 0\.6-0\.9, .*but got '3'"):
        match_params("__ALL_PRUNABLE__", gpt2, "3")


def test_expressions_match_the_beginning_of_a_name(gpt2: Tensors) -> None:
    assert match_params("transformer.h.0.mlp.c_fc.weight", gpt2) == ("transformer.h.0.mlp.c_fc.weight",)
    assert match_params("transformer.h.0.mlp.c_fc", gpt2) == ()  # a module, not a parameter
    assert match_params("re:transformer.h.0.mlp.c_fc", gpt2) == (
        "transformer.h.0.mlp.c_fc.weight",
        "transformer.h.0.mlp.c_fc.bias",
    )
    assert match_params("re:mlp", gpt2) == ()  # match, not search
    with pytest.raises(MatchingError, match="followed by a regular expression"):
        match_params("re:[", gpt2)


def test_targets_are_modules(gpt2: Tensors, llama: Tensors) -> None:
    assert match_targets(r"re:transformer.h.\d+$", gpt2) == block_matrices(gpt2)
    assert match_targets("transformer.h.1.mlp", gpt2) == (
        "transformer.h.1.mlp.c_fc.weight",
        "transformer.h.1.mlp.c_proj.weight",
    )
    assert match_targets("Conv1D", gpt2) == block_matrices(gpt2)
    assert match_targets("Linear", gpt2) == ()
    assert match_targets("Linear", llama) == block_matrices(llama)
    assert is_class("Linear")
    assert not is_class("lm_head")


PARAMS = [
    "__ALL_PRUNABLE__",
    "transformer.h.0.mlp.c_fc.weight",
    "re:.*mlp",
    "re:.*mlp.*weight",
    "re:.*mlp.*weight$",
    r"re:transformer\.h\.0\.",
    r"re:transformer.h.(0|1).attn.c_attn.weight",
    r"re:transformer.h.0.attn|transformer.h.1.mlp.c_fc.weight",
    r"re:(?i)TRANSFORMER.h.1.*",
    r"re:.*c_proj$",
    r"re:.*c_fc.weight$",
    r"re:.*c_fc\.",
    "re:model.layers.1.",
    r"re:model\.layers\.\d\.self_attn\.[qk]_proj\.weight",
]


@pytest.mark.parametrize("entry", PARAMS)
@pytest.mark.parametrize("model", ["tiny_gpt2", "tiny_llama", "tiny_opt"])
def test_a_target_of_a_spec_means_the_same_matrices(entry: str, model: str, request: pytest.FixtureRequest) -> None:
    tensors = tensors_of(request.getfixturevalue(model))
    matrices = block_matrices(tensors)
    target = as_target(entry, modules=False)
    ours = [name for name in matrices if target is None or matches(name, target)]
    assert ours == [name for name in match_params(entry, tensors) if name in matrices]


TARGETS = [
    "__ALL__",
    "Linear",
    "transformer.h.0",
    "model.layers.1.mlp",
    "transformer.h.1.mlp.c_fc",
    "transformer.h.1.mlp.c_fc.weight",
    r"re:transformer.h.\d+$",
    r"re:model.layers.\d+$",
    r"re:model.layers.1$",
    "re:.*mlp.*",
    "re:.*mlp",
    "re:.*weight",
    r"re:.*\.c_proj",
]


@pytest.mark.parametrize("entry", TARGETS)
@pytest.mark.parametrize("model", ["tiny_gpt2", "tiny_llama", "tiny_opt"])
def test_a_target_of_modules_means_the_same_matrices(entry: str, model: str, request: pytest.FixtureRequest) -> None:
    tensors = tensors_of(request.getfixturevalue(model))
    target = as_target(entry, modules=True)
    if is_class(entry):
        assert target is None  # said in a note: all block matrices
        return
    ours = [name for name in block_matrices(tensors) if target is None or matches(name, target)]
    assert ours == list(match_targets(entry, tensors))


def test_lists_are_not_empty(gpt2: Tensors, llama: Tensors) -> None:
    assert sum(bool(match_params(entry, {**gpt2, **llama})) for entry in PARAMS) == len(PARAMS) - 1  # but c_proj$
    assert all(match_targets(entry, {**gpt2, **llama}) for entry in TARGETS)


@pytest.mark.parametrize("model", ["tiny_gpt2", "tiny_llama", "tiny_opt"])
def test_tensors_are_read_without_torch(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    loaded = request.getfixturevalue(model)
    loaded.save_pretrained(tmp_path)
    found, expected = read_tensors(tmp_path), tensors_of(loaded)
    assert {name: info.shape for name, info in found.items()} == {name: info.shape for name, info in expected.items()}
    for version in PRUNABLE:
        learnt = set(prunable(expected, version))
        if model == "tiny_opt" and version == "1.9":
            learnt.add("model.decoder.embed_positions.weight")  # a subclass of Embedding
        assert set(prunable(found, version)) == learnt
    assert block_matrices(found) == tuple(name for name in found if name in set(block_matrices(expected)))


def test_names_of_the_hub_copy_of_gpt2(tiny_gpt2: Any, tmp_path: Path) -> None:
    tiny_gpt2.transformer.save_pretrained(tmp_path)  # without the prefix, as the hub has it
    names = {f"transformer.{name}" for name, _ in tiny_gpt2.transformer.named_parameters()}
    assert set(read_tensors(tmp_path)) == names | {"lm_head.weight"}


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{}x", b"\x04\0\0\0\0\0\0\0[12]"])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    if content.endswith(b"{}x"):
        assert read_tensors(tmp_path) == {}
    else:
        with pytest.raises(ModelError, match="must be a safetensors file, but cannot be read"):
            read_tensors(tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must be a folder with \*\.safetensors"):
        read_tensors(tmp_path)


@pytest.mark.shared
def test_a_real_model(smollm2: Path) -> None:
    tensors = read_tensors(smollm2)
    assert len(block_matrices(tensors)) == 30 * 7
    assert len(match_targets(r"re:model.layers.\d+$", tensors)) == 30 * 7
