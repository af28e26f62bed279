"""Every model of transformers that reads text beside something else, tiny: loaded whole, pruned, saved back whole.

What cannot be made tiny from its config class, and what is refused, is listed with its reason.
"""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from prunegpt.errors import ModelError
from prunegpt.lm.models import load_model, save_model
from prunegpt.lm.multimodal import auto_class, read_text
from prunegpt.lm.views import block_matrices, outline, text_decoder
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.masks import check, load_masks, save_masks
from prunegpt.pruning.oneshot import prune_oneshot
from tests.support.families import VOCABULARY, multimodal, tiny_multimodal

NOT_TINY = {
    **dict.fromkeys(("diffusion_gemma", "dots3_note"), "sizes differ by layer"),
    **dict.fromkeys(("fast_vlm", "gemma3n", "perception_lm"), "needs timm"),
    **dict.fromkeys(
        (
            *("apertus1p5", "florence2", "glm5_next", "janus", "muse_glimmer", "muse_spark", "qwen2_5_omni"),
            "vibevoice_asr",
        ),
        "a tower whose sizes have names of their own",
    ),
    **dict.fromkeys(
        (
            *("fun_asr_nano", "granite4_vision", "granite_docling", "inkling2", "inkling2_loop", "molmo2"),
            *("nemo_speechlm", "nemotron_h_omni", "qwen3_omni_moe"),
        ),
        "sizes of its parts follow from each other in ways of its own",
    ),
    **dict.fromkeys(
        (
            *("deepseek_ocr2", "emu3", "ernie4_5_vl_moe", "hunyuan_vl", "kyutai_speech_to_text"),
            *("mistral4", "step3p7"),
        ),
        "its config class makes no model",
    ),
    "evolla": "no auto class makes it",
}
NEEDS_MORE = "a model must predict text from text alone"
NOT_LOADED = {  # by prunegpt; the start of the reason
    **dict.fromkeys(
        ("pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder"), "a model must be decoder-only"
    ),
    **dict.fromkeys(
        (
            *("blip", "blip-2", "idefics", "instructblip", "instructblipvideo", "kosmos-2", "pi0"),
            "voxtral_realtime",
        ),
        NEEDS_MORE,
    ),
    "shieldgemma2": "a model's files must hold exactly its weights",  # a classifier
}
OUTSIDE = {
    "hy_v4_vl": r"_hc\.fn$|\.hc_fn$"
}  # of no fixed layer, and large in a tiny model: they mix its residual streams
NO_LOSS = ("git",)  # of text without an image
GATE = ("gemma3", "llama4", "qwen2_5_vl", "qwen3_vl_moe", "paligemma", "blip")
_TINY = 30_000_000  # parameters


def _parametrised() -> list[Any]:
    return [pytest.param(name, marks=() if name in GATE else pytest.mark.slow) for name in multimodal()]


@pytest.fixture(scope="module")
def windows() -> Tensor:
    return torch.randint(8, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(0))  # [windows, length]


@pytest.fixture(scope="module", params=_parametrised())
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def stored(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multimodal")
    if family in NOT_TINY:
        assert not _made(family, folder), f"{family} can be made tiny now: take it out of the table"
        pytest.skip(f"{family}: {NOT_TINY[family]}")
    tiny_multimodal(family).save_pretrained(folder)
    if family in NOT_LOADED:
        with pytest.raises(ModelError, match=f"^{NOT_LOADED[family]}"):
            load_model(folder, dtype="float32", device="cpu")
        pytest.skip(f"{family} is refused: {NOT_LOADED[family]}")
    return folder


def _made(family: str, folder: Path) -> bool:
    """Whether a family can be made tiny, reads text, and can be loaded again."""
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in tiny_multimodal(family).parameters())
        if size > _TINY:
            return False
        read_text(tiny_multimodal(family).train())(input_ids=torch.full((1, 4), 9), use_cache=False)
        tiny_multimodal(family).save_pretrained(folder)
        plain(folder)
    except Exception:  # whatever the family says
        return False
    return True


def plain(folder: Path) -> Any:
    """The whole model as transformers loads it, by the architecture that its config names."""
    config = AutoConfig.from_pretrained(folder)
    return auto_class(config).from_pretrained(folder, dtype="float32").eval()


def test_the_text_part_is_pruned_and_the_whole_is_saved(
    stored: Path, family: str, windows: Tensor, tmp_path: Path
) -> None:
    whole, model = plain(stored), load_model(stored, dtype="float32", device="cpu")
    assert type(model) is type(whole)
    views = block_matrices(model)
    inside = {id(parameter) for parameter in text_decoder(model).parameters()}
    assert {id(view.parameter) for view in views.values()} <= inside
    outside = outline(model).coverage(views).outside
    dense = sum(size for name, size in outside.items() if not re.search(OUTSIDE.get(family, "$^"), name))
    assert dense < 0.1 * sum(parameter.numel() for parameter in text_decoder(model).parameters())
    result = prune_oneshot(model, views, method="wanda", sparsity=0.5, calibration=windows)
    masks = {name: Mask(kept) for name, kept in result.masks.items()}
    save_model(model, None, tmp_path)
    save_masks(masks, tmp_path / "masks.safetensors", method="wanda", pattern="unstructured", target=0.5)

    changed = {name for name, parameter in model.named_parameters() if id(parameter) in inside}
    again = plain(tmp_path)
    assert type(again) is type(whole)
    for (name, before), after in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert name in changed or torch.equal(before, after), name
    with torch.no_grad():
        ours, theirs = (one(input_ids=windows, use_cache=False).logits for one in (model, read_text(again)))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)
    loaded = load_model(tmp_path, dtype="float32", device="cpu")
    check(block_matrices(loaded), load_masks(tmp_path / "masks.safetensors").masks)


def test_training_changes_the_text_part_alone(stored: Path, family: str, windows: Tensor) -> None:
    if family in NO_LOSS:
        pytest.skip("its loss counts the tokens of an image")
    model = load_model(stored, dtype="float32", device="cpu")
    before = copy.deepcopy(model.state_dict())
    parts = (text_decoder(model), model.get_output_embeddings())
    text = {id(parameter) for part in parts for parameter in part.parameters()}
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    model.train()(input_ids=windows, labels=windows, use_cache=False).loss.backward()
    optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved & block_matrices(model).keys()
    assert moved <= {name for name, parameter in model.named_parameters() if id(parameter) in text}


def test_gate_and_tables_name_families() -> None:
    known = set(multimodal())
    assert known >= {*GATE, *NOT_TINY, *NOT_LOADED}
    assert len(known - {*NOT_TINY, *NOT_LOADED}) >= 0.55 * len(known)
