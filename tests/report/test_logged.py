"""Runs of W&B clients in tables: their own names, nothing made of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prunegpt.api import stored, table
from prunegpt.errors import PruneGPTError
from prunegpt.report.declared import tables_of
from prunegpt.root import Root
from prunegpt.spec.schema import ColumnSpec, RowSpec, TableSpec
from prunegpt.store import Store
from prunegpt.tracking.foreign import Keeper
from prunegpt.tracking.run_path import RunPath
from prunegpt.trial import run_trial

RUNS = {
    "kd01": ({"hardness": 0.5, "seed": 1}, {"train/loss": 28.0, "eval/loss": 27.985}),
    "cls01": ({"task": "sst2", "seed": 1}, {"eval/loss": 0.31, "eval/accuracy": 0.9}),
    "lm01": ({"seed": 1}, {"eval/loss": 3.2, "eval/perplexity": 24.5, "perplexity": 24.5, "sparsity": 0.5}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """Three runs whose losses are of three kinds."""
    root = Root(tmp_path_factory.mktemp("root"))
    with Store.open(root) as store:
        for name, (config, summary) in RUNS.items():
            keeper = Keeper(root, store, RunPath("local", "kd", name))
            keeper.add([{"_step": 0, **summary}], 0)
            keeper.update(label="one name", config=config, summary=summary, tags=("a", "b"))
            keeper.end("finished")
    return root


def test_every_metric_is_a_column_and_none_is_a_perplexity(root: Root) -> None:
    rows = {
        row["run"]: row for row in json.loads(table("wandb-kd", format="json", root=root.path))["tables"][0]["rows"]
    }
    assert set(rows) == set(RUNS)
    for name, (_, summary) in RUNS.items():
        known = {
            key: value for key, value in rows[name].items() if key in {*summary, "eval/accuracy"} and value is not None
        }
        assert known == summary, "what was logged, by its own names, and nothing more"
        assert rows[name]["trials"] == [name], "a group is what a run says, not its display name"
    assert [rows[name]["hardness"] for name in RUNS] == [0.5, None, None]
    text = table("wandb-kd", root=root.path)
    assert "e+12" not in text, "the exponential of a blended loss"
    assert "1.36" not in text, "the exponential of a classifier's loss"
    assert "**" not in text, "no run is the best one"


def test_a_declared_table_takes_a_logged_metric_by_its_name(root: Root) -> None:
    columns = (ColumnSpec(value="trial"), ColumnSpec(value="logged:eval/accuracy"), ColumnSpec(value="perplexity"))
    spec = TableSpec(title="T", rows=(RowSpec(trial="cls01"),), columns=columns)
    (made,) = tables_of(replace(stored("wandb-kd", root), tables=(spec,)))
    assert [cell.text for cell in made.rows[0].cells] == ["cls01", "0.9", "not measured"]


def test_what_cannot_work_is_not_offered(root: Root) -> None:
    with Store.open(root) as store:
        trial = store.result("wandb-kd/cls01")
        folder: Path = root.path / trial.folder
        record = (folder / "record.json").read_bytes()
        with pytest.raises(PruneGPTError, match="only a trial of a spec can be run"):
            run_trial(folder)
        assert store.retry("wandb-kd", ["cls01"]) == []
    assert (folder / "record.json").read_bytes() == record
