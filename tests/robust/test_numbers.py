"""A figure in a table was measured: what is no number never becomes one, and labels do not count."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prunegpt.points import Point, PointWriter, read_points
from prunegpt.records import Evaluation, SparsityRecord, StageRecord
from prunegpt.registry import RENDERERS
from prunegpt.report.tables import build_table
from prunegpt.spec.columns import COLUMNS
from prunegpt.spec.schema import TableSpec
from tests.support.results import draw_windows, evaluation, make_trial

NOT_FINITE = [math.nan, math.inf, -math.inf]
NO_NUMBER = re.compile(r"(?<![\w-])-?(nan|inf|infinity)(?![\w-])", re.IGNORECASE)


def columns() -> list[str]:
    found = sorted(COLUMNS)
    assert len(found) > 15
    return found


def rendered(*trials: Any, title: str = "Figures") -> dict[str, str]:
    spec = TableSpec(title=title, rows=["*"], columns=columns())
    table = build_table(spec, trials, lambda _: None, sweep="wikitext2", commit=None)
    return {name: RENDERERS.load(name)([table]) for name in RENDERERS.names()}


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("field", ["perplexity", "loss", "bits_per_byte", "word_perplexity", "seconds"])
def test_no_record_takes_a_number_that_is_none(field: str, value: float) -> None:
    good = evaluation().model_dump()
    with pytest.raises(ValidationError, match="finite number"):
        Evaluation(**{**good, field: value})
    text = json.dumps({**good, field: value})
    assert "NaN" in text or "Infinity" in text
    with pytest.raises(ValidationError, match="finite number"):
        Evaluation.model_validate_json(text)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_sparsities_and_times_are_numbers(value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        SparsityRecord(pruned=value, overall=0.1, selected=1, parameters=1)
    with pytest.raises(ValidationError, match="finite number"):
        SparsityRecord(pruned=0.1, overall=0.1, selected=1, parameters=1, by_tensor={"a": value})
    with pytest.raises(ValidationError, match="finite number"):
        StageRecord(key="k", kind="load", index=0, cached=False, seconds=value)


def test_a_point_that_is_no_number_is_passed_over_when_read(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    writer = PointWriter(path)
    good = Point(stage=0, step=1, epoch=0.0, name="loss", value=None, time=0.0)
    writer.write(good)
    writer.close()
    with path.open("a") as file:
        file.write('{"stage":0,"step":2,"epoch":0.0,"name":"loss","value":NaN,"time":0.0,"tokens":0}\n')
    assert read_points(path)[0] == [good]


@pytest.mark.parametrize("state", ["finished", "diverged", "failed", "stopped", "waiting", "running"])
def test_no_format_shows_what_is_no_number(state: Any) -> None:
    broken = make_trial("a", state=state, measured=evaluation(finite=False), pruned=0.5, label="GPT")
    sound = make_trial("b", measured=evaluation(draw_windows(3.0)), label="GPT")
    for name, text in rendered(broken, sound).items():
        assert not NO_NUMBER.search(text), name
        if name == "json":
            (row, other) = json.loads(text)["tables"][0]["rows"]
            assert row["perplexity"] is None
            assert other["perplexity"] == pytest.approx(sound.evaluation.perplexity)  # type: ignore[union-attr]


def test_the_best_of_a_column_is_a_number() -> None:
    trials = [
        make_trial("a", measured=evaluation(finite=False)),
        make_trial("b", measured=evaluation(perplexity=30.0)),
        make_trial("c", measured=evaluation(perplexity=20.0)),
    ]
    (table,) = json.loads(rendered(*trials)["json"])["tables"]
    assert [row["perplexity"] for row in table["rows"]] == [None, pytest.approx(30.0), pytest.approx(20.0)]


@pytest.mark.parametrize("measured", [0.0, 0.5, 0.8999])
def test_sparsity_is_what_was_counted_whatever_the_label_says(measured: float) -> None:
    trial = make_trial(
        "pruned-90", label="GPT-2 90% sparse", pruned=measured, target=0.9, measured=evaluation(), stages=[
            {"kind": "finetune", "finetune": {"prune": {"sparsity": 0.9}}}
        ],
    )  # fmt: skip
    (table,) = json.loads(rendered(trial)["json"])["tables"]
    assert table["rows"][0]["sparsity"] == pytest.approx(100 * measured)
