import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, MixtralConfig, MixtralForCausalLM

from prunegpt.errors import ModelError, PruningError
from prunegpt.lm.views import block_matrices, decoder_blocks, select
from tests.support.families import tiny

GPT2_MATRICES = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]


def linear_twin(model: nn.Module) -> nn.Module:
    """A copy whose Conv1D layers are nn.Linear layers of the same function."""
    twin = copy.deepcopy(model)
    for name, view in block_matrices(model).items():
        module_name = name.removesuffix(".weight")
        linear = nn.Linear(view.matrix.shape[1], view.matrix.shape[0])
        linear.weight.data = view.matrix.clone()
        linear.bias.data = view.module.bias.data.clone()
        twin.set_submodule(module_name, linear)
    return twin


def test_blocks_of_each_family_are_found(tiny_gpt2: Any, tiny_llama: Any, tiny_opt: Any) -> None:
    found = {decoder_blocks(model)[0] for model in (tiny_gpt2, tiny_llama, tiny_opt)}
    assert found == {"transformer.h", "model.layers", "model.decoder.layers"}
    assert all(len(decoder_blocks(model)[1]) == 2 for model in (tiny_gpt2, tiny_llama, tiny_opt))


def test_blocks_are_not_taken_for_experts() -> None:
    config = MixtralConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
    )
    prefix, blocks = decoder_blocks(MixtralForCausalLM(config))
    assert (prefix, len(blocks)) == ("model.layers", 2)


@pytest.mark.parametrize(
    ("family", "lists"),
    [
        ("hrm_text", ["model.L_module.layers", "model.H_module.layers"]),
        ("xlm", ["transformer.attentions", "transformer.ffns"]),
        ("gemma3", ["model.language_model.layers"]),  # and as many of its image tower
    ],
)
def test_layers_may_be_kept_in_several_lists(family: str, lists: list[str]) -> None:
    views = block_matrices(tiny(family))
    assert {name.partition(f".{view.block}.")[0] for name, view in views.items()} == set(lists)
    assert {view.block for view in views.values()} == {0, 1}


def test_model_without_blocks_is_refused() -> None:
    with pytest.raises(ModelError, match=r"must keep its blocks in an nn\.ModuleList; Linear has none"):
        decoder_blocks(nn.Linear(2, 2))


def test_gpt2_matrices_are_seen_transposed_in_module_order(tiny_gpt2: Any) -> None:
    views = block_matrices(tiny_gpt2)
    assert list(views) == [f"transformer.h.{block}.{name}.weight" for block in range(2) for name in GPT2_MATRICES]
    assert [view.block for view in views.values()] == [0] * 4 + [1] * 4
    for name, view in views.items():
        assert view.transposed
        assert view.matrix.shape == (view.module.nf, view.module.nx)
        assert torch.equal(view.matrix, tiny_gpt2.get_parameter(name).t())


def test_conv1d_and_its_linear_twin_show_the_same_matrices(tiny_gpt2: Any) -> None:
    twin = linear_twin(tiny_gpt2)
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(twin(tokens).logits, tiny_gpt2(tokens).logits)
    for model in (tiny_gpt2, twin):
        model(tokens, labels=tokens).loss.backward()
    ours, theirs = block_matrices(tiny_gpt2), block_matrices(twin)
    assert list(ours) == list(theirs)
    for name in ours:
        assert not theirs[name].transposed
        assert torch.equal(ours[name].matrix, theirs[name].matrix)
        torch.testing.assert_close(ours[name].gradient, theirs[name].gradient)


def test_views_share_storage(tiny_gpt2: Any) -> None:
    view = block_matrices(tiny_gpt2)["transformer.h.0.mlp.c_fc.weight"]
    assert view.gradient is None
    view.parameter.grad = torch.ones_like(view.parameter)
    view.matrix[3, 5] = 0.0
    view.gradient[3, 5] = 0.0
    assert tiny_gpt2.transformer.h[0].mlp.c_fc.weight[5, 3] == 0
    assert tiny_gpt2.transformer.h[0].mlp.c_fc.weight.grad[5, 3] == 0


def test_opt_projections_embeddings_and_head_are_out(tiny_opt: Any) -> None:
    names = set(block_matrices(tiny_opt))
    assert len(names) == 2 * 6
    every = {name for name, _ in tiny_opt.named_parameters() if name.endswith("weight")}
    left_out = {name.split(".")[2] for name in every - names if "layer" not in name}
    assert left_out == {"embed_tokens", "embed_positions", "project_in", "project_out"}


def test_llama_and_neox_have_all_their_block_matrices(tiny_llama: Any) -> None:
    assert len(block_matrices(tiny_llama)) == 2 * 7
    config = GPTNeoXConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
    )
    assert len(block_matrices(GPTNeoXForCausalLM(config))) == 3 * 4


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["*"], 8),
        (["*attn*"], 4),
        (["*.c_proj"], 4),
        (["transformer.h.0.attn.c_attn"], 1),
        (["transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.*"], 2),
        ([r"re:transformer\.h\.\d\.mlp\.c_(fc|proj)"], 4),
        ([r"re:.*c_attn\.weight"], 2),
    ],
)
def test_patterns_select_block_matrices(tiny_gpt2: Any, targets: list[str], expected: int) -> None:
    views = select(tiny_gpt2, targets)
    assert len(views) == expected
    assert all(view.block is not None for view in views.values())
    order = list(block_matrices(tiny_gpt2))
    assert list(views) == sorted(views, key=order.index)


def test_nothing_named_means_all_block_matrices(tiny_gpt2: Any) -> None:
    assert list(select(tiny_gpt2)) == list(block_matrices(tiny_gpt2))


def test_layers_and_exclude_narrow_the_selection(tiny_gpt2: Any) -> None:
    assert {view.block for view in select(tiny_gpt2, layers=[1]).values()} == {1}
    left = select(tiny_gpt2, ["*attn*"], layers=[0], exclude=["*.c_proj"])
    assert list(left) == ["transformer.h.0.attn.c_attn.weight"]


@pytest.mark.parametrize("target", ["lm_head", "lm_head.weight", "transformer.wte", "*wte*", "re:.*wte"])
def test_tied_head_and_embedding_are_one_tensor_under_any_of_their_names(tiny_gpt2: Any, target: str) -> None:
    views = select(tiny_gpt2, [target])
    assert list(views) == ["transformer.wte.weight"]
    view = views["transformer.wte.weight"]
    assert view.block is None
    assert view.matrix.shape == (128, 32)
    assert view.parameter is tiny_gpt2.lm_head.weight
    assert len(select(tiny_gpt2, ["lm_head", "transformer.wte"])) == 1


def test_untied_head_is_a_tensor_of_its_own(tiny_llama: Any) -> None:
    assert not tiny_llama.config.tie_word_embeddings
    assert list(select(tiny_llama, ["lm_head"])) == ["lm_head.weight"]
    assert len(select(tiny_llama, ["lm_head", "model.embed_tokens"])) == 2


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"targets": ["transformer.h.0.attn.c_atn"]}, r"'transformer\.h\.0\.attn\.c_atn' matches none\. Nearest: "
         r"transformer\.h\.0\.attn\.c_attn\.weight"),
        ({"targets": ["*attn*", "*gate*"]}, r"every pattern must match a tensor; '\*gate\*' matches none"),
        ({"targets": ["re:c_attn"]}, r"'re:c_attn' matches none"),
        ({"targets": ["re:(("]}, r"must be a regular expression; 're:\(\(' is not"),
        ({"exclude": ["*gate*"]}, r"every pattern must match a tensor; '\*gate\*' matches none"),
        ({"layers": [0, 2]}, r"layers must be indices of decoder layers \(0 to 1\), got 2\."),
        ({"layers": [-1]}, r"\(0 to 1\), got -1"),
        ({"exclude": ["*"]}, r"together leave none\. Widen targets or shorten exclude"),
        ({"targets": ["lm_head"], "layers": [0]}, r"targets \['lm_head'\], layers \[0\] .* together leave none"),
    ],
)  # fmt: skip
def test_requests_that_match_nothing_are_refused(tiny_gpt2: Any, request_: dict[str, Any], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        select(tiny_gpt2, **request_)
