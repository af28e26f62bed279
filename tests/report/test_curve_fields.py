"""What curves come to is a field like any other: of every metric that a trial has, wherever fields are asked for."""

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from prunegpt import Sweep
from prunegpt.points import Point
from prunegpt.records import TrialResult
from prunegpt.report.fields import TrialFields
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.store.curves import Summaries
from tests.support.many_trials import make_many
from tests.support.served import ORIGIN, open_app
from tests.support.small import Invoke
from tests.support.study import make_root

FURTHER = ("eval_loss", "perplexity:other", "grad_norm", "calibrated", "layers_pruned", "system/gpu.0.memory", "a b")
ENDS = {"last": lambda values: values[-1], "min": min, "max": max}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """The study, with what else trials write while they run."""
    root = make_root(tmp_path_factory.mktemp("root"), windows=False)
    with Store.open(root) as store:
        attempt = store.attempts("study/recovered")[-1].id
        values = (3.0, 1.0, 2.0)
        store.add_points(
            attempt,
            [
                Point(stage=stage, step=step, epoch=0.0, name=name, value=value + 10 * stage, time=1.0)
                for name in FURTHER
                for stage in (1, 3)
                for step, value in enumerate(values)
            ],
        )
    return root


@pytest.fixture(scope="module")
def metrics(root: Root) -> list[str]:
    with Store.open(root) as store:
        found = [metric.name for metric in store.metrics("study")]
    assert set(FURTHER) | {"loss", "ce", "kd", "learning_rate", "sparsity", "total_steps"} < set(found)
    return found


def points_of(store: Store, trial: TrialResult, name: str) -> list[Point]:
    """Those of the last stage that has such a curve."""
    points = store.points(trial.id, name)
    return [one for one in points if one.stage == points[-1].stage]  # the last value may be None: not finite


def test_every_metric_is_a_field_of_the_values_that_were_stored(root: Root, metrics: list[str]) -> None:
    with Store.open(root) as store:
        results = store.results("study")
        summaries = Summaries(store, "study")
        fields = TrialFields(results, curves=lambda: summaries)
        for name in metrics:
            for end, of in ENDS.items():
                if f"{end}.{name}" not in fields.curves:
                    assert end != "last"  # where it is the last value of every trial, it is no field of its own
                    continue
                field = fields.find(f"{end}.{name}")
                assert field is fields.find(field.key)
                for trial in results:
                    values = [one.value for one in points_of(store, trial, name)]
                    if end != "last":
                        values = [value for value in values if value is not None]
                    assert field.of(trial) == (of(values) if values else None), (field.key, trial.name)
            assert f"last.{name}" in fields.names
        recovered = next(trial for trial in results if trial.name == "recovered")
        for name in FURTHER:
            ends = [fields.find(f"{end}.{name}").of(recovered) for end in ("last", "min", "max")]
            assert ends == [32.0, 31.0, 33.0]
            assert fields.find(f"stages.1.min.{name}").of(recovered) == 11.0
        assert fields.find("grad_norm").key == "curve.last.grad_norm"
        assert fields.find("loss").key == "loss", "the figure of a trial goes by its own name"


def test_every_metric_filters_sorts_and_is_shown_everywhere(root: Root, metrics: list[str], invoke: Invoke) -> None:
    frame = Sweep("study", root=root.path).frame(intervals=False).set_index("trial")
    with TestClient(open_app(root), base_url=ORIGIN) as client:
        listed = {field["name"]: field for field in client.get("/api/v1/sweeps/study/fields").json()["fields"]}
        choices = {field["key"] for field in client.get("/api/v1/sweeps/study/panels").json()["fields"]}
        for name in metrics:
            field = f"last.{name}"
            assert listed[field]["origin"] == "curve"
            assert listed[field]["key"] in choices
            quoted = f"`{field}` == 1e9 or `{field}` < 1e9"
            asked = {"where": quoted, "sort": field, "columns": field, "limit": 500}
            found = client.get("/api/v1/sweeps/study/trials", params=asked).json()["trials"]
            values = [trial["values"][f"curve.{field}"] for trial in found]
            assert values, field
            assert values == sorted(values)
            if not name.startswith("sparsity/"):
                assert frame[field].dropna().sort_values().tolist() == values
            drawn = {"kind": "scatter", "x": field, "y": "perplexity"}
            assert client.get("/api/v1/sweeps/study/panel", params=drawn).status_code in (200, 409), field
    assert not [column for column in frame if re.search(r"sparsity/|stages\.\d+\.(last|min|max)", column)]
    assert list(Sweep("study", root=root.path).frame(where="min.grad_norm == 31")["trial"]) == ["recovered"]
    asked = ("--where", "min.grad_norm == 31", "--columns", "max.kd")
    assert re.search(
        r"recovered +. +[\d.]+", said := invoke("sweep", "status", "study", "--root", root.path, *asked)
    ), said


def test_a_list_asks_the_store_once_for_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many trials it has, filters, columns and pages of it."""
    make_many(root := Root(tmp_path / "runs"), 30)
    asked: list[str] = []
    ask = Store.curve_ends

    def counted(store: Store, name: str, sweep: str | None = None) -> object:
        asked.append(name)
        return ask(store, name, sweep)

    monkeypatch.setattr(Store, "curve_ends", counted)
    with Store.open(root) as store:
        started = [store.attempts(trial.id)[-1].id for trial in store.results("many")]
        for place, attempt in enumerate(started):
            store.add_points(attempt, [Point(stage=2, step=1, epoch=0.0, name="loss", value=place, time=1.0)])
    with TestClient(open_app(root), base_url=ORIGIN) as client:
        for _ in range(3):
            path = "/api/v1/sweeps/many/trials?where=last.loss < 20&sort=last.loss&descending=true&columns=last.loss"
            found = client.get(path).json()
            assert (found["total"], found["trials"][0]["name"]) == (20, "trial-00019")
    assert asked == ["loss"]
