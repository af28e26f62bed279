"""Panels of any metric: what they draw, and that they are saved, small and understood."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from prunegpt.report.figures import FORMATS
from prunegpt.report.metric_plots import smoothed
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.tracking.foreign import Keeper
from prunegpt.tracking.run_path import RunPath
from tests.support.many_trials import make_many
from tests.support.served import ORIGIN, open_app

PANELS = "/api/v1/sweeps/study/panels"
PANEL = "/api/v1/sweeps/study/panel"


def published(x: list[float], y: list[float], smoothing: float) -> list[float]:
    """The algorithm as the documentation of Weights & Biases prints it, line by line."""
    weight, last, debias, found = min(math.sqrt(smoothing), 0.999), 0.0, 0.0, []
    for index, point in enumerate(y):
        before = index - 1 if index > 0 else 0
        change = (x[index] - x[before]) / (max(x) - min(x)) * 1000
        adjusted = weight**change
        last = last * adjusted + point
        debias = debias * adjusted + 1
        found.append(last / debias)
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.3, 0.9, 0.99, 1.0])
def test_smoothing_is_that_of_weights_and_biases(smoothing: float) -> None:
    draw = np.random.default_rng(0)
    x, y = np.cumsum(draw.exponential(3.0, 200)), draw.normal(5.0, 1.0, 200)
    assert smoothed(x, y, smoothing) == pytest.approx(published(x.tolist(), y.tolist(), smoothing))
    gap = smoothed(x, np.where(np.arange(200) == 7, np.nan, y), smoothing)
    assert np.flatnonzero(np.isnan(gap)).tolist() == [7]


def test_a_curve_is_smoothed_before_points_are_left_out(client: TestClient) -> None:
    asked = {"name": "loss", "smoothing": 0.9}
    (whole,) = client.get("/api/v1/trials/study/finetuned/curves", params=asked).json()["curves"]
    (few,) = client.get("/api/v1/trials/study/finetuned/curves", params={**asked, "points": 20}).json()["curves"]
    assert len(few["x"]) <= 20 < len(whole["x"])
    values = dict(zip(whole["x"], whole["smooth"], strict=True))
    assert few["smooth"] == [values[x] for x in few["x"]]
    assert client.get("/api/v1/trials/study/finetuned/curves").json()["curves"][0]["smooth"] is None


def test_a_metric_is_drawn_over_another(client: TestClient) -> None:
    asked = {"name": "loss", "axis": "learning_rate"}
    (found,) = client.get("/api/v1/trials/study/finetuned/curves", params=asked).json()["curves"]
    (rate,) = client.get("/api/v1/trials/study/finetuned/curves", params={"name": "learning_rate"}).json()["curves"]
    assert found["x"] == rate["y"]
    none = client.get("/api/v1/trials/study/finetuned/curves", params={"name": "loss", "axis": "nothing"}).json()
    assert none["curves"] == []


def test_what_panels_may_show_is_listed(client: TestClient) -> None:
    listed = client.get(PANELS).json()
    assert {"loss", "ce", "kd", "perplexity", "learning_rate"} <= set(listed["metrics"])
    fields = {one["key"]: one["numeric"] for one in listed["fields"]}
    assert fields["perplexity"]
    assert not fields["swept.stages.1.prune.method"]
    for metric in listed["metrics"]:
        assert client.get(PANEL, params={"y": metric}).status_code == 200, metric


def test_curves_of_trials_that_share_their_stages_are_one_line_that_leads_to_all(client: TestClient) -> None:
    traces = client.get(PANEL, params={"y": "loss"}).json()["data"]
    trials = [address for trace in traces for address in trace["meta"]["trials"]]
    assert len(trials) == len(set(trials)) == 20
    assert len(traces) == 4  # finetuned, recovered, going, too-fast; all others share the first of them
    assert all(trace["name"] in trace["hovertemplate"] for trace in traces)
    smooth = client.get(PANEL, params={"y": "loss", "smoothing": 0.9, "y_log": True}).json()
    assert [trace.get("opacity") for trace in smooth["data"]] == [0.25, None] * 4
    assert smooth["layout"]["yaxis"]["type"] == "log"


def test_a_point_per_trial_is_coloured_by_a_third_field(client: TestClient) -> None:
    asked = {"kind": "scatter", "x": "sparsity", "y": "perplexity", "where": 'method == "wanda" or sparsity > 0.85'}
    (scale,) = client.get(PANEL, params={**asked, "color": "seconds"}).json()["data"]
    assert len(scale["marker"]["color"]) == len(scale["x"]) == 7
    named = client.get(PANEL, params={**asked, "color": "method"}).json()["data"]
    assert {trace["name"] for trace in named} == {"magnitude", "wanda"}
    assert all("wanda" in text for text in named[1]["hovertext"])
    refused = client.get(PANEL, params={**asked, "x": "sparsty"})
    assert (refused.status_code, "sparsity" in refused.json()["error"]) == (400, True)


@pytest.mark.parametrize("format", FORMATS)
def test_a_panel_is_drawn_on_paper(client: TestClient, format: str) -> None:
    points = {"kind": "scatter", "x": "sparsity", "y": "perplexity", "color": "seconds"}
    for asked in ({"y": "loss", "smoothing": "0.5"}, points):
        answer = client.get(f"{PANEL}.{format}", params=asked)
        assert (answer.status_code, answer.headers["content-type"][:9]) == (200, FORMATS[format][0][:9])


def test_panels_are_saved_for_others_and_go_with_their_sweep(own: TestClient, made: Root) -> None:
    wanted = {"kind": "curves", "y": "train/loss", "smoothing": 0.6, "x_log": True}
    answer = own.post(f"{PANELS}/save", json={"panels": [wanted]})
    assert answer.status_code == 200, answer.text
    with TestClient(open_app(made), base_url=ORIGIN) as other:
        (panel,) = other.get(PANELS).json()["panels"]
        assert panel == {**panel, **wanted}
    (file,) = made.path.glob("trials/study/panels.json")
    file.write_text("{")
    assert own.get(PANELS).json()["panels"] == []  # of another version, or damaged
    file.unlink()
    file.mkdir()
    refused = own.post(f"{PANELS}/save", json={"panels": []})
    assert (refused.status_code, "cannot be written" in refused.json()["error"]) == (409, True)


@pytest.mark.parametrize(
    "panels",
    [[{}] * 25, [{"kind": "pie"}], [{"y": "x" * 301}], [{"smoothing": 2}], [{"colour": "x"}], "none"],
    ids=["many", "kind", "long", "smoothing", "unknown", "none"],
)
def test_what_is_saved_is_small_and_understood(own: TestClient, panels: Any) -> None:
    assert own.post(f"{PANELS}/save", json={"panels": panels}).status_code == 400
    assert own.get(PANELS).json()["panels"] == []


def test_metrics_of_others_keep_their_names(tmp_path: Path) -> None:
    """Of runs that a W&B client has logged: names with slashes, globs and markup, drawn and chosen as y."""
    root, odd = Root(tmp_path / "runs"), ["train/loss", "val/acc [%]", "a*b", "<b>x</b>"]
    with Store.open(root) as store:
        for index in range(2):
            run = Keeper(root, store, RunPath("local", "kd", f"run{index}"))
            run.add([{"_step": step, **dict.fromkeys(odd, index + step / 10)} for step in range(5)], 0)
    with TestClient(open_app(root), base_url=ORIGIN) as client:
        listed = client.get("/api/v1/sweeps/wandb-kd/panels").json()
        assert set(odd) <= set(listed["metrics"])
        for name in odd:
            data = client.get("/api/v1/sweeps/wandb-kd/panel", params={"y": name}).json()["data"]
            assert sorted(trace["y"][0] for trace in data) == [0.0, 1.0]
            assert "<b>" not in json.dumps([trace["name"] for trace in data])


@pytest.mark.slow
def test_panels_of_5000_trials_come_within_a_second(tmp_path: Path) -> None:
    import time

    root = Root(tmp_path / "runs")
    make_many(root, 5000)
    path = "/api/v1/sweeps/many/panel"
    points = {"kind": "scatter", "x": "learning_rate", "y": "perplexity", "color": "sparsity", "x_log": "true"}
    with TestClient(open_app(root), base_url=ORIGIN) as client:
        client.get(path, params=points)  # the store is read
        began = time.process_time()
        assert len(client.get(path, params=points).json()["data"][0]["x"]) == 5000
        assert time.process_time() - began < 1.0
