"""Merging of base and trial, the product of what varies, names, and seeds."""

import re
from typing import Any

import pytest

from prunegpt.errors import Problem
from prunegpt.spec.expand import MAX_NAME, MAX_TRIALS, Expansion, expand, merge, slug
from prunegpt.spec.read import parse_document, plain_document

STAGE = {"prune": {"sparsity": 0.5}}


def expanded(*trials: dict[str, Any], base: dict[str, Any] | None = None) -> Expansion:
    return expand(plain_document({"base": base or {}, "trials": list(trials)}, "x"))


def names(*trials: dict[str, Any]) -> list[str]:
    found = expanded(*trials)
    assert not found.problems
    return [item.name for item in found.configurations]


def problem(*trials: dict[str, Any], base: dict[str, Any] | None = None) -> Problem:
    found = expanded(*trials, base=base)
    assert len(found.problems) == 1, found.problems
    return found.problems[0]


# -- merging ---------------------------------------------------------------------------------------------------------

MERGED = {
    "a plain value replaces": ({"device": "cpu"}, {"device": "cuda"}, {"device": "cuda"}),
    "what is not named stays": ({"device": "cpu"}, {"precision": "float32"}, {"device": "cpu", "precision": "float32"}),
    "mappings are merged key by key": (
        {"train": {"max_steps": 1, "seed": 2}},
        {"train": {"max_steps": 3}},
        {"train": {"max_steps": 3, "seed": 2}},
    ),
    "lists replace": ({"stages": ["finetune"]}, {"stages": []}, {"stages": []}),
    "nothing replaces": ({"data": {"path": "a"}}, {"data": None}, {"data": None}),
    "a model is taken whole": (
        {"model": {"source": "a", "revision": "r", "trust_remote_code": True}},
        {"model": {"source": "b"}},
        {"model": {"source": "b"}},
    ),
    "data without a source keeps the base's": (
        {"data": {"path": "a", "name": "n", "block_size": 8}},
        {"data": {"block_size": 16}},
        {"data": {"path": "a", "name": "n", "block_size": 16}},
    ),
    "data with a path keeps only its form": (
        {"data": {"files": {"train": "x"}, "name": "n", "text_column": "t", "tokens": 9, "block_size": 8}},
        {"data": {"path": "b"}},
        {"data": {"path": "b", "block_size": 8}},
    ),
    "data with files keeps only its form": (
        {"data": {"path": "a", "revision": "r", "train_split": "s"}},
        {"data": {"files": {"train": "y"}}},
        {"data": {"files": {"train": "y"}, "train_split": "s"}},
    ),
    "and so does the text that is measured": (
        {"evaluate": {"split": "test", "data": {"path": "a", "name": "n"}}},
        {"evaluate": {"data": {"path": "b"}}},
        {"evaluate": {"split": "test", "data": {"path": "b"}}},
    ),
}
assert MERGED


@pytest.mark.parametrize(("base", "over", "expected"), MERGED.values(), ids=MERGED.keys())
def test_merge(base: dict[str, Any], over: dict[str, Any], expected: dict[str, Any]) -> None:
    before = repr((base, over))
    merged = merge(base, over)
    assert merged == expected
    for value in merged.values():
        if isinstance(value, dict):
            value["touched"] = True
    assert repr((base, over)) == before  # nothing is shared with what was merged


def test_a_trial_has_what_base_says_and_its_own() -> None:
    (item,) = expanded({"name": "t", "seeds": [7]}, base={"device": "cpu", "seeds": [1]}).configurations
    assert (item.spec.device, item.seed, item.spec.seeds) == ("cpu", 7, (7,))
    assert item.merged == {"device": "cpu", "name": "t", "seeds": [7]}


# -- the product -----------------------------------------------------------------------------------------------------


def test_the_last_key_varies_fastest_and_names_say_what_varied() -> None:
    trial = {
        "name": "t",
        "stages": [STAGE],
        "vary": {"stages.0.prune.sparsity": [0.5, 0.9], "stages.0.prune.method": ["magnitude", "random"]},
    }
    found = expanded(trial).configurations
    assert [item.name for item in found] == [
        "t-sparsity=0.5-method=magnitude",
        "t-sparsity=0.5-method=random",
        "t-sparsity=0.9-method=magnitude",
        "t-sparsity=0.9-method=random",
    ]
    assert [item.swept["stages.0.prune.sparsity"] for item in found] == [0.5, 0.5, 0.9, 0.9]
    prunes = [item.spec.stages[0].prune for item in found]
    assert [(prune.sparsity, prune.method) for prune in prunes if prune] == [
        (0.5, "magnitude"),
        (0.5, "random"),
        (0.9, "magnitude"),
        (0.9, "random"),
    ]


NAMES = {
    "a template": (
        {"name": "layer-{layers}", "vary": {"stages.0.prune.layers": [0, [1, 2]]}},
        ["layer-0", "layer-1,2"],
    ),
    "a template of two keys": (
        {
            "name": "{method}@{sparsity}",
            "vary": {"stages.0.prune.sparsity": [0.5], "stages.0.prune.method": ["random"]},
        },
        ["random@0.5"],
    ),
    "a template that leaves a key out": (
        {"name": "x{sparsity}", "vary": {"stages.0.prune.sparsity": [0.5], "device": ["cpu"]}},
        ["x0.5"],
    ),
    "keys that end alike": (
        {
            "name": "t",
            "stages": [STAGE, STAGE],
            "vary": {"stages.0.prune.sparsity": [0.1], "stages.1.prune.sparsity": [0.2]},
        },
        ["t-stages.0.prune.sparsity=0.1-stages.1.prune.sparsity=0.2"],
    ),
    "seeds": ({"name": "t", "seeds": [1, 2]}, ["t@1", "t@2"]),
    "one seed": ({"name": "t", "seeds": 3}, ["t"]),
    "seeds of a template": (
        {"name": "p{sparsity}", "seeds": [1, 2], "vary": {"stages.0.prune.sparsity": [0.5, 0.9]}},
        ["p0.5@1", "p0.5@2", "p0.9@1", "p0.9@2"],
    ),
    "seeds that vary": ({"name": "t", "vary": {"seeds": [[1], [2]]}}, ["t-seeds=1", "t-seeds=2"]),
}
assert NAMES


@pytest.mark.parametrize(("trial", "expected"), NAMES.values(), ids=NAMES.keys())
def test_names(trial: dict[str, Any], expected: list[str]) -> None:
    assert names({"stages": [STAGE], **trial}) == expected


def test_trials_of_several_seeds_share_a_group() -> None:
    found = expanded({"name": "a", "seeds": [1, 2]}, {"name": "b"}).configurations
    assert [(item.name, item.group, item.seed) for item in found] == [("a@1", "a", 1), ("a@2", "a", 2), ("b", "b", 42)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, "0.5"),
        ("a/b c", "a_b_c"),
        ([0, 1], "0,1"),
        ({"a": 1}, "a_1"),
        (None, "null"),
        (True, "true"),
        ("", "empty"),
        ("/", "empty"),
    ],
)
def test_slugs_are_parts_of_names(value: Any, expected: str) -> None:
    assert slug(value) == expected


# -- what cannot be expanded -----------------------------------------------------------------------------------------

BAD = {
    "a key that does not vary": (
        {"name": "t-{sparsity}"},
        "trials.0.name",
        r"a name may hold \{KEY\} of a varied key \(none\), got 't-\{sparsity\}'",
    ),
    "a key with an attribute": (
        {"name": "t-{device.x}", "vary": {"device": ["cpu"]}},
        "trials.0.name",
        r"of a varied key \(device\)",
    ),
    "a lone brace": (
        {"name": "t-{device", "vary": {"device": ["cpu"]}},
        "trials.0.name",
        r"of a varied key \(device\)",
    ),
    "a long name": (
        {"name": "t" * MAX_NAME, "vary": {"device": ["cpu"]}},
        "trials.0.name",
        f"may have {MAX_NAME} characters",
    ),
    "a path through a value": (
        {"name": "t", "vary": {"name.x": [1]}},
        "trials.0.vary",
        r"name\.x: name is a plain value and has no 'x' in it",
    ),
    "a path beyond a list": (
        {"name": "t", "stages": [], "vary": {"stages.0.prune.sparsity": [0.5]}},
        "trials.0.vary",
        "the list has 0 elements",
    ),
    "an unknown key": (
        {"name": "t", "vary": {"devise": ["cpu"]}},
        "trials.0.vary.devise",
        "unknown key 'devise'. Did you mean 'device'",
    ),
    "a value that cannot be": (
        {"name": "t", "stages": [STAGE], "vary": {"stages.0.prune.sparsity": [0.5, 90]}},
        "trials.0.vary.stages.0.prune.sparsity",
        r"got 90\. Did you mean 0\.9\?",
    ),
    "a combination that cannot be": (
        {"name": "t", "stages": [STAGE], "vary": {"stages.0.prune.pattern": ["1:4"]}},
        "trials.0.vary.stages.0.prune.pattern",
        "pattern 1:4 fixes the sparsity at 0.75; sparsity is 0.5",
    ),
    "too many": (
        {"name": "t", "vary": {"seeds": [[i] for i in range(102)], "device": ["cpu"] * 100}},
        "trials.0.vary",
        f"a sweep may have {MAX_TRIALS} trials",
    ),
    "too many seeds": (
        {"name": "t", "seeds": list(range(MAX_TRIALS + 1))},
        "trials.0.seeds",
        f"a sweep may have {MAX_TRIALS} trials",
    ),
}
assert BAD


@pytest.mark.parametrize(("trial", "where", "message"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_expanded_is_one_problem_at_its_place(trial: dict[str, Any], where: str, message: str) -> None:
    found = problem(trial)
    assert found.where == where
    assert re.search(message, found.message)


def test_what_base_and_trial_say_together_is_checked_and_told_where_it_stands() -> None:
    text = """\
base:
  stages:
    - prune: {sparsity: 0.5}
trials:
  - name: t
    vary:
      stages.0.prune.pattern: ['2:4', '1:4']
"""
    found = expand(parse_document(text, "x"))
    assert [(item.line, item.where) for item in found.problems] == [(7, "trials.0.vary.stages.0.prune.pattern")]
    assert [item.name for item in found.configurations] == ["t-pattern=2_4"]
    assert found.broken == {0}


def test_duplicate_names_are_told_with_the_trial_they_repeat() -> None:
    found = problem({"name": "a"}, {"name": "b"}, {"name": "a"})
    assert found.where == "trials.2"
    assert found.message == "trial names must differ; 'a' is also trials.0. Rename one."


def test_names_that_differ_in_case_alone_would_share_a_folder_where_case_is_ignored() -> None:
    found = problem({"name": "Wanda"}, {"name": "wanda"})
    assert "'wanda' is also trials.0 'Wanda', and file systems may not distinguish them" in found.message


def test_a_name_with_a_seed_may_collide_with_a_name() -> None:
    assert problem({"name": "a", "seeds": [1, 2]}, {"name": "a@2"}).where == "trials.1"


def test_malformed_trials_are_skipped() -> None:
    document = plain_document({"trials": [{"name": 5}, {"name": "b"}]}, "x")
    assert [(item.index, item.name) for item in expand(document, skip={0}).configurations] == [(1, "b")]
