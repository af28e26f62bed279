"""Whatever a recipe file holds, what comes out is a recipe or a PruneGPTError."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.recipes import TEXTS, through

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SETTINGS
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    through(text)


@SETTINGS
@given(
    st.lists(st.sampled_from([*"[]{}&*!<:-'\"|>#%@`\n\t ,?=~", "a", "- ", "!A", "&a ", "*a", "eval(", "modifiers:"]))
)
def test_punctuation(parts: list[str]) -> None:
    through("".join(parts))


@SETTINGS
@given(st.data())
def test_damaged_recipes(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(TEXTS))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(start + 12, len(text))))
        text = text[:start] + data.draw(st.text("0123456789.-: ![]{}\n'\"eval()*&ab_", max_size=6)) + text[end:]
    through(text)


NAMES = [
    "EpochRangeModifier",
    "GMPruningModifier",
    "GlobalMagnitudePruningModifier",
    "MovementPruningModifier",
    "MagnitudePruningModifier",
    "OBSPruningModifier",
    "ACDCPruningModifier",
    "ConstantPruningModifier",
    "SetLearningRateModifier",
    "LearningRateFunctionModifier",
    "LearningRateModifier",
    "SetWeightDecayModifier",
    "DistillationModifier",
    "PerLayerDistillationModifier",
    "OutputDistillationModifier",
    "SparseGPTModifier",
    "WandaPruningModifier",
    "QuantizationModifier",
    "Unknown",
]
_FIELDS = (
    "start_epoch end_epoch update_frequency init_sparsity final_sparsity params inter_func mask_type score_type "
    "phased global_sparsity leave_enabled learning_rate lr_func init_lr final_lr cycle_epochs lr_class lr_kwargs "
    "weight_decay hardness temperature distill_output_keys gain student_layer_names teacher_layer_names "
    "compression_sparsity num_grads fisher_block_size damp param_groups normalize start end update targets "
    "update_scheduler scheduler_args mask_structure sparsity sparsity_profile block_size percdamp prunen prunem "
    "comparison comparison_args orig_scale distill_scale projection quantize sequential_update owl_m"
)
_WORDS = (
    "cubic linear inverse_cubic cosine cyclic_linear cubic __ALL__ __ALL_PRUNABLE__ re:.*mlp re:[ h.0 Linear 2:4 "
    "0:0 block4 unstructured [1,4] true False movement eval(n) eval(1/0) StepLR MultiStepLR ExponentialLR "
    "CosineAnnealingWarmRestarts polynomial polynomial_decay multi_step calc(index) calc(1/index) square_head "
    "kl_divergence owl logits __FROM_PARAM__ 1e-7 1e999"
)
FIELDS, WORDS = _FIELDS.split(), _WORDS.split()
plain_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([2**62, -(2**62), 10**30]),
    st.floats(0, 10),
    st.floats(),
    st.sampled_from(WORDS),
)
values = st.recursive(
    plain_values,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["exponent", "steps", "gamma", "milestones", "step_size", "lr_min", "temperature", "0.5"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=5,
)
bodies = st.dictionaries(st.sampled_from(FIELDS), values, max_size=8)
modifiers = st.lists(st.tuples(st.sampled_from(NAMES), bodies), max_size=3)


def _json(value: Any) -> str:
    return json.dumps(value).replace("Infinity", ".inf").replace("NaN", ".nan")


@SETTINGS
@given(modifiers)
def test_any_fields_of_legacy_modifiers(found: list[tuple[str, dict[str, Any]]]) -> None:
    through("n: 3\nmodifiers:\n" + "\n".join(f"  - !{name} {_json(body)}" for name, body in found))


@SETTINGS
@given(modifiers, st.sampled_from(["train", "oneshot"]))
def test_any_fields_of_session_modifiers(found: list[tuple[str, dict[str, Any]]], run: str) -> None:
    through(_json({"n": 3, "x_stage": {"run_type": run, "m_modifiers": dict(found)}}))


@SETTINGS
@given(st.dictionaries(st.sampled_from(["train", "prune", "distill", "learning_rate"]), values | bodies, min_size=1))
def test_any_sections_of_our_own(sections: dict[str, Any]) -> None:
    through(_json(sections))


GOOD = {
    "params": ["re:.*mlp"],
    "targets": ["re:.*mlp"],
    "start_epoch": 0,
    "end_epoch": 4,
    "init_sparsity": 0.1,
    "end": 4,
    "final_sparsity": 0.5,
    "compression_sparsity": 0.5,
    "sparsity": 0.5,
    "update_frequency": 1,
    "lr_func": "linear",
    "lr_class": "StepLR",
    "lr_kwargs": {"step_size": 1},
    "init_lr": 0.1,
    "final_lr": 0.0,
    "learning_rate": 0.1,
    "weight_decay": 0.1,
}
REQUIRED = {
    "GMPruningModifier": "params start_epoch end_epoch init_sparsity final_sparsity update_frequency",
    "OBSPruningModifier": "params start_epoch end_epoch init_sparsity final_sparsity update_frequency",
    "ACDCPruningModifier": "params start_epoch end_epoch compression_sparsity update_frequency",
    "LearningRateFunctionModifier": "start_epoch end_epoch lr_func init_lr final_lr",
    "LearningRateModifier": "start_epoch end_epoch lr_class lr_kwargs init_lr",
    "SetLearningRateModifier": "learning_rate",
    "SetWeightDecayModifier": "weight_decay",
    "DistillationModifier": "",
    "PerLayerDistillationModifier": "",
}


@SETTINGS
@given(st.data(), st.sampled_from(sorted(REQUIRED)))
def test_one_strange_field_in_a_good_modifier(data: st.DataObject, name: str) -> None:
    body = {field: GOOD[field] for field in REQUIRED[name].split()}
    for field in data.draw(st.lists(st.sampled_from(FIELDS), max_size=2)):
        body[field] = data.draw(values)
    through(f"n: 3\nmodifiers:\n  - !{name} {_json(body)}")


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_the_good_modifiers_are_recipes(name: str) -> None:
    body = {field: GOOD[field] for field in REQUIRED[name].split()}
    assert through(f"modifiers:\n  - !{name} {_json(body)}")


@SETTINGS
@given(st.dictionaries(st.sampled_from(["n", "end", "lr", "prune.sparsity", "train", "", "."]), values, max_size=2))
def test_any_overrides(overrides: dict[str, Any]) -> None:
    for text in TEXTS[:3] + TEXTS[-3:]:
        through(text, overrides)
