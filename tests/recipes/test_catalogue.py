"""Nothing of a recipe is dropped in silence: over every field of SparseML's and llm-compressor's modifiers."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from prunegpt.recipes.catalogue import CATALOGUE, IGNORED, UNSUPPORTED, Field, reference
from prunegpt.recipes.load import meaning_of_text
from prunegpt.recipes.meaning import RecipeMeaning
from prunegpt.recipes.source import RecipeError

ROOT = Path(__file__).parents[2]
# Tool, version and dialect -> modifier -> its fields: of SparseML's classes and of llm-compressor's pydantic models.
RECORDED: Mapping[str, Mapping[str, str]] = json.loads((Path(__file__).parent / "modifiers.json").read_text())
_READ = """
import importlib, inspect, json, pkgutil
import llmcompressor.modifiers as package
from llmcompressor.modifiers import Modifier
found = {}
for item in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    try:
        names = vars(importlib.import_module(item.name))
    except ImportError:
        continue
    for kind in names.values():
        if inspect.isclass(kind) and issubclass(kind, Modifier) and kind.__name__.endswith("Modifier"):
            found[kind.__name__] = " ".join(name for name in kind.model_fields if not name.endswith("_"))
del found["Modifier"]
print(json.dumps(found))
"""


def unlisted(dialect: str, modifiers: Mapping[str, str]) -> list[str]:
    """What a tool has and the catalogue does not: modifiers, and fields of those that are read."""
    known = CATALOGUE[dialect]
    found = [name for name in modifiers if name not in {*known, *UNSUPPORTED, *IGNORED}]
    return found + [
        f"{name}.{field}"
        for name in modifiers.keys() & known.keys()
        for field in modifiers[name].split()
        if field not in known[name]
    ]


@pytest.mark.parametrize("tool", RECORDED)
def test_every_modifier_and_field_of_the_tools_is_listed(tool: str) -> None:
    assert sum(len(fields.split()) for fields in RECORDED[tool].values()) > 100
    assert not unlisted(tool.rpartition(" ")[2], RECORDED[tool])


@pytest.mark.slow  # installs a package; the recorded fields of one version are compared above
def test_every_field_of_the_newest_llm_compressor_is_listed(tmp_path: Path) -> None:
    packages = ["llmcompressor", "compressed-tensors", "loguru"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), *packages]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"llm-compressor cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{_READ}"
    read = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if read.returncode:
        pytest.skip(f"llm-compressor cannot be imported here: {read.stderr.strip().splitlines()[-1:]}")
    modifiers = json.loads(read.stdout.splitlines()[-1])
    assert "SparseGPTModifier" in modifiers
    assert not unlisted("session", modifiers)


def test_the_reference_is_what_the_catalogue_says() -> None:
    written = (ROOT / "sweeps" / "RECIPES.md").read_text(encoding="utf-8")
    assert written == reference(), "write it again: prunegpt recipe fields --update sweeps/RECIPES.md"


# A good body of each modifier, and for each field values that are not what its absence means.
BODIES: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "legacy": {
        **{
            name: {
                "params": ["re:.*mlp"],
                "init_sparsity": 0.1,
                "final_sparsity": 0.5,
                "start_epoch": 1,
                "end_epoch": 4,
            }
            for name in CATALOGUE["legacy"]
            if "final_sparsity" in CATALOGUE["legacy"][name]
        },
        "ACDCPruningModifier": {
            "params": ["re:.*mlp"],
            "compression_sparsity": 0.5,
            "start_epoch": 1,
            "end_epoch": 6,
            "update_frequency": 1,
        },
        "ConstantPruningModifier": {"params": "__ALL__"},
        "DistillationModifier": {"distill_output_keys": ["logits"]},
        "PerLayerDistillationModifier": {
            "student_layer_names": ["h.0", "h.1"],
            "teacher_layer_names": ["h.1", "h.2"],
        },
        "SetLearningRateModifier": {"learning_rate": 0.1},
        "LearningRateFunctionModifier": {
            "lr_func": "cyclic_linear",
            "init_lr": 0.1,
            "final_lr": 0.01,
            "start_epoch": 1,
            "end_epoch": 7,
        },
        "LearningRateModifier": {
            "lr_class": "StepLR",
            "lr_kwargs": {"step_size": 1},
            "init_lr": 0.1,
            "start_epoch": 1,
            "end_epoch": 6,
        },
        "SetWeightDecayModifier": {"weight_decay": 0.01},
        "EpochRangeModifier": {"end_epoch": 3},
    },
    "session": {
        "MagnitudePruningModifier": {"targets": ["h.0"], "final_sparsity": 0.5, "start": 1, "end": 4},
        "SparseGPTModifier": {"targets": ["h.0"], "sparsity": 0.5},
        "WandaPruningModifier": {"targets": ["h.0"], "sparsity": 0.5},
        "OutputDistillationModifier": {"targets": ["h.0"], "comparison": "square_head"},
        "ConstantPruningModifier": {"targets": "__ALL__"},
    },
}
VALUES: Mapping[str, tuple[Any, ...]] = {
    "start_epoch": (2, 2.5),
    "end_epoch": (5, 8),
    "start": (2,),
    "end": (5,),
    "update": (0.5,),
    "update_frequency": (0.5, 2),
    "params": (["re:.*attn"],),
    "targets": (["h.1"], ["h.2"]),
    "compress_layers": (["h.1"],),
    "mask_type": ("block4", [1, 8]),
    "mask_structure": ("block_1,4", "1:2"),
    "final_sparsity": (0.6, {0.7: ["re:.*mlp"]}),
    "init_sparsity": (0.2, "__FROM_PARAM__"),
    "inter_func": ("linear",),
    "score_type": ("movement", "MFAC"),
    "lr_func": ("linear", "cosine"),
    "lr_class": ("CosineAnnealingWarmRestarts",),
    "lr_kwargs": ({"step_size": 2}, {"step_size": 1, "gamma": 0.5}),
    "distill_output_keys": (["start_logits"],),
    "student_layer_names": (["h.2", "h.3"],),
    "teacher_layer_names": (["h.2", "h.3"],),
    "ignore": (["lm_head"], ["re:.*h.0"]),
    "sparsity": (0.6, [0.7]),
    "sparsity_profile": ("owl",),
    "update_scheduler": ("linear", "multi_step"),
    "scheduler_args": ({"exponent": 3},),
    "comparison": ("kl_divergence", "cosine_similarity"),
    "comparison_args": ({"temperature": 3},),
    "temperature": (3, 1.5),
    "hardness": (0.25,),
    "gain": (0.5,),
    **dict.fromkeys(("orig_scale", "distill_scale"), (2.0,)),
    **dict.fromkeys(("learning_rate", "init_lr", "final_lr", "weight_decay"), (0.02,)),
    **dict.fromkeys(("num_grads", "fisher_block_size", "num_recomputations", "block_size", "cycle_epochs"), (2, 4)),
    **dict.fromkeys(("damp", "dampening_frac", "percdamp", "owl_m", "owl_lmbda", "compression_sparsity"), (0.3,)),
    **dict.fromkeys(("global_sparsity", "phased", "apply_globally", "quantize"), (True,)),
    **dict.fromkeys(
        ("leave_enabled", "normalize", "project_features", "momentum_buffer_reset", "preserve_sparsity_mask"), (False,)
    ),
    "sequential_update": (False,),
    "ACDCPruningModifier.global_sparsity": (False,),
    "ConstantPruningModifier.params": (["re:.*attn"],),
    "EpochRangeModifier.start_epoch": (12,),
    "EpochRangeModifier.end_epoch": (12,),
    **dict.fromkeys(("prunen", "prunem"), (2,)),
}
CASES = [
    (dialect, name, field)
    for dialect, modifiers in CATALOGUE.items()
    for name, fields in modifiers.items()
    for field in fields
]
# What a field goes with to mean anything.
BESIDE = {
    "owl_m": {"sparsity_profile": "owl"},
    "owl_lmbda": {"sparsity_profile": "owl"},
    "prunen": {"prunem": 4},
    "prunem": {"prunen": 1},
    "scheduler_args": {"update_scheduler": "polynomial_decay"},
    "compress_layers": {"targets": None},
}


def read(dialect: str, name: str, body: Mapping[str, Any]) -> RecipeMeaning:
    said = json.dumps(body)
    if dialect == "legacy":
        return meaning_of_text(f"modifiers:\n  - !EpochRangeModifier {{end_epoch: 9}}\n  - !{name} {said}\n")
    run = "oneshot" if "sparsity" in CATALOGUE[dialect].get(name, {}) else "train"
    return meaning_of_text(f"x_stage:\n  run_type: {run}\n  m_modifiers:\n    {name}: {said}\n")


def outcome(dialect: str, name: str, body: Mapping[str, Any]) -> Any:
    """All that a reader is told of a recipe and all that a run does: what it becomes and what is noted, or refused."""
    try:
        meaning = read(dialect, name, body)
    except RecipeError as error:
        return [(problem.where, problem.message) for problem in error.problems]
    sections = [(stage.run, stage.epochs, stage.sections) for stage in meaning.stages]
    return sections, [(note.level, note.text) for note in meaning.notes], [item.code for item in meaning.defects]


@pytest.mark.parametrize(("dialect", "name", "field"), CASES)
def test_a_field_is_honoured_or_its_effect_is_said(dialect: str, name: str, field: str) -> None:
    known: Field = CATALOGUE[dialect][name][field]
    body = {**BODIES[dialect][name], **BESIDE.get(field, {})}
    without = outcome(dialect, name, body)
    for value in VALUES.get(f"{name}.{field}") or VALUES.get(field, ("something",)):
        found = outcome(dialect, name, {**body, field: value})
        if known.level == "supported":
            assert found != without
        else:
            assert isinstance(found, tuple)
            assert (known.level, f"{field}: {known.text}") in found[1]
    for usual in known.usual:
        found = outcome(dialect, name, {**body, field: usual})
        assert not isinstance(found, tuple) or not [text for _, text in found[1] if text.startswith(f"{field}: ")]


@pytest.mark.parametrize(("dialect", "name"), [(dialect, name) for dialect in BODIES for name in BODIES[dialect]])
def test_the_good_bodies_are_recipes_without_a_note_of_what_is_not_done(dialect: str, name: str) -> None:
    assert BODIES[dialect].keys() == CATALOGUE[dialect].keys()
    assert not read(dialect, name, BODIES[dialect][name]).unsupported


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.sampled_from([(dialect, name) for dialect in BODIES for name in BODIES[dialect]]))
def test_of_any_fields_together_none_is_dropped_in_silence(data: st.DataObject, which: tuple[str, str]) -> None:
    dialect, name = which
    fields = CATALOGUE[dialect][name]
    chosen = data.draw(st.lists(st.sampled_from(sorted(fields)), max_size=5, unique=True))
    given_fields = {field: data.draw(st.sampled_from(VALUES.get(field, ("something",)))) for field in chosen}
    try:
        notes = read(dialect, name, {**BODIES[dialect][name], **given_fields}).notes
    except RecipeError as error:
        event(f"refused: {error.problems[0].where}")
        return
    for field in chosen:
        if fields[field].level != "supported":
            assert any(note.text == f"{field}: {fields[field].text}" for note in notes)


@pytest.mark.parametrize("dialect", CATALOGUE)
@pytest.mark.parametrize(
    "name", ["SparseGPTModifier", "GMPruningModifier", "QuantizationModifier", "REAPPruningModifier"]
)
def test_what_is_not_listed_is_refused_or_said(dialect: str, name: str) -> None:
    if name in UNSUPPORTED:
        assert read(dialect, name, {"anything": 1}).unsupported
        return
    with pytest.raises(RecipeError, match=r"^.*\n.*unknown (field|modifier)"):
        read(dialect, name, {"anything": 1})
