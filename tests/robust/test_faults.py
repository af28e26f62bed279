"""Full disks, roots that cannot be written, busy databases and clocks that jump."""

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from prunegpt.errors import PruneGPTError, StoreError
from prunegpt.root import Root, publishing, seal
from prunegpt.store import Store, engine
from prunegpt.sweep.repair import examine
from tests.support.finished_root import DULL, MORE, TRIALS, Undisturbed, figures, run
from tests.support.sweep_plans import make_trial

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=False)


def test_a_full_disk_loses_nothing(small_disk: Path, undisturbed: Undisturbed) -> None:
    root = Root(small_disk / "runs")
    run(root, *TRIALS[:1])
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 512)
    assert shutil.disk_usage(small_disk).free < 4096
    with pytest.raises((PruneGPTError, OSError), match=r"disk|No space left"):
        run(root, *TRIALS)
    filler.unlink(missing_ok=True)
    assert run(root, *MORE).ok
    assert figures(root) == undisturbed.figures
    assert [finding for finding in examine(root) if finding.kind != "leftover"] == []


@pytest.mark.parametrize("at", [pytest.param(at, marks=() if at % 7 == 1 else pytest.mark.slow) for at in range(1, 30)])
def test_a_write_that_finds_no_space_leaves_what_was_there(
    tmp_path: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The same without a file system of its own: the `at`-th sync of a run says that the disk is full."""
    root = Root(tmp_path / "runs")
    sync, count = os.fsync, iter(range(1, 10**6))

    def full(descriptor: int) -> None:
        if next(count) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with suppress(PruneGPTError, OSError):  # some of these syncs are of a worker, which fails by itself
            run(root, *TRIALS)
    assert run(root, *MORE).ok
    assert figures(root) == undisturbed.figures


def test_a_database_on_a_full_disk_says_so(
    tmp_path: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pages are counted, which SQLite tells as it tells a full disk."""
    root = Root(tmp_path / "runs")
    run(root, *TRIALS[:1])
    journal = engine.choose_journal

    def small(connection: sqlite3.Connection) -> None:
        journal(connection)
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages}")

    with monkeypatch.context() as patched, Store.open(root) as store:
        store.sweeps()
        patched.setattr(engine, "choose_journal", small)
        with Store.open(root) as full, pytest.raises(StoreError, match=r"database or disk is full\. Free some space"):
            full.set_note(1, "x" * 10**6)
        with pytest.raises(StoreError, match="run the same command again"):
            run(root, *(make_trial(f"t{index}", "load ft pa") for index in range(200)))
    assert run(root, *MORE).ok
    assert {name: found for name, found in figures(root).items() if name in "abc"} == undisturbed.figures


def test_a_root_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """As another user where this one is root, for whom nothing is forbidden."""
    root = tmp_path / "runs"
    run(Root(root), *TRIALS)
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        if os.getuid() == 0:
            done = subprocess.run(["mount", "--bind", root, root], capture_output=True, check=False)
            again = subprocess.run(["mount", "-o", "remount,bind,ro", root], capture_output=True, check=False)
            if done.returncode or again.returncode:
                pytest.skip("this user may write everywhere, and nothing can be mounted read-only here")
        with pytest.raises((PruneGPTError, OSError)) as told:
            run(Root(root), *MORE)
        words = ("read-only", "readonly", "permission", "denied", "may read and write")
        assert any(word in str(told.value).lower() for word in words), str(told.value)
        status = subprocess.run(
            [sys.executable, "-m", "prunegpt", "sweep", "status", "--root", root],
            capture_output=True,
            text=True,
            check=False,
            cwd=CHECKOUT,
        )
        assert "Traceback" not in status.stderr
    finally:
        subprocess.run(["umount", root], capture_output=True, check=False)
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755)


@pytest.mark.realtime
def test_a_database_that_others_hold_is_waited_for(
    tmp_path: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY", 10.0)
    root = Root(tmp_path / "runs")
    run(root, *TRIALS[:1])
    held, stop = threading.Event(), threading.Event()

    def hold() -> None:
        with sqlite3.connect(root.database, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            held.set()
            stop.wait(2)
            other.execute("ROLLBACK")

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    begun = time.monotonic()
    assert run(root, *MORE).ok
    assert time.monotonic() - begun > 1
    stop.set()
    holder.join()
    assert figures(root) == undisturbed.figures


def test_a_database_that_stays_busy_is_told_and_lost_nothing(
    tmp_path: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(tmp_path / "runs")
    run(root, *TRIALS[:1])
    with monkeypatch.context() as patched, sqlite3.connect(root.database, isolation_level=None) as other:
        patched.setattr(engine, "BUSY", 0.2)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"database is locked\. Another process has held it"):
            run(root, *MORE)
        other.execute("ROLLBACK")
    assert run(root, *MORE).ok
    assert figures(root) == undisturbed.figures


@pytest.mark.parametrize("jump", [-86_400.0 * 400, -7.0, 86_400.0 * 400])
def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    root = Root(tmp_path / "runs")
    run(root, *TRIALS[:1])
    now = time.time
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: now() + jump)
        run(root, *TRIALS)
    assert run(root, *MORE).ok
    assert figures(root) == undisturbed.figures


def test_nothing_is_overwritten_in_place(broken: Callable[[], Root], undisturbed: Undisturbed) -> None:
    """Published files are made once, under another name: a hard link to each still holds what it held."""
    root = broken()
    kept = root.path.parent / "kept"
    shutil.copytree(root.path, kept, copy_function=os.link)
    before = {path.relative_to(kept): path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    assert run(root, *MORE).ok
    after = {path.relative_to(kept): path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    changed = {path for path in before if before[path] != after[path] and path.name not in DULL}
    assert changed <= {Path("prunegpt.db")}


def test_a_folder_appears_by_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    rename = os.rename

    def watch(source: str | Path, destination: str | Path) -> None:
        assert not Path(destination).exists()
        rename(source, destination)
        seen.append(sorted(path.name for path in Path(destination).iterdir()))

    monkeypatch.setattr(os, "rename", watch)
    with publishing(tmp_path / "key") as folder:
        (folder / "a").write_text("a")
        (folder / "b").write_text("b")
        seal(folder)
    assert seen == [["a", "b", "files.json"]]


def test_two_coordinators_of_one_root(broken: Callable[[], Root], undisturbed: Undisturbed) -> None:
    from prunegpt.errors import LaunchError
    from prunegpt.sweep.lock import coordinating

    root = broken()
    with coordinating(root), pytest.raises(LaunchError, match="one coordinator at a time"):
        run(root, *MORE)
    assert run(root, *MORE).ok
    with Store.open(root) as store:
        assert all(stage.computations == 1 for stage in store.stages())
    assert figures(root) == undisturbed.figures
