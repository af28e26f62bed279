import pytest

from prunegpt.report.compare import compare, comparison_tables
from prunegpt.report.render import csv, html, json, latex, markdown
from prunegpt.report.statistics import compare_seeds, compare_windows
from tests.support.results import Kept, draw_windows, evaluation, make_trial

HARD = {"kind": "distill", "distill": {"hardness": 0.9, "temperature": 2.0}}
SOFT = {"kind": "distill", "distill": {"hardness": 0.5, "temperature": 2.0}}


def test_settings_that_differ_and_no_others() -> None:
    first = make_trial("a", stages=[HARD], config={"train": {"lr": 1e-4}}, seed=1)
    second = make_trial("b", stages=[SOFT], config={"train": {"lr": 1e-4, "epochs": 3}}, seed=1)
    found = compare(first, second, lambda _: None)
    assert {(path, *both) for path, both in found.settings.items()} == {
        ("stages.0.distill.hardness", 0.9, 0.5),
        ("train.epochs", None, 3),
    }


def test_a_difference_is_tested_on_the_windows() -> None:
    kept = Kept()
    one, two = draw_windows(3.0, seed=1), draw_windows(3.2, seed=1)
    two[:, 0] *= 1.001
    found = compare(kept.trial("a", one, pruned=0.9), kept.trial("b", two, pruned=0.5), kept)
    assert found.test == compare_windows(one, two)
    assert "wikitext2/a and wikitext2/b differ: perplexity -" in found.verdict
    assert "p < 0.001" in found.verdict
    metrics = {metric.header: metric for metric in found.metrics}
    assert metrics["Perplexity"].difference == pytest.approx(found.test.difference.value)
    assert metrics["Sparsity"].difference == pytest.approx(40.0)


def test_a_trial_does_not_differ_from_itself() -> None:
    kept = Kept()
    trial = kept.trial("a", draw_windows(3.0))
    found = compare(trial, trial, kept)
    assert found.settings == {}
    assert "do not differ significantly" in found.verdict
    assert all(metric.difference == 0 for metric in found.metrics)
    measured, _ = comparison_tables(found)
    assert [heading.text for heading in measured.columns][1:3] == ["wikitext2/a (first)", "wikitext2/a (second)"]


def test_other_protocols_are_not_compared() -> None:
    kept = Kept()
    found = compare(kept.trial("a", draw_windows(3.0)), kept.trial("b", draw_windows(3.1), protocol="stride"), kept)
    assert found.test is None
    assert "can be compared where they were measured alike; the protocol is" in found.verdict
    metrics = {metric.header: metric for metric in found.metrics}
    assert metrics["Perplexity"].difference is None
    assert metrics["Perplexity"].first is not None
    assert metrics["Tokens"].difference == 0


@pytest.mark.parametrize("state", ["failed", "running", "diverged"])
def test_what_has_no_perplexity_is_not_compared(state: str) -> None:
    kept = Kept()
    other = make_trial("b", state=state, measured=evaluation(perplexity=5.0))  # type: ignore[arg-type]
    found = compare(kept.trial("a", draw_windows(3.0)), other, kept)
    assert f"wikitext2/b has none: it is {state}" in found.verdict
    assert all(metric.second is None for metric in found.metrics)


def test_without_windows_there_is_no_test() -> None:
    found = compare(make_trial("a", measured=evaluation()), make_trial("b", measured=evaluation()), lambda _: None)
    assert "cannot be tested without the losses of each window" in found.verdict


def test_it_renders_in_every_format() -> None:
    kept = Kept()
    first = kept.trial("a", draw_windows(3.0), stages=[HARD])
    second = kept.trial("b", draw_windows(3.2), stages=[SOFT])
    tables = comparison_tables(compare(first, second, kept))
    for render in (markdown.render, latex.render, csv.render, html.render, json.render):
        text = render(tables)
        assert "hardness" in text
        assert "Perplexity" in text


def test_the_seeds_of_two_configurations_are_compared_by_their_means_and_one_test() -> None:
    kept = Kept()
    sides = [
        [
            kept.trial(f"{name}-{seed}", draw_windows(loss + seed / 100, seed=1), group=name, seed=seed, stages=[stage])
            for seed in (1, 2, 3)
        ]
        for name, loss, stage in (("a", 3.0, HARD), ("b", 3.2, SOFT))
    ]
    found = compare(*sides, kept)
    windows = [{trial.seed: kept.of[trial.name] for trial in side} for side in sides]
    assert found.test == compare_seeds(*windows)
    assert "wikitext2/a (3 seeds) and wikitext2/b (3 seeds) differ" in found.verdict
    assert "paired t over seeds and windows, n = 3" in found.verdict
    assert found.settings == {"stages.0.distill.hardness": (0.9, 0.5)}
    perplexity = found.metrics[0]
    values = [trial.metrics["perplexity"] for trial in sides[0]]
    assert perplexity.first == pytest.approx(sum(values) / 3)
    measured, _ = comparison_tables(found)
    assert " ± " in measured.rows[0].cells[1].text
