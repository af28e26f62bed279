"""`prunegpt doctor --repair` on what a person broke by hand: it says what is wrong, and mends it."""

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.errors import LaunchError, StoreError
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.lock import coordinating
from prunegpt.sweep.recovery import OUTSIDE, recover
from prunegpt.sweep.repair import examine, repair
from prunegpt.sweep.repair.leftovers import SETTLED
from prunegpt.tracking.foreign import Keeper, RunPath
from prunegpt.tracking.ingest import begin
from tests.support.finished_root import MORE, TRIALS, Undisturbed, figures, run
from tests.support.sweep_plans import make_plan, make_trial

Broken = Callable[[], Root]


def doctor(root: Root, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["doctor", "--root", str(root.path), *arguments])


def mended(root: Root, *arguments: str) -> list[dict[str, Any]]:
    """What `doctor --repair --json` says."""
    done = doctor(root, "--repair", "--json", *arguments)
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    return found


def recovers(root: Root, undisturbed: Undisturbed) -> None:
    assert run(root, *MORE).ok
    assert figures(root) == undisturbed.figures
    assert [finding for finding in examine(root) if finding.kind != "leftover"] == []


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def test_a_deleted_stage_is_computed_again(broken: Broken, undisturbed: Undisturbed) -> None:
    root = broken()
    shutil.rmtree(root.stage("pa"))
    (plain,) = json.loads(doctor(root, "--json").stdout)["findings"]
    assert plain["text"] == "words/a is finished, but its model was deleted or damaged; its figures are still known."
    assert doctor(root).exit_code == 1
    assert f"`prunegpt doctor --repair --root {root.path}` fixes it" in doctor(root).stdout
    (finding,) = mended(root)
    assert finding == {**plain, "mended": True}
    with Store.open(root) as store:
        assert {result.name: result.state for result in store.results("words")} == {"a": "waiting", "b": "finished"}
    recovers(root, undisturbed)


def test_a_stage_that_nobody_needs_may_be_deleted(broken: Broken) -> None:
    root = broken()
    shutil.rmtree(root.stage("ft"))
    assert mended(root) == []


def test_edited_figures_of_a_stage_are_written_again_as_they_were(broken: Broken, undisturbed: Undisturbed) -> None:
    root = broken()
    before = (root.stage("pa") / "stage.json").read_bytes()
    edit(root.stage("pa") / "stage.json", '"pruned": 0.', '"pruned": 0.9')
    measured = root.evaluation("pb", "measured") / "evaluation.json"
    edit(measured, '"perplexity": 1.', '"perplexity": 1.0')
    first, second = mended(root)
    assert first["text"] == "stage.json is changed (it was edited, or the disk is failing)."
    assert first["mend"] == "write stage.json again as it was"
    assert second["kind"] == "evaluation"
    assert (root.stage("pa") / "stage.json").read_bytes() == before
    recovers(root, undisturbed)


def test_edited_weights_of_the_same_size_are_found(broken: Broken, undisturbed: Undisturbed) -> None:
    root = broken()
    weights = root.stage("ft") / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[7] ^= 1
    weights.write_bytes(data)
    (finding,) = mended(root)
    assert "model/model.safetensors is changed" in finding["text"]
    assert "set it aside" in finding["mend"]
    recovers(root, undisturbed)


def test_an_edited_record_is_written_again_from_the_database(broken: Broken, undisturbed: Undisturbed) -> None:
    root = broken()
    path = root.attempt("words", "a", 1) / "record.json"
    edit(path, '"perplexity": 1.', '"perplexity": 1.0')
    (finding,) = mended(root)
    assert "record.json says perplexity 1.0" in finding["text"]
    assert '"perplexity": 1.0' not in path.read_text()
    recovers(root, undisturbed)


def test_an_edited_database_is_corrected_by_what_was_measured(broken: Broken, undisturbed: Undisturbed) -> None:
    root = broken()
    with sqlite3.connect(root.database) as database:
        change = """update attempt_stage set record = replace(record, '"perplexity":1.', '"perplexity":0.')"""
        changed = database.execute(f"{change} where key = 'pb'")
        assert changed.rowcount == 1
    assert figures(root)["b"] != undisturbed.figures["b"]
    (finding,) = mended(root)
    assert "the database says of words/b perplexity 0." in finding["text"]
    assert figures(root)["b"] == undisturbed.figures["b"]
    recovers(root, undisturbed)


@pytest.mark.parametrize("way", ["missing", "damaged"])
def test_a_lost_database_is_made_again(broken: Broken, undisturbed: Undisturbed, way: str) -> None:
    root = broken()
    with Store.open(root) as store:
        before = [store.result(f"words/{name}") for name in "ab"]
        curves = [store.points(f"words/{name}") for name in "ab"]
        attempts = [store.attempts(f"words/{name}") for name in "ab"]
    for name in ("prunegpt.db-wal", "prunegpt.db-shm"):
        (root.path / name).unlink(missing_ok=True)
    if way == "missing":
        root.database.unlink()
    else:
        root.database.write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    (finding,) = mended(root)[:1]
    assert finding["kind"] == "database"
    assert "notes, and which tables a spec asks for, do not" in finding["mend"]
    with Store.open(root) as store:
        after = [store.result(f"words/{name}") for name in "ab"]
        assert [one.model_copy(update={"started": None}) for one in after] == [
            one.model_copy(update={"started": None}) for one in before
        ]
        assert [store.points(f"words/{name}") for name in "ab"] == curves
        for name, rows in zip("ab", attempts, strict=True):
            for old, new in zip(rows, store.attempts(f"words/{name}"), strict=True):
                assert new.started == pytest.approx(old.started, abs=30)  # by the worker's own clock now
                assert vars(new) == {**vars(old), "started": new.started, "outcome": new.outcome}
    recovers(root, undisturbed)


def test_attempts_that_were_lost_come_back_with_the_database(broken: Broken) -> None:
    root = broken()
    shutil.copytree(root.attempt("words", "a", 1), root.attempt("words", "a", 2))
    (root.attempt("words", "a", 2) / "record.json").unlink()
    root.database.unlink()
    mended(root)
    with Store.open(root) as store:
        assert [(row.number, row.state, row.reason) for row in store.attempts("words/a")] == [
            (1, "finished", ""),
            (2, "failed", "lost"),
        ]
        assert store.result("words/a").state == "waiting"


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6, 0.9])
def test_a_half_copied_root_is_completed(broken: Broken, undisturbed: Undisturbed, tmp_path: Path, kept: float) -> None:
    whole = broken()
    files = sorted(path for path in whole.path.rglob("*") if path.is_file())
    root = Root(tmp_path / "copy")
    for path in files[: int(kept * len(files))]:
        target = root.path / path.relative_to(whole.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    root.path.mkdir(exist_ok=True)
    mended(root)
    recovers(root, undisturbed)


def leave(root: Root) -> list[Path]:
    """What crashes leave, all of it old."""
    left = [
        root.path / f".prunegpt.db.{'0' * 32}.tmp",
        root.stages / f".pa.{'1' * 32}.tmp",
        root.attempt("words", "a", 1) / f".record.json.{'2' * 32}.tmp",
        root.stage("ft") / "evaluations" / f".measured.{'3' * 32}.tmp",
    ]
    for path in left:
        path.mkdir() if path.parent == root.stages else path.write_text("half")
    checkpoint = root.work("pa") / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_text("x" * 5000)
    for path in left:
        os.utime(path, (time.time() - 2 * SETTLED,) * 2)
    return [*left, root.work("pa")]


def test_leftovers_are_deleted_only_when_that_was_said(broken: Broken, undisturbed: Undisturbed) -> None:
    root = broken()
    left = leave(root)
    found = mended(root)
    assert {finding["path"] for finding in found} == {path.relative_to(root.path).as_posix() for path in left}
    assert not any(finding["mended"] for finding in found)
    assert "left (pass --yes to delete it): delete it." in doctor(root, "--repair").stdout
    assert all(path.exists() for path in left)
    assert doctor(root).exit_code == 0  # they are no problem
    assert all(finding["mended"] for finding in mended(root, "--yes"))
    assert not any(path.exists() for path in left)
    recovers(root, undisturbed)


def test_what_is_being_written_is_no_leftover(broken: Broken) -> None:
    root = broken()
    (root.stages / f".new.{'0' * 32}.tmp").mkdir()
    assert mended(root, "--yes") == []


def test_what_was_set_aside_is_kept_until_it_is_told_to_go(broken: Broken) -> None:
    root = broken()
    (root.stage("pa") / "model" / "model.safetensors").unlink()
    mended(root)
    (aside,) = root.stages.glob(".pa.*.damaged")
    assert (aside / "plan.json").exists()
    mended(root, "--yes")
    assert not aside.exists()


def test_a_cut_curve_loses_its_half_line(broken: Broken, undisturbed: Undisturbed) -> None:
    root = broken()
    path = root.attempt("words", "a", 1) / "points.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"stage": 1, "st')
    assert [finding["mended"] for finding in mended(root)] == [False]
    mended(root, "--yes")
    assert path.read_bytes() == whole
    recovers(root, undisturbed)


def test_a_stale_note_of_a_coordinator_is_no_obstacle(broken: Broken, undisturbed: Undisturbed) -> None:
    root = broken()
    note = root.path / ".coordinator.json"
    for text in ('{"pid": 999999999, "host": "elsewhere", "since": 0}', "", "{"):
        note.write_text(text)
        mended(root)
        assert not note.exists()
    recovers(root, undisturbed)


def test_nothing_is_mended_while_a_coordinator_runs(broken: Broken) -> None:
    root = broken()
    shutil.rmtree(root.stage("pa"))
    leave(root)
    with coordinating(root):
        assert isinstance(doctor(root, "--repair").exception, LaunchError)
        assert examine(root) == []  # all of that may be its work in progress
    assert examine(root)


def test_an_attempt_that_stands_as_running_is_told(broken: Broken) -> None:
    root = broken()
    with Store.open(root) as store:
        store.start_attempt(store.result("words/a").id)
    (finding,) = examine(root)
    assert finding.text == "words/a is marked as running, but nothing runs it. The next `sweep run` resumes it."
    assert repair(root, lambda _: True) == [(finding, False)]
    assert run(root, *TRIALS).ok


def test_a_root_that_is_not_there_has_nothing_wrong(tmp_path: Path) -> None:
    assert "no problems found" in doctor(Root(tmp_path / "none"), "--repair").stdout
    assert not (tmp_path / "none").exists()


def test_folders_without_a_seal_are_judged_by_their_record(broken: Broken, undisturbed: Undisturbed) -> None:
    root = broken()
    for file in root.stages.rglob("files.json"):
        file.unlink()
    assert examine(root) == []
    (root.stage("pa") / "stage.json").write_text('{"key": 1}')
    (root.evaluation("pb", "measured") / "evaluation.json").write_text("")
    texts = [finding["text"] for finding in mended(root)]
    assert any("stage.json is no record" in text for text in texts)
    assert any("evaluation.json is no record" in text for text in texts)
    assert run(root, *MORE).ok
    assert figures(root) == undisturbed.figures


@pytest.mark.parametrize("state", ["finished", "failed", "stopped", "running", "lost"])
def test_a_run_of_wandb_is_never_taken_for_one_that_could_be_run_again(tmp_path: Path, state: str) -> None:
    root = Root(tmp_path / "runs")
    with Store.open(root) as store:
        keeper = Keeper(root, store, RunPath("me", "project", "abc"))
        keeper.add([{"_step": 0, "loss": 2.0}], 0)
        if state not in ("running", "lost"):
            keeper.end(state)
    with coordinating(root):
        pass
    if state == "lost":
        os.utime(keeper.folder / OUTSIDE, (1.0, 1.0))
        with Store.open(root) as store:
            assert recover(root, store) == ["wandb-project/abc"]
    known = {"lost": "failed"}.get(state, state)
    assert [finding for finding in examine(root) if finding.fix] == []
    assert mended(root, "--yes") == []
    refused = CliRunner().invoke(app, ["sweep", "retry", "wandb-project", "--root", str(root.path)])
    assert isinstance(refused.exception, StoreError)
    with Store.open(root) as store:
        assert store.retry("wandb-project", ["abc"]) == []
        assert store.result("wandb-project/abc").state == known
    root.database.unlink()
    mended(root)
    with Store.open(root) as store:
        assert store.result("wandb-project/abc").state == ("failed" if state == "running" else known)


def test_a_sweep_is_not_removed_while_agents_run_it(tmp_path: Path) -> None:
    root = Root(tmp_path / "runs")
    plan = make_plan(make_trial("a", "load ft"))
    attempt = begin(root, plan, plan.trials[0])
    assert [finding for finding in examine(root) if finding.kind == "trial"] == []  # and none of it is left over
    arguments = ["sweep", "rm", "words", "--stages", "--yes", "--root", str(root.path)]
    refused = CliRunner().invoke(app, arguments)
    assert "agents run 1 of words: a/attempt-1. End them" in str(refused.exception)
    assert attempt.folder.is_dir()
    os.utime(attempt.folder / OUTSIDE, (1.0, 1.0))
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert not attempt.folder.exists()
