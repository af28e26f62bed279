import json
import subprocess
import sys
from pathlib import Path

import pytest

from prunegpt.recipes.describe import describe, render
from prunegpt.recipes.load import load_recipe, meaning_of_text, read_meaning
from prunegpt.recipes.matching import ModelNames
from prunegpt.spec.names import Matrix

FIXTURES = Path(__file__).parent / "fixtures"
SWEEPS = Path(__file__).parents[2] / "sweeps" / "recipes"
READABLE = sorted(path for path in FIXTURES.iterdir() if "broken" not in path.name)

PARTS = {"attn.c_attn": (24, 8), "attn.c_proj": (8, 8), "mlp.c_fc": (32, 8), "mlp.c_proj": (8, 32)}
BLOCKS = [
    Matrix(f"transformer.h.{block}.{part}.weight", block, shape) for block in range(12) for part, shape in PARTS.items()
]
WORDS = Matrix("transformer.wte.weight", None, (50, 8), ("lm_head.weight",), embedding=True)
GPT2 = ModelNames(
    [WORDS, *BLOCKS],
    {
        "transformer.wte.weight": "Embedding",
        **{matrix.name: "Conv1D" for matrix in BLOCKS},
        "transformer.h.0.ln_1.weight": "LayerNorm",
        "lm_head.weight": "Linear",
    },
)


def test_there_are_recipes() -> None:
    assert len(READABLE) >= 8
    assert len(list(SWEEPS.glob("*.yaml"))) == 3


@pytest.mark.parametrize("path", READABLE, ids=lambda path: path.name)
@pytest.mark.parametrize("steps", [None, 1, 100])
@pytest.mark.parametrize("model", [None, GPT2], ids=["alone", "gpt2"])
def test_a_description_is_json_and_text(path: Path, steps: int | None, model: ModelNames | None) -> None:
    description = describe(read_meaning(path), steps, model)
    json.dumps(description)
    lines = render(description)
    assert lines[0].startswith(str(path))
    assert all("\n" not in line for line in lines)


def test_the_study_at_ninety_per_cent() -> None:
    description = describe(read_meaning(SWEEPS / "90sparse.yaml"), 2318, GPT2)
    [stage] = description["stages"]
    [pruning] = stage["prunings"]
    assert stage["epochs"] == 10
    assert stage["train"] == {"num_train_epochs": 10}
    assert len(pruning["matched"]["tensors"]) == 48
    assert pruning["matched"]["unmatched"] == []
    assert pruning["matched"]["weights"] == 12 * (8 * 24 + 8 * 8 + 2 * 8 * 32)
    assert pruning["updates"]["count"] == 388
    assert pruning["updates"]["first_step"] == 2318
    assert pruning["updates"]["last_step"] == 5 * 2318
    assert pruning["updates"]["last_sparsity"] == 0.9
    assert pruning["updates"]["curve"][0] == {"step": 2318, "epoch": 1.0, "sparsity": 0.0}
    assert description["defects"] == []
    text = "\n".join(render(description))
    assert "mask updates: 388, before steps 2318," in text
    assert "tensors: 48 with 9,216 weights" in text


def test_the_published_form_of_it_asks_for_the_same() -> None:
    ours = load_recipe(SWEEPS / "90sparse.yaml")["prune"]
    theirs = read_meaning(FIXTURES / "blocks-90sparse.yaml")
    [pruning] = describe(theirs, 2318, GPT2)["stages"][0]["prunings"]  # twelve modifiers in one
    assert len(pruning["lines"]) == 12
    assert len(pruning["matched"]["tensors"]) == 48
    assert pruning["updates"]["count"] == 388
    section = theirs.stages[0].prune
    assert section is not None
    for name in ("sparsity", "initial", "start", "end", "every", "schedule", "method"):
        assert ours[name] == section[name]


def test_the_other_state_of_the_file_is_an_override() -> None:
    meaning = read_meaning(SWEEPS / "90sparse.yaml", {"sparsity": 0.8})
    assert meaning.stages[0].prune is not None
    assert meaning.stages[0].prune["sparsity"] == 0.8
    assert [defect.code for defect in meaning.defects] == ["name-says-otherwise"]
    assert "the file's name says 0.9, but the recipe prunes to 0.8" in "\n".join(render(describe(meaning)))


@pytest.mark.parametrize("layer", [0, 3, 11])
def test_a_single_layer_is_chosen_by_an_override(layer: int) -> None:
    entry = rf"re:transformer\.h\.{layer}\.(attn|mlp)\.c_\w+\.weight"
    meaning = read_meaning(SWEEPS / "layer-0.80.yaml", {"layer": entry})
    [pruning] = describe(meaning, 100, GPT2)["stages"][0]["prunings"]
    assert pruning["matched"]["tensors"] == [f"transformer.h.{layer}.{part}.weight" for part in PARTS]
    assert pruning["final"] == 0.8
    assert meaning.defects == ()


def test_the_default_layer_is_the_first() -> None:
    [pruning] = describe(read_meaning(SWEEPS / "layer-0.80.yaml"), None, GPT2)["stages"][0]["prunings"]
    assert pruning["matched"]["tensors"] == [f"transformer.h.0.{part}.weight" for part in PARTS]


def test_the_dense_recipe_only_trains() -> None:
    recipe = load_recipe(SWEEPS / "noprune.yaml")
    assert recipe == {"train": {"num_train_epochs": 10}}


def test_versions_are_told_apart() -> None:
    description = describe(read_meaning(FIXTURES / "anchors.md"), 100, GPT2)
    versions = description["stages"][0]["prunings"][0]["matched"]["versions"]
    assert versions["0.6-0.9"]["count"] == 1
    assert versions["0.6-0.9"]["more"] == ["lm_head.weight"]
    assert len(versions["0.6-0.9"]["fewer"]) == 48
    assert versions["1.9"]["more"] == ["transformer.wte.weight", "lm_head.weight"]
    text = "\n".join(render(description))
    assert "SparseML 0.6-0.9 matched 1; more: lm_head.weight. without: transformer.h.0.attn.c_attn.weight" in text
    assert "SparseML 1.9 matched 50; more: transformer.wte.weight, lm_head.weight." in text


def test_what_is_ignored_is_not_counted() -> None:
    text = (
        "x_stage: {run_type: oneshot, m_modifiers: {SparseGPTModifier: {sparsity: 0.5, targets: [Linear], "
        "ignore: ['re:.*lm_head', 're:.*h.0.*']}}}"
    )
    description = describe(meaning_of_text(text), None, GPT2)
    [pruning] = description["stages"][0]["prunings"]
    assert pruning["matched"]["tensors"] == [matrix.name for matrix in BLOCKS if matrix.block]
    assert pruning["matched"]["unmatched"] == []  # Linear means all matrices, as its note says
    assert "    left alone: re:(?:.*lm_head).*, re:.*h.0.*" in render(description)


def test_a_pattern_of_everything_means_what_a_run_prunes() -> None:
    text = (
        "modifiers:\n  - !GMPruningModifier {params: ['re:.*weight'], init_sparsity: 0, final_sparsity: 0.9, "
        "start_epoch: 1, end_epoch: 4}"
    )
    [pruning] = describe(meaning_of_text(text), 100, GPT2)["stages"][0]["prunings"]
    assert pruning["matched"]["tensors"] == [matrix.name for matrix in BLOCKS]


def test_what_matches_nothing_is_said() -> None:
    text = (
        "modifiers:\n  - !GMPruningModifier {params: [model.h.0.attn.c_attn], init_sparsity: 0, final_sparsity: 0.9, "
        "start_epoch: 1, end_epoch: 4, update_frequency: 0.01}"
    )
    description = describe(meaning_of_text(text), 100, GPT2)
    assert description["stages"][0]["prunings"][0]["matched"]["unmatched"] == ["model.h.0.attn.c_attn"]
    assert "    matches nothing: model.h.0.attn.c_attn" in render(description)


def test_the_text_names_what_is_not_done_and_what_is_wrong() -> None:
    text = (
        "modifiers:\n  - !QuantizationModifier {}\n  - !SparsificationLoggingModifier {}\n"
        "  - !GMPruningModifier {params: [a], init_sparsity: 0, final_sparsity: 0.9, start_epoch: 1, end_epoch: 4, "
        "leave_enabled: no}\n"
        "  - !LearningRateFunctionModifier {lr_func: cyclic_linear, start_epoch: 0, end_epoch: 4, init_lr: 0.1, "
        "final_lr: 0, cycle_epochs: 2}\n"
    )
    lines = render(describe(meaning_of_text(text), 10))
    assert "not supported" in lines
    assert "  line 2: QuantizationModifier: weights and activations are not quantised here." in lines
    assert "supported in part" in lines
    assert "without effect here" in lines
    assert "known defects" in lines
    assert "  line 4: last-update-missing" in lines
    assert "  learning rate: a curve that no scheduler gives" in lines
    assert any(line.startswith("    at epoch 0: 0.1, ") for line in lines)
    assert any(", every step" in line for line in lines)


def test_a_schedule_without_a_counterpart_is_said_and_not_raised() -> None:
    text = (
        "x_stage: {run_type: train, m_modifiers: {MagnitudePruningModifier: {final_sparsity: 0.5, start: 0, end: 2, "
        "update_scheduler: calc(nothing)}}}"
    )
    lines = render(describe(meaning_of_text(text), 10))
    assert "    mask updates: there is no such schedule here; see what is not supported." in lines
    assert "not supported" in lines


def test_a_schedule_that_does_not_fit_the_training_is_said_and_not_raised() -> None:
    text = "train: {num_train_epochs: 2}\nprune: {sparsity: 0.5, start: 0, end: 2}\n"
    lines = render(describe(meaning_of_text(text), 10))
    assert any(line.startswith("    mask updates: pruning must end before training does") for line in lines)


def test_neither_torch_nor_numpy_is_imported() -> None:
    code = (
        "import sys, prunegpt.recipes.load, prunegpt.recipes.describe, "
        "prunegpt.recipes.convert\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
