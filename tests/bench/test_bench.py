"""The harness by known figures, the table by its page, and the plain alternatives by what they must come to."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prunegpt.pruning.patterns import Unstructured
from prunegpt.pruning.solvers.sparsegpt import sparsegpt
from tests.bench import gpu, table
from tests.bench import sparsegpt as bench_sparsegpt
from tests.bench.__main__ import EVERY, summary
from tests.bench.harness import Ratio, Settings, Stepwise, rounds, stepping
from tests.bench.history import CHECKOUT, RESULTS, Place, elsewhere, last_rows, read_latest, write
from tests.bench.naive_sparsegpt import prune_layer
from tests.bench.rows import Row
from tests.bench.scale import GPT2, grows, hours, on_paper, simulate

PLACE = Place("processor", 2, "cpu", 2, "wall", False)
ROW = Row("name", "what", "beside", 0.5, 0.4, 0.6, 5, wanted=0.6)


@pytest.fixture
def quick(tmp_path: Path) -> Settings:
    return Settings(quick=True, device="cpu", threads=1, clock="wall", work=tmp_path)


def test_a_ratio_is_a_median_of_pairs_and_its_spread_their_quartiles() -> None:
    ratio = Ratio((1.0, 2.0, 3.0, 4.0, 100.0))
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 3.0, 4.0)
    few = Ratio((3.0, 1.0))
    assert (few.low, few.median, few.high) == (1.0, 2.0, 3.0)


def test_lanes_take_turns_and_each_goes_first() -> None:
    called: list[str] = []
    lanes: dict[str, Callable[[], object]] = {name: lambda name=name: called.append(name) for name in "ab"}  # type: ignore[misc]
    times = rounds(lanes, count=2, warmup=1)
    assert len(called) == 6
    assert {tuple(called[2:4]), tuple(called[4:6])} == {("a", "b"), ("b", "a")}
    assert {name: len(found) for name, found in times.seconds.items()} == {"a": 2, "b": 2}


def test_a_ratio_of_lanes_is_that_of_their_times() -> None:
    times = rounds({"ours": lambda: time.sleep(0.02), "theirs": lambda: time.sleep(0.08)}, count=3)
    assert times.ratio("ours", "theirs").median < 0.75


def test_loops_are_stepped_in_turn_and_end_with_the_block() -> None:
    seen: list[str] = []

    def loop(name: str) -> Callable[[Callable[[], None]], None]:
        def run(pause: Callable[[], None]) -> None:
            try:
                for number in range(100):
                    seen.append(f"{name}{number}")
                    pause()
            finally:
                seen.append(f"{name} closed")

        return run

    with stepping(a=loop("a"), b=loop("b")) as lanes:
        for name in ("a", "b", "b", "a"):
            lanes[name]()
    assert seen == ["a0", "b0", "b1", "a1", "a closed", "b closed"]


def test_a_loop_that_ends_says_why() -> None:
    def run(pause: Callable[[], None]) -> None:
        raise ValueError("no data")

    with pytest.raises(RuntimeError, match="must go on; it ended: ValueError\\('no data'\\)"):
        Stepwise(run)()


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "met"),
        ({"value": 0.65, "high": 0.7}, "missed"),
        ({"value": 0.65, "low": 0.55, "high": 0.7}, "within its spread"),
        ({"value": 0.9, "low": 0.8, "high": 1.0, "floor": 0.85}, "missed, at its floor"),
        ({"value": 2.0, "low": 1.9, "high": 2.1, "wanted": 1.3, "better": "higher"}, "met"),
        ({"value": 1.0, "low": 0.9, "high": 1.1, "wanted": 1.3, "better": "higher"}, "missed"),
        ({"wanted": None}, "–"),
        ({"skipped": "needs a GPU"}, "not measured: not met"),
    ],
)
def test_verdicts(changes: dict[str, Any], verdict: str) -> None:
    row = replace(ROW, **{"low": 0.62, **changes} if changes.get("value") == 0.65 and "low" not in changes else changes)
    assert row.verdict == verdict


def test_a_check_fails_where_a_figure_is_15_percent_worse_than_wanted_or_than_before() -> None:
    assert replace(ROW, value=0.68).problems(None) == []
    assert replace(ROW, value=0.70).problems(None) == ["name is 0.7 ×, and 0.6 × was wanted"]
    assert replace(ROW, value=0.70, floor=0.65).problems(None) == []
    assert replace(ROW, value=0.59).problems(ROW) == ["name is 0.59 ×, and was 0.5 × the last time"]
    assert replace(ROW, value=0.57).problems(ROW) == []
    more = replace(ROW, value=100.0, wanted=100.0, better="higher")
    assert replace(more, value=80.0).problems(more) == [
        "name is 80 ×, and 100 × was wanted", "name is 80 ×, and was 100 × the last time",
    ]  # fmt: skip


def test_a_row_that_was_not_measured_is_not_met() -> None:
    rows = [ROW, replace(ROW, name="b", value=0.9, high=1.0, low=0.8), Row("c", "what", "", skipped="needs a GPU")]
    assert summary(rows) == "1 of 3 rows are met; not: b (missed), c (not measured: not met)"
    assert rows[2].problems(None) == ["c was not measured: needs a GPU"]


def test_figures_of_another_model_are_not_compared() -> None:
    assert replace(ROW, value=0.6).problems(replace(ROW, what="another model")) == []


def test_without_a_model_its_rows_say_how_to_name_one(quick: Settings) -> None:
    rows = list(bench_sparsegpt.measure(replace(quick, quick=False)))
    assert {row.name for row in rows} == {"sparsegpt-time", "sparsegpt-perplexity"}
    assert all("--model FOLDER" in row.skipped for row in rows)


def test_the_table_has_the_range_over_machines(tmp_path: Path) -> None:
    other = replace(PLACE, machine="other")
    write([replace(ROW, value=0.62, low=0.61, high=0.63), replace(ROW, name="b", what="b")], other, tmp_path)
    write([replace(ROW, name="b", what="b", value=0.1)], replace(PLACE, quick=True), tmp_path)
    write([replace(ROW, value=0.9)], replace(PLACE, threads=1), tmp_path)  # the same machine
    latest = write([ROW, replace(ROW, name="b", what="bb", value=0.2)], PLACE, tmp_path)
    text = table.markdown(latest, elsewhere(latest, tmp_path))
    assert "| 0.50 to 0.62 × on 2 machines | met on 1 of 2 machines |" in text
    assert "| bb | beside | ≤ 0.6 × | 0.20 × \\[0.40, 0.60\\] | met |" in text  # what was measured differs


def test_history_keeps_every_run_and_compares_equal_places_only(tmp_path: Path) -> None:
    write([ROW, replace(ROW, name="other")], PLACE, tmp_path)
    latest = write([replace(ROW, value=0.55)], PLACE, tmp_path)
    assert {row.name: row.value for row in latest.rows} == {"name": 0.55, "other": 0.5}
    assert read_latest(tmp_path) == latest
    assert [json.loads(line)["rows"][0]["value"] for line in (tmp_path / "history.jsonl").open()] == [0.5, 0.55]
    assert last_rows(PLACE, tmp_path)["name"].value == 0.55
    assert last_rows(replace(PLACE, quick=True), tmp_path) == {}


def test_a_row_that_is_skipped_does_not_wipe_out_its_figure(tmp_path: Path) -> None:
    write([ROW], PLACE, tmp_path)
    assert write([replace(ROW, value=0.0, skipped="no model")], PLACE, tmp_path).rows == (ROW,)


def test_the_table_stands_between_its_markers(tmp_path: Path) -> None:
    latest = write(
        [replace(ROW, note="Why."), *(replace(ROW, name=name, skipped="needs a GPU") for name in "bc")], PLACE, tmp_path
    )
    text = "before\n<!-- prunegpt:bench -->\nold\n<!-- /prunegpt:bench -->\nafter\n"
    new = table.replaced(text, latest)
    assert "| what | beside | ≤ 0.6 × | 0.50 × \\[0.40, 0.60\\] | met<sup>1</sup> |" in new
    assert "<sup>1</sup> Why." in new
    assert new.count("not measured: not met<sup>2</sup>") == 2
    assert "old" not in new
    assert (new.startswith("before\n"), new.endswith("after\n")) == (True, True)
    assert table.replaced(new, latest) == new
    with pytest.raises(ValueError, match="once; it has them 0 times"):
        table.replaced("nothing", latest)


@pytest.mark.parametrize(("name", "results"), [("bench", RESULTS), ("peers", RESULTS / "peers")])
def test_the_page_has_the_latest_figures(name: str, results: Path) -> None:
    page = (CHECKOUT / "docs" / "results" / "benchmarks.md").read_text(encoding="utf-8")
    latest = table.read(name, results)
    if latest is None:
        pytest.skip("nothing was measured yet: run `make bench`")
    assert table.replaced(page, latest, elsewhere(latest, results), name=name) == page
    assert not latest.place.quick


def test_the_page_tells_what_the_study_costs() -> None:
    page = (CHECKOUT / "docs" / "results" / "scaling.md").read_text(encoding="utf-8")
    region = page.partition("<!-- prunegpt:scale -->")[2].partition("<!-- /prunegpt:scale -->")[0]
    told = region.strip().splitlines()
    assert told[: len([*on_paper(), *grows()])] == [f"- {line}" for line in (*on_paper(), *grows())]
    assert "10,000 trials through the coordinator" in told[-1]


def test_every_benchmark_is_there() -> None:
    paths = [path.relative_to(CHECKOUT) for path in Path(__file__).parent.rglob("*.py")]
    modules = {
        ".".join(path.with_suffix("").parts)
        for path in paths
        if "\ndef measure(" in (CHECKOUT / path).read_text("utf-8")
    }
    assert modules == {place.split(":")[0] for place in EVERY.values()}


def test_the_plain_algorithm_and_ours_solve_a_layer_alike() -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(24, 256), torch.randn(1000, 256) @ torch.randn(256, 256)
    gram = inputs.t() @ inputs
    plain = prune_layer(weight, gram, 0.5)
    ours = sparsegpt(weight, gram=gram, pattern=Unstructured(), sparsity=0.5).weight

    def error(solved: torch.Tensor) -> float:
        return float((inputs @ (solved - weight).t()).square().sum())

    assert float((plain == 0).float().mean()) == pytest.approx(0.5, abs=1e-3)
    assert error(ours) == pytest.approx(error(plain), rel=0.02)


def test_without_a_card_every_row_of_the_gpu_says_so(quick: Settings) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card here")
    rows = list(gpu.measure(replace(quick, device="cuda")))
    assert {"finetune-mfu", "gpu-shared", "sparsegpt-7b"} <= {row.name for row in rows}
    assert all(row.skipped == "needs a CUDA device, and torch finds none here." for row in rows)


@pytest.mark.slow
def test_what_the_gpu_rows_measure_runs_on_a_processor_in_small(quick: Settings) -> None:
    row = gpu.throughput(quick, (gpu.WAYS[0], gpu.WAYS[2]))
    assert set(row.figures) == {f"tokens per second, {way.name}" for way in (gpu.WAYS[0], gpu.WAYS[2])} | {
        "peak Tflop/s"
    }
    assert row.value > 0
    assert gpu.seven(quick).value > 0


def test_hours_follow_from_operations() -> None:
    assert hours(GPT2, 1e9, cards=2) == pytest.approx(hours(GPT2, 1e9, cards=1) / 2)
    assert hours(GPT2, 1e9, cards=1, teacher=1.0) == pytest.approx(4 / 3 * hours(GPT2, 1e9, cards=1))
    assert hours(GPT2, 1e9, cards=1) == pytest.approx(1e9 * (6 * 124e6 + 12 * 12 * 768 * 1024) / (989e12 * 0.4) / 3600)


def test_the_coordinator_takes_simulated_trials() -> None:
    found = simulate(20, slots=4)
    assert found.done == 20
    assert found.database > 0
