from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prunegpt.recipes.load import meaning_of_text, read_meaning
from prunegpt.recipes.matching import MatchingError, ModelNames
from prunegpt.recipes.meaning import RecipeMeaning
from prunegpt.recipes.source import RecipeError

FIXTURES = Path(__file__).parent / "fixtures"
TIMES = "start_epoch: 1, end_epoch: 5, update_frequency: 0.01"


def legacy(*modifiers: str) -> RecipeMeaning:
    return meaning_of_text("modifiers:\n" + "\n".join(f"  - !{modifier}" for modifier in modifiers))


def gmp(fields: str = "", name: str = "GMPruningModifier", sparsity: str = "final_sparsity: 0.8") -> str:
    return f"{name} {{params: [a.weight], init_sparsity: 0.0, {sparsity}, {TIMES}, {fields}}}"


def session(modifier: str, run: str = "train") -> RecipeMeaning:
    return meaning_of_text(f"x_stage:\n  run_type: {run}\n  m_modifiers:\n    {modifier}\n")


def prune(meaning: RecipeMeaning) -> Mapping[str, Any]:
    section = meaning.stages[0].prune
    assert section is not None
    return section


def levels(meaning: RecipeMeaning) -> list[tuple[str, str]]:
    return [(note.level, note.text) for note in meaning.notes]


def codes(meaning: RecipeMeaning) -> list[str]:
    return [defect.code for defect in meaning.defects]


def test_gradual_magnitude_pruning() -> None:
    meaning = legacy(
        "EpochRangeModifier {start_epoch: 0, end_epoch: 9.5}", gmp("inter_func: cubic, leave_enabled: True")
    )
    assert prune(meaning) == {
        "method": "magnitude",
        "sparsity": 0.8,
        "targets": ["a.weight"],
        "schedule": "cubic",
        "initial": 0.0,
        "start": 1.0,
        "end": 5.0,
        "every": 0.01,
        "clock": "sparseml",
    }
    assert meaning.stages[0].train == {"num_train_epochs": 10}
    assert levels(meaning) == [("supported", "trains 10 epochs."), ("supported", "as written.")]
    assert codes(meaning) == []


@pytest.mark.parametrize(
    ("modifier", "expected"),
    [
        (gmp("inter_func: linear"), {"schedule": "linear"}),
        (gmp("inter_func: inverse_cubic"), {"schedule": "inverse_cubic"}),
        (gmp(name="MagnitudePruningModifier"), {"method": "magnitude"}),
        (gmp(name="GlobalMagnitudePruningModifier"), {"allocation": "global"}),
        (gmp("global_sparsity: True"), {"allocation": "global"}),
        (gmp(name="MovementPruningModifier"), {"method": "movement"}),
        (gmp("score_type: movement"), {"method": "movement"}),
        (gmp("score_type: magnitude"), {"method": "magnitude"}),
        (gmp("phased: True"), {"schedule": "acdc", "regrow": True}),
        (gmp("mask_type: block4"), {"pattern": "[1, 4]", "sparsity": 0.8}),
        (gmp("mask_type: [2, 8]"), {"pattern": "[2, 8]"}),
        (gmp("mask_type: '1:5'"), {"pattern": "1:5"}),
        (gmp("mask_type: tensorrt", sparsity="final_sparsity: 0.5"), {"pattern": "2:4"}),
        (gmp().replace("update_frequency: 0.01", "update_frequency: -1"), {"every": 1e-6}),
        (gmp().replace("start_epoch: 1", "start_epoch: -1"), {"start": 0.0}),
        (gmp().replace("init_sparsity: 0.0", "init_sparsity: 0.05"), {"initial": 0.05}),
        (gmp().replace("final_sparsity: 0.8", "final_sparsity: '8e-1'"), {"sparsity": 0.8}),
        (gmp().replace("[a.weight]", "__ALL_PRUNABLE__"), {"sparsity": 0.8}),
        (gmp().replace("[a.weight]", "'re:.*mlp'"), {"targets": ["re:(?:.*mlp).*"]}),
        (
            "ACDCPruningModifier {params: [a], compression_sparsity: 0.7, start_epoch: 0, end_epoch: 8, "
            "update_frequency: 2}",
            {"schedule": "acdc", "sparsity": 0.7, "allocation": "global", "every": 2.0, "regrow": True, "initial": 0.0},
        ),
        (
            gmp("num_grads: 64, fisher_block_size: 16", name="OBSPruningModifier"),
            {"method": "obert", "options": {"fisher_block": 16}, "calibration": {"windows": 64}},
        ),
    ],
)
def test_pruning_modifiers(modifier: str, expected: dict[str, Any]) -> None:
    section = prune(legacy(modifier))
    assert expected.items() <= section.items()
    if ":" in section.get("pattern", ""):
        assert "sparsity" not in section  # the pattern fixes it
    if "__ALL_PRUNABLE__" in modifier:
        assert "targets" not in section  # all decoder weight matrices


def test_sparsities_of_their_own() -> None:
    modifier = gmp(sparsity="final_sparsity: {0.5: [a.weight], 0.75: ['re:b', c.weight]}").replace(
        "params: [a.weight]", "params: []"
    )
    section = prune(legacy(modifier))
    assert section["allocation"] == {"a.weight": 0.5, "re:(?:b).*": 0.75, "c.weight": 0.75}
    assert section["targets"] == ["a.weight", "re:(?:b).*", "c.weight"]
    assert "sparsity" not in section


def test_modifiers_of_one_schedule_become_one_section() -> None:
    meaning = read_meaning(FIXTURES / "blocks-90sparse.yaml")
    section = prune(meaning)
    assert len(section["targets"]) == 48
    assert section["sparsity"] == 0.9
    assert meaning.unsupported == ()


def test_modifiers_that_differ_in_sparsity_become_an_allocation() -> None:
    section = prune(legacy(gmp(), gmp(sparsity="final_sparsity: 0.5").replace("a.weight", "b.weight")))
    assert section["allocation"] == {"a.weight": 0.8, "b.weight": 0.5}
    assert section["targets"] == ["a.weight", "b.weight"]


def test_the_rule_for_all_others_comes_last() -> None:
    others = gmp(sparsity="final_sparsity: 0.5").replace("[a.weight]", "__ALL_PRUNABLE__")
    section = prune(legacy(others, gmp()))
    assert list(section["allocation"].items()) == [("a.weight", 0.8), ("*", 0.5)]
    assert "targets" not in section


def test_one_of_all_prunes_all() -> None:
    section = prune(legacy(gmp(), gmp().replace("[a.weight]", "__ALL_PRUNABLE__")))
    assert "targets" not in section


@pytest.mark.parametrize(
    "second",
    [
        gmp().replace("end_epoch: 5", "end_epoch: 6"),
        gmp("inter_func: linear"),
        gmp("score_type: movement"),
        gmp(sparsity="final_sparsity: 0.5"),  # of the same tensor
        gmp("global_sparsity: true", sparsity="final_sparsity: 0.5"),
    ],
)
def test_modifiers_of_different_schedules_are_said_to_be_unsupported(second: str) -> None:
    meaning = legacy(gmp(), second)
    assert meaning.stages[0].prune is None
    assert len(meaning.stages[0].prunings) == 2
    assert [(note.line, "one section `prune` holds one schedule" in note.text) for note in meaning.unsupported] == [
        (3, True)
    ]


@pytest.mark.parametrize(
    ("modifier", "level", "text"),
    [
        (gmp("leave_enabled: False"), "partly", "here they stay zero"),
        (gmp("phased: True"), "partly", "AC/DC"),
        (gmp().replace("init_sparsity: 0.0", "init_sparsity: __FROM_PARAM__"), "partly", "starts from what is pruned"),
        (gmp("mask_type: filter"), "unsupported", "removes rows or columns"),
        (gmp("score_type: {MFAC: {}}"), "unsupported", "no M-FAC here"),
        (gmp("damp: 1e-7", name="OBSPruningModifier"), "partly", "damp: it is a number in SparseML and a share"),
        (gmp(name="OBSPruningModifier"), "partly", "global_sparsity: it ranks weights over all layers"),
        ("MFACPruningModifier {params: [a]}", "unsupported", "OBSPruningModifier becomes obert"),
        ("QuantizationModifier {start_epoch: 1}", "unsupported", "not quantised"),
        ("LayerPruningModifier {layers: [a]}", "unsupported", "not dropped"),
        ("StructuredPruningModifier {}", "unsupported", "not removed"),
        ("TrainableParamsModifier {params: [a], trainable: False}", "unsupported", "not frozen"),
        ("RigLPruningModifier {}", "unsupported", "no RigL here"),
        ("SparsificationLoggingModifier {}", "ignored", "only writes logs"),
        ("ConstantPruningModifier {params: __ALL__}", "supported", "what is zero stays zero"),
        ("ConstantPruningModifier {params: [a], start_epoch: 2}", "partly", "kept from epoch 2 on"),
        ("ConstantPruningModifier {params: [a]}", "partly", "in the named tensors only"),
        ("SetWeightDecayModifier {weight_decay: 0.01, start_epoch: 3}", "partly", "from the beginning"),
        ("SetLearningRateModifier {learning_rate: 0.1, param_groups: [0]}", "partly", "param_groups"),
        ("DistillationModifier {distill_output_keys: [start_logits]}", "partly", "here the logits are distilled"),
        ("DistillationModifier {distill_output_keys: [logits], start_epoch: 2}", "partly", "starts at epoch 2"),
        ("DistillationModifier {distill_output_keys: [logits], end_epoch: 2}", "supported", "as written"),
    ],
)
def test_what_is_said_of_a_modifier(modifier: str, level: str, text: str) -> None:
    found = levels(legacy(modifier))
    assert any(level == said and text in words for said, words in found), found


def test_a_distillation_that_ends_early_is_said() -> None:
    meaning = legacy("EpochRangeModifier {end_epoch: 10}", "DistillationModifier {end_epoch: 4}")
    assert any("ends at epoch 4" in text for _, text in levels(meaning))


def test_distillation() -> None:
    meaning = legacy("DistillationModifier {hardness: 0.7, temperature: 3, distill_output_keys: [logits]}")
    assert meaning.stages[0].distill == pytest.approx({"loss": "forward_kl", "hardness": 0.7, "temperature": 3.0})
    assert codes(meaning) == ["divergence-is-a-sum"]
    assert "all-outputs-distilled" in codes(legacy("DistillationModifier {}"))


def test_hidden_states_of_several_layers() -> None:
    names = "student_layer_names: [h.0, h.1], teacher_layer_names: [h.2, h.5]"
    meaning = legacy(f"PerLayerDistillationModifier {{gain: 1.5, {names}}}", "DistillationModifier {hardness: 0.5}")
    section = meaning.stages[0].distill
    assert section is not None
    assert section["layer_map"] == {0: 2, 1: 5}
    assert section["hidden_gain"] == pytest.approx(3.0)  # a sum over two layers, and a mean here
    assert section["hardness"] == pytest.approx(0.5)


def test_scales_of_the_session_dialect_become_a_hardness() -> None:
    meaning = read_meaning(FIXTURES / "session-train.yaml")
    section = meaning.stages[0].distill
    assert section is not None
    assert section["loss"] == "reverse_kl"
    assert section["hardness"] == pytest.approx(0.75)  # 1 : 3
    assert section["temperature"] == 1.0
    assert set(codes(meaning)) == {"update-ignored", "distillation-never-fires", "kl-direction"}


def test_a_loss_of_hidden_states_keeps_its_weight_against_the_cross_entropy() -> None:
    meaning = session(
        "OutputDistillationModifier: {targets: [[h.1, h.2]], comparison: square_head, orig_scale: 2, distill_scale: 3}"
    )
    section = meaning.stages[0].distill
    assert section is not None
    assert section["hardness"] == 0.0
    assert section["hidden_gain"] == pytest.approx(1.5)
    assert section["layer_map"] == {1: 2}


@pytest.mark.parametrize(
    ("modifier", "level", "text"),
    [
        ("OutputDistillationModifier: {comparison: cosine_similarity}", "unsupported", "here are kl_divergence and"),
        ("OutputDistillationModifier: {comparison: square_head, projection: linear}", "partly", "projection"),
        ("SparseGPTModifier: {sparsity: 0.5}", "unsupported", "must be in a oneshot stage"),
        ("GPTQModifier: {}", "unsupported", "not quantised"),
        ("SmoothQuantModifier: {}", "unsupported", "not quantised"),
        ("ConstantPruningModifier: {targets: __ALL__, start: 0}", "supported", "stays zero"),
    ],
)
def test_what_is_said_in_the_session_dialect(modifier: str, level: str, text: str) -> None:
    found = levels(session(modifier))
    assert any(level == said and text in words for said, words in found), found


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("update_scheduler: linear", {"schedule": "linear"}),
        ("update_scheduler: polynomial, scheduler_args: {exponent: 1}", {"schedule": "linear"}),
        ("update_scheduler: polynomial_decay, scheduler_args: {exponent: 3}", {"schedule": "cubic"}),
        ("apply_globally: true", {"allocation": "global"}),
        ("mask_structure: 'block_1,4'", {"pattern": "[1, 4]"}),
        ("update: 0.5", {"every": 0.5}),
        ("targets: ['Linear']", {"sparsity": 0.6}),
        ("targets: ['h.3']", {"targets": ["re:h\\.3(?:\\..*)?"]}),
    ],
)
def test_magnitude_pruning_of_the_session_dialect(fields: str, expected: dict[str, Any]) -> None:
    section = prune(session(f"MagnitudePruningModifier: {{final_sparsity: 0.6, start: 1, end: 4, {fields}}}"))
    assert expected.items() <= section.items()


@pytest.mark.parametrize(
    "schedule",
    [
        "polynomial",
        "polynomial_decay",
        "multi_step, scheduler_args: {steps: [[1, 0.5]]}",
        "'calc(init_sparsity + index)'",
    ],
)
def test_schedules_without_a_counterpart(schedule: str) -> None:
    meaning = session(
        f"MagnitudePruningModifier: {{final_sparsity: 0.6, start: 1, end: 4, update_scheduler: {schedule}}}"
    )
    assert meaning.stages[0].prune is None
    assert "here are linear, cubic and inverse_cubic" in meaning.unsupported[0].text


def test_the_sign_of_polynomial_decay_is_named() -> None:
    meaning = session(
        "MagnitudePruningModifier: {final_sparsity: 0.6, start: 1, end: 4, update_scheduler: polynomial_decay}"
    )
    defect = next(item for item in meaning.defects if item.code == "polynomial-decay-sign")
    assert "twice the final sparsity at the start (1.2)" in defect.text
    assert defect.fix == "Write update_scheduler: cubic, or exponent: 3."
    odd = session(
        "MagnitudePruningModifier: {final_sparsity: 0.6, start: 1, end: 4, update_scheduler: polynomial_decay, "
        "scheduler_args: {exponent: 3}}"
    )
    assert "polynomial-decay-sign" not in codes(odd)


@pytest.mark.parametrize(
    ("structure", "pattern"),
    [("'2:4'", "2:4"), ("'1:4'", "3:4"), ("'3:4'", "1:4"), ("'0:0'", None), ("unstructured", None)],
)
def test_n_of_m_counts_pruned_weights_in_the_session_dialect(structure: str, pattern: str | None) -> None:
    meaning = session(f"SparseGPTModifier: {{sparsity: 0.5, mask_structure: {structure}}}", "oneshot")
    assert prune(meaning).get("pattern") == pattern
    assert ("n-of-m-meaning" in codes(meaning)) == (pattern is not None)


def test_one_shot_methods() -> None:
    section = prune(read_meaning(FIXTURES / "obcq.yaml"))
    assert section == {
        "method": "sparsegpt",
        "pattern": "2:4",
        "targets": ["re:(?:model.layers.\\d+)(?:\\..*)?"],
        "options": {"block_size": 128, "damping": 0.01},
        "propagate": True,
    }
    wanda = session("WandaPruningModifier: {sparsity: 0.5, sparsity_profile: owl, owl_m: 7, owl_lmbda: 0.1}", "oneshot")
    assert prune(wanda) == {
        "method": "wanda",
        "sparsity": 0.5,
        "allocation": "owl",
        "options": {"multiple": 7.0, "limit": 0.1},
    }
    owned = session("SparseGPTModifier: {sparsity: [0.5, 0.7], targets: [h.0, h.1]}", "oneshot")
    assert prune(owned)["allocation"] == {"re:h\\.0(?:\\..*)?": 0.5, "re:h\\.1(?:\\..*)?": 0.7}


def test_alternating_stages() -> None:
    meaning = read_meaning(FIXTURES / "alternating.yaml")
    assert [(stage.name, stage.run, stage.prune is not None) for stage in meaning.stages] == [
        ("first_sparsity", "oneshot", True),
        ("first_training", "train", False),
        ("second_sparsity", "oneshot", True),
        ("second_training", "train", False),
    ]
    assert prune(meaning)["options"] == {"block_size": 64, "damping": 0.02}


def test_the_run_of_a_stage_that_does_not_say() -> None:
    text = "x_stage: {m_modifiers: {WandaPruningModifier: {sparsity: 0.5}}}\ny_stage: {m_modifiers: {}}"
    assert [stage.run for stage in meaning_of_text(text).stages] == ["oneshot", "train"]


@pytest.mark.parametrize(
    ("name", "sparsity", "said"),
    [
        ("90sparse.yaml", 0.8, True),
        ("recipes/90sparse.yaml", 0.9, False),
        ("prune80.yaml", 0.9, True),
        ("layer-0.80.yaml", 0.5, False),
        ("noprune.yaml", 0.5, False),
        ("v90.yaml", 0.5, False),
    ],
)
def test_a_name_that_says_another_sparsity(name: str, sparsity: float, said: bool) -> None:
    text = f"modifiers:\n  - !{gmp(sparsity=f'final_sparsity: {sparsity}')}"
    assert ("name-says-otherwise" in codes(meaning_of_text(text, name))) == said


@pytest.mark.parametrize(
    ("modifier", "code", "fix"),
    [
        (gmp().replace("[a.weight]", "__ALL_PRUNABLE__"), "all-prunable-versions", "inside decoder layers"),
        (gmp().replace("[a.weight]", "__ALL__"), "all-parameters", "inside decoder layers"),
        (gmp("inter_func: inverse_cubic"), "inverse-cubic-overshoot", "between 0 and 1"),
        (gmp("mask_type: block4"), "group-axis", "along the input"),
        (gmp("mask_type: [4, 4]"), "block-is-a-run", "[1, 16]"),
        (gmp("phased: true"), "acdc-moments", "moments are zeroed"),
        (gmp(), "last-update-missing", "Set end_epoch below the last epoch"),
    ],
)
def test_known_defects(modifier: str, code: str, fix: str) -> None:
    found = {defect.code: defect for defect in legacy(modifier).defects}
    assert fix in found[code].fix
    assert found[code].line == 2


def test_a_last_update_inside_the_training_is_no_defect() -> None:
    assert "last-update-missing" not in codes(legacy("EpochRangeModifier {end_epoch: 6}", gmp()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("GMPrunningModifier {}", "unknown modifier 'GMPrunningModifier'. Did you mean 'GMPruningModifier'"),
        (gmp("inter_funk: cubic"), "unknown field of GMPruningModifier 'inter_funk'. Did you mean 'inter_func'"),
        (gmp(sparsity="final_sparsity: 90"), "final_sparsity must be from 0 to 1, got 90. Did you mean 0.9?"),
        (gmp(sparsity="final_sparsity: much"), "final_sparsity must be a number, got 'much'"),
        (gmp(sparsity="final_sparsity: 1.0"), "sparsity must be at least 0 and below 1, got 1"),
        (gmp().replace("final_sparsity: 0.8, ", ""), "final_sparsity is required"),
        (gmp(sparsity="final_sparsity: {0.5: [b]}"), r"params must be \[\] where final_sparsity names the parameters"),
        (gmp(sparsity="final_sparsity: {x: [b]}"), r"final_sparsity must be a number or {sparsity: \[params\]}"),
        (gmp().replace("params: [a.weight]", "params: []"), "params is required"),
        (gmp().replace("[a.weight]", "[1]"), "params must be a name or a list of names"),
        (gmp().replace("[a.weight]", "['re:(']"), "re: must be followed by a regular expression, got 're:\\('"),
        (gmp().replace("end_epoch: 5", "end_epoch: 0"), "end_epoch must not come before start_epoch"),
        (gmp().replace("end_epoch: 5", "end_epoch: -1"), "end_epoch is required for pruning"),
        (gmp().replace("update_frequency: 0.01", "update_frequency: 0"), "update_frequency must be above 0"),
        (gmp("inter_func: exp"), "unknown inter_func 'exp'. Valid: cubic, inverse_cubic, linear"),
        (gmp("mask_type: '2:4'"), "2:4 fixes the sparsity at 0.5; final_sparsity is 0.8"),
        (gmp("mask_type: round"), "mask_type must be unstructured, block4"),
        (gmp("leave_enabled: perhaps"), "leave_enabled must be true or false, got 'perhaps'"),
        (gmp("score_type: luck"), "score_type must be magnitude or movement"),
        ("DistillationModifier {hardness: 2}", "hardness must be from 0 to 1, got 2"),
        ("DistillationModifier {temperature: 0}", "temperature must be above 0"),
        ("ACDCPruningModifier {params: [a], compression_sparsity: 0.5, end_epoch: 3}", "update_frequency is required"),
        (
            "ACDCPruningModifier {params: [a], compression_sparsity: 0.5, end_epoch: 3, update_frequency: 2}",
            "must fit between start_epoch and end_epoch",
        ),
        ("EpochRangeModifier {end_epoch: x}", "end_epoch must be a number"),
    ],
)
def test_legacy_problems(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as raised:
        legacy(text)
    assert all(problem.line is not None for problem in raised.value.problems)


@pytest.mark.parametrize(
    ("modifier", "message"),
    [
        ("MagnitudePruningModifier: {final_sparsity: 0.5, start: 0}", "end is required for pruning in training"),
        (
            "MagnitudePruningModifier: {final_sparsity: 0.5, end: 2, update_scheduler: spline}",
            "update_scheduler must be linear, cubic",
        ),
        (
            "MagnitudePruningModifier: {final_sparsity: 0.5, end: 2, update_scheduler: polynomial, "
            "scheduler_args: {exponent: -1}}",
            "exponent must be above 0",
        ),
        (
            "MagnitudePruningModifier: {final_sparsity: 0.5, end: 2, update_scheduler: multi_step, "
            "scheduler_args: {steps: [1]}}",
            r"steps must be \[\[epoch, sparsity\], ...\]",
        ),
        ("MagnitudePruningModifier: {final_sparsity: 0.5, end: 2, mask_structure: x}", "mask_structure must be"),
        ("OutputDistillationModifier: {comparison: vibes}", "comparison must be kl_divergence or square_head"),
        ("OutputDistillationModifier: {orig_scale: 0, distill_scale: 0}", "must have a weight above 0"),
        ("GMPruningModifier: {}", "unknown modifier 'GMPruningModifier'"),
    ],
)
def test_session_problems(modifier: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        session(modifier)


@pytest.mark.parametrize(
    ("modifier", "message"),
    [
        ("SparseGPTModifier: {sparsity: [0.5], targets: [a, b]}", "a number from 0 to 1 for each of the targets"),
        ("SparseGPTModifier: {sparsity_profile: owls}", "sparsity_profile must be owl"),
    ],
)
def test_one_shot_problems(modifier: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        session(modifier, "oneshot")


def test_two_stages_of_one_name() -> None:
    with pytest.raises(RecipeError, match="two stages must not have one name"):
        meaning_of_text("a_stage: {m_modifiers: {}}\nstages: {a: {m_modifiers: {}}}")


def test_all_problems_come_together() -> None:
    with pytest.raises(RecipeError) as raised:
        legacy(gmp("inter_func: exp, mask_type: x"), "Nothing {}", "EpochRangeModifier {end: 3}")
    assert [problem.line for problem in raised.value.problems] == [2, 2, 3, 4]


def test_strict_versions_prune_what_they_matched() -> None:
    text = "modifiers:\n  - !" + gmp().replace("[a.weight]", "__ALL_PRUNABLE__")
    classes = {
        "transformer.wte.weight": "Embedding",
        "transformer.h.0.mlp.c_fc.weight": "Conv1D",
        "lm_head.weight": "Linear",
    }
    model = ModelNames((), classes)
    old = meaning_of_text(text, version="0.9", model=model)
    assert prune(old)["targets"] == ["lm_head.weight"]
    new = meaning_of_text(text, version="1.9", model=model)
    assert prune(new)["targets"] == list(classes)
    with pytest.raises(MatchingError, match=r"must be one of 0\.6-0\.9.*got '2\.0'"):
        meaning_of_text(text, version="2.0", model=model)
    with pytest.raises(MatchingError, match=r"goes with a model; 1\.9 has none"):
        meaning_of_text(text, version="1.9")


def test_what_is_ignored_is_excluded() -> None:
    meaning = session("WandaPruningModifier: {sparsity: 0.5, ignore: [lm_head, 're:.*layers.0.*']}", "oneshot")
    assert prune(meaning) == {"method": "wanda", "sparsity": 0.5, "exclude": ["lm_head", "re:.*layers.0.*"]}
    [note] = session("WandaPruningModifier: {sparsity: 0.5, ignore: Linear}", "oneshot").unsupported
    assert "ignore Linear names a class of modules" in note.text


def test_a_list_of_modifiers_in_the_session_dialect() -> None:
    meaning = meaning_of_text("- SparseGPTModifier: {sparsity: 0.5}\n- WandaPruningModifier: {sparsity: 0.5}\n")
    assert [item.modifier.name for item in meaning.stages[0].prunings] == ["SparseGPTModifier", "WandaPruningModifier"]
    assert meaning.stages[0].run == "oneshot"


def test_what_llm_compressor_writes_of_a_modifier_is_read() -> None:
    fields = "owl_m: null, owl_lmbda: null, sparsity_profile: null, sequential_targets: [GPT2Block]"
    meaning = session(f"SparseGPTModifier: {{sparsity: 0.5, {fields}, offload_hessians: false}}", "oneshot")
    assert prune(meaning) == {"method": "sparsegpt", "sparsity": 0.5}
    assert [text.partition(":")[0] for level, text in levels(meaning) if level == "ignored"] == [
        "sequential_targets",
        "offload_hessians",
    ]
