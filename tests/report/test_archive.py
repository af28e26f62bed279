"""An archive gives back what a table needs, to the last digit, and nothing of the machine it was made on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunegpt.errors import ReportError
from prunegpt.records import GOES_BY
from prunegpt.report.archive import Archive, public, read_archive, write_archive
from prunegpt.report.tables import build_table
from prunegpt.spec.schema import TableSpec
from tests.support.results import draw_windows, evaluation, make_trial

CHECKOUT = Path(__file__).parents[2]
TABLE = TableSpec.model_validate({"title": "T", "rows": ["*"], "columns": ["trial", "perplexity", "difference"]})


def test_a_table_of_an_archive_is_that_of_the_store(tmp_path: Path) -> None:
    drawn = draw_windows(3.0), draw_windows(3.1, seed=1)
    trials = [make_trial(name, measured=evaluation(one)) for name, one in zip("ab", drawn, strict=True)]
    losses = {trial.id: one for trial, one in zip(trials, drawn, strict=True)}
    write_archive(tmp_path, Archive("s", "c", (TABLE,), tuple(trials), lambda trial: losses[trial.id]))
    found = read_archive(tmp_path)
    assert (found.sweep, found.commit, found.tables) == ("s", "c", (TABLE,))
    assert np.array_equal(np.asarray(found.windows(trials[0])), drawn[0])
    assert build_table(TABLE, found.results, found.windows) == build_table(
        TABLE, trials, lambda trial: losses[trial.id]
    )


def test_paths_and_messages_stay_at_home(tmp_path: Path) -> None:
    config = {"model": {"source": "/home/somebody/models/gpt2"}, "data": {"files": {"train": ["/home/somebody/a.txt"]}}}
    trial = make_trial("a", config=config).model_copy(
        update={"state": "failed", "error": "no space on /home/somebody", "reason": "disk-full"}
    )
    inputs = dict.fromkeys((f"/home/somebody/{name}/config.json" for name in ("old/gpt2", "new/gpt2", "opt")), "5ha")
    trial = trial.model_copy(update={"plan": trial.plan.model_copy(update={"inputs": inputs})})
    write_archive(tmp_path, Archive("s", None, (TABLE,), (trial,), lambda _: None))
    assert "somebody" not in (tmp_path / "results.json").read_text()
    (kept,) = read_archive(tmp_path).results
    assert set(kept.plan.inputs) == {"old/gpt2/config.json", "new/gpt2/config.json", "opt/config.json"}
    assert kept.config == {"model": {"source": "gpt2"}, "data": {"files": {"train": ["a.txt"]}}}
    assert kept.reason == "disk-full"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("/home/somebody/a.py:score", "a.py:score"),
        ("--config_name=/home/somebody/a b/c", "--config_name=a b/c"),
        ("file:///home/somebody/a.txt", "a.txt"),
        ("it was run in /home/somebody/runs/x, which is gone", "it was run in x, which is gone"),
        ("https://huggingface.co/gpt2", "https://huggingface.co/gpt2"),
        ("org/model", "org/model"),
        ("and/or 1 / 2", "and/or 1 / 2"),
    ],
)
def test_of_a_path_its_end_is_kept(value: str, kept: str) -> None:
    assert public({"a": [value]}) == {"a": [kept]}


@pytest.mark.parametrize(
    "kept", sorted((CHECKOUT / "sweeps" / "results").glob("*/results.json")), ids=lambda path: path.parent.name
)
def test_no_kept_archive_holds_a_path_of_a_machine(kept: Path) -> None:
    content = json.loads(kept.read_text())
    assert content["results"]
    assert public(content) == content


def test_a_folder_that_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"an archive of results must hold results\.json and windows\.npz"):
        read_archive(tmp_path)


def kept_as(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """An archive of one trial, as another version would have written it."""
    write_archive(folder, Archive("s", None, (TABLE,), (make_trial("a"),), lambda _: None))
    file = folder / "results.json"
    content = json.loads(file.read_text())
    (result,) = content["results"]
    change(result)
    file.write_text(json.dumps(content))
    return folder


def test_an_archive_of_another_version_is_read(tmp_path: Path) -> None:
    def change(result: dict[str, Any]) -> None:
        plan = result["plan"]
        result |= {name: plan[name] for name in GOES_BY} | {"key": "k", "of a later version": 1}
        plan["of a later version"] = plan["evaluate"]["likewise"] = 1
        del plan["micro_batch_divisor"]

    (found,) = read_archive(kept_as(tmp_path, change)).results
    assert found.plan == make_trial("a").plan


def test_a_plan_that_cannot_be_read_is_named_with_the_way_out(tmp_path: Path) -> None:
    kept_as(tmp_path, lambda result: result["plan"].pop("stages"))
    with pytest.raises(
        ReportError, match=r"plan of wikitext2/a in .*: stages is missing\. Write the archive again with"
    ):
        read_archive(tmp_path)
