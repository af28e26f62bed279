"""Tables by their properties: what may stand in a cell, what is marked, and what is said below."""

import math
import re
from typing import Any

import numpy as np
import pytest

from prunegpt.errors import ReportError, UnknownPartError
from prunegpt.report.cells import Cell, Table, slug
from prunegpt.report.render import latex, markdown
from prunegpt.report.statistics import perplexity_interval
from prunegpt.report.tables import build_table
from prunegpt.spec.schema import TableSpec
from tests.support.results import PROTOCOL, Kept, draw_windows, evaluation, make_trial

FINETUNE = {"kind": "finetune", "finetune": {}}
DISTILL = {"kind": "distill", "distill": {}, "teacher": "t"}
COLUMNS = ["model", "sparsity", "perplexity", "distilled", "teacher"]


def table(results: list, windows: Any, rows: list | None = None, columns: list | None = None, **fields: Any) -> Table:
    spec = {"title": "WikiText-2", "rows": rows or ["*"], "columns": columns or COLUMNS, **fields}
    return build_table(TableSpec.model_validate(spec), results, windows)


def cell(made: Table, trial: str, column: str) -> Cell:
    keys = [heading.key for heading in made.columns]
    (row,) = [row for row in made.rows if row.trial == trial]
    return row.cells[keys.index(column)]


def footnote(made: Table, symbol: str) -> str:
    (text,) = [note.text for note in made.footnotes if note.symbol == symbol]
    return text


def test_the_study_s_shape() -> None:
    kept = Kept()
    results = [
        kept.trial("zero-shot", draw_windows(3.42), order=0, label="GPT-2 122M (Zero-Shot)"),
        kept.trial("finetuned", draw_windows(3.08), order=1, stages=[FINETUNE]),
        kept.trial(
            "distilled", draw_windows(3.05), order=2, stages=[DISTILL], teachers={"t": "gpt2(zero-shot)"}, pruned=0.9
        ),
    ]
    made = table(results, kept)
    assert [heading.text for heading in made.columns] == ["Model", "Sparsity", "Perplexity", "Distilled", "Teacher"]
    assert [row.trial for row in made.rows] == ["zero-shot", "finetuned", "distilled"]
    assert [made.rows[2].cells[i].text for i in (0, 1, 3, 4)] == ["GPT-2 122M", "90", "Yes", "gpt2(zero-shot)"]
    assert [made.rows[0].cells[i].text for i in (0, 1, 3, 4)] == ["GPT-2 122M (Zero-Shot)", "0", "No", "N/A"]
    assert made.name == "wikitext-2"


def test_a_perplexity_is_the_record_s_with_its_interval() -> None:
    kept = Kept()
    windows = draw_windows(3.0)
    made = table([kept.trial("a", windows)], kept)
    found, interval = cell(made, "a", "perplexity"), perplexity_interval(windows)
    assert found.value == pytest.approx(interval.value, rel=1e-12)
    assert found.details["interval"] == (interval.low, interval.high)
    assert found.text == f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
    assert any("95% interval" in note.text for note in made.footnotes)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"state": "waiting"}, "not run"),
        ({"state": "running"}, "running"),
        ({"state": "failed"}, "failed"),
        ({"state": "diverged"}, "diverged"),
        ({"state": "stopped"}, "stopped early"),
        ({"measured": evaluation(finite=False)}, "not finite"),
        ({"measured": None}, "not measured"),
    ],
)
def test_what_has_no_number_shows_none(fields: dict, text: str) -> None:
    fields = {"measured": evaluation(perplexity=21.0), "pruned": 0.5, **fields}
    made = table([make_trial("a", **fields)], lambda _: None, columns=["trial", "perplexity", "sparsity", "tokens"])
    assert cell(made, "a", "perplexity").text == text
    for name in ("perplexity", "sparsity", "tokens"):
        found = cell(made, "a", name)
        assert found.value is None
        assert not any(character.isdigit() for character in found.text)


def test_a_reason_is_given_for_a_failure() -> None:
    made = table([make_trial("a", state="failed", reason="out-of-memory")], lambda _: None)
    (symbol,) = cell(made, "a", "perplexity").footnotes
    assert footnote(made, symbol) == "failed: out-of-memory"


def test_a_pattern_without_trials_is_missing() -> None:
    made = table([], lambda _: None, rows=["nowhere"])
    assert made.rows[0].state == "missing"
    assert cell(made, "nowhere", "perplexity").text == "missing"
    assert cell(made, "nowhere", "model").text == "nowhere"


def test_seeds_become_mean_and_deviation() -> None:
    kept = Kept()
    losses = {1: 3.0, 2: 3.02, 3: 3.05}
    results = [kept.trial(f"a@{s}", draw_windows(v), group="a", seed=s) for s, v in losses.items()]
    made = table(results, kept, columns=["trial", "perplexity", "seeds", "seconds"])
    values = [trial.evaluation.perplexity for trial in results if trial.evaluation]
    found = cell(made, "a", "perplexity")
    assert found.value == pytest.approx(np.mean(values))
    assert found.details["sd"] == pytest.approx(np.std(values, ddof=1))
    assert found.details["n"] == 3
    assert found.text == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} (3)"
    assert cell(made, "a", "seeds").value == 3
    assert made.rows[0].trials == ("a@1", "a@2", "a@3")


def test_a_seed_that_diverged_is_not_in_the_mean_and_is_told() -> None:
    kept = Kept()
    results = [
        kept.trial("a@1", draw_windows(3.0), group="a", seed=1),
        make_trial("a@2", group="a", seed=2, state="diverged", measured=evaluation(perplexity=9e9)),
    ]
    made = table(results, kept)
    assert made.rows[0].state == "partial"
    found = cell(made, "a", "perplexity")
    assert found.value == pytest.approx(results[0].evaluation.perplexity)
    assert "1 of 2 seeds; not in the mean: 1 diverged" in [footnote(made, symbol) for symbol in found.footnotes]


def test_best_and_tied_are_marked() -> None:
    kept = Kept()
    close = draw_windows(3.0, seed=1)
    noise = np.random.default_rng(0).normal(0, 6.0, len(close))
    close[:, 0] += noise - noise.mean() + 0.05  # hardly worse, and not in every window
    results = [
        kept.trial("best", draw_windows(3.0, seed=1)),
        kept.trial("close", close),
        kept.trial("worse", draw_windows(3.3, seed=1)),
    ]
    made = table(results, kept, columns=["perplexity", "difference"])
    marks = {row.trial: row.cells[0].marks for row in made.rows}
    assert marks == {"best": ("best",), "close": ("tied",), "worse": ()}
    assert "†" in made.rows[1].cells[0].footnotes
    assert "not significantly different" in footnote(made, "†")
    difference = made.rows[2].cells[1]
    assert difference.value == pytest.approx(made.rows[2].cells[0].value - made.rows[0].cells[0].value)
    assert difference.details["interval"][0] > 0
    assert difference.details["p"] < 0.05
    assert made.rows[0].cells[1].text == "best"


def test_a_row_alone_is_not_the_best_of_anything() -> None:
    kept = Kept()
    made = table([kept.trial("a", draw_windows(3.0)), make_trial("b", state="failed")], kept)
    assert cell(made, "a", "perplexity").marks == ()


def test_protocols_are_not_mixed_in_silence() -> None:
    kept = Kept()
    results = [
        kept.trial("xl", draw_windows(2.9), protocol="stride"),
        kept.trial("a", draw_windows(3.0)),
        kept.trial("b", draw_windows(3.3)),
    ]
    made = table(results, kept)
    told = {row.trial: [footnote(made, s) for s in row.cells[2].footnotes if s.isdigit()] for row in made.rows}
    assert told == {"xl": ["protocol stride"], "a": [f"protocol {PROTOCOL}"], "b": [f"protocol {PROTOCOL}"]}
    marks = {row.trial: row.cells[2].marks for row in made.rows}
    assert marks == {"xl": (), "a": ("best",), "b": ()}  # the best of the only protocol that two rows share
    alone = table(results[1:], kept)
    assert not any("protocol" in note.text and note.symbol for note in alone.footnotes)


def test_seeds_of_one_row_must_share_a_protocol() -> None:
    kept = Kept()
    results = [
        kept.trial("a@1", draw_windows(3.0), group="a", seed=1),
        kept.trial("a@2", draw_windows(3.0), group="a", seed=2, protocol="other"),
    ]
    with pytest.raises(ReportError, match="must be measured alike; between a@1 and a@2 the protocol is"):
        table(results, kept)


def test_sparsity_off_target_is_marked() -> None:
    kept = Kept()
    results = [
        kept.trial("asked", draw_windows(3.0), pruned=0.9, target=0.9),
        kept.trial("off", draw_windows(3.1), pruned=0.8, target=0.9),
    ]
    made = table(results, kept)
    assert cell(made, "asked", "sparsity").marks == ()
    found = cell(made, "off", "sparsity")
    assert (found.value, found.text, found.marks, found.footnotes) == (80.0, "80 (asked 90)", ("off-target",), ("‡",))
    assert found.details["asked"] == 90.0
    assert "0.5 point" in footnote(made, "‡")


def test_published_figures_stand_beside_the_measured_ones() -> None:
    kept = Kept()
    reported = {
        "a": 30.63,
        "b": {"text": "1.33e9", "note": "exp() of a blended loss"},
        "c": {"text": "inf"},
        "d": {},
    }
    results = [kept.trial(name, draw_windows(3.0 + i / 10), order=i) for i, name in enumerate("abcde")]
    made = table(results, kept, reported=reported)
    assert [heading.text for heading in made.columns][2:4] == ["Perplexity", "Reported"]
    cells = {row.trial: row.cells[3] for row in made.rows}
    assert (cells["a"].value, cells["a"].text) == (30.63, "30.63")
    assert (cells["b"].value, cells["b"].text) == ("1.33e9", "1.33e9")
    assert footnote(made, cells["b"].footnotes[0]) == "exp() of a blended loss"
    assert (cells["c"].value, cells["c"].text) == ("inf", "inf")
    assert (cells["d"].value, cells["d"].text) == (None, "")
    assert (cells["e"].value, cells["e"].text) == (None, "–")


def test_a_reported_column_may_stand_elsewhere() -> None:
    kept = Kept()
    made = table([kept.trial("a", draw_windows(3.0))], kept, columns=["reported", "perplexity"], reported={"a": 1.5})
    assert [heading.key for heading in made.columns] == ["reported", "perplexity"]
    without = table([kept.trial("a", draw_windows(3.0))], kept)
    assert "reported" not in [heading.key for heading in without.columns]


def test_figures_of_no_row_are_told() -> None:
    made = table([], lambda _: None, rows=["a"], reported={"z": 1.0})
    assert "Published figures that no row shows: z" in [note.text for note in made.footnotes]


@pytest.mark.parametrize("changed", ["windows", "perplexity", "loss", "both"])
def test_a_figure_that_is_not_that_of_its_windows_is_in_no_table(changed: str) -> None:
    kept = Kept()
    trial = kept.trial("a", draw_windows(3.0))
    if changed == "windows":
        kept.of["a"] = draw_windows(3.5)
    else:
        figures = {"perplexity": 1.0, "loss": 0.0} if changed == "both" else {changed: 1.0}
        edited = trial.evaluation.model_copy(update=figures)
        stages = (*trial.stages[:-1], trial.stages[-1].model_copy(update={"evaluation": edited}))
        trial = trial.model_copy(update={"stages": stages})
    with pytest.raises(ReportError, match=r"the windows of an evaluation must give its recorded (log perplexity|loss)"):
        table([trial], kept)


def test_without_windows_a_difference_is_not_claimed() -> None:
    results = [
        make_trial("a", measured=evaluation(perplexity=20.0)),
        make_trial("b", measured=evaluation(perplexity=30)),
    ]
    made = table(results, lambda _: None, columns=["perplexity", "difference"])
    found = made.rows[1].cells[0]
    assert found.marks == ()
    assert "not tested against the best" in footnote(made, found.footnotes[0])
    assert made.rows[1].cells[1].text == "+10.00"
    assert "p" not in made.rows[1].cells[1].details


def test_few_windows_are_told() -> None:
    kept = Kept()
    made = table([kept.trial("a", draw_windows(3.0, count=5))], kept)
    assert "5 windows: too few" in footnote(made, cell(made, "a", "perplexity").footnotes[0])
    single = table([kept.trial("a", draw_windows(3.0, count=1))], kept)
    assert "at least 2 windows, got 1" in footnote(single, cell(single, "a", "perplexity").footnotes[0])


def test_columns_of_the_config() -> None:
    results = [make_trial("a", config={"train": {"lr": 1e-4}}), make_trial("b", config={})]
    made = table(results, lambda _: None, columns=["trial", {"value": "config:train.lr", "header": "LR"}])
    assert [(row.cells[1].value, row.cells[1].text) for row in made.rows] == [(1e-4, "1e-4"), (None, "–")]
    with pytest.raises(UnknownPartError, match=r"Did you mean 'train\.lr'"):
        table(results, lambda _: None, columns=["config:train.lrr"])


def test_numbers_of_a_column_have_one_notation() -> None:
    values = {"a": 3.40787e-4, "b": 4.18532e-5, "c": 1e-3, "d": "auto"}
    results = [make_trial(name, config={"train": {"lr": value}}) for name, value in values.items()]
    made = table(results, lambda _: None, columns=["trial", "config:train.lr"])
    assert [row.cells[1].text for row in made.rows] == ["3.408e-4", "4.185e-5", "1.000e-3", "auto"]
    assert [row.cells[1].value for row in made.rows] == list(values.values())


def test_headings_must_differ() -> None:
    with pytest.raises(ReportError, match="different headings; perplexity is used more than once"):
        table([], lambda _: None, columns=["perplexity", {"value": "trial", "header": "PERPLEXITY"}])


def test_every_column_builds_for_every_state() -> None:
    from prunegpt.report.columns import COLUMNS as ALL

    kept = Kept()
    results = [kept.trial(f"a@{s}", draw_windows(3.0), group="a", seed=s, pruned=0.5) for s in (1, 2)]
    results += [kept.trial("b", draw_windows(3.1)), make_trial("c", state="failed"), make_trial("d", state="waiting")]
    made = table(results, kept, rows=["*", "missing"], columns=list(ALL), reported={"b": 1.0})
    assert len(made.rows) == 5
    for row in made.rows:
        for found in row.cells:
            assert not (isinstance(found.value, float) and not math.isfinite(found.value))
            assert "nan" not in found.text
    for column in ("bits per byte", "tokens", "device"):
        assert cell(made, "a", column).value is not None


def test_equal_stores_give_equal_tables() -> None:
    kept = Kept()
    results = [kept.trial(name, draw_windows(3.0 + i / 50), order=i) for i, name in enumerate("abc")]
    assert table(results, kept) == table(results[::-1], kept)


def test_the_name_can_be_given() -> None:
    assert table([], lambda _: None, name="main").name == "main"
    assert slug("Individual Layer Pruning (WikiText-2)!") == "individual-layer-pruning-wikitext-2"
    assert slug("§") == "table"


@pytest.mark.parametrize("digits", [0, 1, 4])
def test_decimals_are_those_that_were_asked_for(digits: int) -> None:
    kept = Kept()
    results = [kept.trial(f"a-{seed}", draw_windows(3.0 + seed / 50), group="a", seed=seed, order=0) for seed in (1, 2)]
    results.append(kept.trial("b", draw_windows(3.4), order=1))
    columns = ["perplexity", "word_perplexity", "difference", "bits_per_byte"]
    made = table(results, kept, columns=columns, decimals=digits)
    for row in made.rows:
        for one in row.cells:
            numbers = re.findall(r"\d+(?:\.(\d+))?", re.sub(r"\(\d\)", "", one.text))
            assert one.text == "best" or numbers
            assert all(len(decimals) == digits for decimals in numbers), one.text
    assert made.rows[0].cells[0].value == table(results, kept, columns=columns).rows[0].cells[0].value


def test_a_table_without_provenance_and_with_a_caption() -> None:
    kept = Kept()
    results = [kept.trial("a", draw_windows(3.0))]
    made = table(results, kept, provenance=False, caption="Over & out.")
    assert made.provenance == ""
    assert r"\caption{Over \& out.}" in latex.render([made])
    assert "WikiText-2" in markdown.render([made])
    assert table(results, kept).provenance
