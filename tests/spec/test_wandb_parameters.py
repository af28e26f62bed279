"""Parameters of a W&B sweep against the packages that W&B publishes: `sweeps`, and the scheduler inside wandb."""

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.spec.search import Dimension, SearchSpec
from prunegpt.spec.wandb_parameters import KEYS, Parameter, canonical, merged, parameters
from prunegpt.sweep.search.objectives import FAILED
from prunegpt.sweep.search.study import SearchStudy

WORDS = st.text("abcdefgh", min_size=1, max_size=4)
NUMBERS = st.one_of(st.integers(-5, 5), st.sampled_from([0.5, 1.0, 2.0, 1e-4, 0.1]))
VALUES = st.lists(st.one_of(NUMBERS, st.booleans(), WORDS, st.none()), min_size=1, max_size=3)
DISCRETE = st.one_of(
    st.fixed_dictionaries({"values": VALUES}),
    st.fixed_dictionaries({"value": st.one_of(NUMBERS, WORDS, st.lists(NUMBERS, max_size=2))}),
    st.tuples(st.integers(-3, 3), st.integers(1, 3)).map(lambda pair: {"min": pair[0], "max": pair[0] + pair[1]}),
    st.tuples(st.sampled_from([0, 1, 0.1, 0.5]), st.sampled_from([1, 0.4, 1.5]), st.sampled_from([0.4, 0.7, 1])).map(
        lambda three: {"distribution": "q_uniform", "min": three[0], "max": three[0] + three[1], "q": three[2]}
    ),
)


def blocks(leaf: st.SearchStrategy[Any], depth: int = 1) -> st.SearchStrategy[dict[str, Any]]:
    below = st.one_of(leaf, blocks(leaf, depth - 1).map(lambda block: {"parameters": block})) if depth else leaf
    return st.dictionaries(WORDS, below, min_size=1, max_size=2)


def grid(block: Any) -> list[dict[str, Any]]:
    """Our points: path -> value, constants included."""
    import itertools

    found, problems = parameters(block)
    assert not problems
    lists = [one.listed() for one in found]
    return [dict(zip([one.path for one in found], point, strict=True)) for point in itertools.product(*lists)]


def flat(config: dict[str, Any], block: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Their nested point as path -> value, by what the parameters say is a leaf."""
    told: dict[str, Any] = {}
    for name, spec in block.items():
        inside = spec.get("parameters")
        told |= flat(config[name], inside, f"{prefix}{name}.") if inside else {prefix + name: config[name]}
    return told


@settings(max_examples=60, deadline=None)
@given(blocks(DISCRETE))
def test_a_grid_has_the_points_of_the_sweeps_package_in_its_order(block: dict[str, Any]) -> None:
    sweeps = pytest.importorskip("sweeps", reason="needs the package sweeps, the reference of W&B grids")
    config = {"method": "grid", "parameters": block}
    theirs = [
        flat({name: one["value"] for name, one in run.config.items()}, block)
        for run in sweeps.next_runs(config, [], n=1000)
        if run
    ]
    ours = grid(block)
    keyed = [{path: (type(value), value) for path, value in point.items()} for point in ours]
    assert keyed == [{path: (type(value), value) for path, value in point.items()} for point in theirs]


CONTINUOUS = [
    {"distribution": "uniform", "min": 0.5, "max": 2},
    {"distribution": "int_uniform", "min": -2, "max": 5},
    {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.3},
    {"distribution": "q_uniform", "min": 0, "max": 9, "q": 2},
    {"distribution": "log_uniform_values", "min": 1e-5, "max": 0.1},
    {"distribution": "q_log_uniform_values", "min": 1, "max": 100, "q": 1},
    {"distribution": "q_log_uniform_values", "min": 0.1, "max": 10, "q": 0.5},
    {"distribution": "inv_log_uniform_values", "min": 0.1, "max": 10},
    {"distribution": "normal", "mu": 1.0, "sigma": 2.0},
    {"distribution": "normal"},
    {"distribution": "q_normal", "mu": 0, "sigma": 3, "q": 0.5},
    {"distribution": "q_normal", "q": 1},
    {"distribution": "log_normal", "mu": 0.5, "sigma": 0.5},
    {"distribution": "q_log_normal", "mu": 1, "sigma": 1, "q": 2},
    {"distribution": "beta", "a": 2, "b": 5},
    {"distribution": "beta"},
    {"distribution": "beta", "a": 0.5, "b": 0.7},
    {"distribution": "q_beta", "a": 2, "b": 3, "q": 0.1},
    {"values": ["a", "b", "c"]},
    {"values": ["a", "b", "c"], "probabilities": [0.2, 0.5, 0.3]},
    {"value": 3},
]


def test_every_distribution_is_compared() -> None:
    assert {parameter(spec).distribution for spec in CONTINUOUS} == set(KEYS)


def parameter(spec: dict[str, Any]) -> Parameter:
    (found,), problems = parameters({"x": spec})
    assert not problems
    return found


@pytest.mark.parametrize("spec", CONTINUOUS, ids=str)
def test_a_draw_is_the_quantile_of_the_sweeps_package(spec: dict[str, Any]) -> None:
    pytest.importorskip("sweeps", reason="needs the package sweeps, the reference of W&B distributions")
    from sweeps.params import HyperParameter

    theirs = HyperParameter("x", spec)
    for share in (0.001, 0.1, 0.2501, 0.499, 0.51, 0.75, 0.9, 0.999):
        expected = theirs.ppf(share)
        drawn = parameter(spec).draw(share)
        assert drawn == (expected if isinstance(expected, str) else pytest.approx(expected, rel=1e-9))


OPTUNA = [
    {"value": 3},
    {"values": [1, "a", None]},
    {"min": 1, "max": 5},
    {"min": 0.5, "max": 5},
    {"distribution": "uniform", "min": 0, "max": 1},
    {"distribution": "log_uniform_values", "min": 1e-4, "max": 1},
    {"distribution": "q_uniform", "min": 0, "max": 10, "q": 2},
    {"distribution": "q_uniform", "min": 0, "max": 4},
    {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.25},
    {"distribution": "q_log_uniform_values", "min": 1, "max": 64, "q": 1},
    {"distribution": "q_log_uniform_values", "min": 0.1, "max": 64, "q": 1},
    {"distribution": "q_log_uniform_values", "min": 2, "max": 64, "q": 2},
    {"distribution": "categorical", "values": [1, 2]},
]


@pytest.mark.parametrize("spec", OPTUNA, ids=str)
def test_a_parameter_is_the_optuna_distribution_that_wandb_makes_of_it(spec: dict[str, Any]) -> None:
    scheduler = pytest.importorskip(
        "wandb.sdk.sweeps.scheduler.optuna", reason="this wandb has no scheduler to compare with"
    )
    from prunegpt.tracking.endpoint.choose import distribution

    assert distribution(parameter(spec)) == scheduler.sweep_parameter_to_distribution(spec)


@st.composite
def quantized(draw: st.DrawFn) -> dict[str, Any]:
    q = draw(st.sampled_from([1, 2, 3, 8, 0.5, 0.25, 1e-4]))
    low = q * draw(st.sampled_from([0.3, 1, 1.4, 2, 5]))
    high = low + q * draw(st.sampled_from([1, 3.7, 10, 50]))
    name = draw(st.sampled_from(["q_uniform", "q_log_uniform_values"]))
    return {"distribution": name, "min": low, "max": high, "q": q}


@settings(max_examples=60, deadline=None)
@given(quantized(), st.integers(0, 3))
def test_a_search_draws_what_the_sweeps_package_can_draw(spec: dict[str, Any], seed: int) -> None:
    pytest.importorskip("sweeps", reason="needs the package sweeps, the reference of W&B distributions")
    from sweeps.params import HyperParameter

    theirs = HyperParameter("x", spec)
    ends = [float(theirs.ppf(share)) for share in (1e-9, 1 - 1e-9)]
    dimension = parameter(spec).dimension()
    assert dimension is not None
    search = SearchSpec.model_validate({"space": {"x": dimension}, "sampler": "random", "seed": seed, "n_trials": 1})
    study = SearchStudy(search)
    for _ in range(20):
        value = study.ask().chosen["x"]
        assert search.space["x"].holds(value)
        assert isinstance(value, int) or not isinstance(spec["q"], int)  # a batch size of 8 and not of 8.0
        assert float(value) == pytest.approx(round(value / spec["q"]) * spec["q"])  # a multiple of q
        assert ends[0] - 1e-9 <= value <= ends[1] + 1e-9
        study.add({"x": value}, FAILED)  # it can be taken over


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ({"min": 8, "max": 64, "q": 8}, {8, 16, 24, 32, 40, 48, 56, 64}),
        ({"min": 1e-3, "max": 4e-3, "q": 1e-3}, {0.001, 0.002, 0.003, 0.004}),
    ],
)
def test_every_multiple_is_drawn_as_often_as_by_the_sweeps_package(spec: dict[str, Any], values: set[float]) -> None:
    sweeps = pytest.importorskip("sweeps.params", reason="needs the package sweeps, the reference of W&B distributions")
    spec = {"distribution": "q_log_uniform_values", **spec}
    theirs = Counter(float(sweeps.HyperParameter("x", spec).ppf((index + 0.5) / 2000)) for index in range(2000))
    dimension = Dimension.model_validate(parameter(spec).dimension())
    assert dimension.low is not None
    assert dimension.high is not None
    logs = math.log(dimension.low), math.log(dimension.high)
    drawn = [math.exp(logs[0] + (index + 0.5) / 2000 * (logs[1] - logs[0])) for index in range(2000)]
    ours = Counter(float(dimension.rounded(value)) for value in drawn)
    assert sorted(ours) == pytest.approx(sorted(values))
    assert ours == theirs


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (3, "a parameter must be a mapping such as"),
        ({}, "needs value, values, min and max"),
        ({"min": 1}, "needs value, values, min and max"),
        ({"min": 2, "max": 1}, "min must be less than max, got 2 and 1"),
        ({"min": 1, "max": "1e3"}, "max must be a number, got '1e3'"),
        ({"values": []}, "values must be a list"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "probabilities must be one number per value"),
        ({"distribution": "log_uniform", "min": -2, "max": 0}, "Write log_uniform_values"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "must begin above 0"),
        ({"distribution": "unifrom", "min": 0, "max": 1}, "Did you mean 'uniform'"),
        ({"distribution": "normal", "min": 0}, "unknown key of normal 'min'"),
        ({"distribution": "uniform", "min": 0}, "uniform needs max"),
        ({"distribution": "int_uniform", "min": 0.5, "max": 2}, "takes whole numbers"),
    ],
)
def test_what_is_no_parameter_is_told_where_it_stands(spec: Any, message: str) -> None:
    found, ((place, told),) = parameters({"train": {"parameters": {"x": spec}}})
    assert not found
    assert place == ("parameters", "train", "parameters", "x")
    assert message in told


def test_a_name_that_begins_with_a_digit_is_joined_to_the_one_before() -> None:
    _, ((place, told),) = parameters({"stages": {"parameters": {"0": {"value": 1}}}})
    assert place == ("parameters", "stages", "parameters", "0")
    assert "such as stages.0" in told


@given(VALUES)
def test_merged_values_differ(values: list[Any]) -> None:
    found = merged(values)
    assert len({canonical(value) for value in found}) == len(found)
    assert {canonical(value) for value in found} == {canonical(value) for value in values}
