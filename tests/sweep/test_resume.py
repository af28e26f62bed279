"""A sweep is resumed with the files it was run with, from whatever folder: every kind of file that a spec names."""

import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.errors import PruneGPTError
from prunegpt.planning.resolve import Planner
from prunegpt.root import Root
from prunegpt.spec.plan import SweepPlan
from prunegpt.store import Store
from tests.support.specs import BASE, model_folder, text_folder

RECIPE = """
train: {{num_train_epochs: 4, learning_rate: 1.0e-3}}
prune: {{method: magnitude, sparsity: {0}, start: 0, end: 2}}
"""
OWN = {"model": "./model", "data": {"path": "./text", "block_size": 8}}
RATE = "stages.0.finetune.train.learning_rate"
READS: Mapping[str, Mapping[str, Any]] = {  # a trial for every kind of file
    "model": {**OWN, "data": {"path": "text", "block_size": 8}},
    "data": {**OWN, "model": "model"},
    "files": {
        **OWN,
        "data": {"files": {"train": ["text/train.txt"], "validation": ["text/validation.txt"]}, "block_size": 8},
    },
    "evaluate": {**OWN, "evaluate": {"data": {"path": "other"}}},
    "tokenizer": {**OWN, "model": {"source": "model", "tokenizer": "./other-model"}},
    "recipe": {**BASE, "stages": [{"finetune": {"recipe": "recipe.yaml", "train": {"max_steps": 2}}}]},
    "teacher": {**OWN, "stages": [{"distill": {"teacher": {"model": "other-model"}, "train": {"max_steps": 2}}}]},
    "searched": {
        **OWN,
        "stages": [{"finetune": {"train": {"max_steps": 2}}}],
        "search": {"sampler": "random", "n_trials": 2, "space": {RATE: {"low": 0.1, "high": 0.2}}},
    },
}


@dataclass
class Places:
    """Three working directories: two with files of the same names and other content, and an empty one."""

    folder: Path
    root: Root
    chdir: Callable[[Path], None]
    executed: list[SweepPlan] = field(default_factory=list)

    def run(self, trial: Mapping[str, Any]) -> SweepPlan:
        """Saves a sweep that is run from `one`."""
        self.chdir(self.folder / "one")
        planner = Planner({"name": "here", "trials": [{"name": "a", **trial}]})
        with Store.open(self.root) as store:
            store.save_sweep(planner.plan)
            for search in planner.plan.searches:
                store.add_trial(planner.suggested(search, {RATE: 0.15}, 1))
        return planner.plan

    def resume(self, place: str) -> SweepPlan | str:
        """What would be executed on `sweep resume` from a folder, or why nothing is."""
        self.chdir(self.folder / place)
        result = CliRunner().invoke(app, ["sweep", "resume", "here", "--root", str(self.root.path)])
        if isinstance(result.exception, PruneGPTError):
            return str(result.exception)
        assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
        return self.executed.pop()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    for number, place in enumerate(("one", "two")):
        for name in ("model", "other-model"):
            model_folder(tmp_path / place / name, fill=number)
        for name in ("text", "other"):
            text_folder(
                tmp_path / place / name, train="a b c d e f g a\n" * (number + 1), validation="b " * (9 + number)
            )
        (tmp_path / place / "other-model/tokenizer_config.json").write_text(json.dumps({"add_bos_token": bool(number)}))
        (tmp_path / place / "recipe.yaml").write_text(RECIPE.format(0.5 + number / 10))
    (tmp_path / "three").mkdir()
    found = Places(tmp_path, Root(tmp_path / "runs"), monkeypatch.chdir)
    monkeypatch.setattr("prunegpt.cli.control.execute", lambda planner, *_, **__: found.executed.append(planner.plan))
    return found


@pytest.mark.parametrize("kind", READS)
def test_relative_paths_begin_where_the_sweep_was_run(places: Places, kind: str) -> None:
    ran = places.run(READS[kind])
    for place in ("one", "two", "three"):
        resumed = places.resume(place)
        assert isinstance(resumed, SweepPlan), resumed
        assert resumed.trials == ran.trials
        assert resumed.folder == str(places.folder / "one")


@pytest.mark.parametrize("kind", READS)
def test_where_that_folder_is_gone_equal_files_do_and_others_are_refused(places: Places, kind: str) -> None:
    ran = places.run(READS[kind])
    (places.folder / "one").rename(places.folder / "moved")
    for place in ("two", "three"):
        message = places.resume(place)
        assert isinstance(message, str)
        assert f"it was run in {places.folder / 'one'}, which is gone" in message
        assert "Run `prunegpt sweep run SPEC` from the folder where its files are now." in message
    resumed = places.resume("moved")
    assert isinstance(resumed, SweepPlan), resumed
    assert [trial.key for trial in resumed.trials] == [trial.key for trial in ran.trials]


@pytest.mark.parametrize("kind", READS)
def test_a_sweep_that_has_ended_needs_none_of_its_files(places: Places, kind: str) -> None:
    ran = places.run(READS[kind])
    with Store.open(places.root) as store:
        for trial in store.results("here"):
            store.conclude(trial.id, "finished", reason="cache", stages=())
    (places.folder / "one").rename(places.folder / "moved")
    places.chdir(places.folder / "three")
    result = CliRunner().invoke(app, ["sweep", "resume", "here", "--root", str(places.root.path)])
    assert result.exit_code == bool(ran.searches)  # which may suggest more
    if not ran.searches:
        assert "here: all its trials have ended, and nothing is left to run." in result.stderr
        assert "| a" in result.stdout


def test_a_sweep_of_an_earlier_version_is_resumed_where_its_files_are_the_same(places: Places) -> None:
    """Its folder is not known."""
    places.run(READS["model"])
    with closing(sqlite3.connect(places.root.database)) as database, database:
        database.execute("UPDATE sweep SET folder = ''")
    assert isinstance(places.resume("one"), SweepPlan)
    for place in ("two", "three"):
        message = places.resume(place)
        assert isinstance(message, str)
        assert "the folder it was run in is not known" in message


@pytest.mark.parametrize("folder", [".", "", "../two"])
def test_a_folder_that_depends_on_the_working_directory_is_none(places: Places, folder: str) -> None:
    places.run(READS["model"])
    with closing(sqlite3.connect(places.root.database)) as connection:
        connection.execute("UPDATE sweep SET folder = ?", (folder,))
        connection.commit()
    told = places.resume("two")
    assert isinstance(told, str)
    assert "a would now compute something else" in told
