"""Slurm jobs that outlived their coordinator. Scripts play Slurm's commands here; test_slurm.py has the real ones."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from prunegpt.errors import LaunchError
from prunegpt.launch.job import run_job
from prunegpt.launch.slurm_left import end_left, notes_of
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.recovery import recover
from tests.support.sweep_plans import make_plan, make_trial

Play = Callable[[str, str], None]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Puts a script in the place of one of Slurm's commands; what they were called with is in `called.txt`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def script(name: str, words: str) -> None:
        program = folder / name
        program.write_text(f'#!/bin/sh\ncd {tmp_path}\necho {name} "$@" >> called.txt\n{words}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return script


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "runs")


def leave(root: Root, name: str, number: int = 1) -> Path:
    """What a coordinator leaves whose job may run."""
    folder = root.attempt("words", name, number)
    folder.mkdir(parents=True, exist_ok=True)
    notes_of(root).mkdir(parents=True, exist_ok=True)
    job = f"{name}-{number}"
    note = {"name": job, "job": "12", "folder": str(folder)}
    (notes_of(root) / f"{job}.json").write_text(json.dumps(note))
    return folder


def called(root: Root) -> list[str]:
    file = root.path.parent / "called.txt"
    return file.read_text().splitlines() if file.exists() else []


def test_where_nothing_was_left_slurm_is_not_asked(root: Root, play: Play) -> None:
    play("scancel", "exit 1")
    end_left(root)
    assert called(root) == []


def test_all_are_cancelled_and_waited_for(root: Root, play: Play) -> None:
    folders = [leave(root, "a"), leave(root, "b", 2)]
    play("scancel", "touch cancelled")
    play("squeue", "test -f cancelled && test ! -f asked && touch asked && echo b-2; true")  # it takes its time
    end_left(root, patience=30)
    assert called(root) == [
        "scancel --me --name=a-1",
        "scancel --me --name=b-2",
        "squeue --noheader --me --name=a-1,b-2 --format=%j",
        "squeue --noheader --me --name=b-2 --format=%j",
    ]
    assert list(notes_of(root).iterdir()) == []
    assert all("cancelled by the next one" in (folder / "log.txt").read_text() for folder in folders)


def test_a_job_that_has_ended_is_not_asked_about(root: Root, play: Play) -> None:
    (leave(root, "a") / "exit.json").write_text('{"code": 0, "signal": null, "heard": []}')
    end_left(root)
    assert called(root) == []
    assert list(notes_of(root).iterdir()) == []


def test_a_job_that_does_not_end_is_told(root: Root, play: Play) -> None:
    leave(root, "a")
    play("scancel", "true")
    play("squeue", "echo a-1")
    with pytest.raises(LaunchError, match=r"a-1 still run though they were cancelled\. Wait until squeue"):
        end_left(root, patience=0)
    assert len(list(notes_of(root).iterdir())) == 1  # the next run asks again


@pytest.mark.parametrize("away", ["scancel", "squeue"])
def test_a_scheduler_that_is_away_is_told(root: Root, play: Play, away: str) -> None:
    leave(root, "a")
    play("scancel", "true")
    play("squeue", "true")
    play(away, "echo Unable to contact slurm controller; exit 1")
    told = r"a-1 may still run, and Slurm cannot be queried: Unable to contact slurm controller Run this .* delete"
    with pytest.raises(LaunchError, match=told):
        end_left(root, patience=0)
    assert len(list(notes_of(root).iterdir())) == 1


def test_a_machine_without_slurm_is_told(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root.path))
    leave(root, "a")
    with pytest.raises(LaunchError, match=r"Slurm cannot be queried: .*No such file.* 'scancel'"):
        end_left(root, patience=0)


def test_a_note_that_is_cut_still_names_its_job(root: Root, play: Play) -> None:
    leave(root, "a")
    (notes_of(root) / "a-1.json").write_text('{"na')
    play("scancel", "true")
    play("squeue", "true")
    end_left(root)
    assert called(root)[0] == "scancel --me --name=a-1"


def test_a_job_that_gets_into_the_queue_after_its_coordinator_died_does_not_begin(root: Root, play: Play) -> None:
    folder = leave(root, "a")
    play("scancel", "true")
    play("squeue", "true")
    end_left(root)
    with pytest.raises(SystemExit, match="its coordinator ended before it began"):
        run_job(str(folder), ("/bin/touch", str(root.path / "ran")))
    assert not (root.path / "ran").exists()


def test_recovery_ends_a_job_before_it_reads_what_it_left(root: Root, play: Play) -> None:
    """The job hears the cancellation, writes its checkpoint and its record: that counts, and not that it was lost."""
    trial = make_trial("a", "load a")
    with Store.open(root) as store:
        (saved,) = store.save_sweep(make_plan(trial))
        folder = root.path / store.start_attempt(saved.id).folder
        leave(root, "a")
        (folder / "trial.json").write_text(trial.model_dump_json())
        record = {"sweep": "words", "trial": "a", "attempt": 1, "state": "stopped", "reason": "stopped", "started": 1.0}
        play("scancel", f"echo '{json.dumps(record)}' > {folder / 'record.json'}")
        play("squeue", "true")
        assert recover(root, store) == ["words/a"]
        assert store.result("words/a").state == "waiting"
        assert [(row.state, row.reason) for row in store.attempts("words/a")] == [("stopped", "stopped")]


def test_recovery_closes_nothing_while_a_job_may_run(root: Root, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_left, "__kwdefaults__", {**end_left.__kwdefaults__, "patience": 0.0})
    with Store.open(root) as store:
        (saved,) = store.save_sweep(make_plan(make_trial("a", "load a")))
        store.start_attempt(saved.id)
        leave(root, "a")
        play("scancel", "true")
        play("squeue", "echo a-1")
        with pytest.raises(LaunchError, match="a-1 still run"):
            recover(root, store)
        assert [row.state for row in store.attempts("words/a")] == ["running"]
