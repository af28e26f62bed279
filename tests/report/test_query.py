"""Filters of trials, beside pandas' `DataFrame.query` and Python itself."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.records import TrialResult
from prunegpt.report.fields import TrialFields
from prunegpt.report.groups import grouped
from prunegpt.report.query import QueryError, equals, selected, where
from tests.support.results import evaluation, make_trial

METHODS = ("wanda", "magnitude", "sparsegpt")


def trial(place: int) -> TrialResult:
    """One of a dozen: methods, shares and seeds differ, every fourth has not finished."""
    method, share = METHODS[place % 3], (0.5, 0.75, 0.9)[place // 4]
    rate = 10.0**-place if place % 2 else 0.5
    path = {"stages.1.prune.sparsity": share, "train.learning_rate": rate}
    return make_trial(
        f"{method}-{place}",
        seed=place % 4,
        state="finished" if place % 4 else "failed",
        measured=evaluation(perplexity=20.0 + 7 * place) if place % 4 else None,
        pruned=share,
        stages=[{"kind": "prune", "prune": {"method": method, "sparsity": share}}],
        plan={"swept": path, "config": {"name": "x", "optimiser": {"name": "adam", "betas": [0.9, place]}}},
    )


TRIALS = [trial(place) for place in range(12)]
FIELDS = TrialFields(TRIALS)
NUMBERS = ("perplexity", "sparsity", "seed", "loss")
FRAME = pd.DataFrame(
    [{name: FIELDS.find(name).of(one) for name in (*NUMBERS, "name", "state", "method")} for one in TRIALS]
)

arithmetic = st.recursive(
    st.sampled_from(NUMBERS) | st.integers(0, 30).map(str) | st.floats(0, 100).map(lambda value: f"{value:.3f}"),
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda parts: f"({' '.join(parts)})")
        | inner.map(lambda text: f"(-{text})")
    ),
    max_leaves=4,
)
orders = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
compared = (
    st.tuples(st.sampled_from(NUMBERS), orders, arithmetic)
    .map(" ".join)
    .filter(
        lambda text: "sparsity" not in text.split()[0]  # a share beside a number above 1 is refused
    )
)
texts = st.tuples(
    st.sampled_from(["method", "state"]), st.sampled_from(["==", "!="]), st.sampled_from([*METHODS, "failed"])
).map(lambda parts: f"{parts[0]} {parts[1]} {parts[2]!r}")
listed = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(lambda some: f"seed in {some}")
between = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda ends: f"{ends[0]:.2f} <= sparsity < {ends[1]:.2f}")
conditions = st.recursive(
    compared | texts | listed | between,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda parts: f"({' '.join(parts)})")
        | inner.map(lambda text: f"(not ({text}))")
    ),
    max_leaves=5,
)


def names(text: str) -> list[str]:
    return [one.name for one in selected(TRIALS, text, FIELDS)]


@settings(max_examples=100, deadline=None)
@given(conditions)
def test_it_selects_what_pandas_does(text: str) -> None:
    assert names(text) == FRAME.query(text, engine="python")["name"].tolist()


SIGNS = [*"()[]{}<>=!'\"`.,:;+-*/%&|^~@\\ \n", "perplexity", "not", "in", "and", "9"]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.lists(st.sampled_from(SIGNS), max_size=40).map("".join))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    with suppress(QueryError):
        selected(TRIALS, text, FIELDS)


FOUND = {
    "": range(12),
    "WANDA": (0, 3, 6, 9),
    "wanda-3": (3,),
    "wanda-3 or magnitude-4": (3, 4),
    "'failed' and not wanda": (4, 8),
    "not yet": range(12),
    "nothing is called so": (),
    "perplexity-20 < 10 and 'failed' != state": (1,),
    "stages.1.prune.sparsity > 0.8": (8, 9, 10, 11),
    "prune.sparsity == 0.5 and seed > 1": (2, 3),
    "learning_rate < 1e-8": (9, 11),
    "optimiser.name == 'adam'": range(12),
    "3 in betas": (3,),
    "betas == [0.9, 5]": (5,),
    "perplexity is None": (0, 4, 8),
    "perplexity is not None and perplexity < 30": (1,),
    "`stages.1.prune.sparsity` in (0.5, 0.75) and seed == 3": (3, 7),
    "'wanda' in method and name != 'wanda-0'": (3, 6, 9),
    "perplexity / (seed - 1) > 0": (2, 3, 6, 7, 10, 11),
    "early_stopped": (),
    "not early_stopped and seed == 1": (1, 5, 9),
    "config.optimiser.name == 'adam' and swept.train.learning_rate == 0.5 and seed == 2": (2, 6, 10),
}


@pytest.mark.parametrize(("text", "places"), FOUND.items())
def test_what_a_filter_finds(text: str, places: Any) -> None:
    assert names(text) == [TRIALS[place].name for place in places]


REFUSED = {
    "perplexty < 4": "position 1 of the filter (perplexty < 4): unknown field 'perplexty'. Did you mean 'perplexity'?",
    "seed == 1 and methd == 'x'": "position 15 of the filter (methd == 'x'): unknown field 'methd'. Did you mean",
    "method == wanda": "position 11 of the filter (wanda): unknown field 'wanda'",
    "method == sparse": 'Text is put in quotes: "sparse".',
    "perplexity = 40": "compared with ==, got perplexity = 40. Did you mean perplexity == ...?",
    "sparsity > 90": "position 12 of the filter (90): sparsity is between 0 and 1, but is compared with 90. Did",
    "perplexity < '40'": "perplexity is a number, but is compared with the text '40'",
    "perplexity <": "position 12 of the filter (<): this is not understood; a filter holds fields",
    "name and perplexity": "the field name must be compared, as in name is not None",
    "name is 'x'": "`is` asks for None alone",
    "seed == 1 & seed == 2": "write `and` between conditions, not &",
    "__import__('os').system('ls')": "position 1 of the filter",
    "name.__class__ == 3": "unknown field 'name.__class__'",
    "(name).upper == 3": "attributes are not part of a filter",
    "'x'.join(name)": "functions are not part of a filter",
    "abs(loss) < 3": "functions are not part of a filter",
    "9**9**9 > loss": "a power may have 4096 bits",
    "loss > 1/0": "position 8 of the filter (1/0): it divides by zero",
    "'a' * 999999999 == name": "arithmetic takes numbers",
    "[x for x in name] == 3": "position",
    "(lambda: 3) == 3": "position",
    "{1: 2} == loss": "it cannot be compared",
    "not " * 60 + "(seed == 1)": "a filter may be 40 expressions deep",
    "(" * 400 + "1": "this is not understood",
    "x" * 1001: "a filter may have 1,000 characters, but has 1,001",
    "finetune.name == 'x'": "unknown field",
    "3 < 4 < seed and [seed] == 3": "a list holds numbers and quoted text",
}


@pytest.mark.parametrize(("text", "message"), REFUSED.items())
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(QueryError) as refused:
        where(text, FIELDS)
    assert message in str(refused.value)


def test_an_end_of_several_paths_is_refused_with_those() -> None:
    trials = [make_trial("a", plan={"swept": {"stages.0.prune.options": 1, "stages.1.prune.options": 2}})]
    with pytest.raises(QueryError, match=r"one of 2 fields: stages\.0\.prune\.options, .* Write more"):
        selected(trials, "prune.options == 1")


@pytest.mark.parametrize("name", FIELDS.names)
def test_the_filter_of_a_value_finds_the_trials_that_have_it(name: str) -> None:
    """Every field, whatever its path: groups are opened by such a filter."""
    field = next(one for one in FIELDS if one.name == name)
    for group in grouped(TRIALS, [field]):
        (value,) = group.values
        assert tuple(selected(TRIALS, equals(field, value), FIELDS)) == group.trials
        assert tuple(selected(TRIALS, group.where, FIELDS)) == group.trials


def test_the_documented_filters_are_understood() -> None:
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "filters.md").read_text()
    blocks = [block.partition("\n")[2] for block in text.split("```")[1::2] if block.startswith("python\n")]
    examples = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert len(examples) > 8
    for example in examples:
        where(example, FIELDS)
