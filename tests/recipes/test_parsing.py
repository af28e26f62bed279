from pathlib import Path

import pytest

from prunegpt.recipes.reader import Dialect, Modifier, RecipeStage, parse_recipe
from prunegpt.recipes.source import RecipeError, parse, read_text

FIXTURES = Path(__file__).parent / "fixtures"


class Parsed:
    """What a recipe holds."""

    def __init__(self, text: str, dialect: Dialect) -> None:
        self.stages: list[RecipeStage]
        self.stages, self.variables = parse_recipe(parse(text), "recipe.yaml", dialect)
        self.modifiers: list[Modifier] = [item for stage in self.stages for item in stage.modifiers]


def legacy(text: str) -> Parsed:
    return Parsed(text, "legacy")


def session(text: str) -> Parsed:
    return Parsed(text, "session")


def test_modifiers_of_all_lists_are_found_in_order() -> None:
    recipe = legacy(
        "epochs: 4\n"
        "modifiers:\n  - !EpochRangeModifier\n    end_epoch: eval(epochs)\n"
        "pruning_modifiers:\n  - !pytorch.GMPruningModifier\n    params: [a, eval(b)]\n  - !Bare\nb: x\n"
    )
    assert [(item.name, item.group, item.line) for item in recipe.modifiers] == [
        ("EpochRangeModifier", "modifiers", 3),
        ("GMPruningModifier", "pruning_modifiers", 6),
        ("Bare", "pruning_modifiers", 8),
    ]
    assert recipe.modifiers[0].fields == {"end_epoch": 4}
    assert recipe.modifiers[1].fields == {"params": ["a", "x"]}
    assert recipe.modifiers[1].lines == {"params": 7}
    assert recipe.variables == {"epochs": 4, "b": "x"}


@pytest.mark.parametrize("text", ["- !A\n  x: 1\n- !B\n", "[!A {x: 1}, !B {}]"])
def test_a_bare_list_is_legal(text: str) -> None:
    assert [item.name for item in legacy(text).modifiers] == ["A", "B"]


def test_a_single_object_is_legal() -> None:
    recipe = legacy("!A\nx: 1\n")
    assert [(item.name, item.fields) for item in recipe.modifiers] == [("A", {"x": 1})]


def test_stage_variables_hide_those_of_the_recipe() -> None:
    recipe = legacy(read_text(FIXTURES / "staged.yaml"))
    assert [(item.stage, item.name) for item in recipe.modifiers] == [
        ("pruning_stage", "EpochRangeModifier"),
        ("pruning_stage", "GMPruningModifier"),
        ("pruning_stage", "SetLearningRateModifier"),
        ("finetuning_stage", "EpochRangeModifier"),
        ("finetuning_stage", "SetLearningRateModifier"),
    ]
    rates = [item.fields["learning_rate"] for item in recipe.modifiers if item.name == "SetLearningRateModifier"]
    assert rates == [2e-4, 1e-4]
    assert recipe.modifiers[1].fields["end_epoch"] == 5
    assert recipe.modifiers[3].fields == {"start_epoch": 6, "end_epoch": 8}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("things: [!A {}]", "!A is in things. Rename the list, such as things_modifiers"),
        ("modifiers: [{a: 1}, !B {}]", "must have a tag, such as `- !GMPruningModifier`; it has none"),
        ("modifiers: [!A 3]", "!A must be followed by fields; it is followed by '3'"),
        ("modifiers: !A {}\n", "modifiers must be a list of modifiers"),
        ("modifiers: [!A {x: eval(y)}]", "line 1: A.x: y: unknown variable 'y'"),
        ("a: eval(b)\nb: eval(a)\nmodifiers: [!A {}]", "in a circle: a -> b -> a"),
        ("s: {m_modifiers: [!A {x: eval(1/0)}]}", "it divides by zero"),
    ],
)
def test_legacy_problems(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        legacy(text)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(RecipeError) as raised:
        legacy("modifiers:\n  - !A {x: eval(y)}\n  - {a: 1}\n  - !B {x: eval(2 +)}\n")
    assert [problem.line for problem in raised.value.problems] == [2, 3, 4]


def test_session_stages_and_groups() -> None:
    recipe = session(
        "n: 2\n"
        "first_oneshot_stage:\n  a_modifiers:\n    A: {x: 'layers.eval(n).'}\n  b_modifiers: {B: }\n"
        "second_stage:\n  run_type: train\n  n: 5\n  modifiers:\n    - C: {x: eval(n)}\n    - D: {}\n"
        "stages:\n  third: {c_modifiers: {A: {x: eval(n + 1)}}}\n"
    )
    assert [(stage.name, stage.run) for stage in recipe.stages] == [
        ("first_oneshot", "oneshot"),
        ("second", "train"),
        ("third", None),
    ]
    assert [(item.stage, item.group, item.name, dict(item.fields)) for item in recipe.modifiers] == [
        ("first_oneshot", "a_modifiers", "A", {"x": "layers.2."}),
        ("first_oneshot", "b_modifiers", "B", {}),
        ("second", "modifiers", "C", {"x": 5.0}),
        ("second", "modifiers", "D", {}),
        ("third", "c_modifiers", "A", {"x": 3.0}),
    ]


def test_session_without_stages() -> None:
    recipe = session("pruning_modifiers:\n  A: {x: 1}\nargs: {y: 2}\n")
    assert [(item.stage, item.name) for item in recipe.modifiers] == [("", "A")]
    assert recipe.variables == {"y": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "modifiers must hold `ModifierName: {fields}`; it holds"),
        ("a_stage: 3", "a stage must be a mapping with \\*_modifiers"),
        ("a_stage: {run_type: both}", "run_type must be train or oneshot, got 'both'"),
        ("a_stage: {m_modifiers: [3]}", "m_modifiers must hold `ModifierName: {fields}`; it holds '3'"),
        ("a_stage: {m_modifiers: {A: 3}}", "A must be followed by a mapping of fields"),
        ("m_modifiers: {A: {x: eval(y)}}", "unknown variable 'y'"),
        ("a: eval(b)\nb: eval(a)\nm_modifiers: {}", "in a circle"),
        ("thing: {a: 1}\nm_modifiers: {}", "thing is neither"),
        ("a_stage: {m_modifiers: {A: {}, A: {}}}", "keys must differ; 'A' is there twice"),
    ],
)
def test_session_problems(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        session(text)
