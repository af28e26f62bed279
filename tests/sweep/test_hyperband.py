"""Giving up as W&B does, against the package that W&B publishes."""

from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.registry import EARLY_STOPS
from prunegpt.sweep.hyperband import WandbHyperband, bands, given_up

CURVES = st.lists(st.lists(st.sampled_from([1.0, 1.5, 2.0, 2.25, 3.0, 4.0]), max_size=12), min_size=1, max_size=8)
SETTINGS = st.one_of(
    st.fixed_dictionaries({"min_iter": st.integers(1, 4), "eta": st.sampled_from([1.5, 2, 3])}),
    st.fixed_dictionaries(
        {"max_iter": st.integers(4, 27), "s": st.integers(1, 3), "eta": st.sampled_from([2, 3])}
    ).filter(lambda one: one["max_iter"] >= one["eta"]),
)


def theirs(curves: list[list[float]], growing: list[bool], options: dict[str, Any]) -> list[bool]:
    sweeps = pytest.importorskip("sweeps", reason="needs the package sweeps, the reference of early_terminate")
    runs = [
        sweeps.SweepRun(
            name=str(index),
            state=sweeps.RunState.running if grows else sweeps.RunState.finished,
            history=[{"perplexity": value} for value in curve],
        )
        for index, (curve, grows) in enumerate(zip(curves, growing, strict=True))
    ]
    config = {
        "method": "random",
        "metric": {"name": "perplexity", "goal": "minimize"},
        "early_terminate": {"type": "hyperband", **options},
        "parameters": {"x": {"min": 0.0, "max": 1.0}},
    }
    stopped = {run.name for run in sweeps.stop_runs(config, list(runs))}
    return [str(index) in stopped for index in range(len(curves))]


@settings(max_examples=200, deadline=None)
@given(CURVES, SETTINGS, st.booleans(), st.randoms(use_true_random=False))
def test_what_is_given_up_is_what_wandb_would_give_up(
    curves: list[list[float]], options: dict[str, Any], strict: bool, source: Any
) -> None:
    growing = [bool(curve) and source.random() < 0.6 for curve in curves]
    lengths = bands(**options)
    ours = given_up(curves, lengths=lengths, eta=options["eta"], strict=strict)
    expected = theirs(curves, growing, {**options, "strict": strict})
    assert [stop and grows for stop, grows in zip(ours, growing, strict=True)] == expected


@settings(max_examples=25, deadline=None)
@given(CURVES.filter(lambda curves: all(curves)), st.integers(1, 4))
def test_the_early_stop_of_a_search_decides_the_same(curves: list[list[float]], first: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(pruner=EARLY_STOPS.load("wandb_hyperband")(min_iter=first, eta=2))
    trials = [study.ask() for _ in curves]
    for trial, curve in zip(trials, curves, strict=True):
        for step, value in enumerate(curve):
            trial.report(value, 10 * step)
    expected = given_up(curves, lengths=bands(min_iter=first, eta=2), eta=2)
    assert [trial.should_prune() for trial in trials] == expected


def test_a_pruner_without_a_first_band_is_refused() -> None:
    with pytest.raises(ValueError, match="needs min_iter, or max_iter and s"):
        WandbHyperband(max_iter=9)
