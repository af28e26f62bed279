"""An archive gives back what a table needs, to the last digit, and nothing of the machine it was made on."""

from pathlib import Path

import numpy as np
import pytest

from prunegpt.report.archive import read_archive, write_archive
from prunegpt.report.errors import ReportError
from prunegpt.report.tables import build_table
from prunegpt.spec.schema import TableSpec
from tests.report.made import draw_windows, evaluation, make_trial

TABLE = TableSpec.model_validate({"title": "T", "rows": ["*"], "columns": ["trial", "perplexity", "difference"]})


def test_a_table_of_an_archive_is_that_of_the_store(tmp_path: Path) -> None:
    drawn = draw_windows(3.0), draw_windows(3.1, seed=1)
    trials = [make_trial(name, measured=evaluation(one)) for name, one in zip("ab", drawn, strict=True)]
    losses = {trial.id: one for trial, one in zip(trials, drawn, strict=True)}
    write_archive(
        tmp_path, sweep="s", tables=[TABLE], results=trials, windows=lambda trial: losses[trial.id], commit="c"
    )
    found = read_archive(tmp_path)
    assert (found.sweep, found.commit, found.tables) == ("s", "c", (TABLE,))
    assert np.array_equal(np.asarray(found.windows(trials[0])), drawn[0])
    assert build_table(TABLE, found.results, found.windows) == build_table(
        TABLE, trials, lambda trial: losses[trial.id]
    )


def test_paths_and_messages_stay_at_home(tmp_path: Path) -> None:
    config = {"model": {"source": "/home/somebody/models/gpt2"}, "data": {"files": {"train": ["/home/somebody/a.txt"]}}}
    trial = make_trial("a").model_copy(
        update={"config": config, "state": "failed", "error": "no space on /home/somebody", "reason": "disk-full"}
    )
    write_archive(tmp_path, sweep="s", tables=[TABLE], results=[trial], windows=lambda _: None)
    assert "somebody" not in (tmp_path / "results.json").read_text()
    (kept,) = read_archive(tmp_path).results
    assert kept.config == {"model": {"source": "gpt2"}, "data": {"files": {"train": ["a.txt"]}}}
    assert kept.reason == "disk-full"


def test_a_folder_that_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"an archive of results must hold results\.json and windows\.npz"):
        read_archive(tmp_path)
