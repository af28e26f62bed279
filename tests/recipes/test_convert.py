from pathlib import Path
from typing import Any

import pytest

from prunegpt.recipes.convert import to_mapping, to_stages, to_yaml
from prunegpt.recipes.learning_rate import LearningRateCurve
from prunegpt.recipes.load import load_recipe, meaning_of_text, parse_overrides, read_meaning
from prunegpt.recipes.source import RecipeError
from prunegpt.spec.schema import DistillSpec, StageSpec

FIXTURES = Path(__file__).parent / "fixtures"
TRAINING = ["blocks-90sparse.yaml", "anchors.md", "staged.yaml", "obs-cyclic.yaml", "session-train.yaml"]


@pytest.mark.parametrize("name", TRAINING)
def test_a_converted_recipe_reads_back_the_same(name: str, tmp_path: Path) -> None:
    meaning = read_meaning(FIXTURES / name)
    path = tmp_path / "own.yaml"
    path.write_text(to_yaml(to_mapping(meaning)))
    again, direct = (
        DistillSpec(teacher="t", **(file := load_recipe(one)).pop("distill", {}), **file)
        for one in (path, FIXTURES / name)
    )
    assert again == direct


@pytest.mark.parametrize("name", [*TRAINING, "alternating.yaml", "obcq.yaml"])
def test_converted_stages_are_stages_of_a_spec(name: str) -> None:
    meaning = read_meaning(FIXTURES / name)
    chain = to_stages(meaning, teacher="dense")
    assert chain
    assert any("learning_rate" in body for stage in chain for body in stage.values()) == any(
        stage.follow_curve for stage in meaning.stages
    )
    for stage in chain:
        StageSpec.model_validate(stage)


def test_the_chain_of_an_alternating_recipe() -> None:
    chain = to_stages(read_meaning(FIXTURES / "alternating.yaml"))
    assert [next(iter(stage)) for stage in chain] == ["prune", "finetune", "prune", "finetune"]
    assert chain[2]["prune"]["sparsity"] == 0.7


def test_a_stage_that_distils_needs_a_teacher() -> None:
    meaning = read_meaning(FIXTURES / "session-train.yaml")
    with pytest.raises(RecipeError, match="must have a teacher; none was given"):
        to_stages(meaning)
    assert to_stages(meaning, teacher="dense")[0]["distill"]["teacher"] == "dense"


@pytest.mark.parametrize(("name", "found"), [("alternating.yaml", "first_sparsity"), ("obcq.yaml", "oneshot")])
def test_only_one_training_stage_is_a_recipe(name: str, found: str) -> None:
    with pytest.raises(RecipeError, match=f"must be one stage that trains; this one has: {found}"):
        load_recipe(FIXTURES / name)


def test_what_is_unsupported_is_refused_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "quantised.yaml"
    path.write_text("modifiers:\n  - !EpochRangeModifier {end_epoch: 2}\n  - !QuantizationModifier {}\n")
    with pytest.raises(RecipeError, match=r"line 3: QuantizationModifier: not supported: .*not quantised"):
        load_recipe(path)
    assert load_recipe(path, strict=False)["train"] == {"num_train_epochs": 2}
    assert [note.level for note in read_meaning(path).notes] == ["supported", "unsupported"]


def test_overrides_of_all_dialects() -> None:
    assert load_recipe(FIXTURES / "anchors.md", {"final_sparsity": 0.5})["prune"]["sparsity"] == 0.5
    assert load_recipe(FIXTURES / "session-train.yaml", {"end": 3})["prune"]["end"] == 3.0
    assert load_recipe(FIXTURES / "own.yaml", {"prune.sparsity": 0.5})["prune"]["sparsity"] == 0.5
    with pytest.raises(RecipeError, match=r"'sparsity' is none\. There are: final_sparsity, end, num_epochs"):
        load_recipe(FIXTURES / "anchors.md", {"sparsity": 0.5})


def test_our_own_format() -> None:
    recipe = load_recipe(FIXTURES / "own.yaml")
    assert recipe["train"] == {"num_train_epochs": 3, "learning_rate": 5e-5}
    prune = recipe["prune"]
    assert (prune["method"], prune["sparsity"], prune["every"]) == ("magnitude", 0.9, 0.25)
    assert recipe["distill"] == {"hardness": 0.5, "temperature": 2.0}
    curve = LearningRateCurve(segments=recipe["learning_rate"])
    assert curve.learning_rate_at(5, steps_per_epoch=10) == pytest.approx(2.5e-5)


def test_an_empty_section_is_none(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("train: {max_steps: 3}\nprune:\ndistill:\n")
    assert load_recipe(path) == {"train": {"max_steps": 3}}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("train:\n  max_stepz: 3\n", 2, "unknown training argument 'max_stepz'"),
        ("prune:\n  sparsity: 90\n", 2, "Did you mean 0.9"),
        ("prune:\n  sparsity: 0.9\n  scedule: cubic\n", 3, "unknown key 'scedule'. Did you mean 'schedule'"),
        ("prune:\n  sparsity: 0.9\n  start: 3\n  end: 1\n", 1, "end must not come before start"),
        ("distill:\n  hardness: 3\n", 2, "must be less than or equal to 1"),
        ("distill:\n  train: {}\n", 2, "unknown key 'train'"),
        ("prune: {sparsity: 0.5}\ndistil: {}\n", 2, "unknown key 'distil'. Did you mean 'distill'"),
        ("learning_rate:\n  - {shape: linear, start: 0, first: 0.1}\n", 2, "a linear segment needs an end"),
        ("learning_rate:\n  - {shape: spline, first: 0.1}\n", 2, "must be 'constant'"),
    ],
)
def test_problems_of_our_own_format(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as raised:
        load_recipe(path)
    assert raised.value.problems[0].line == line


def test_all_problems_of_our_own_format_come_together(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("prune:\n  sparsity: 7\n  schedule: spline\ndistill:\n  temperature: 0\n")
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    assert sorted(problem.line or 0 for problem in raised.value.problems) == [2, 3, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prun: {}", "must hold train, prune, distill, learning_rate, or the modifiers of SparseML; it holds prun"),
        ("[1, 2]", "must be a mapping or a list of modifiers; it is neither"),
        ("{}", "it holds nothing"),
        ("word", "it is neither"),
    ],
)
def test_what_is_no_recipe(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        meaning_of_text(text)


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("modifiers: [!EpochRangeModifier {end_epoch: 1}]", "legacy"),
        ("modifiers: []", "legacy"),
        ("modifiers:", "legacy"),
        ("- !EpochRangeModifier {end_epoch: 1}", "legacy"),
        ("x_stage: {m_modifiers: {}}", "session"),
        ("stages: {x: {m_modifiers: {}}}", "session"),
        ("m_modifiers: {ConstantPruningModifier: {targets: __ALL__}}", "session"),
        ("modifiers: [{ConstantPruningModifier: {targets: __ALL__}}]", "session"),
        ("train: {max_steps: 1}", "own"),
    ],
)
def test_dialects_are_told_apart(text: str, dialect: str) -> None:
    assert meaning_of_text(text).dialect == dialect


def test_overrides_of_a_command_line() -> None:
    assert parse_overrides(["a=0.5", "b.c=[x, y]", "layer=re:h\\.3=x", "n=true"]) == {
        "a": 0.5,
        "b.c": ["x", "y"],
        "layer": "re:h\\.3=x",
        "n": True,
    }
    with pytest.raises(RecipeError, match=r"must be NAME=VALUE, such as sparsity=0\.8, got 'a'"):
        parse_overrides(["a", "b=["])


def test_yaml_keeps_the_order_of_sections() -> None:
    data: dict[str, Any] = {"train": {"b": 1, "a": (1, 2)}, "prune": {}}
    assert to_yaml(data) == "train:\n  b: 1\n  a:\n  - 1\n  - 2\nprune: {}\n"


def test_what_lies_inside_a_training_argument_is_written() -> None:
    text = "train:\n  lr_scheduler_type: cosine\n  lr_scheduler_kwargs:\n    num_cycles: 1\n"
    assert to_yaml(to_mapping(meaning_of_text(text))) == text
