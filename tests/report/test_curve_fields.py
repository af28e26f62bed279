"""What curves come to is a field like any other: of every metric that a trial has, wherever fields are asked for."""

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from prunegpt import Sweep, api
from prunegpt.errors import PruneGPTError, UnknownPartError
from prunegpt.points import Point
from prunegpt.records import TrialResult
from prunegpt.report.archive import read_archive, write_archive
from prunegpt.report.columns import column
from prunegpt.report.curve_fields import with_curves
from prunegpt.report.declared import tables_of
from prunegpt.report.fields import TrialFields
from prunegpt.report.tables import build_table
from prunegpt.root import Root
from prunegpt.spec.columns import check_column
from prunegpt.spec.figures import FigureSpec
from prunegpt.spec.schema import ColumnSpec, RowSpec, TableSpec
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


def test_every_field_of_a_curve_is_a_column_of_tables_and_figures(root: Root) -> None:
    with Store.open(root) as store:
        results, summaries = store.results("study"), Summaries(store, "study")
        fields = TrialFields(results, curves=lambda: summaries).curves
        columns = tuple(ColumnSpec(value=f"curve:{path}") for path in fields)
        table = TableSpec(title="t", rows=(RowSpec(trial="*"),), columns=columns)
        carried = with_curves(results, lambda: summaries, [table])
        figure = FigureSpec(name="f", where="min.grad_norm < 5", x="tokens")
        again = with_curves(results, lambda: summaries, figures=[figure])
    built = build_table(table, carried, lambda _: None)
    assert len(columns) > 60
    finished = {trial.name: trial for trial in results if trial.measured}
    assert {row.trial for row in built.rows} >= finished.keys()
    for row in built.rows:
        for field, cell in zip(fields.values(), row.cells, strict=True):
            expected = field.of(finished[row.trial]) if row.trial in finished else None
            assert cell.value == expected, (row.trial, field.key)
    assert {heading.text for heading in built.columns} == {field.label for field in fields.values()}
    kept = {field.key: field.of(again[0]) for field in TrialFields(again).curves.values()}
    assert kept == {key: fields[key.removeprefix("curve.")].of(results[0]) for key in kept}
    with pytest.raises(UnknownPartError, match=r"last\.lss is of none\. `prunegpt sweep fields study` lists them"):
        column("curve:last.lss", carried)


def test_a_spec_declares_curves_in_tables_and_figures(tmp_path: Path) -> None:
    names = ("trial", "perplexity", "curve:last.loss", "curve:stages.1.min.loss")
    table = TableSpec(
        title="Curves", rows=(RowSpec(trial="*"),), columns=tuple(ColumnSpec(value=name) for name in names)
    )
    figure = {"name": "f", "x": "curve:min.loss", "y": "curve:last.loss", "by": None, "where": "max.loss > 0"}
    root = make_root(tmp_path / "runs", tables=[table], figures=[figure])
    written = api.table("study", format="csv", root=root.path)
    row = next(line for line in written.splitlines() if ",recovered" in line).split(",")
    with Store.open(root) as store:
        values = [one.value for one in points_of(store, store.result("study/recovered"), "loss")]
    assert str(values[-1]) in row
    found = api.stored("study", root)
    write_archive(tmp_path / "kept", found)
    assert tables_of(read_archive(tmp_path / "kept")) == tables_of(found)
    (drawn,) = [one for _, one in api.declared("study", root)]
    assert not isinstance(drawn, PruneGPTError), drawn
    with TestClient(open_app(root), base_url=ORIGIN) as client:
        assert str(values[-1]) in client.get("/api/v1/sweeps/study/tables/all.csv").text
        assert client.get("/api/v1/sweeps/study/figures/f").status_code == 200


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("last.loss", "a column of a curve must begin with curve:, got 'last.loss'. Write curve:last.loss."),
        ("curve:loss", "a column of a curve must name its last, least or greatest value, got 'curve:loss'. Write"),
        ("curve:", "a column of a curve must name its last, least or greatest value, got 'curve:'."),
        ("stages.1.max.kd", "Write curve:stages.1.max.kd."),
    ],
)
def test_what_is_no_value_of_a_curve_is_refused_with_what_to_write(name: str, message: str) -> None:
    with pytest.raises(UnknownPartError, match=re.escape(message)):
        check_column(name)


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
