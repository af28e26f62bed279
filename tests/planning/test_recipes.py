"""Recipes and measured curves in a plan: what they say is in the stage and its key, where they lie is not."""

from pathlib import Path
from typing import Any

import pytest

from prunegpt.errors import SpecError
from prunegpt.planning.resolve import plan_file
from prunegpt.spec.plan import SweepPlan
from tests.support.specs import FIRST_TRIAL, HEADER, only, problems_of, problems_of_text

RECIPE = """\
train: {num_train_epochs: 4, learning_rate: 1.0e-3}
prune: {method: magnitude, sparsity: 0.8, start: 0, end: 2}
"""
TRIAL = "  - {name: a, stages: [{finetune: {recipe: r.yaml, train: {learning_rate: 0.5}}}]}\n"


def planned(folder: Path, recipe: str | None = RECIPE, trial: str = TRIAL) -> SweepPlan:
    folder.mkdir(exist_ok=True)
    if recipe is not None:
        (folder / "r.yaml").write_text(recipe)
    (folder / "words.yaml").write_text(HEADER + trial)
    return plan_file(folder / "words.yaml")


def test_a_stage_takes_from_its_recipe_what_it_does_not_say(tmp_path: Path) -> None:
    stage = planned(tmp_path).trials[0].stages[1]
    assert stage.finetune is not None
    assert stage.finetune.train == {"num_train_epochs": 4.0, "learning_rate": 0.5}
    assert stage.finetune.prune is not None
    assert (stage.finetune.prune.sparsity, stage.finetune.prune.end) == (0.8, 2)
    assert stage.finetune.recipe is None  # nothing is left to be looked up where the trial runs


def test_the_content_of_a_recipe_decides_and_its_place_does_not(tmp_path: Path) -> None:
    key = planned(tmp_path / "a").trials[0].key
    assert planned(tmp_path / "b").trials[0].key == key
    assert planned(tmp_path / "c", "# a remark\n" + RECIPE).trials[0].key == key
    assert planned(tmp_path / "d", RECIPE.replace("0.8", "0.9")).trials[0].key != key
    written = TRIAL.replace(
        "recipe: r.yaml, train: {",
        "prune: {method: magnitude, sparsity: 0.8, start: 0, end: 2}, train: {num_train_epochs: 4, ",
    )
    assert planned(tmp_path / "e", None, written).trials[0].key == key


def broken(folder: Path, recipe: str | None, trial: str = TRIAL) -> tuple[str, int | None, str]:
    with pytest.raises(SpecError) as caught:
        planned(folder, recipe, trial)
    found = only(caught.value.problems)
    return found.where, found.line, found.message


BROKEN = {
    "missing": (None, "recipe r.yaml does not exist. Check its path."),
    "a bad field": ("prune: {sparsity: 90}", "recipe r.yaml: line 1: prune.sparsity: sparsity must be at least 0"),
    "an end after training": ("prune: {sparsity: 0.5, end: 9}", "pruning must end before training does"),
    "a distillation": ("distill: {hardness: 0.5}", "recipe r.yaml distils, so its stage must be a distill stage"),
}
assert BROKEN


@pytest.mark.parametrize(("recipe", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_wrong_with_a_recipe_is_told_at_its_stage(recipe: str | None, message: str, tmp_path: Path) -> None:
    where, line, told = broken(tmp_path, recipe)
    assert where in ("trials.0.stages.0.finetune", "trials.0.stages.0.finetune.prune")
    assert line == FIRST_TRIAL
    assert message in told


def test_a_broken_recipe_hides_no_other_problem(tmp_path: Path) -> None:
    text = (
        f"{HEADER}  - name: a\n    evaluate: {{split: test}}\n    stages:\n"
        "      - finetune: {recipe: none.yaml}\n"
        "      - prune: {sparsity: 0.5, layers: 9}\n"
        "      - distill: {teacher: nobody}\n"
    )
    assert [item.where for item in problems_of_text(text, tmp_path)] == [
        "trials.0.evaluate",
        "trials.0.stages.0.finetune",
        "trials.0.stages.1.prune",
        "trials.0.stages.2.distill.teacher",
    ]


# -- curves ----------------------------------------------------------------------------------------------------------

SENSITIVITY = "  - {name: a, stages: [{prune: {sparsity: 0.5, allocation: sensitivity, options: {sweep: layers}}}]}\n"


def test_measured_curves_are_in_the_stage_and_its_key(tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(HEADER + SENSITIVITY)
    asked: list[str] = []

    def curves(height: float) -> Any:
        def of(sweep: str) -> dict[str, tuple[tuple[float, float], ...]]:
            asked.append(sweep)
            return {str(block): ((0.5, 0.1), (0.9, height)) for block in range(4)}

        return of

    one, two = (plan_file(path, curves=curves(height)).trials[0] for height in (1.0, 2.0))
    assert asked == ["layers", "layers"]
    assert one.stages[1].prune is not None
    assert one.stages[1].prune.curves["3"] == ((0.5, 0.1), (0.9, 1.0))
    assert one.key != two.key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sweep": "layers"}, "needs finished trials that prune one block each; sweep 'layers' has none"),
        ({}, "options.sweep does not name the sweep that measured them"),
    ],
)
def test_curves_that_are_not_there(options: dict[str, str], message: str) -> None:
    stage = {"prune": {"sparsity": 0.5, "allocation": "sensitivity", "options": options}}
    found = only(problems_of({"name": "a", "stages": [stage]}))
    assert found.where == "trials.0.stages.0.prune"
    assert message in found.message
