from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunegpt.cli.options import number
from prunegpt.errors import UnknownPartError
from prunegpt.records import TrialResult
from prunegpt.report.columns import COLUMNS, NOT_APPLICABLE, column, off_target, partly_covered
from prunegpt.report.format import plain, printed, probability, text_of
from prunegpt.report.rows import Row
from prunegpt.spec.columns import COLUMNS as ABOUT
from tests.support.results import evaluation, make_trial

GRADUAL = {"kind": "finetune", "finetune": {"prune": {"method": "magnitude", "schedule": "cubic", "layers": [3]}}}
DISTILL = {"kind": "distill", "distill": {"hardness": 0.5}, "teacher": "t"}


def value(name: str, *trials: TrialResult) -> Any:
    values = column(name, trials).extract(Row("row", "label", trials))
    return values[0] if len(values) == 1 else list(values)


def finished(**fields: Any) -> TrialResult:
    return make_trial("a", measured=evaluation(perplexity=20.0), **fields)


def test_sparsity_is_what_was_counted_not_what_was_asked() -> None:
    trial = finished(pruned=0.81, target=0.9)
    assert value("sparsity", trial) == 81.0
    assert value("sparsity_all", trial) == pytest.approx(81 * 0.68)
    assert off_target(trial)
    assert value("sparsity", finished(pruned=0.29)) == 29.0  # not 28.999999999999996


@pytest.mark.parametrize(
    ("pruned", "off"), [(0.9, False), (0.895, False), (0.905, False), (0.8949, True), (0.92, True)]
)
def test_half_a_point_is_tolerated(pruned: float, off: bool) -> None:
    assert off_target(finished(pruned=pruned, target=0.9)) is off


def test_no_target_is_never_missed() -> None:
    assert not off_target(finished(pruned=0.4))


def test_distilled_and_teacher() -> None:
    trial = finished(stages=[GRADUAL, DISTILL], teachers={"t": "tiny-gpt2(zero-shot)"})
    assert value("distilled", trial) == "Yes"
    assert value("teacher", trial) == "tiny-gpt2(zero-shot)"
    plain_one = finished(stages=[GRADUAL])
    assert value("distilled", plain_one) == "No"
    assert value("teacher", plain_one) == NOT_APPLICABLE
    twice = finished(stages=[DISTILL, {**DISTILL, "teacher": "u"}], teachers={"t": "a", "u": "b"})
    assert value("teacher", twice) == "a, b"


def test_layer_is_read_from_the_record_and_before_that_from_the_plan() -> None:
    assert value("layer", finished(stages=[GRADUAL], layers=[5])) == 5
    assert value("layer", finished(layers=[5, 6])) == NOT_APPLICABLE
    assert value("layer", finished()) == NOT_APPLICABLE
    assert value("layer", make_trial("a", state="waiting", stages=[GRADUAL])) == 3
    assert value("layer", finished(layers=[0])) == 0


def test_what_was_done() -> None:
    trial = finished(stages=[GRADUAL, {"kind": "prune", "prune": {"method": "wanda", "pattern": "2:4"}}, DISTILL])
    assert value("method", trial) == "magnitude (cubic) + wanda"
    assert value("pattern", trial) == "unstructured + 2:4"
    assert value("stages", trial) == "finetune → prune → distill"
    assert value("tokens", trial) == 1000 + 2000 + 3000
    assert value("seconds", trial) == 60.0
    assert value("device", trial) == "cpu"
    assert value("peak_memory", trial) is None
    held = [
        stage.model_copy(update={"peak_memory": peak})
        for stage, peak in zip(trial.stages, (None, 3, 9, 5), strict=True)
    ]
    assert value("peak_memory", trial.model_copy(update={"stages": tuple(held)})) == 9
    untouched = finished()
    assert {value(name, untouched) for name in ("method", "pattern", "stages")} == {NOT_APPLICABLE}


def test_before_is_what_the_last_training_began_with() -> None:
    trial = finished(stages=[{"kind": "prune"}, {"kind": "distill"}, {"kind": "prune"}])
    loaded, pruned, healed, last = trial.stages
    stages = (
        loaded,
        pruned.model_copy(update={"evaluation": evaluation(perplexity=50.0), "train_tokens": 0}),
        healed.model_copy(update={"evaluation": evaluation(perplexity=30.0), "train_tokens": 7}),
        last.model_copy(update={"train_tokens": 0}),
    )
    assert value("before", trial.model_copy(update={"stages": stages})) == pytest.approx(50.0)
    assert value("before", finished()) is None


def test_measured_columns_look_at_finished_runs_only() -> None:
    running = finished(state="running")
    names = [name for name, shown in COLUMNS.items() if shown.measured and name not in ("difference", "beside_median")]
    assert len(names) > 5
    for name in names:
        assert list(COLUMNS[name].extract(Row("r", "l", (running,)))) == []
    assert value("perplexity", finished()) == pytest.approx(20.0)


def test_config_values_by_path() -> None:
    one = finished(config={"train": {"learning_rate": 5e-5, "betas": [0.9, 0.99]}})
    two = finished(config={})
    assert value("config:train.learning_rate", one) == 5e-5
    assert value("config:train.betas", one) == "[0.9, 0.99]"
    assert value("config:train.learning_rate", one, two) == [5e-5, None]


def test_unknown_names_list_the_nearest() -> None:
    with pytest.raises(UnknownPartError, match=r"unknown column 'perplexty'\. Did you mean 'perplexity'"):
        column("perplexty")
    with pytest.raises(
        UnknownPartError, match=r"unknown config path 'train.lerning_rate'. Did you mean 'train.learning_rate'"
    ):
        column("config:train.lerning_rate", [finished(config={"train": {"learning_rate": 1}})])


def test_every_column_has_a_heading_of_its_own() -> None:
    headings = [shown.header for shown in COLUMNS.values()]
    assert len(set(headings)) == len(headings) == len(COLUMNS)
    assert set(COLUMNS) == set(ABOUT)


def test_the_study_s_headings() -> None:
    names = ["model", "sparsity", "perplexity", "distilled", "teacher", "layer"]
    headings = ["Model", "Sparsity", "Perplexity", "Distilled", "Teacher", "Layer Pruned"]
    assert [COLUMNS[name].header for name in names] == headings


def test_a_row_without_trials_has_no_values() -> None:
    row = replace(Row("r", "l", ()), label="x")
    for name in COLUMNS:
        assert all(value in (None, "r", "x", "missing", 0) for value in COLUMNS[name].extract(row))


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (21.756, "loss", "21.76"),
        (1.33e9, "loss", "1.33e+09"),
        (0.97312, "bits", "0.973"),
        (89.99962, "percent", "90"),
        (89.96, "percent", "89.96"),
        (99.96, "percent", "99.96"),
        (99.99962, "percent", "99.9996"),
        (0.0004, "percent", "0.0004"),
        (100, "percent", "100"),
        (33.333, "percent", "33.3"),
        (89.5, "percent", "89.5"),
        (-0.0, "percent", "0"),
        (1234567, "count", "1,234,567"),
        (12.34, "seconds", "12.3"),
        (3599.6, "seconds", "3,600"),
        (True, "number", "true"),
        (5e-5, "number", "5e-05"),
        (3, "number", "3"),
        (float("inf"), "loss", "–"),
        (float("nan"), "percent", "–"),
        (None, "loss", "–"),
        ("as it is", "loss", "as it is"),
    ],
)
def test_values_as_text(value: Any, kind: Any, text: str) -> None:
    assert text_of(value, kind) == text


def test_other_notations() -> None:
    assert [printed(18.34), printed(30.0), printed(1.33e9), printed(2.76e70)] == [
        "18.34",
        "30",
        "1330000000",
        "2.76e+70",
    ]
    assert [probability(p) for p in (0.0001, 0.0321, 0.5)] == ["p < 0.001", "p = 0.032", "p = 0.50"]
    assert plain(float("inf")) == "inf"
    assert plain({"a": [1]}) == '{"a": [1]}'
    assert text_of(-3.0, "loss") == "-3.00"


@given(st.integers(1, 10**9), st.integers(0, 10**9))
def test_no_share_prints_as_all_or_nothing_that_is_not(total: int, zeros: int) -> None:
    share = min(zeros, total) / total
    told = {text_of(round(100 * share, 10), "percent"), number(share)}
    assert ("100" in told) == ("1" in told) == (share == 1)
    assert ("0" in told) == (share == 0)


def test_a_low_coverage_is_remarked_only_where_nobody_asked_for_it() -> None:
    pruned = {"kind": "prune", "prune": {"sparsity": 0.5}}
    named = {"kind": "prune", "prune": {"sparsity": 0.5, "layers": [0]}}

    def trial(stage: Any, coverage: float | None) -> TrialResult:
        made = finished(stages=[stage])
        assert made.sparsity is not None
        last = made.stages[-1].model_copy(update={"sparsity": made.sparsity.model_copy(update={"coverage": coverage})})
        return made.model_copy(update={"stages": (*made.stages[:-1], last)})

    assert partly_covered(trial(pruned, 0.5)) == 0.5
    assert partly_covered(trial(pruned, 0.95)) is None
    assert partly_covered(trial(named, 0.5)) is None
    assert partly_covered(trial(pruned, None)) is None, "a record of an earlier version"
    assert value("coverage", trial(named, 0.5)) == 50.0
