"""Every decoder family of transformers, tiny: what is pruned, by which methods, and that it stays the family's model.

A family that a newer transformers brings joins by itself. What cannot be made tiny from its config class, and what is
refused, is listed with its reason.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from prunegpt.distill.head import usable_head
from prunegpt.distill.states import run
from prunegpt.errors import ModelError, PruneGPTError
from prunegpt.lm.models import load_model
from prunegpt.lm.skeleton import skeleton
from prunegpt.lm.views import block_matrices, matrices, outline
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.masks import achieved_sparsity, check, measure_sparsity
from prunegpt.pruning.oneshot import prune_oneshot
from tests.support.families import VOCABULARY, families, tiny

NOT_TINY = {
    **dict.fromkeys(("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), "sizes differ by layer"),
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"), "drafts for another model, and is none by itself"
    ),
    **dict.fromkeys(("dots3_note", "dots3_note_text"), "sizes differ by layer"),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "its config class is of the whole model, not of the decoder"),
    **dict.fromkeys(("inkling2_text", "inkling2_loop_text"), "ids of images and sounds, counted from the vocabulary"),
    **dict.fromkeys(("emu3", "mllama"), "the part that reads text cannot be loaded without the whole"),
    "blt": "patches of bytes, which come from a second model",
    "cohere_compass_text": "its config class makes no model",
    "dbrx": "its config class makes no model",
    "deepseek_v2": "its config class makes no model",
    "dots1": "its config class makes no model",
    "falcon_h1": "sizes of its state follow from each other in ways of its own",
    "gemma3n": "needs timm",
    "gemma3n_text": "layers that share caches, by position",
    "reformer": "axial positions follow from each other in ways of its own",
    "xmod": "asks for a language",
}
NOT_LOADED = {  # by prunegpt; the start of the reason
    **dict.fromkeys(
        (
            *("bert", "bert-generation", "big_bird", "camembert", "cpmant", "data2vec-text", "electra", "ernie"),
            *("megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roformer", "xlm-roberta"),
            *("xlm-roberta-xl", "xlnet"),
        ),
        "a causal model must not see the tokens it is to predict",
    ),
}
REFUSED = {  # by block-by-block calibration; the start of the reason
    "deepseek_v4": "calibration must reach every layer that is pruned",  # a projection by groups of its rows
    "xlm": "decoder layers that are run one after the other must give",
    "dory": "a forward pass must call each decoder layer once",
    "hrm_text": "a forward pass must call each decoder layer once",
}
_TINY = 10_000_000  # parameters
OWN_LOGITS = ("inkling_text", "modernbert-decoder", "prophetnet", "roc_bert")  # more than a linear output layer
GATE = (
    "gpt2",
    "llama",
    "mixtral",
    "gpt_oss",
    "qwen2_moe",
    "mamba",
    "jamba",
    "zamba",
    "bart",
    "gemma3",
    "dory",
    "rwkv",
    "bert",
)


def _parametrised() -> list[Any]:
    return [pytest.param(name, marks=() if name in GATE else pytest.mark.slow) for name in families()]


@pytest.fixture(scope="module")
def windows() -> Tensor:
    return torch.randint(2, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(0))  # [windows, length]


@pytest.fixture(scope="module", params=_parametrised())
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model as prunegpt loads it."""
    folder = tmp_path_factory.mktemp("family")
    if family in NOT_TINY:
        assert not _made(family, folder), f"{family} can be made tiny now: take it out of the table"
        pytest.skip(f"{family}: {NOT_TINY[family]}")
    tiny(family).save_pretrained(folder)
    if family in NOT_LOADED:
        with pytest.raises(ModelError, match=f"^{NOT_LOADED[family]}"):
            load_model(folder, dtype="float32", device="cpu")
        pytest.skip(f"{family} is refused: {NOT_LOADED[family]}")
    return load_model(folder, dtype="float32", device="cpu")


def _made(family: str, folder: Path) -> bool:
    """Whether a family can be made tiny, reads text, and can be loaded again."""
    try:
        model = tiny(family)
        model(input_ids=torch.full((1, 4), 2), use_cache=False)
        model.save_pretrained(folder)
        AutoModelForCausalLM.from_pretrained(folder)
    except Exception:  # whatever the family says
        return False
    return sum(parameter.numel() for parameter in model.parameters()) < _TINY


def pruned(model: Any, family: str, windows: Tensor, method: str, **given: Any) -> tuple[Any, Any]:
    """A pruned copy; where propagation is refused for a stated reason, from statistics of the dense model."""
    twin = copy.deepcopy(model)
    try:
        return twin, prune_oneshot(twin, block_matrices(twin), method=method, calibration=windows, **given)
    except PruneGPTError as error:
        if not str(error).startswith(REFUSED.get(family, "no refusal is known")):
            raise
        twin = copy.deepcopy(model)
        views = {name: view for name, view in block_matrices(twin).items() if "o_a_proj" not in name}
        return twin, prune_oneshot(twin, views, method=method, calibration=windows, propagate=False, **given)


@pytest.mark.parametrize(
    ("method", "pattern"),
    [("magnitude", "unstructured"), ("wanda", "unstructured"), ("sparsegpt", "unstructured"), ("wanda", "2:4")],
)
def test_every_method_prunes_it(
    model: Any, family: str, windows: Tensor, method: str, pattern: str, tmp_path: Path
) -> None:
    sparsity = None if pattern == "2:4" else 0.5
    twin, result = pruned(model, family, windows, method, sparsity=sparsity, pattern=pattern)
    views = {name: view for name, view in block_matrices(twin).items() if name in result.masks}
    masks = {name: Mask(kept) for name, kept in result.masks.items()}
    check(views, masks)
    counted = measure_sparsity(views, dict(twin.named_parameters()))
    assert achieved_sparsity(masks) == pytest.approx(0.5, abs=0.02)
    assert counted.pruned >= achieved_sparsity(masks)  # some weights begin as zeros
    changed = {id(view.parameter) for view in views.values()}
    for (name, before), after in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert id(after) in changed or torch.equal(before, after), name
    if method == "magnitude":
        twin.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            ours, theirs = (one(input_ids=windows, use_cache=False).logits for one in (twin, again))
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_nothing_large_is_silently_dense(model: Any, family: str) -> None:
    """All matrices of the decoder are pruned, or are of a kind that nobody prunes."""
    views = block_matrices(model)
    share, outside = outline(model).coverage(views)
    left = {matrix.name for matrix in matrices(model) if matrix.block is not None and not matrix.default}
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert views
    assert not {name for name in outside if name in linear} - left
    assert share > 0


def test_the_output_layer_gives_the_logits_of_the_model(model: Any, family: str, windows: Tensor) -> None:
    """Distillation computes them a few tokens at a time, with weights large enough for caps to show."""
    twin = copy.deepcopy(model)
    layer = twin.get_output_embeddings()
    with torch.no_grad():
        layer.weight.mul_(100.0)
        inputs = {"input_ids": windows, "attention_mask": torch.ones_like(windows)}
        head = usable_head(twin, inputs)
        assert (head.weight is None) is (family in OWN_LOGITS)
        states = run(twin, inputs, whole=head.weight is None)
        logits = twin(**inputs, use_cache=False).logits
        error = (head.logits(states.last) - logits).abs().max() / logits.abs().max()
    assert error < 1e-3


def test_gate_and_tables_name_families() -> None:
    known = set(families())
    assert known >= {*GATE, *NOT_TINY, *NOT_LOADED, *REFUSED}
    assert len(known - {*NOT_TINY, *NOT_LOADED}) >= 0.75 * len(known)


def test_a_config_alone_says_what_the_loaded_model_consists_of(model: Any, family: str) -> None:
    """The model that is built without weights has the same tensors, of which the same are pruned."""
    assert outline(skeleton(json.loads(model.config.to_json_string(use_diff=False)))) == outline(model)
