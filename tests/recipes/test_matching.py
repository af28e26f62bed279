import re
from typing import Any

import pytest

from prunegpt.lm.skeleton import build_empty
from prunegpt.lm.views import matrices
from prunegpt.recipes.matching import (
    ALL,
    ALL_PRUNABLE,
    PRUNABLE,
    MatchingError,
    ModelNames,
    as_exclusion,
    as_in,
    as_target,
    is_class,
    prunable,
    version_of,
    versions_differ,
)
from prunegpt.spec.names import matches, select_names


def names_of(model: Any) -> ModelNames:
    """The parameters of a loaded model, tied ones under each name, as SparseML walks modules."""
    modules = dict(model.named_modules())
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return ModelNames(matrices(model), {name: type(modules[name.rpartition(".")[0]]).__name__ for name in names})


def match_params(entry: str, model: ModelNames) -> tuple[str, ...]:
    """SparseML's own rule for `params`: an exact name, or what the beginning of a name must match."""
    if entry in {ALL, ALL_PRUNABLE}:
        return model.blocks
    if entry.startswith("re:"):
        return tuple(name for name in model.classes if re.match(entry[3:], name))
    return (entry,) if entry in model.classes else ()


def match_targets(entry: str, model: ModelNames) -> tuple[str, ...]:
    """Its rule for `targets`: the parameters of the modules that are named, or whose name's beginning matches."""
    if entry in {ALL, ALL_PRUNABLE}:
        return model.blocks
    if is_class(entry):
        return tuple(name for name in model.blocks if model.classes[name] == entry)

    def owners(name: str) -> list[str]:
        parts = name.split(".")
        return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]

    if entry.startswith("re:"):
        return tuple(name for name in model.blocks if any(re.match(entry[3:], owner) for owner in owners(name)))
    return tuple(name for name in model.blocks if entry in owners(name))


@pytest.fixture
def gpt2(tiny_gpt2: Any) -> ModelNames:
    return names_of(tiny_gpt2)


@pytest.fixture
def llama(tiny_llama: Any) -> ModelNames:
    return names_of(tiny_llama)


def test_what_each_version_matched_in_gpt2(gpt2: ModelNames) -> None:
    blocks, classes = set(gpt2.blocks), gpt2.classes
    assert prunable(classes, "0.6-0.9") == ("lm_head.weight",)
    assert prunable(classes, "0.10-1.2") == ("lm_head.weight",)
    assert set(prunable(classes, "1.3-1.8")) == blocks | {"lm_head.weight"}
    embeddings = {"transformer.wte.weight", "transformer.wpe.weight"}
    assert set(prunable(classes, "1.9")) == blocks | {"lm_head.weight"} | embeddings
    assert set(versions_differ(gpt2)) == set(PRUNABLE)  # all four


@pytest.mark.parametrize(
    ("text", "version"),
    [("0.9", "0.6-0.9"), ("0.6", "0.6-0.9"), ("0.12.2", "0.10-1.2"), ("1.9", "1.9"), ("0.6-0.9", "0.6-0.9")],
)
def test_a_version_is_found_by_its_number(text: str, version: str) -> None:
    assert version_of(text) == version


@pytest.mark.parametrize("text", ["0.5", "2.0", "new"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(MatchingError, match=rf"must be one of 0\.6-0\.9.*got '{text}'"):
        version_of(text)


def test_keywords(gpt2: ModelNames) -> None:
    for modules in (True, False):
        assert as_target("__ALL_PRUNABLE__", modules=modules) is None
        assert as_target("__ALL__", modules=modules) is None
    assert as_in("1.9", ["__ALL__"], gpt2.classes) == tuple(gpt2.classes)
    assert as_in("0.6-0.9", ["a", "__ALL_PRUNABLE__", "a"], gpt2.classes) == ("a", "lm_head.weight")
    assert is_class("Linear")
    assert not is_class("lm_head")


def test_what_is_no_expression_is_refused() -> None:
    with pytest.raises(MatchingError, match="followed by a regular expression"):
        as_target("re:[", modules=False)
    with pytest.raises(MatchingError, match="followed by a regular expression"):
        as_exclusion("re:[")


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
    known = names_of(request.getfixturevalue(model))
    target = as_target(entry, modules=False)
    ours = [name for name in known.blocks if target is None or matches(name, target)]
    assert ours == [name for name in match_params(entry, known) if name in known.blocks]


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
    known = names_of(request.getfixturevalue(model))
    target = as_target(entry, modules=True)
    if is_class(entry):
        assert target is None  # said in a note: all decoder weight matrices
        return
    ours = [name for name in known.blocks if target is None or matches(name, target)]
    assert ours == list(match_targets(entry, known))


def test_lists_are_not_empty(gpt2: ModelNames, llama: ModelNames) -> None:
    both = ModelNames([*gpt2.matrices, *llama.matrices], {**gpt2.classes, **llama.classes})
    assert sum(bool(match_params(entry, both)) for entry in PARAMS) == len(PARAMS) - 1  # but c_proj$
    assert all(match_targets(entry, both) for entry in TARGETS)


IGNORES = [
    "lm_head",
    "re:.*lm_head",
    "re:.*layers.0.*",
    "re:.*mlp.gate$",
    "model.layers.1.mlp.up_proj",
    "re:.*(q|k)_proj$",
    "re:.*down_proj|.*up_proj",
    r"re:(?i).*LAYERS\.1\.mlp",
    "re:.*wte",
]


@pytest.mark.parametrize("entry", IGNORES)
def test_what_is_ignored_is_what_llm_compressor_compares_with_the_name_of_a_layer(
    entry: str, llama: ModelNames
) -> None:
    chosen, problems = select_names(llama.matrices, exclude=(as_exclusion(entry),))
    layers = {name: name.removesuffix(".weight") for name in llama.blocks}

    def ignored(layer: str) -> bool:
        return re.match(entry[3:], layer) is not None if entry.startswith("re:") else layer == entry

    assert chosen == [name for name, layer in layers.items() if not ignored(layer)]
    assert not problems  # a head, an embedding or a router need not be there


def test_an_exclusion_that_matches_nothing_is_refused(llama: ModelNames) -> None:
    assert select_names(llama.matrices, exclude=("re:.*layers.77.*",))[1]
    assert select_names(llama.matrices, exclude=("model.layers.0.mlp",))[1]  # llm-compressor leaves nothing alone


@pytest.mark.parametrize("model", ["tiny_gpt2", "tiny_llama", "tiny_opt"])
def test_a_model_without_its_weights_has_the_same_names(
    model: str, request: pytest.FixtureRequest, tmp_path: Any
) -> None:
    loaded = request.getfixturevalue(model)
    loaded.config.save_pretrained(tmp_path)
    empty = build_empty(str(tmp_path))
    assert next(empty.parameters()).is_meta
    assert names_of(empty) == names_of(loaded)
