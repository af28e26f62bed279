"""Every folder of a root's layout, broken in every way: `doctor` says so, and what can be mended is mended."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import prunegpt
from prunegpt.cli import app
from prunegpt.root import FOLDERS, Root
from prunegpt.sweep.repair import examine, repair

FILES = {"prunegpt.db", "clock", "fingerprints.json"}


def doctor(root: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["doctor", "--json", "--root", str(root), *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, json.loads(done.stdout)


def a_file(place: Path) -> str:
    place.write_text("mine")
    return "it must be a folder, got a file"


def a_link_to_nothing(place: Path) -> str:
    place.symlink_to(place.parent / "gone")
    return "which is not there"


WAYS: tuple[Callable[[Path], str], ...] = (a_file, a_link_to_nothing)


@pytest.mark.parametrize("break_", WAYS)
@pytest.mark.parametrize("name", FOLDERS)
def test_what_stands_in_place_of_a_folder_is_told(name: str, break_: Callable[[Path], str], tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    message = break_(root / name)
    code, report = doctor(root)
    assert code == 1
    (finding,) = report["findings"]
    assert finding["path"] == name
    assert message in finding["text"]
    code, repaired = doctor(root, "--repair")
    assert code == 0
    (again,) = repaired["findings"]
    assert again["mended"] is (break_ is a_file)
    if break_ is a_file:
        assert not (root / name).exists()
        assert [path.read_text() for path in root.glob(f".{name}.*.damaged")] == ["mine"], "nothing is lost"
        assert doctor(root)[0] == 0


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_this_account_may_not_read_is_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    asked = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != name and asked(path, mode))
    code, report = doctor(tmp_path)
    assert code == 1
    assert [(one["path"], "may not read it" in one["text"]) for one in report["findings"]] == [(name, True)]


@pytest.mark.parametrize("break_", WAYS)
def test_a_root_that_is_no_folder_is_told(break_: Callable[[Path], str], tmp_path: Path) -> None:
    root = Root(tmp_path / "runs")
    message = break_(root.path)
    (finding,) = examine(root)
    assert message in finding.text
    assert "Give another one with --root" in finding.text
    assert repair(root, lambda _: True) == [(finding, False)]


def test_no_folder_is_missing_from_the_layout(tmp_path: Path) -> None:
    """Whatever the package joins to a root's path is listed there."""
    package = Path(prunegpt.__file__).parent
    named = {
        name
        for file in package.rglob("*.py")
        for name in re.findall(r"(?:\broot|self)\.path / \"([^\"]+)\"", file.read_text(encoding="utf-8"))
    }
    assert {name for name in named - FILES if not name.startswith(".")} <= set(FOLDERS)
    assert {"stages", "work", "trials", "control", "wandb"} <= named
    assert Root(tmp_path).work("k").parent.name in FOLDERS
