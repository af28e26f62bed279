"""Published figures beside measured ones: several a row, a verdict for each, an exit status for scripts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.report.cells import Cell, Heading, Table, TableRow
from prunegpt.report.reproduce import reproductions
from prunegpt.spec.read import apply_override
from tests.support.small import Invoke

PUBLISHED = sorted((Path(__file__).parents[2] / "sweeps" / "published").glob("*.yaml"))


TEXT = "split: test, protocol: stream, block_size: 32, max_windows: 4"
Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `reproduce` with a root of its own, to whatever end."""
    monkeypatch.setenv("PRUNEGPT_ROOT", str(tmp_path / "runs"))
    return lambda *arguments: CliRunner().invoke(app, ["reproduce", *arguments])


@pytest.fixture
def at_hand(model_folder: Path, text_files: dict[str, str]) -> list[str]:
    """Moves a published spec to a tiny model and a short text."""
    files = f"{{train: {text_files['train']}, test: {text_files['validation']}}}"
    settings = {
        "trials.*.model": model_folder,
        "base.data": f"{{files: {files}, block_size: 32}}",
        "base.evaluate": f"[{{{TEXT}}}, {{name: ptb, {TEXT}}}, {{name: c4, {TEXT}}}]",
    }
    return [part for path, value in settings.items() for part in ("--set", f"{path}={value}")]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_spec_says_what_was_not_measured(
    path: Path, at_hand: list[str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = [
        figures for table in yaml.safe_load(path.read_text())["tables"] for figures in table["reported"].values()
    ]
    count = sum(len(one) if isinstance(one, dict) and "value" not in one else 1 for one in reported)
    done = command(str(path), "--no-run", "--json", *at_hand)
    assert done.exit_code == 3, done.output
    found = json.loads(done.stdout)
    assert len(found) == count
    assert {one["verdict"] for one in found} == {"not measured"}
    assert all(one["source"].startswith(("README of", "https://")) for one in found)
    monkeypatch.setenv("COLUMNS", "80")
    shown = command(str(path), "--no-run", *at_hand)
    assert all(head in shown.output for head in ("published", "measured", "verdict"))
    assert f"Measure them: prunegpt reproduce {path}" in shown.output


def spec(published: dict[str, Any], model_folder: Path, text_files: dict[str, str], folder: Path) -> Path:
    data = {
        "name": "small",
        "base": {
            "model": str(model_folder),
            "data": {"files": text_files, "block_size": 32},
            "evaluate": [{"max_windows": 4}, {"name": "train", "split": "train", "max_windows": 4}],
        },
        "trials": [{"name": "dense"}],
        "tables": [
            {
                "title": "T",
                "rows": ["dense"],
                "columns": ["trial", "perplexity", "perplexity:train"],
                "source": "a paper",
                "reported": {"dense": published},
            }
        ],
    }
    path = folder / "small.yaml"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.usefixtures("forked")
def test_a_figure_that_is_off_ends_with_1(
    model_folder: Path, text_files: dict[str, str], tmp_path: Path, command: Command
) -> None:
    guess = spec({"perplexity": 1.0, "perplexity:train": 1.0}, model_folder, text_files, tmp_path)
    done = command(str(guess), "--json")
    assert done.exit_code == 1, done.output
    found = json.loads(done.stdout)
    right = {name: one["measured"] for name, one in zip(("perplexity", "perplexity:train"), found, strict=True)}
    good = spec(right, model_folder, text_files, tmp_path)
    assert command(str(good), "--no-run").exit_code == 0
    tampered = {**right, "perplexity:train": right["perplexity:train"] * 1.03}
    done = command(str(spec(tampered, model_folder, text_files, tmp_path)), "--no-run")
    assert done.exit_code == 1
    assert "1 off" in done.output
    assert "1 within" in done.output


def table(published: float, measured: float | None, tolerance: float) -> Table:
    cells = (Cell(measured, ""), Cell(published, "", details={"tolerance": tolerance, "source": "s"}))
    heads = (Heading("Perplexity", "loss"), Heading("Reported", "loss", beside=0))
    return Table("T", "t", heads, (TableRow("dense", "finished", cells),))


@pytest.mark.parametrize(
    ("published", "measured", "tolerance", "verdict"),
    [
        (100.0, 102.0, 0.02, "within"),
        (100.0, 102.1, 0.02, "off"),
        (100.0, 97.9, 0.02, "off"),
        (100.0, 100.0, 0.0, "within"),
        (0.0, 0.0, 0.0, "within"),
        (0.0, 0.1, 0.5, "off"),
        (100.0, None, 0.02, "not measured"),
    ],
)
def test_a_verdict_is_by_the_tolerance(
    published: float, measured: float | None, tolerance: float, verdict: str
) -> None:
    (found,) = reproductions([table(published, measured, tolerance)])
    assert found.verdict == verdict


def test_a_star_sets_every_element() -> None:
    data = {"trials": [{"name": "a"}, {"name": "b", "model": "x"}], "base": {"k": {"p": {}, "q": {}}}}
    apply_override(data, "trials.*.model=m")
    apply_override(data, "base.k.*.v=1")
    assert [trial["model"] for trial in data["trials"]] == ["m", "m"]
    assert data["base"] == {"k": {"p": {"v": 1}, "q": {"v": 1}}}
    with pytest.raises(ValueError, match=r"every element of a list or mapping; base\.none has none"):
        apply_override(data, "base.none.*.v=1")


def test_a_spec_without_published_figures_is_refused(tmp_path: Path, invoke: Invoke) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nbase: {model: 'builtin:tiny-gpt2', data: {path: 'builtin:text'}}\ntrials: [{name: a}]\n")
    assert "no published figures" in invoke("reproduce", path, "--no-run", fails=True)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_without_the_models_and_data_it_says_what_to_run(path: Path, command: Command) -> None:
    done = command(str(path), "--no-run")
    assert done.exit_code == 3, done.output
    assert "c4-train.00000-of-01024.json.gz does not exist" in done.output
    assert f"Measure them: prunegpt reproduce {path}" in done.output
