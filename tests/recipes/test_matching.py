import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prunegpt.planning.sources import tensor_shapes
from prunegpt.recipes.matching import (
    ALL,
    ALL_PRUNABLE,
    PRUNABLE,
    MatchingError,
    TensorInfo,
    Tensors,
    as_in,
    as_target,
    block_matrices,
    is_class,
    prunable,
    selected,
    versions_differ,
    with_classes,
)
from prunegpt.spec.names import matches


def tensors_of(model: Any) -> dict[str, TensorInfo]:
    """The parameters of a loaded model, tied ones under each name, as SparseML walks modules."""
    modules = dict(model.named_modules())
    return {
        name: TensorInfo(tuple(weight.shape), type(modules[name.rpartition(".")[0]]).__name__)
        for name, weight in model.named_parameters(remove_duplicate=False)
    }


def match_params(entry: str, tensors: Tensors) -> tuple[str, ...]:
    """SparseML's own rule for `params`: an exact name, or what the beginning of a name must match."""
    if entry in {ALL, ALL_PRUNABLE}:
        return block_matrices(tensors)
    if entry.startswith("re:"):
        return tuple(name for name in tensors if re.match(entry[3:], name))
    return (entry,) if entry in tensors else ()


def match_targets(entry: str, tensors: Tensors) -> tuple[str, ...]:
    """Its rule for `targets`: the parameters of the modules that are named, or whose name's beginning matches."""
    matrices = block_matrices(tensors)
    if entry in {ALL, ALL_PRUNABLE}:
        return matrices
    if is_class(entry):
        return tuple(name for name in matrices if tensors[name].module_type == entry)

    def owners(name: str) -> list[str]:
        parts = name.split(".")
        return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]

    if entry.startswith("re:"):
        return tuple(name for name in matrices if any(re.match(entry[3:], owner) for owner in owners(name)))
    return tuple(name for name in matrices if entry in owners(name))


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
    for modules in (True, False):
        assert as_target("__ALL_PRUNABLE__", modules=modules) is None
        assert as_target("__ALL__", modules=modules) is None
    assert selected(None, gpt2) == block_matrices(gpt2)
    assert as_in("1.9", ["__ALL__"], gpt2) == tuple(gpt2)
    assert as_in("0.6-0.9", ["a", "__ALL_PRUNABLE__", "a"], gpt2) == ("a", "lm_head.weight")
    assert is_class("Linear")
    assert not is_class("lm_head")


def test_what_is_no_expression_is_refused() -> None:
    with pytest.raises(MatchingError, match="followed by a regular expression"):
        as_target("re:[", modules=False)


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
        assert target is None  # said in a note: all decoder weight matrices
        return
    ours = [name for name in block_matrices(tensors) if target is None or matches(name, target)]
    assert ours == list(match_targets(entry, tensors))


def test_lists_are_not_empty(gpt2: Tensors, llama: Tensors) -> None:
    assert sum(bool(match_params(entry, {**gpt2, **llama})) for entry in PARAMS) == len(PARAMS) - 1  # but c_proj$
    assert all(match_targets(entry, {**gpt2, **llama}) for entry in TARGETS)


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    return tensor_shapes(folder, sorted(folder.glob("*.safetensors")))


@pytest.mark.parametrize("model", ["tiny_gpt2", "tiny_llama", "tiny_opt"])
def test_classes_are_told_without_torch(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    loaded = request.getfixturevalue(model)
    loaded.save_pretrained(tmp_path)
    found, expected = with_classes(shapes_of(tmp_path), loaded.config.to_dict()), tensors_of(loaded)
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
    assert set(with_classes(shapes_of(tmp_path), {"model_type": "gpt2"})) == names | {"lm_head.weight"}


@pytest.mark.shared
def test_a_real_model(smollm2: Path) -> None:
    tensors = with_classes(shapes_of(smollm2), {"model_type": "llama"})
    assert len(block_matrices(tensors)) == 30 * 7
    assert len(match_targets(r"re:model.layers.\d+$", tensors)) == 30 * 7
