"""Named parts: every built-in one is where the table says; a plug-in is found, and named where it is broken."""

import ast
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

import prunegpt
import prunegpt.registry
from prunegpt.errors import MOST_LISTED, SpecError, UnknownPartError, listed, nearest, unknown
from prunegpt.registry import Registry
from prunegpt.spec.columns import check_column
from prunegpt.spec.figures import FigureSpec
from prunegpt.spec.metrics import check_metric
from prunegpt.spec.problems import problems_of
from prunegpt.spec.read import plain_document
from prunegpt.spec.reference import parts
from prunegpt.spec.training_arguments import check_argument

PACKAGE = Path(prunegpt.__file__).parent
REGISTRIES = [item for item in vars(prunegpt.registry).values() if isinstance(item, Registry)]
PARTS = [(registry, name) for registry in REGISTRIES for name in registry._builtin]
assert len(REGISTRIES) > 5
assert PARTS


@pytest.mark.parametrize(("registry", "name"), PARTS, ids=[f"{part.kind} {name}" for part, name in PARTS])
def test_a_built_in_part_is_where_the_table_says(registry: Registry, name: str) -> None:
    assert name in registry
    assert name in registry.names()
    assert callable(registry.load(name)) or hasattr(registry.load(name), "name")


def test_kinds_and_their_groups_differ() -> None:
    kinds = [registry.kind for registry in REGISTRIES]
    assert len(set(kinds)) == len(kinds)


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry of one built-in part and some plug-ins."""
    points = [
        EntryPoint("pi", "math:pi", "prunegpt.some_kind"),
        EntryPoint("one", "math:e", "prunegpt.some_kind"),
        EntryPoint("gone", "no_such_module:x", "prunegpt.some_kind"),
        EntryPoint("lacking", "math:no_such_thing", "prunegpt.some_kind"),
        EntryPoint("twice", "math:pi", "prunegpt.some_kind"),
        EntryPoint("twice", "math:e", "prunegpt.some_kind"),
        EntryPoint("other", "math:pi", "prunegpt.other_kind"),
    ]

    def entry_points(*, group: str) -> list[EntryPoint]:
        return [point for point in points if point.group == group]

    monkeypatch.setattr(prunegpt.registry, "entry_points", entry_points)
    return Registry("some kind", {"one": "math:tau"})


def test_a_plug_in_is_found_under_its_name(plugged: Registry) -> None:
    import math

    assert plugged.names() == ["one", "gone", "lacking", "pi", "twice"]
    assert plugged.load("pi") == math.pi
    assert "pi" in plugged
    assert "other" not in plugged


def test_a_plug_in_does_not_take_a_built_in_name(plugged: Registry) -> None:
    import math

    assert plugged.load("one") == math.tau


BROKEN = {
    "gone": r"the some kind plug-in 'gone' \(no_such_module:x\) cannot be imported: ModuleNotFoundError",
    "lacking": r"the some kind plug-in 'lacking' \(math:no_such_thing\) cannot be imported: AttributeError",
    "twice": r"a some kind must have one origin; 'twice' has: math:e, math:pi\. Uninstall all but one",
    "oen": r"unknown some kind 'oen'\. Did you mean 'one'\? Valid: one, gone, lacking, pi, twice\.",
}
assert BROKEN


@pytest.mark.parametrize(("name", "message"), BROKEN.items(), ids=BROKEN.keys())
def test_a_part_that_cannot_be_had_is_named(name: str, message: str, plugged: Registry) -> None:
    with pytest.raises(UnknownPartError, match=message):
        plugged.load(name)


def test_names_are_checked_without_loading(plugged: Registry) -> None:
    plugged.check("gone")
    with pytest.raises(UnknownPartError, match="unknown some kind 'x'"):
        plugged.check("x")


# -- messages --------------------------------------------------------------------------------------------------------


def test_valid_names_come_nearest_first_and_are_all_there() -> None:
    names = ["train", "stages", "seeds", "vary", "seed"]
    assert nearest("sede", names)[0] == "seed"
    assert sorted(nearest("sede", names)) == sorted(names)
    assert nearest("x", []) == []


def test_a_path_is_found_by_its_end() -> None:
    found = nearest("lerning_rate", ["steps", "train.learning_rate", "last.learning_rate"])
    assert sorted(found[:2]) == ["last.learning_rate", "train.learning_rate"]


def test_of_many_names_those_that_are_like_it_are_listed_and_the_command_that_lists_all() -> None:
    names = [f"k{index}" for index in range(100)]
    assert unknown("key", "k10", names).endswith(" and 94 more.")
    message = unknown("key", "learning", [*names, "learning_rate"], "`prunegpt sweep fields`")
    assert message.endswith(
        "Did you mean 'learning_rate'? Valid: learning_rate and 100 more; `prunegpt sweep fields` lists all."
    )
    assert unknown("key", "a", []) == "unknown key 'a'. Valid: none."
    assert listed(names, 2) == "k0, k1 and 98 more"


_LIST = re.compile(r"(?:[\w:-]+, )+[\w:-]+(?:,? (?:or|and) [\w:-]+)?")
# Where a text lists some parts on purpose: those that do what the sentence is about.
SOME = {
    ("planning/samplers.py", "SAMPLERS"),  # those for several objectives
    ("recipes/pruning_modifiers.py", "SCHEDULES"),  # those that the other dialect has
    ("pruning/oneshot/request.py", "ALLOCATIONS"),  # what is left once a budget was spread
    ("web/api/tables.py", "RENDERERS"),  # by their file names: tex, not latex
}


def test_a_text_that_lists_the_parts_of_a_kind_lists_them_all() -> None:
    kinds = {
        name: {*found.builtin_names()} for name, found in vars(prunegpt.registry).items() if isinstance(found, Registry)
    }
    found: set[tuple[str, str]] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            for names_in_text in _LIST.findall(node.value):
                words = {*re.findall(r"[\w:-]+", names_in_text)}
                found |= {
                    (str(path.relative_to(PACKAGE)), kind)
                    for kind, names in kinds.items()
                    if len(names & words) >= 3 and not names - {"explicit"} <= words
                }
    assert found == SOME


def _as_key(part: type[BaseModel]) -> Callable[[str], object]:
    """Asks a part of a spec for a key."""

    def ask(name: str) -> None:
        document = plain_document({name: 1}, "x", ())
        try:
            part.model_validate({name: 1})
        except ValidationError as error:
            raise SpecError(problems_of(error, part, document)) from error

    return ask


CATALOGUES: dict[str, Callable[[str], object]] = {
    **{one.kind: one.check for one in vars(prunegpt.registry).values() if isinstance(one, Registry)},
    **{part.__name__: _as_key(part) for part in parts()},
    "columns": check_column,
    "metrics": check_metric,
    "training arguments": lambda name: check_argument(name, 1),
    "kinds of figures": lambda name: FigureSpec(name="x", kind=name),
}


@pytest.mark.parametrize("catalogue", CATALOGUES)
def test_no_message_lists_more_names_than_one_reads(catalogue: str) -> None:
    with pytest.raises(ValueError if catalogue not in {part.__name__ for part in parts()} else SpecError) as caught:
        CATALOGUES[catalogue]("no_such_name")
    for valid in re.findall(r"Valid: (.+)", str(caught.value)):
        named, _, rest = valid.partition(" and ")
        assert len(named.split(", ")) <= MOST_LISTED
        assert not rest or "` lists all." in rest
