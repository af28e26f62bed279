"""What a search may say, and what its space means."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prunegpt.spec.search import Dimension, SearchSpec, constraint_of
from prunegpt.spec.space import assigned, chosen_of, fits, is_active, ordered, probes


def space_of(**space: Any) -> Mapping[str, Dimension]:
    named = {path.replace("__", "."): dimension for path, dimension in space.items()}
    return SearchSpec.model_validate({"space": named, "n_trials": 1}).space


WRONG = {
    "both": ({"values": [1], "low": 0}, "either values or low and high; it has both"),
    "nothing": ({}, "needs low and high, or values"),
    "empty": ({"values": []}, "must name at least one"),
    "upside down": ({"low": 2, "high": 1}, "low must be at most high; low is 2 and high 1"),
    "a step of nothing": ({"low": 1, "high": 2, "step": 0}, "step must be above 0"),
    "a logarithm of nothing": ({"low": 0, "high": 1, "log": True}, "must begin above 0"),
    "log and step": ({"low": 0.1, "high": 1, "log": True, "step": 0.1}, "either log or step"),
    "the same twice": ({"values": [[1], [1]]}, r"values must differ; \[1\] is there twice"),
    "too few names": ({"values": [1, 2], "names": ["a"]}, "1 for 2 values"),
    "quantum and step": ({"low": 0, "high": 1, "step": 1, "quantum": 1}, "either step or quantum"),
    "a quantum of values": ({"values": [1], "quantum": 1}, "either values or low and high"),
    "names of nothing": ({"low": 0, "high": 1, "names": ["a"]}, "names belong to values"),
}
assert WRONG


@pytest.mark.parametrize(("dimension", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_dimension_that_means_nothing(dimension: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Dimension.model_validate(dimension)


SEARCHES = {
    "no end": ({}, "a search must end: give n_trials"),
    "an unknown sampler": ({"n_trials": 1, "sampler": "tpee"}, "unknown sampler 'tpee'. Did you mean 'tpe'"),
    "an unknown metric": ({"n_trials": 1, "objectives": "perplexitty"}, "Did you mean 'perplexity'"),
    "a metric twice": ({"n_trials": 1, "objectives": ["loss", "loss"]}, "objectives must differ; loss"),
    "no constraint": ({"n_trials": 1, "constraints": ["sparsity > 0.5"]}, 'such as "sparsity >= 0.89", got'),
    "a constraint on nothing": ({"n_trials": 1, "constraints": ["sparsty >= 1"]}, "Did you mean 'sparsity'"),
}
assert SEARCHES


@pytest.mark.parametrize(("fields", "message"), SEARCHES.values(), ids=SEARCHES.keys())
def test_a_search_that_means_nothing(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SearchSpec.model_validate({"space": {"a": [1, 2]}, **fields})


CONDITIONS = {
    "not searched": ({"a": {"values": [1], "when": {"b": 1}}}, "must be on another searched field; 'b' is none"),
    "itself": ({"a": {"values": [1], "when": {"a": 1}}}, "must not form a circle"),
    "a circle": (
        {"a": {"values": [1], "when": {"b": 1}}, "b": {"values": [1], "when": {"a": 1}}},
        "must not form a circle; 'b' is searched only where 'a' is",
    ),
    "a value that is not tried": (
        {"a": {"values": [1], "when": {"b": ["x", "z"]}}, "b": ["x", "y"]},
        "must name values that are searched; 'z' is none of 'b': x, y",
    ),
    "outside of the range": (
        {"a": {"values": [1], "when": {"b": 5}}, "b": {"low": 1, "high": 4}},
        "none of 'b': 1 to 4",
    ),
}
assert CONDITIONS


@pytest.mark.parametrize(("space", "message"), CONDITIONS.values(), ids=CONDITIONS.keys())
def test_conditions_refer_to_what_is_searched(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as raised:
        SearchSpec.model_validate({"space": space, "n_trials": 1})
    assert raised.value.errors()[0]["loc"] == ("space", "a", "when")


def test_choices() -> None:
    assert Dimension.model_validate([1, "a", None]).choices == (1, "a", None)
    assert Dimension.model_validate([1, True]).choices == ("1", "true")  # equal to Python
    assert Dimension.model_validate([1, [2, 3], {"b": 1, "a": 2}]).choices == (1, "[2, 3]", '{"a": 2, "b": 1}')
    named = Dimension.model_validate({"values": {"one": [1], "two": {"a": 2}}})
    assert named.choices == ("one", "two")
    assert named.value_of("two") == {"a": 2}
    assert Dimension.model_validate([1, True]).value_of("true") is True


def test_ends_of_a_range_are_values_it_gives() -> None:
    assert Dimension.model_validate({"low": 0.0, "high": 1.0, "step": 0.3}).corners == pytest.approx((0.0, 0.9))
    assert Dimension.model_validate({"low": 1, "high": 10, "step": 4}).corners == (1, 9)
    assert Dimension.model_validate({"low": 0.0, "high": 0.3, "step": 0.1}).corners == pytest.approx((0.0, 0.3))
    assert Dimension.model_validate({"low": 2, "high": 2}).corners == (2,)


def test_what_a_condition_means() -> None:
    chains = {"values": {"a": [["x"]], "b": [["y"], ["z"]]}}
    dimension = Dimension.model_validate(chains)
    assert dimension.meant("a") == ("a",)
    assert dimension.meant([["x"]]) == ("a",)  # the value itself, which is a list
    assert dimension.meant(["b", "a"]) == ("b", "a")
    assert dimension.meant([[["x"]], "b"]) == ("a", "b")
    assert dimension.meant(["a", "c"]) == ()


def test_order_and_activity() -> None:
    space = space_of(
        deep={"low": 0, "high": 1, "when": {"middle": "on"}},
        middle={"values": ["on", "off"], "when": {"top": ["a", "b"]}},
        top=["a", "b", "c"],
    )
    assert ordered(space) == ("top", "middle", "deep")
    assert is_active(space, "middle", {"top": "b"})
    assert not is_active(space, "middle", {"top": "c"})
    assert not is_active(space, "deep", {"top": "c"})
    assert fits(space, {"top": "c"})
    assert fits(space, {"top": "a", "middle": "on", "deep": 1})
    assert not fits(space, {"top": "a", "middle": "on"})
    assert not fits(space, {"top": "c", "middle": "on"})
    assert not fits(space, {"top": "a", "middle": "on", "deep": 2})
    assert not fits(space, {"top": "a", "middle": "off", "deep": 1})


def test_values_are_set_from_the_outside_in() -> None:
    space = space_of(stages__0__prune__sparsity={"low": 0.1, "high": 0.9}, stages={"values": {"p": [{"prune": {}}]}})
    values = assigned(space, {"stages.0.prune.sparsity": 0.5, "stages": "p"})
    assert list(values.items()) == [("stages", [{"prune": {}}]), ("stages.0.prune.sparsity", 0.5)]


def test_values_become_choices() -> None:
    space = space_of(stages={"values": {"p": [1], "q": [2]}}, rate={"low": 0.0, "high": 1.0})
    assert chosen_of(space, {"stages": [2], "rate": 0.5}) == {"stages": "q", "rate": 0.5}
    with pytest.raises(ValueError, match=r"rat is not searched\. Searched: rate, stages"):
        chosen_of(space, {"rat": 0.5})
    with pytest.raises(ValueError, match="rate must be one of what is searched, got 3"):
        chosen_of(space, {"rate": 3})


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.sets(st.sampled_from(["x", "y", "z"]), min_size=1), min_size=1),
    st.data(),
)
def test_probes_are_assignments_that_fit_and_reach_every_choice(drawn: dict[str, set[str]], data: Any) -> None:
    paths = sorted(drawn)
    space: dict[str, Any] = {}
    for index, path in enumerate(paths):
        dimension: dict[str, Any] = {"values": sorted(drawn[path])}
        if index and data.draw(st.booleans()):
            other = paths[data.draw(st.integers(0, index - 1))]
            dimension["when"] = {other: data.draw(st.sampled_from(sorted(drawn[other])))}
        space[path] = dimension
    made = space_of(**space)
    for path in paths:
        for choice in made[path].corners:
            found = list(probes(made, path, choice))
            assert found, "conditions on one earlier field each never exclude one another"
            for chosen in found:
                assert chosen[path] == choice
                assert fits(made, chosen)


def test_conditions_that_exclude_one_another_have_no_probe() -> None:
    space = space_of(
        top=["a", "b"],
        one={"values": [1], "when": {"top": "a"}},
        two={"values": [1], "when": {"one": 1, "top": "b"}},
    )
    assert not list(probes(space, "two", 1))


def test_constraints() -> None:
    assert constraint_of(" sparsity>=.895") == ("sparsity", ">=", 0.895)
    assert constraint_of("size <= 1e6") == ("size", "<=", 1e6)
    assert constraint_of("perplexity <= 20") == ("perplexity", "<=", 20.0)


def test_directions_are_the_metrics_own() -> None:
    spec = SearchSpec.model_validate(
        {
            "space": {"a": [1]},
            "n_trials": 1,
            "objectives": ["sparsity", {"metric": "size", "direction": "maximize"}, "loss"],
        }
    )
    assert [objective.wanted for objective in spec.objectives] == ["maximize", "maximize", "minimize"]


def test_a_range_is_described_with_all_that_decides_its_values() -> None:
    described = {
        field: Dimension.model_validate({"low": 1, "high": 9, **more}).described
        for field, more in {"plain": {}, "step": {"step": 2}, "log": {"log": True}, "quantum": {"quantum": 0.5}}.items()
    }
    assert len(set(described.values())) == len(described)
    assert described["quantum"] == "1 to 9 in multiples of 0.5"
