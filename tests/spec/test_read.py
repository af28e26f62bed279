"""Spec files as plain data with lines; and overrides."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.errors import SpecError
from prunegpt.planning.resolve import Planner
from prunegpt.spec.read import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_INTEGER,
    MAX_NODES,
    apply_override,
    parse_document,
    parse_value,
    plain_document,
    read_document,
    set_path,
)


def error_of(text: str, *overrides: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse_document(text, "some.yaml", overrides)
    return caught.value


def bomb(levels: int = 9, width: int = 10) -> str:
    """A short text whose aliases stand for `width ** levels` values."""
    first = f"a0: &a0 [{', '.join(['x'] * width)}]\n"
    return first + "".join(
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]\n" for level in range(1, levels)
    )


BROKEN = {
    "unclosed list": ("a: 1\nb: [1, 2\nc: 3", 3, r"a spec must be valid YAML: expected ',' or '\]'"),
    "two values on a line": ("a: 1\nb: c: d", 2, "mapping values are not allowed here"),
    "unclosed quote": ("a: 'x\n", None, "a spec must be valid YAML"),
    "undefined alias": ("a: 1\nb: *x", 2, "found undefined alias 'x'"),
    "duplicate key": ("a: 1\nb:\n  c: 1\n  c: 2", 4, "keys must differ; 'c' is there twice"),
    "two documents": ("a: 1\n---\nb: 2", 2, "found another document"),
    "NUL": ("a: \x00", None, "unacceptable character"),
    "a number of thousands of digits": ("a: " + "9" * 5000, 1, "must be valid YAML of its kind"),
    "a number beyond 63 bits": ("a: 1\nb:\n  - 1\n  - 99999999999999999999", 4, f"must be at most {MAX_INTEGER}"),
    "the same in a trial": (
        "trials:\n  - name: a\n    seeds: 99999999999999999999",
        3,
        f"must be at most {MAX_INTEGER}",
    ),
    "one key in two types": ("1: a\n'1': b", 2, "keys must differ; '1' is there twice"),
    "a list": ("- a\n- b", None, "must be a mapping with name, base and trials; the file holds a list"),
    "text": ("hello", None, "the file holds plain text"),
    "a number alone": ("7", None, "the file holds a number"),
    "empty": ("", None, "the file holds nothing"),
    "only a comment": ("# nothing yet\n", None, "the file holds nothing"),
    "deep lists": ("a: " + "[" * 60 + "]" * 60, 1, f"may be nested {MAX_DEPTH} levels deep"),
    "very deep lists": ("a: " + "[" * 1000, None, f"may be nested {MAX_DEPTH} levels deep"),
    "very deep mappings": ("a: " + "{x: " * 1000, None, f"may be nested {MAX_DEPTH} levels deep"),
    "alias bomb": (bomb(), None, f"may hold {MAX_NODES} values after its aliases are expanded"),
}
assert BROKEN


@pytest.mark.parametrize(("text", "line", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_spec_is_told_with_its_line(text: str, line: int | None, message: str) -> None:
    error = error_of(text)
    assert re.search(message, str(error))
    assert str(error).startswith("some.yaml: 1 problem\n")
    if line is not None:
        assert [problem.line for problem in error.problems] == [line]


FILES = {
    "missing": (None, r"a spec must be a readable file; .*No such file"),
    "not UTF-8": ("name: \xe4\n".encode("latin-1"), r"a spec must be UTF-8; byte 6 is not\. Save it as UTF-8"),
    "too large": (b"# " + b"x" * MAX_BYTES, rf"a spec may have {MAX_BYTES} bytes; it has {MAX_BYTES + 2}\."),
}
assert FILES


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES.keys())
def test_files_that_cannot_be_read(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=message):
        read_document(path)


def test_a_folder_is_no_spec(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"a spec must be a readable file; .*[Dd]irectory"):
        read_document(tmp_path)


def test_values_come_out_plain_and_as_yaml_1_2_reads_them() -> None:
    text = """
        rate: 1e-3
        off: no
        yes: &flag true
        again: *flag
        ratio: 2:4
        day: 2020-01-01
        base: &base {a: 1, b: 2}
        merged: {<<: *base, b: 3}
        tagged: !!python/object:os.system {x: 1}
        folded: |
          two
          lines
    """
    data = parse_document(text, "x").data
    assert data["rate"] == 0.001
    assert data["off"] == "no"
    assert data["yes"] is True
    assert data["again"] is True
    assert data["ratio"] == "2:4"
    assert data["day"] == "2020-01-01"
    assert data["merged"] == {"a": 1, "b": 3}
    assert data["tagged"] == {"x": 1}  # a tag runs nothing
    assert data["folded"] == "two\nlines\n"
    assert {type(value) for value in data.values()} <= {str, float, bool, dict}


def test_lines_are_those_of_the_deepest_part_the_file_has() -> None:
    document = parse_document("a: 1\nb:\n  - x\n  - c: 2\n    d: 3\n", "x")
    expected = {("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 1): 4, ("b", 1, "d"): 5, ("b", 1, "d", "e"): 5, ("z",): None}
    assert {path: document.line(path) for path in expected} == expected
    assert document.line(("b", 7)) == 2


def test_plain_data_has_no_lines_but_the_same_rules() -> None:
    document = plain_document({"a": (1, 2), "b": {"c": None}}, "here")
    assert document.data == {"a": [1, 2], "b": {"c": None}}
    assert document.line(("a",)) is None
    with pytest.raises(SpecError, match=f"must be at most {MAX_INTEGER}"):
        plain_document({"a": 2**63}, "here")


# -- overrides -------------------------------------------------------------------------------------------------------

TREE = {"a": {"b": 1}, "trials": [{"name": "x", "stages": ["finetune"]}, {"name": "y", "stages": []}], "n": None}

SET = {
    "a field": ("a.b=2", ("a", "b"), 2),
    "a new field below": ("a.c.d=[1, two]", ("a", "c"), {"d": [1, "two"]}),
    "below nothing": ("n.x=1", ("n",), {"x": 1}),
    "an element by number": ("trials.1.seeds=[3]", ("trials", 1, "seeds"), [3]),
    "an element by name": ("trials.y.seeds=[3]", ("trials", 1, "seeds"), [3]),
    "an empty value": ("a.b=", ("a", "b"), None),
    "a value with an equals sign": ("a.b=x=y", ("a", "b"), "x=y"),
    "inside a stage written as a word": (
        "trials.x.stages.0.finetune.train.max_steps=3",
        ("trials", 0, "stages", 0),
        {"finetune": {"train": {"max_steps": 3}}},
    ),
}
assert SET


@pytest.mark.parametrize(("override", "path", "value"), SET.values(), ids=SET.keys())
def test_an_override_sets_one_field(override: str, path: tuple[Any, ...], value: Any) -> None:
    data: Any = plain_document(TREE, "x").data
    apply_override(data, override)
    for step in path:
        data = data[step]
    assert data == value


BAD_SET = {
    "no value": ("a.b", "an override must be PATH=VALUE"),
    "no path": ("=1", "an override must be PATH=VALUE"),
    "below a plain value": ("a.b.c=1", r"a\.b is a plain value and has no 'c' in it"),
    "beyond the list": ("trials.7.name=z", "the list has 2 elements, counted from 0; 7 was asked for"),
    "no such name": ("trials.z.name=q", r"the list has no element named 'z'\. There are: x, y"),
    "a figure that is no number": ("trials.².name=q", "the list has no element named '²'"),
    "not YAML": ("a.b=[1", r"the value must be YAML; '\[1' is not"),
    "too deep": ("a.b=" + "[" * 1000, f"the value may be nested {MAX_DEPTH} levels deep"),
    "an object of Python": ("a.b=!!python/name:os.system x", "the value must be YAML"),
    "a huge number": ("a.b=99999999999999999999", f"must be at most {MAX_INTEGER}"),
}
assert BAD_SET


@pytest.mark.parametrize(("override", "message"), BAD_SET.values(), ids=BAD_SET.keys())
def test_an_override_that_fits_nowhere_is_named(override: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        plain_document(TREE, "x", [override])
    assert len(str(caught.value)) < 500
    assert override[:20] in str(caught.value)


@pytest.mark.parametrize("path", ["base.labels", "trials.0.data.files", ""])
def test_a_path_that_nobody_writes_is_refused_wherever_one_may_be(path: str) -> None:
    deep = ".".join([path, *["a"] * 3000]).strip(".")
    trial: dict[str, Any] = {"name": "a", "model": "builtin:tiny-gpt2", "data": {"files": {}}}
    searched = {"n_trials": 1, "space": {deep: {"low": 0, "high": 1}}}
    for data, overrides in (
        ({"name": "s", "trials": [trial]}, [f"{deep}=1"]),
        ({"name": "s", "trials": [{**trial, "vary": {deep.removeprefix("trials.0."): [1, 2]}}]}, []),
        ({"name": "s", "trials": [{**trial, "search": searched}]}, []),
    ):
        with pytest.raises(SpecError):
            assert Planner(data, overrides).plan


def test_all_bad_overrides_are_told_together() -> None:
    error = error_of("a: {b: 1}", "x", "a.b.c=1", "a.b=5", "=2")
    assert len(error.problems) == 3


def test_a_path_may_not_run_into_a_plain_value() -> None:
    with pytest.raises(ValueError, match="a is a plain value"):
        set_path({"a": "word"}, ["a", "b"], 1)


@given(text=st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_document_or_a_spec_error(text: str) -> None:
    try:
        document = parse_document(text, "x")
    except SpecError:
        return
    assert isinstance(document.data, dict)


@given(text=st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_override_value_is_plain_data_or_a_value_error(text: str) -> None:
    try:
        value = parse_value(text)
    except ValueError:
        return
    assert value is None or type(value) in (bool, int, float, str, list, dict)
