"""Stages that make a model smaller: alone, in rounds, under a budget, with masks, and what is known of them before."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from prunegpt.errors import SpecError
from prunegpt.lm.models import save_model
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.planning.inputs import Inputs
from prunegpt.registry import IMPORTANCES, LAYER_CHOICES
from prunegpt.root import Root
from prunegpt.spec.distilling import inherited_layers
from prunegpt.spec.schema import ModelSpec
from prunegpt.spec.shapes import shrunk_config
from prunegpt.stages import cache
from prunegpt.stages.base import ModelState
from tests.support.families import tiny
from tests.support.specs import plan_of

RunTrials = Callable[..., Mapping[str, Any]]
CALIBRATION = {"windows": 4, "length": 16}


def model_after(root: Path, record: Any) -> ModelState:
    key, cpu = record.stages[-1].key, torch.device("cpu")
    return cache.load(Root(root / "runs"), key, ModelSpec(source="unused"), Inputs(None), device=cpu)


def same_bits(before: Any, after: Any, layer: int, place: int) -> bool:
    ours, theirs = after.transformer.h[place].state_dict(), before.transformer.h[layer].state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("choice", LAYER_CHOICES.builtin_names())
def test_a_choice_drops_a_layer(run_trials: RunTrials, tmp_path: Path, choice: str) -> None:
    shrink = {"layers": 1, "choice": choice, "calibration": CALIBRATION}
    record = run_trials({"name": "small", "stages": [{"shrink": shrink}]})["small"]
    assert record.state == "finished", record.trace
    stage = record.stages[-1]
    assert stage.sparsity.parameters < record.stages[0].sparsity.parameters
    dropped = [row["layer"] for row in stage.layers if row["dropped"]]
    assert len(dropped) == 1
    assert f"1 of 2 layers went: {dropped[0]}" in stage.notes
    state = model_after(tmp_path, record)
    assert state.model.config.n_layer == len(state.model.transformer.h) == 1
    assert state.model.lm_head.weight is state.model.transformer.wte.weight


def test_rounds_end_in_what_is_left_of_the_first_model(run_trials: RunTrials, tmp_path: Path) -> None:
    dense = {"name": "dense"}
    distill = {"teacher": "dense", "hidden_gain": 0.1, "train": {"max_steps": 2}}
    stages = [
        {"prune": {"sparsity": 0.5}},
        {"shrink": {"drop": 0}},
        {"distill": {**distill, "attention_gain": 0.1}},
        {"prune": {"sparsity": 0.75}},
    ]
    records = run_trials(dense, {"name": "rounds", "stages": stages})
    record = records["rounds"]
    assert record.state == "finished", record.trace
    halves = [round(stage.sparsity.pruned, 1) for stage in record.stages[1:4]]
    assert halves == [0.5, 0.5, 0.5]
    assert record.stages[-1].sparsity.pruned == pytest.approx(0.75, abs=0.01)
    assert "layers compared: 0 with 1" in record.stages[3].notes
    state = model_after(tmp_path, record)
    assert state.layers is not None
    assert (state.layers.kept, state.layers.of) == ((1,), 2)


def test_masks_go_with_the_layers(run_trials: RunTrials, tmp_path: Path) -> None:
    pruned = {"name": "pruned", "stages": [{"prune": {"sparsity": 0.5}}]}
    shrunk = {"name": "shrunk", "stages": [{"prune": {"sparsity": 0.5}}, {"shrink": {"drop": [0]}}]}
    records = run_trials(pruned, shrunk)
    before, after = (model_after(tmp_path, records[name]) for name in ("pruned", "shrunk"))
    assert same_bits(before.model, after.model, 1, 0)
    assert set(after.pruned.masks) == {
        name.replace(".h.1.", ".h.0.") for name in before.pruned.masks if ".h.1." in name
    }
    for name, mask in after.pruned.masks.items():
        assert torch.equal(mask.kept, before.pruned.masks[name.replace(".h.0.", ".h.1.")].kept)


WRONG = {
    "nothing": ({}, "a shrink must say what gets smaller"),
    "two ways": ({"layers": 1, "drop": [0]}, "drop names the layers that go"),
    "too many": ({"layers": 5}, "layers counts what stays of 4, got 5"),
    "absent": ({"drop": 7}, "the layers are numbered 0 to 3, got 7 in drop"),
    "all": ({"drop": [0, 1, 2, 3]}, "at least one layer must stay"),
    "percent": ({"layers": 75.5}, "a size must be a share above 0 up to 1, or a whole number, got 75.5"),
    "zero": ({"layers": 0}, "a size must be a share above 0"),
    "no kind": ({"attention": 1}, "attention counts layers that are attention alone"),
    "two limits": ({"budget": {"parameters": 0.5, "memory": 0.5}}, "a budget must be exactly one of"),
    "no room": ({"budget": {"parameters": 10}}, "a budget must leave room for one layer"),
    "twice": ({"layers": 1, "budget": {"parameters": 0.5}}, "a budget decides layers; that is given too"),
}


@pytest.mark.parametrize(("shrink", "told"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said_before_anything_runs(shrink: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        plan_of({"name": "small", "stages": [{"shrink": shrink}]})


def test_what_follows_is_checked_against_the_smaller_shape() -> None:
    stages = [{"shrink": {"layers": 0.5}}, {"prune": {"sparsity": 0.5, "layers": [3]}}]
    with pytest.raises(SpecError, match="layer"):
        plan_of({"name": "small", "stages": stages})
    plan_of({"name": "small", "stages": stages[1:]})


def test_layers_are_compared_with_those_that_give_the_same_state() -> None:
    every = tuple(range(6))
    hidden, maps = inherited_layers((0, 1, 4, 5), every)
    assert hidden == {0: 0, 1: 3, 2: 4, 3: 5}
    assert maps == {0: 0, 1: 1, 2: 4, 3: 5}
    assert inherited_layers(every, every) == (dict(enumerate(every)), dict(enumerate(every)))
    assert inherited_layers((1, 5), (1, 4, 5)) == ({0: 1, 1: 2}, {0: 0, 1: 2})


def test_lists_with_an_item_for_each_layer_are_cut_with_the_layers() -> None:
    config = {
        "num_hidden_layers": 4,
        "layer_types": ["a", "b", "c", "d"],
        "mlp_only_layers": [0, 3],
        "first_k_dense_replace": 2,
        "num_kv_shared_layers": 2,
        "num_nextn_predict_layers": 1,
        "rope_scaling": {"factors": [1, 2, 3, 4]},
        "time_step_limit": [0, 1, 2, 3],
        "per_layer_config": {"01": {"x": 1}, "03": {"x": 3}},
    }
    assert shrunk_config({"text_config": config}, layers=[1, 3])["text_config"] == {
        "num_hidden_layers": 2,
        "layer_types": ["b", "d"],
        "mlp_only_layers": [1],
        "first_k_dense_replace": 1,
        "num_kv_shared_layers": 1,
        "num_nextn_predict_layers": 0,
        "rope_scaling": {"factors": [1, 2, 3, 4]},
        "time_step_limit": [0, 1, 2, 3],
        "per_layer_config": {"00": {"x": 1}, "01": {"x": 3}},
    }


DECISIVE = {
    "layers": 3,
    "choice": "taylor",
    "calibration": {"windows": 5},
    "drop": [0],
    "budget": {"parameters": 0.5},
    "ffn": 0.5,
}


def key_of(shrink: dict[str, Any]) -> str:
    return plan_of({"name": "small", "stages": [{"shrink": shrink}]}).trials[0].key


def test_what_decides_the_result_is_in_the_key() -> None:
    found = {key_of({"layers": 2})}
    for field, value in DECISIVE.items():
        found.add(key_of({field: value} if field in ("drop", "budget") else {"layers": 2, field: value}))
    assert len(found) == len(DECISIVE) + 1
    assert key_of({"layers": 2}) == key_of({"layers": 2, "calibration": {}, "choice": "influence"})
    assert key_of({"drop": [0]}) == key_of({"drop": 0, "choice": "perplexity", "calibration": {"windows": 7}})


@pytest.mark.parametrize("importance", IMPORTANCES.builtin_names())
def test_layers_become_narrower_and_masks_with_them(run_trials: RunTrials, tmp_path: Path, importance: str) -> None:
    shrink = {"layers": 1, "ffn": 0.5, "importance": importance, "calibration": CALIBRATION}
    prune = {"prune": {"sparsity": 0.5, "pattern": "2:4"}}
    record = run_trials({"name": "narrow", "stages": [prune, {"shrink": shrink}, {"prune": {"sparsity": 0.75}}]})[
        "narrow"
    ]
    assert record.state == "finished", record.trace
    first, pruned, shrunk, again = record.stages
    assert shrunk.sparsity.parameters < pruned.sparsity.parameters == first.sparsity.parameters
    assert 0.4 < shrunk.sparsity.pruned < 0.6
    assert again.sparsity.pruned == pytest.approx(0.75, abs=0.01)
    rows = [row for row in shrunk.layers if "part" in row]
    assert [(row["kept"], row["of"]) for row in rows] == [(64, 128)]
    assert any(f"feed-forward size 128 → 64 by {importance}" in note for note in shrunk.notes)
    state = model_after(tmp_path, record)
    name = "transformer.h.0.mlp.c_proj.weight"
    assert state.model.get_parameter(name).shape == (64, 32)  # [in, out]
    assert state.pruned.masks[name].shape == (32, 64)
    assert state.pruned.pattern == "unstructured"


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_half_the_experts_of_a_mixture(run_trials: RunTrials, tmp_path: Path, family: str) -> None:
    save_model(tiny(family, vocab_size=1024), load_tokenizer("builtin:tiny-gpt2"), tmp_path / "mixture")
    shrink = {"experts": 0.5, "heads": 1, "hidden": 24, "calibration": CALIBRATION}
    stages = [{"prune": {"sparsity": 0.5}}, {"shrink": shrink}, {"prune": {"sparsity": 0.75}}]
    record = run_trials({"name": "few", "stages": stages}, model=str(tmp_path / "mixture"))["few"]
    assert record.state == "finished", record.trace
    config = model_after(tmp_path, record).model.config
    assert (config.num_local_experts, config.num_key_value_heads, config.hidden_size) == (2, 1, 24)
    assert record.stages[-1].sparsity.pruned == pytest.approx(0.75, abs=0.01)


def test_heads_and_hidden_of_a_family_whose_heads_follow_it_are_cut_at_once(
    run_trials: RunTrials, tmp_path: Path
) -> None:
    shrink = {"heads": 1, "hidden": 0.5, "calibration": CALIBRATION}
    stages = [{"prune": {"sparsity": 0.5}}, {"shrink": shrink}, {"prune": {"sparsity": 0.75}}]
    record = run_trials({"name": "few", "stages": stages})["few"]
    assert record.state == "finished", record.trace
    config = model_after(tmp_path, record).model.config
    assert (config.n_head, config.n_embd) == (1, 16)
    assert any("number of heads and hidden size" in note for note in record.stages[2].notes)


def test_a_width_that_a_family_cannot_express_is_refused_by_the_plan() -> None:
    for shrink, told in (
        ({"heads": 0.5, "hidden": 0.75}, "2 heads need a hidden size of 64, got 96. Cut both by the same share"),
        ({"hidden": 0.5}, "Cut heads and hidden by the same share in one stage"),
        ({"heads": 0.5}, "weights must follow the number of heads that the config says; none of GPT2"),
        ({"experts": 2}, "only a mixture of experts has experts to cut"),
    ):
        with pytest.raises(SpecError, match=told):
            plan_of({"name": "narrow", "stages": [{"shrink": shrink}]})


def test_sizes_of_a_narrower_model_are_known_to_the_plan() -> None:
    narrow, wide = ({"shrink": {"ffn": size, "layers": 2}} for size in (0.5, 1.0))
    prune = {"prune": {"pattern": "4:512", "targets": ["*.mlp.c_proj.weight"]}}
    plan_of({"name": "narrow", "stages": [wide, prune]})
    with pytest.raises(SpecError, match="512"):
        plan_of({"name": "narrow", "stages": [narrow, prune]})
