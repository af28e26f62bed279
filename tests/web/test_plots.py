"""Plotly figures: the same data as the matplotlib ones, in colours that stay apart, with traces the policy allows."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from prunegpt.errors import ReportError
from prunegpt.report.gallery import DRAWINGS, Material
from prunegpt.report.measure import stored_windows
from prunegpt.report.plots import (
    DENSE,
    OKABE_ITO,
    Curve,
    LayerBar,
    Plot,
    SparsityPoint,
    by_layer,
    curves,
    front,
    in_figures,
    over_sparsity,
    training,
)
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.web import plots
from prunegpt.web.plots import importances
from tests.support.served import ORIGIN, open_app
from tests.support.study import Wanted, finetune, load, make_root, many, prune, study

POINTS = [
    SparsityPoint("dense", DENSE, 0.0, 60.0, 59.0, 61.0),
    SparsityPoint("m50", "magnitude", 50.0, 62.0, 61.0, 63.0),
    SparsityPoint("m90", "magnitude", 90.0, 300.0),
    SparsityPoint("w90", "wanda", 90.0, 90.0, 85.0, 95.0),
    SparsityPoint("<b>w50", "wanda", 50.0, 61.0, 60.0, 62.0),
]


def drawn(plot: Plot) -> list[dict[str, Any]]:
    json.loads(plot.model_dump_json(), parse_constant=lambda constant: pytest.fail(constant))
    return plot.data


def test_every_point_is_drawn_with_its_interval() -> None:
    marked = [trace for trace in drawn(over_sparsity(POINTS)) if trace["mode"] == "markers"]
    seen = {
        (trace["name"], x, y, y - below if below is not None else None)
        for trace in marked
        for x, y, below in zip(trace["x"], trace["y"], trace["error_y"]["arrayminus"], strict=True)
    }
    assert seen == {(point.method, point.sparsity, point.perplexity, point.low) for point in POINTS}
    assert over_sparsity(POINTS).layout["yaxis"]["type"] == "log"
    assert "<b>" not in over_sparsity(POINTS).model_dump_json().replace("<br>", "").split('"customdata"')[0]


def test_the_front_is_the_pareto_front() -> None:
    line, *_ = drawn(front(POINTS))
    best = [
        (point.sparsity, point.perplexity)
        for point in POINTS
        if not any(
            other is not point and other.sparsity >= point.sparsity and other.perplexity <= point.perplexity
            for other in POINTS
        )
    ]
    assert list(zip(line["x"], line["y"], strict=True)) == sorted(best)


def test_bars_start_at_the_dense_model() -> None:
    bars = [LayerBar(0, 70.0, 68.0, 72.0), LayerBar(1, 61.0)]
    bar, line = drawn(by_layer(bars, dense=60.0))
    assert [base + length for base, length in zip([bar["base"]] * 2, bar["y"], strict=True)] == [70.0, 61.0]
    assert bar["error_y"]["array"] == [2.0, None]
    assert line["y"] == [60.0, 60.0]


def test_training_shows_perplexity_above_sparsity() -> None:
    perplexity, sparsity = Curve("a", (1.0, 2.0), (9.0, 8.0)), Curve("a", (1.0, 2.0), (0.0, 50.0))
    above, below = drawn(training([perplexity], [sparsity]))
    assert (above["yaxis"], below["yaxis"]) == ("y", "y2")
    assert above["line"]["color"] == below["line"]["color"]
    assert [above["showlegend"], below["showlegend"]] == [True, False]


def test_parallel_lines_pass_through_every_value() -> None:
    rates = [1e-5, 1e-4, 1e-3]
    plot = plots.parallel({"rate": rates, "method": ["a", "<b>", None]}, [10.0, 20.0, 40.0], ["x", "y", "z"])
    data = drawn(plot)
    lines: dict[str, list[tuple[float, float | None]]] = {}
    for trace in data:
        for x, y, text in zip(trace["x"], trace["y"], trace["text"], strict=True):
            if x is not None:
                lines.setdefault(text.partition("<br>")[0], []).append((x, y))
    assert {name: [x for x, _ in line] for name, line in lines.items()} == {"x": [0, 1, 2], "y": [0, 1, 2], "z": [0, 2]}
    heights = [lines[name][0][1] for name in "xyz"]
    assert heights == pytest.approx([0.0, 0.5, 1.0])  # logarithmic
    assert [lines[name][-1][1] for name in "xyz"] == pytest.approx([0.0, 0.5, 1.0])
    assert "&lt;b&gt;" in [note["text"] for note in plot.layout["annotations"]]


def test_of_many_parallel_lines_the_best_and_a_sample_are_drawn() -> None:
    perplexity = [10.0 + (index * 37) % 2000 for index in range(2000)]  # each of 10 to 2009 once
    plot = plots.parallel({"x": perplexity}, perplexity, [f"{value:g}" for value in perplexity])
    names = [text.partition("<br>")[0] for trace in drawn(plot) for text in trace["text"][::3]]
    shown = sorted(float(name) for name in names)
    assert len(shown) == len(set(shown)) == 500
    assert shown[:300] == sorted(perplexity)[:300]
    assert (shown[300], shown[-1]) == (310.0, 2009.0)
    assert max(after - before for before, after in pairwise(shown)) <= 9
    assert plot.caption == "The 300 best of 2,000 trials, and 200 of the others, the worst included."
    bounds = [tuple(map(float, trace["name"].split(" to "))) for trace in drawn(plot)]
    assert all(low <= high for low, high in bounds)
    assert plots.parallel({"x": perplexity[:500]}, perplexity[:500], names).caption == ""


@pytest.mark.parametrize("odd", [math.inf, math.nan, 10**400])
def test_a_value_that_no_axis_holds_is_a_choice(odd: float) -> None:
    plot = plots.parallel({"x": [odd, 1.0]}, [1.0, 2.0], ["a", "b"])
    heights = [y for trace in drawn(plot) for x, y in zip(trace["x"], trace["y"], strict=True) if x == 0]
    assert sorted(heights) == pytest.approx([0.25, 0.75])


def test_hover_texts_of_parallel_lines_are_escaped() -> None:
    plot = plots.parallel({"method": ["<img src=x>", "b"]}, [1.0, 2.0], ["<script>", "y"])
    text = json.dumps([trace["text"] for trace in drawn(plot)])
    assert "<img" not in text
    assert "<script" not in text


def test_nothing_to_draw_is_said() -> None:
    for make in (
        lambda: over_sparsity([]),
        lambda: front([]),
        lambda: by_layer([]),
        lambda: training([]),
        lambda: plots.parallel({}, [], []),
        lambda: plots.importance({}),
    ):
        with pytest.raises(ReportError, match=r"a figure needs .*; there are none yet"):
            make()


def test_what_matters_is_told_from_what_does_not() -> None:
    draw = np.random.default_rng(0)
    settings = [
        {
            "rate": float(10 ** draw.uniform(-5, -2)),
            "noise": float(draw.uniform()),
            "kind": str(draw.choice(["a", "b"])),
        }
        for _ in range(200)
    ]
    shares = importances(settings, [(math.log10(one["rate"]) + 3.5) ** 2 for one in settings])
    assert sum(shares.values()) == pytest.approx(1)
    assert next(iter(shares)) == "rate"
    assert shares["rate"] > 0.8


@pytest.mark.parametrize(
    "values",
    [[1, 2, 1, 2], [True, False, True, True], ["a", None, [1], {"b": 1}], [1e-9, 1e9, 0.0, 1], [-5, 5, 0, 0.5]],
)
def test_importance_takes_values_of_any_kind(values: list[Any]) -> None:
    shares = importances([{"x": value} for value in values], [1.0, 2.0, 3.0, 4.0])
    assert shares == {"x": pytest.approx(1.0)}


@pytest.mark.parametrize("odd", [math.inf, math.nan, 10**30, 10**400])
def test_importance_of_a_value_that_no_range_holds(odd: float) -> None:
    settings = [{"x": odd if index % 2 else 1.0} for index in range(20)]
    assert importances(settings, [float(index % 2) for index in range(20)]) == {"x": pytest.approx(1.0)}


@pytest.mark.parametrize("raised", [ValueError("not these"), TypeError("not these"), MemoryError("not these")])
def test_whatever_optuna_raises_is_a_figure_that_is_missing(
    raised: Exception, monkeypatch: pytest.MonkeyPatch, client: TestClient, kept: Root
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr("optuna.importance.get_param_importances", fail)
    with pytest.raises(ReportError, match=r"importance cannot be computed from these trials: not these"):
        importances([{"x": 1.0}, {"x": 2.0}], [1.0, 2.0])
    with TestClient(open_app(kept), base_url=ORIGIN) as fresh:
        answer = fresh.get("/api/v1/sweeps/study/figures/importance")
    assert (answer.status_code, answer.json()["error"]) == (
        404,
        "importance cannot be computed from these trials: not these",
    )


def _searched(swept: list[dict[str, Any]], perplexity: list[float], more: list[Wanted] | None = None) -> list[Wanted]:
    base = load()
    return [
        Wanted(f"t{index}", (base, prune(base, f"{index:06x}", sparsity=0.5)), value, 0.5, swept=one)
        for index, (one, value) in enumerate(zip(swept, perplexity, strict=True))
    ] + (more or [])


def _pairs(count: int) -> list[dict[str, Any]]:
    return [{"a": index / 10, "b": index * 7 % 5} for index in range(count)]


_RISING = [60.0 + index for index in range(8)]
_DIVERGED = Wanted(
    "bad", (load(), finetune(load(), "bad")), 0, state="diverged", reason="diverged", swept={"a": 9.0, "b": 9}
)


@pytest.mark.parametrize(
    ("trials", "missing"),
    [
        (_searched(_pairs(8), _RISING), None),
        (_searched([{"a": index / 10} for index in range(8)], _RISING), "the only one"),
        (_searched(_pairs(3), [60.0, 61.0, 62.0]), "needs 4 measured trials"),
        (_searched(_pairs(8), [60.0] * 8), "perplexity differs"),
        (_searched([{"a": 1.0, "b": 2.0}] * 8, _RISING), "there are 0 yet"),
        (_searched([{"a": index} if index % 2 else {"b": index} for index in range(8)], _RISING), "the only one"),
        (_searched([{"a": i, **({"b": i} if i % 2 else {})} for i in range(9)], [60.0 + i for i in range(9)]), None),
        (_searched(_pairs(8), _RISING, [_DIVERGED]), None),
    ],
    ids=["two", "one", "few", "constant", "same", "apart", "conditional", "diverged"],
)
def test_importance_of_odd_searches_is_drawn_or_missed_for_a_reason(
    trials: list[Wanted], missing: str | None, tmp_path: Path
) -> None:
    root = make_root(tmp_path / "runs", trials, windows=False)
    with TestClient(open_app(root), base_url=ORIGIN) as client:
        answer = client.get("/api/v1/sweeps/study/figures/importance")
        if missing is None:
            assert sum(answer.json()["data"][0]["x"]) == pytest.approx(1)
        else:
            assert answer.status_code == 404
            assert answer.json()["error"].startswith("importance ")
            assert missing in answer.json()["error"]


def test_importance_is_asked_for_by_many_at_once(tmp_path: Path) -> None:
    root = make_root(tmp_path / "runs", many(300), windows=False)
    with TestClient(open_app(root), base_url=ORIGIN) as client:
        path = "/api/v1/sweeps/study/figures/importance"
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(client.get, [path] * 8))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1


def test_pages_and_reports_draw_one_list_of_figures(client: TestClient, kept: Root) -> None:
    """Every figure of a report is, by name and by data, the one that the page of the sweep has."""
    with Store.open(kept, create=False) as store:
        results = [one for one in store.results("study") if not one.implicit]
        material = Material(results, stored_windows(kept), lambda one: curves(one, store.series(one.id, in_figures)))
        made = {name: json.loads(drawing.plot(material).model_dump_json()) for name, drawing in DRAWINGS.items()}
    assert len(made) == 4
    for name, plot in made.items():
        assert client.get(f"/api/v1/sweeps/study/figures/{name}").json() == plot


@pytest.mark.parametrize("figure", ["sparsity", "pareto", "layers", "training", "parallel", "importance"])
def test_every_figure_is_served_with_what_the_policy_allows(client: TestClient, figure: str) -> None:
    answer = client.get(f"/api/v1/sweeps/study/figures/{figure}")
    assert answer.status_code == 200, answer.text
    kinds = {trace["type"] for trace in answer.json()["data"]}
    assert kinds <= {"scatter", "bar", "heatmap"}  # others need eval or WebGL
    colours = json.dumps(answer.json()["data"])
    if figure in ("sparsity", "pareto", "training"):
        assert OKABE_ITO[0] in colours
    assert client.get(f"/api/v1/sweeps/study/figures/{figure}.json").json() == answer.json()


@pytest.mark.parametrize("figure", ["sparsity", "pareto", "layers", "training"])
def test_figures_are_drawn_as_png_and_svg(client: TestClient, figure: str) -> None:
    png = client.get(f"/api/v1/sweeps/study/figures/{figure}.png")
    assert png.content.startswith(b"\x89PNG")
    svg = client.get(f"/api/v1/sweeps/study/figures/{figure}.svg")
    assert svg.headers["content-type"].startswith("image/svg+xml")
    assert svg.text.startswith("<svg")


def test_the_list_of_figures_says_what_is_missing_and_why(client: TestClient) -> None:
    figures = client.get("/api/v1/sweeps/study/figures").json()["figures"]
    assert [(figure["name"], figure["missing"], figure["files"]) for figure in figures] == [
        (name, None, name not in ("parallel", "importance"))
        for name in ("sparsity", "pareto", "layers", "training", "parallel", "importance")
    ]


def test_a_sweep_without_results_misses_every_figure(tmp_path: Path) -> None:
    root = make_root(tmp_path / "runs", [one for one in study() if one.name == "later"])
    with TestClient(open_app(root), base_url=ORIGIN) as client:
        figures = client.get("/api/v1/sweeps/study/figures").json()["figures"]
        assert all("there are" in figure["missing"] for figure in figures)
        for figure in figures:
            answer = client.get(f"/api/v1/sweeps/study/figures/{figure['name']}")
            assert (answer.status_code, answer.json()["error"]) == (404, figure["missing"])
