"""What a worker leaves behind is read as it was written; points are followed while they are written."""

import math
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prunegpt.points import Point, PointWriter, read_points
from prunegpt.records import (
    AttemptRecord,
    Evaluation,
    Record,
    SparsityRecord,
    StageRecord,
    TrialResult,
    TrialState,
    finite,
)
from tests.support.specs import trial_of
from tests.support.sweep_plans import make_trial


def point(step: int = 1, value: float | None = 0.5, **fields: Any) -> Point:
    return Point(**{"stage": 0, "step": step, "epoch": 0.25, "name": "loss", "value": value, "time": 12.5, **fields})


def evaluation(**fields: Any) -> Evaluation:
    usual = {
        "key": "e",
        "protocol": "blocks/8",
        "split": "validation",
        "perplexity": 20.0,
        "loss": 3.0,
        "bits_per_byte": 1.0,
        "word_perplexity": 50.0,
        "tokens": 7,
        "windows": 1,
    }
    return Evaluation(**{**usual, **fields})


def attempt() -> AttemptRecord:
    sparsity = SparsityRecord(pruned=0.5, overall=0.4, selected=10, parameters=12, by_tensor={"a": 0.5}, layers=(1,))
    stage = StageRecord(key="k", kind="prune", index=1, cached=False, evaluation=evaluation(), sparsity=sparsity)
    return AttemptRecord(sweep="s", trial="t", attempt=1, state="finished", stages=(stage,), versions={"torch": "2"})


# -- records ---------------------------------------------------------------------------------------------------------

RECORDS: list[Record] = [attempt(), attempt().stages[0], evaluation(), point()]
assert RECORDS


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_is_read_as_it_was_written(record: Record, tmp_path: Path) -> None:
    record.write(tmp_path / "record.json")
    assert type(record).read(tmp_path / "record.json") == record
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_record_is_frozen_and_knows_its_fields() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        evaluation().loss = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        evaluation(losss=1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_travels_as_none(value: float, tmp_path: Path) -> None:
    assert finite(value) is None
    evaluation(perplexity=finite(value), finite=False).write(tmp_path / "a.json")
    again = Evaluation.read(tmp_path / "a.json")
    assert again.perplexity is None
    assert not again.finite
    writer = PointWriter(tmp_path / "points.jsonl")
    writer.write(point(value=finite(value)))
    writer.close()
    assert [item.value for item in read_points(tmp_path / "points.jsonl")[0]] == [None]


@pytest.mark.parametrize("value", [0.0, -1.5, 1e300])
def test_what_is_finite_stays(value: float) -> None:
    assert finite(value) == value


def test_a_trial_tells_what_its_last_stage_came_to() -> None:
    fields: dict[str, Any] = {"id": 1, "plan": make_trial("a", "load ft"), "shown": True, "state": "finished"}
    first = attempt().stages[0].model_copy(update={"evaluation": None, "sparsity": None})
    assert TrialResult(**fields).evaluation is None
    assert TrialResult(**fields).sparsity is None
    result = TrialResult(**fields, stages=(first, attempt().stages[0]))
    assert result.evaluation == evaluation()
    assert result.sparsity == attempt().stages[0].sparsity


# -- points ----------------------------------------------------------------------------------------------------------


def test_points_are_read_while_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "attempt-1" / "points.jsonl"
    assert read_points(path) == ([], 0)
    writer = PointWriter(path)
    assert read_points(path) == ([], 0)
    offset = 0
    for step in range(3):
        writer.write(point(step, name="sparsity/é"))
        writer.write(point(step, tokens=step))
        found, offset = read_points(path, offset)
        assert found == [point(step, name="sparsity/é"), point(step, tokens=step)]
    writer.close()
    assert read_points(path, offset) == ([], path.stat().st_size)
    assert len(read_points(path)[0]) == 6


def test_half_a_line_is_left_until_its_end_is_there(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    line = point().model_dump_json() + "\n"
    path.write_text(line + line[:10])
    found, offset = read_points(path)
    assert (found, offset) == ([point()], len(line))
    assert read_points(path, offset) == ([], offset)
    with path.open("a") as file:
        file.write(line[10:])
    assert read_points(path, offset) == ([point()], 2 * len(line))


def test_half_a_line_of_a_crash_swallows_no_later_point(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    line = point(1).model_dump_json() + "\n"
    path.write_text(line + line[:10])
    _, offset = read_points(path)
    writer = PointWriter(path)
    writer.write(point(2))
    writer.close()
    assert read_points(path, offset)[0] == [point(2)]
    assert read_points(path)[0] == [point(1), point(2)]


@pytest.mark.parametrize("line", ["", "null", "[]", "{}", "7", '{"stage": 0}', "{", "\xff", '{"stage": "x"}'])
def test_a_line_that_is_no_point_is_passed_over(line: str, tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    good = point().model_dump_json()
    path.write_bytes(f"{good}\n".encode() + line.encode("latin-1") + f"\n{good}\n".encode())
    assert read_points(path) == ([point(), point()], path.stat().st_size)


@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.none(), max_size=8),
    names=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 2000), max_size=5),
)
def test_every_point_is_read_once_wherever_the_file_is_cut(
    values: list[float | None], names: str, cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("points") / "points.jsonl"
    points = [point(step, value, name=names) for step, value in enumerate(values)]
    content = "".join(item.model_dump_json() + "\n" for item in points).encode()
    read: list[Point] = []
    offset = 0
    for end in [*sorted(cuts), len(content)]:
        path.write_bytes(content[:end])
        found, offset = read_points(path, offset)
        read += found
    assert read == points


@pytest.mark.parametrize("state", get_args(TrialState))
@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_trial_has_the_figures_of_its_last_stage_or_none(state: TrialState, done: int) -> None:
    """What an earlier stage came to is never a figure of the trial."""
    plan = trial_of({"prune": {"sparsity": 0.5}}, {"prune": {"sparsity": 0.75}})
    if state == "finished" and done != len(plan.stages):
        return
    stages = tuple(
        StageRecord(
            key=stage.key,
            kind=stage.kind,
            index=index,
            cached=False,
            seconds=1.0,
            train_tokens=10,
            evaluation=evaluation(perplexity=10.0 + index),
            sparsity=SparsityRecord(pruned=index / 4, overall=index / 8, selected=8, parameters=16),
        )
        for index, stage in enumerate(plan.stages[:done])
    )
    trial = TrialResult(id=1, plan=plan, shown=True, state=state, stages=stages)
    whole = done == len(plan.stages)
    assert (trial.metrics["perplexity"], trial.metrics["sparsity"]) == ((12.0, 0.5) if whole else (None, None))
    assert (trial.evaluation is None, trial.sparsity is None) == (not whole, not whole)
    assert (trial.metrics["tokens"], trial.metrics["seconds"]) == (10 * done, 1.0 * done)
    assert trial.so_far == (f"after {stages[-1].kind}: perplexity {9 + done}" if stages and not whole else "")
