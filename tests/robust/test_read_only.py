"""Roots on file systems that take no writes, or that SQLite's write-ahead log cannot be on."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.errors import StoreError
from prunegpt.root import Root
from prunegpt.spec.schema import TableSpec
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep
from prunegpt.web.source import RootSource
from tests.support import hashing_worker
from tests.support.finished_root import MORE, TRIALS, Undisturbed, figures, run
from tests.support.fork_launcher import ForkLauncher
from tests.support.sweep_plans import make_plan
from tests.support.waiting import Clock

Freeze = Callable[[Path], None]
SCHEMA_1 = Path(__file__).parents[1] / "store" / "fixtures" / "schema-0001.sql"


@pytest.fixture
def freeze() -> Iterator[Freeze]:
    """Makes a folder one that nobody can write, for as long as the test runs."""
    mounted: list[Path] = []
    closed: list[Path] = []

    def make(folder: Path) -> None:
        if os.getuid() != 0:
            closed.extend([folder, *folder.rglob("*")])
            for path in closed:
                path.chmod(0o555 if path.is_dir() else 0o444)
            return
        for command in (["mount", "--bind", folder, folder], ["mount", "-o", "remount,bind,ro", folder]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"this user may write everywhere, and a read-only mount cannot be had: {done.stderr}")
            mounted.append(folder)

    yield make
    for folder in dict.fromkeys(mounted):
        subprocess.run(["umount", "--lazy", folder], check=False)
    for path in closed:
        path.chmod(0o755)


def prunegpt(*words: str, root: Path) -> str:
    """What a command prints; it must come to a good end."""
    done = CliRunner().invoke(app, [*words, "--root", str(root)])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.stdout


def test_what_is_stored_can_be_looked_at(undisturbed: Undisturbed, tmp_path: Path, freeze: Freeze) -> None:
    root = Root(tmp_path / "runs")
    with Store.open(root) as store:
        table = TableSpec(title="Words", rows=("*",), columns=("trial", "perplexity"))
        run_sweep(make_plan(*TRIALS, tables=[table]), root, store, ForkLauncher(hashing_worker.run))
    before = sorted(root.path.rglob("*"))
    freeze(root.path)
    assert figures(root) == {name: undisturbed.figures[name] for name in "ab"}
    status = json.loads(prunegpt("sweep", "status", "words", "--json", root=root.path))
    assert {trial["state"] for trial in status["trials"]} == {"finished"}
    assert len(prunegpt("table", "words", root=root.path).splitlines()) >= 4
    assert "words/a" in prunegpt("trial", "show", "words/a", root=root.path)
    prunegpt("report", "words", "--out", str(tmp_path / "report"), root=root.path)
    assert (tmp_path / "report" / "index.html").exists()
    assert sorted(root.path.rglob("*")) == before


def test_what_would_write_is_refused(broken: Callable[[], Root], freeze: Freeze) -> None:
    root = broken()
    freeze(root.path)
    with pytest.raises(StoreError, match=rf"a root must be writable .*; {re.escape(str(root.path))} is read-only here"):
        run(root, *MORE)
    with (
        Store.open(root, create=False) as store,
        pytest.raises(StoreError, match=r"the database must be writable .* is read-only here\. Copy the folder"),
    ):
        store.set_note(1, "new")


def test_a_dashboard_follows_what_somebody_else_writes(tmp_path: Path, freeze: Freeze) -> None:
    """The root of a sweep that runs on another machine, mounted read-only here."""
    there, here = tmp_path / "there", tmp_path / "here"
    run(Root(there), *TRIALS[:1])
    here.mkdir()
    if (
        os.getuid() != 0
        or subprocess.run(["mount", "--bind", there, here], capture_output=True, check=False).returncode
    ):
        pytest.skip("a folder cannot be mounted at a second place here")
    try:
        freeze(here)
        with closing(RootSource(Root(here), clock := Clock())) as source:
            assert [trial.name for trial in source.trials("words")] == ["a"]
            with Store.open(Root(there)) as store:  # it has begun: its log is there, and not merged
                assert (there / "prunegpt.db-wal").exists()
                store.set_note(1, "new")
                with Store.open(Root(here), create=False) as other:
                    assert other.note(1) == "new"
            run(Root(there), *TRIALS)
            clock.now += 1
            assert [trial.name for trial in source.trials("words")] == ["a", "b"]
    finally:
        subprocess.run(["umount", "--lazy", here], check=False)


def test_a_log_that_is_not_merged_is_told(broken: Callable[[], Root], tmp_path: Path, freeze: Freeze) -> None:
    root, copy = broken(), tmp_path / "copy"
    copy.mkdir()
    with Store.open(root) as store:
        store.set_note(1, "new")
        for name in ("prunegpt.db", "prunegpt.db-wal"):
            shutil.copy(root.path / name, copy)
    freeze(copy)
    with pytest.raises(StoreError, match=r"write-ahead log is merged; .*prunegpt\.db-wal is not: .* Copy the folder"):
        Store.open(Root(copy), create=False)
    (tmp_path / "again").mkdir()
    for name in ("prunegpt.db", "prunegpt.db-wal"):
        shutil.copy(copy / name, tmp_path / "again")
    with Store.open(Root(tmp_path / "again"), create=False) as store:  # the way out
        assert store.note(1) == "new"


def test_an_old_schema_is_told(tmp_path: Path, freeze: Freeze) -> None:
    root = Root(tmp_path / "runs")
    root.path.mkdir()
    with closing(sqlite3.connect(root.database)) as database:
        database.executescript(SCHEMA_1.read_text(encoding="utf-8"))
    freeze(root.path)
    with pytest.raises(StoreError, match=r"must have the schema \d+ to be read; .* has 0001, and is read-only here"):
        Store.open(root, create=False)


@pytest.fixture(params=["unix-dotfile", "unix-none"])
def without_shared_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite as on a file system whose files cannot be mapped into memory by several processes."""
    connect = sqlite3.connect

    def elsewhere(file: Any, *given: Any, **more: Any) -> sqlite3.Connection:
        return connect(f"{Path(file).absolute().as_uri()}?vfs={request.param}", *given, uri=True, **more)

    monkeypatch.setattr(sqlite3.dbapi2, "connect", elsewhere)


def journal(root: Root) -> str:
    with closing(sqlite3.dbapi2.connect(root.database)) as database:
        return str(database.execute("PRAGMA journal_mode").fetchone()[0])


@pytest.mark.usefixtures("without_shared_memory")
def test_a_sweep_runs_without_a_write_ahead_log(tmp_path: Path, undisturbed: Undisturbed) -> None:
    root = Root(tmp_path / "runs")
    assert run(root, *TRIALS).ok
    assert run(root, *MORE).ok
    assert figures(root) == undisturbed.figures
    assert journal(root) == "delete"


def test_a_root_that_comes_from_elsewhere_goes_on_without(
    broken: Callable[[], Root], undisturbed: Undisturbed, request: pytest.FixtureRequest
) -> None:
    root = broken()
    assert journal(root) == "wal"
    with pytest.MonkeyPatch.context() as patched:
        connect = sqlite3.connect
        patched.setattr(
            sqlite3.dbapi2,
            "connect",
            lambda file, **more: connect(f"{Path(file).absolute().as_uri()}?vfs=unix-dotfile", uri=True, **more),
        )
        assert figures(root) == {name: undisturbed.figures[name] for name in "ab"}
        assert run(root, *MORE).ok
        assert journal(root) == "delete"
    assert run(root, *MORE).ok  # and back, where it can be
    assert journal(root) == "wal"
    assert figures(root) == undisturbed.figures
