"""Plotly figures: the same data as the matplotlib ones, in colours that stay apart, with traces the policy allows."""

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from prunegpt.errors import ReportError
from prunegpt.report.figures import FORMATS
from prunegpt.report.gallery import DRAWINGS, Drawing, plots_of
from prunegpt.report.material import Material
from prunegpt.report.measure import stored_windows
from prunegpt.report.plot import DENSE, Plot
from prunegpt.report.plots import (
    Curve,
    LayerBar,
    by_layer,
    curves,
    in_figures,
    training,
)
from prunegpt.report.quality import (
    QualityPoint,
    front,
    over_sparsity,
)
from prunegpt.report.search_plots import parallel
from prunegpt.report.searched import Searched, ped_anova
from prunegpt.root import Root
from prunegpt.spec.figures import KINDS
from prunegpt.store import Store
from prunegpt.web import pages
from tests.support.many_trials import make_many
from tests.support.results import Kept, draw_windows, make_trial
from tests.support.served import ORIGIN, open_app
from tests.support.study import SEARCH, Wanted, finetune, load, make_root, many, prune, searching, study
from tests.support.timed import speed, timed_evaluation

POINTS = [
    QualityPoint("dense", DENSE, 0.0, 60.0, 59.0, 61.0),
    QualityPoint("m50", "magnitude", 50.0, 62.0, 61.0, 63.0),
    QualityPoint("m90", "magnitude", 90.0, 300.0),
    QualityPoint("w90", "wanda", 90.0, 90.0, 85.0, 95.0),
    QualityPoint("<b>w50", "wanda", 50.0, 61.0, 60.0, 62.0),
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
    assert seen == {(point.method, point.x, point.perplexity, point.low) for point in POINTS}
    assert over_sparsity(POINTS).layout["yaxis"]["type"] == "log"
    assert "<b>" not in over_sparsity(POINTS).model_dump_json().replace("<br>", "").split('"customdata"')[0]


def test_the_front_is_the_pareto_front() -> None:
    line, *_ = drawn(front(POINTS))
    best = [
        (point.x, point.perplexity)
        for point in POINTS
        if not any(
            other is not point and other.x >= point.x and other.perplexity <= point.perplexity for other in POINTS
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


def test_nothing_to_draw_is_said() -> None:
    for make in (
        lambda: over_sparsity([]),
        lambda: front([]),
        lambda: by_layer([]),
        lambda: training([]),
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
    shares = ped_anova(settings, [(math.log10(one["rate"]) + 3.5) ** 2 for one in settings])
    assert sum(shares.values()) == pytest.approx(1)
    assert next(iter(shares)) == "rate"
    assert shares["rate"] > 0.8


def test_importance_is_that_of_a_study_without_its_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study copies each trial that it is given, which took most of the time that thousands needed."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    draw = np.random.default_rng(1)
    settings = [{"a": float(draw.uniform()), "b": str(draw.choice(["x", "y", "z"]))} for _ in range(300)]
    values = [one["a"] ** 2 + 0.3 * (one["b"] == "x") for one in settings]
    ends = min(one["a"] for one in settings), max(one["a"] for one in settings)
    wide = ends[1] / ends[0] >= 30
    kinds = {"a": FloatDistribution(*ends, log=wide), "b": CategoricalDistribution(["x", "y", "z"])}
    usual = optuna.create_study(direction="maximize")
    for one, value in zip(settings, values, strict=True):
        usual.add_trial(optuna.create_trial(params=one, distributions=kinds, value=value))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    expected = optuna.importance.get_param_importances(usual, evaluator=evaluator)
    copied: list[object] = []
    copy = deepcopy
    monkeypatch.setattr("copy.deepcopy", lambda *given: copied.append(given) or copy(*given))
    assert ped_anova(settings, values, "maximize") == pytest.approx(expected)
    assert len(copied) < 20


@pytest.mark.parametrize(
    "values",
    [[1, 2, 1, 2], [True, False, True, True], ["a", None, [1], {"b": 1}], [1e-9, 1e9, 0.0, 1], [-5, 5, 0, 0.5]],
)
def test_importance_takes_values_of_any_kind(values: list[Any]) -> None:
    shares = ped_anova([{"x": value} for value in values], [1.0, 2.0, 3.0, 4.0])
    assert shares == {"x": pytest.approx(1.0)}


@pytest.mark.parametrize("odd", [math.inf, math.nan, 10**30, 10**400])
def test_importance_of_a_value_that_no_range_holds(odd: float) -> None:
    settings = [{"x": odd if index % 2 else 1.0} for index in range(20)]
    assert ped_anova(settings, [float(index % 2) for index in range(20)]) == {"x": pytest.approx(1.0)}


@pytest.mark.parametrize("raised", [ValueError("not these"), TypeError("not these"), MemoryError("not these")])
def test_whatever_optuna_raises_is_a_figure_that_is_missing(
    raised: Exception, monkeypatch: pytest.MonkeyPatch, client: TestClient, kept: Root
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr("optuna.importance.get_param_importances", fail)
    with pytest.raises(ReportError, match=r"importance cannot be computed from these trials: not these"):
        ped_anova([{"x": 1.0}, {"x": 2.0}], [1.0, 2.0])
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
        _missing_is_as_drawn(client)


def _missing_is_as_drawn(client: TestClient) -> None:
    """What the list of figures says is missing, and why, is what drawing each of them comes to."""
    for figure in client.get("/api/v1/sweeps/study/figures").json()["figures"]:
        drawn = client.get(f"/api/v1/sweeps/study/figures/{figure['name']}")
        assert drawn.json().get("error") == figure["missing"], figure["name"]


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
        results = store.results("study")
        material = Material(results, stored_windows(kept), lambda one: curves(one, store.series(one.id, in_figures)))
        made = {file: plot for file, _, plot in plots_of(material)}
        figures = client.get("/api/v1/sweeps/study/figures").json()["figures"]
    assert [figure["name"] for figure in figures] == list(DRAWINGS)
    there = [figure["name"] for figure in figures if figure["missing"] is None]
    assert [DRAWINGS[name].file for name in there] == list(made)
    for name in there:
        served = client.get(f"/api/v1/sweeps/study/figures/{name}").json()
        assert served == json.loads(made[DRAWINGS[name].file].model_dump_json())


def test_figures_that_a_spec_declares_come_first(tmp_path: Path) -> None:
    """Every kind that can be declared, and one that matches nothing; a usual one of that name gives way."""
    given = [
        {"name": kind if kind == "pareto" else f"my-{kind}", "kind": kind, "title": f"My {kind}"} for kind in KINDS
    ]
    wrong = {"name": "wrong", "rows": ["nobody"]}
    root = make_root(tmp_path / "runs", searching(), windows=False, searches=[SEARCH], figures=[*given, wrong])
    with TestClient(open_app(root), base_url=ORIGIN) as client:
        figures = client.get("/api/v1/sweeps/study/figures").json()["figures"]
        names = [one["name"] for one in given]
        assert [one["name"] for one in figures] == [*names, "wrong", *(name for name in DRAWINGS if name != "pareto")]
        assert [one["title"] for one in figures[: len(given)]] == [one["title"] for one in given]
        assert "unknown trial 'nobody'" in figures[len(given)]["missing"]
        assert sum(one["missing"] is None for one in figures[: len(given)]) >= 8
        _missing_is_as_drawn(client)
        answer = client.get("/api/v1/sweeps/study/figures/my-lines.svg")
        assert answer.text.lstrip().startswith(("<svg", "<?xml"))


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of a root whose trials differ in size, and have measured speeds."""
    wanted = [
        replace(one, also={"speed": timed_evaluation(speed(1 + number / 50))}, parameters=940_000 - 9_000 * number)
        for number, one in enumerate(study())
    ]
    with TestClient(open_app(make_root(tmp_path_factory.mktemp("timed") / "runs", wanted)), base_url=ORIGIN) as client:
        yield client


@pytest.fixture(params=DRAWINGS)
def figure(
    request: pytest.FixtureRequest, client: TestClient, searched: TestClient, timed: TestClient
) -> tuple[str, TestClient]:
    """The address of each figure that there is, and a client of a root that has data for it."""
    name = request.param
    own = searched if DRAWINGS[name].takes else timed if name in ("speed", "size", "bytes") else client
    return f"/api/v1/sweeps/study/figures/{name}", own


def test_figures_of_speed_and_size_have_their_own_front_and_intervals(timed: TestClient) -> None:
    for name, best in (("speed", max), ("size", min), ("bytes", min)):
        front, *points = timed.get(f"/api/v1/sweeps/study/figures/{name}").json()["data"]
        every = [(x, y) for trace in points for x, y in zip(trace["x"], trace["y"], strict=True)]
        assert best(every)[0] in front["x"]
        assert min(y for _, y in every) in front["y"]
        assert front["line"]["shape"] == ("vh" if best is max else "hv")
        across = [trace["error_x"]["array"] for trace in points if "error_x" in trace]
        assert across == ([pytest.approx([0.02] * len(trace["x"])) for trace in points] if name == "speed" else [])


def test_every_figure_is_served_with_what_the_policy_allows(figure: tuple[str, TestClient]) -> None:
    path, client = figure
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    kinds = {trace["type"] for trace in answer.json()["data"]}
    assert kinds <= {"scatter", "bar", "heatmap", "contour", "parcoords"}  # others need eval or WebGL
    assert client.get(f"{path}.json").json() == answer.json()


def test_every_point_of_every_figure_leads_to_its_trials_and_names_them(figure: tuple[str, TestClient]) -> None:
    """A point has the addresses of its trials, and a text with the name and the swept values of the first."""
    path, client = figure
    known = {f"study/{row['name']}": row for row in client.get("/api/v1/sweeps/study/trials").json()["trials"]}
    leading = 0
    for trace in client.get(path).json()["data"]:
        if trace.get("hoverinfo") == "skip" or trace.get("meta") == "summary":
            continue
        points = len(trace["dimensions"][0]["values"]) if "dimensions" in trace else len(trace["x"])
        texts = trace.get("hovertext", [trace["hovertemplate"]] * points)
        addresses = trace.get("customdata") or [trace["meta"]["trials"]] * points
        assert len(addresses) == len(texts) == points
        for some, text in zip(addresses, texts, strict=True):
            assert set(some) <= set(known)
            row = known[some[0]]
            assert row["name"] in text
            assert all(path.split(".")[-1] in text for path in row["swept"])
            leading += 1
    assert leading or path.endswith("importance")  # which shows what they have in common


@pytest.mark.parametrize(("format", "begins"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF")])
def test_every_figure_is_drawn_on_paper(figure: tuple[str, TestClient], format: str, begins: bytes) -> None:
    path, client = figure
    answer = client.get(f"{path}.{format}")
    assert answer.content.startswith(begins)
    assert answer.headers["content-type"].startswith(FORMATS[format][0])


def test_a_search_is_drawn_by_what_is_chosen(searched: TestClient) -> None:
    figures = {one["name"]: one["choices"] for one in searched.get("/api/v1/sweeps/study/figures").json()["figures"]}
    assert figures["history"] == {"search": [SEARCH["name"]], "objective": ["perplexity", "sparsity"]}
    assert figures["contour"]["x"] == list(SEARCH["search"]["space"])
    assert figures["objectives"]["x"] == ["perplexity", "sparsity"]
    path = "/api/v1/sweeps/study/figures"
    rising = searched.get(f"{path}/history", params={"objective": "sparsity"}).json()["data"][0]["y"]
    falling = searched.get(f"{path}/history", params={"objective": "perplexity"}).json()["data"][0]["y"]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    bars = searched.get(f"{path}/importance").json()["data"]
    assert [bar["name"] for bar in bars] == ["perplexity", "sparsity"]
    (lines,) = searched.get(f"{path}/parallel").json()["data"]
    assert [axis["log"] for axis in lines["dimensions"]] == [False, True, False, False]  # as the space declares it
    chosen = {"x": "train.learning_rate", "y": "stages.1.prune.method"}
    layout = searched.get(f"{path}/contour", params=chosen).json()["layout"]
    assert (layout["xaxis"]["type"], layout["yaxis"]["ticktext"]) == ("log", ["magnitude", "wanda"])
    refused = searched.get(f"{path}/slice", params={"objective": "perplexty"})
    assert (refused.status_code, "perplexity" in refused.json()["error"]) == (404, True)
    early = searched.get(f"{path}/intermediate").json()
    assert {trace["name"] for trace in early["data"]} == {"finished", "stopped early"}
    assert early["caption"] == "2 of 14 trials were stopped early."


def test_the_front_of_two_objectives_is_what_brute_force_finds(searched: TestClient) -> None:
    front, points = searched.get("/api/v1/sweeps/study/figures/objectives").json()["data"]
    all_of_them = list(zip(points["x"], points["y"], strict=True))  # perplexity to be low, sparsity to be high
    best = [(x, y) for x, y in all_of_them if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in all_of_them)]
    assert list(zip(front["x"], front["y"], strict=True)) == sorted(best)


@pytest.mark.parametrize("odd", [math.inf, math.nan, 10**400, "<img src=x>"])
def test_a_value_that_no_axis_holds_is_a_choice(odd: Any) -> None:
    trials = [make_trial(name, plan={"swept": {"x": value}}) for name, value in (("a", odd), ("b", 1.0))]
    axis = Searched("", {"perplexity": "minimize"}, {}, trials).axis("x")
    assert sorted(axis.height(value) for value in (odd, 1.0)) == [0.0, 1.0]
    assert "<img" not in json.dumps(axis.dimension)


def test_a_trial_without_a_value_has_no_place_on_its_axis() -> None:
    made, swept = Kept(), ({"x": 1.0, "y": 2.0}, {"x": 3.0, "y": 4.0}, {"x": 5.0})
    trials = [made.trial(f"t{i}", draw_windows(3.0 + i), plan={"swept": one}) for i, one in enumerate(swept)]
    lines = parallel(Searched("", {"perplexity": "minimize"}, {}, trials), "perplexity").data[0]
    axes = {axis["label"]: axis["values"] for axis in lines["dimensions"]}
    assert (axes["x"], axes["y"]) == ([1.0, 3.0, 5.0], [2.0, 4.0, None])


def test_a_trial_that_prunes_nothing_has_an_empty_heat_map(client: TestClient) -> None:
    (shares,) = client.get("/api/v1/trials/study/magnitude-0.5/figures/layers").json()["data"]
    assert (shares["zmin"], shares["zmax"], len(shares["x"])) == (0, 100, 6)
    assert client.get("/api/v1/trials/study/going/figures/layers").json()["data"] == []


def test_a_sweep_without_results_misses_every_figure(tmp_path: Path) -> None:
    root = make_root(tmp_path / "runs", [one for one in study() if one.name == "later"])
    with TestClient(open_app(root), base_url=ORIGIN) as client:
        figures = client.get("/api/v1/sweeps/study/figures").json()["figures"]
        assert all("there are" in figure["missing"] for figure in figures)
        _missing_is_as_drawn(client)


@pytest.mark.parametrize("which", ["client", "searched", "unpruned"])
def test_what_is_missing_is_what_cannot_be_drawn(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if which != "unpruned":
        return _missing_is_as_drawn(request.getfixturevalue(which))
    root = make_root(tmp_path / "runs", [Wanted("zero-shot", (load(),), 63.4)], windows=False)
    with TestClient(open_app(root), base_url=ORIGIN) as client:
        return _missing_is_as_drawn(client)


def test_figures_are_listed_without_drawing_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And trials without a curve are not asked for theirs, which would be a query for each of thousands."""
    make_many(root := Root(tmp_path / "runs"), 20)
    asked: list[int] = []
    series = Store.series

    def counted(self: Store, trial_id: int, wanted: Any) -> Any:
        asked.append(trial_id)
        return series(self, trial_id, wanted)

    monkeypatch.setattr(Store, "series", counted)
    monkeypatch.setattr(Drawing, "made", lambda *_: pytest.fail("a figure was drawn"))
    with TestClient(open_app(root), base_url=ORIGIN) as client:
        figures = client.get("/api/v1/sweeps/many/figures").json()["figures"]
    assert {figure["name"] for figure in figures if figure["missing"] is None} == {
        "pareto", "parallel", "importance", "slice", "contour"
    }  # fmt: skip
    assert not asked


def test_importance_is_prepared_by_the_pages_that_lead_to_it(
    client: TestClient, searched: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna takes scikit-learn along: no visitor waits for that import, and what has no search has none."""
    prepared: list[str] = []
    for of, path, expected in (
        (client, "/", 0),
        (client, "/sweeps/study", 0),
        (client, "/trials/study/recovered", 0),
        (client, "/sweeps/study/search", 1),
        (searched, "/sweeps/study", 1),
    ):
        monkeypatch.setattr(pages, "prepare", lambda path=path: prepared.append(path))
        assert of.get(path).status_code == 200
        assert prepared.count(path) == expected
        prepared.clear()
