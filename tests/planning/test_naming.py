"""Every name that becomes a folder, a file or a key is short enough to be one, or refused when the spec is checked."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from prunegpt.errors import SpecError
from prunegpt.planning.resolve import Planner
from prunegpt.report.tables import build_table
from prunegpt.root import Root, write_text
from prunegpt.spec.naming import MAX_NAME, joined
from prunegpt.spec.part import NAME, TEMPLATE
from prunegpt.spec.schema import Spec, TableSpec, TrialSpec
from prunegpt.store import Store
from tests.support.specs import BASE, model_folder, text_folder
from tests.support.sweep_plans import make_plan, make_trial

LONG = "x" * 300
TEMPORARY = len("." + "." + 32 * "f" + ".damaged")  # what a name may get around it


def named(model: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str, FieldInfo]]:
    for name, field in model.model_fields.items():
        patterns = [getattr(one, "pattern", None) for one in field.metadata]
        if NAME in patterns or TEMPLATE in patterns:
            yield model, name, field


FIELDS = [found for model in (Spec, TrialSpec, TableSpec) for found in named(model)]
SPECS: dict[str, dict[str, Any]] = {
    "Spec.name": {"name": LONG},
    "TrialSpec.name": {"trials": [{"name": LONG}]},
    "TableSpec.name": {"tables": [{"title": "t", "name": LONG, "rows": ["a"], "columns": ["trial"]}]},
    "a varied name": {"trials": [{"name": "x" * 140, "vary": {"device": ["cpu", "auto"]}}]},
}


def spec(**changed: Any) -> dict[str, Any]:
    return {"name": "n", "base": BASE, "trials": [{"name": "a"}], **changed}


def test_every_field_that_is_a_name_is_tried() -> None:
    assert {f"{model.__name__}.{name}" for model, name, _ in FIELDS} <= set(SPECS)
    assert len(FIELDS) >= 3


@pytest.mark.parametrize("which", SPECS)
def test_a_name_that_is_too_long_is_refused_when_it_is_read(which: str) -> None:
    with pytest.raises(SpecError, match=rf"name may have {MAX_NAME} characters.*; .* has \d+.* Choose a shorter"):
        Planner(spec(**SPECS[which])).plan  # noqa: B018


@pytest.fixture(scope="module")
def longest(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A plan whose every name is as long as it may be, a teacher's that is a folder included."""
    place = tmp_path_factory.mktemp("place")
    student, teacher = model_folder(place / "student"), model_folder(place / ("m" * 250), fill=1.0)
    text = text_folder(place / "text")
    distilled = [{"distill": {"teacher": {"model": str(teacher)}}}]
    trials = [{"name": "t" * MAX_NAME, "seeds": [2**32 - 2, 2**32 - 1], "stages": distilled}]
    base = {"model": str(student), "data": {"path": str(text), "block_size": 8}}
    plan = Planner({"name": "s" * MAX_NAME, "base": base, "trials": trials}).plan
    assert any(trial.implicit for trial in plan.trials)
    return plan


def test_the_longest_names_can_be_folders(longest: Any, tmp_path: Path) -> None:
    root = Root(tmp_path)
    for trial in longest.trials:
        folder = root.attempt(longest.name, trial.name, 10**6)
        write_text(folder / "trial.json", "{}")
        assert all(len(part.encode()) + TEMPORARY <= 255 for part in folder.relative_to(root.path).parts)


def test_a_teacher_of_another_sweep_gets_a_name_that_can_be_a_folder(tmp_path: Path) -> None:
    one, two = "a" * MAX_NAME, "b" * MAX_NAME
    teacher = make_trial("t" * MAX_NAME, "load ft", sweep=one)
    with Store.open(Root(tmp_path)) as store:
        store.save_sweep(make_plan(teacher, name=one))
        changed = make_trial("t" * MAX_NAME, "load other", sweep=one, implicit=True)
        saved = store.save_sweep(make_plan(make_trial("kd", "load kd", needs="other", sweep=two), changed, name=two))
        names = {trial.plan.name for trial in saved}
        assert len(names) == 2
        assert all(len(name) <= MAX_NAME for name in names)
        assert store.result(f"{one}/{'t' * MAX_NAME}").key == "ft"


@pytest.mark.parametrize("pair", [("a", "b"), ("a" * 140, "b" * 140), ("é" * 20, "b")])
def test_joined_names_are_short_and_differ(pair: tuple[str, str]) -> None:
    assert len(joined(*pair)) <= MAX_NAME
    assert joined(*pair) == joined(*pair)
    assert joined(*pair) != joined(pair[0], pair[1] + "c")
    assert joined("a", "b") == "a+b"


def test_a_table_with_a_long_title_has_a_name_that_can_be_a_files() -> None:
    table = build_table(
        TableSpec.model_validate({"title": LONG, "rows": ["a"], "columns": ["trial"]}), (), lambda _: None, sweep="n"
    )
    assert len(table.name) <= MAX_NAME
    assert re.fullmatch(r"x+", table.name)
