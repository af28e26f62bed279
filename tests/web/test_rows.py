"""Rows of trials beside the columns they are shown in."""

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from prunegpt import web
from prunegpt.report.fields import TrialFields
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.tracking.foreign import Keeper
from prunegpt.tracking.run_path import RunPath
from tests.support.served import ORIGIN, open_app
from tests.support.study import make_root


def _logged(path: Path) -> Root:
    with Store.open(root := Root(path)) as store:
        for place, name in enumerate(("aa11", "bb22")):
            run = Keeper(root, store, RunPath("me", "kd", name))
            run.update(label=f"run {place}", config={"lr": place + 0.5}, summary={"val/acc": 0.5})
            run.update(tags=("a",), notes="n")
            run.end("finished")
    return root


@pytest.mark.parametrize(("sweep", "more"), [("study", ""), ("study", "model.source"), ("wandb-kd", "")])
def test_a_row_has_the_value_of_every_column(sweep: str, more: str, tmp_path: Path) -> None:
    root = make_root(tmp_path / "runs") if sweep == "study" else _logged(tmp_path / "runs")
    with Store.open(root, create=False) as store:
        trials = {trial.name: trial for trial in store.results(sweep)}
    fields = TrialFields(list(trials.values()))
    with TestClient(open_app(root), base_url=ORIGIN) as client:
        answer = client.get(f"/api/v1/sweeps/{sweep}/trials", params={"columns": more}).json()
    seen = set()
    for row in answer["trials"]:
        for column in answer["columns"]:
            key, name = column["key"], column["name"]
            shown = row["swept"].get(name) if column["swept"] else row["values"].get(key, row.get(key))
            assert (shown is None) == (fields.find(key).of(trials[row["name"]]) is None), (row["name"], key)
            seen |= {key} if shown not in (None, []) else set()
    assert seen >= (
        {"config.lr", "logged.val/acc", "tags", "note"} if sweep == "wandb-kd" else {"perplexity", "method"}
    )


def test_a_column_that_stays_in_view_has_an_edge() -> None:
    """Figures that go below it are cut there: without a line `977.40` reads like `7.40`."""
    sheets = [path.read_text(encoding="utf-8") for path in (Path(web.__file__).parent / "static/css").glob("*.css")]
    rules = [rule for sheet in sheets for rule in re.findall(r"([^{}]+)\{([^{}]*)\}", sheet)]
    staying = {name.strip(): body for name, body in rules if "position: sticky" in body and "left: 0" in body}
    assert len(staying) >= 3
    assert [name for name, body in staying.items() if not re.search("border-right|box-shadow", body)] == []
