"""Runs made elsewhere become trials: from the client's own files, and from the API."""

import contextlib
import math
import shutil
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan
from prunegpt.store import Store
from prunegpt.tracking.client import TrackingError
from prunegpt.tracking.imports import import_folder, import_project, read_run, run_files
from tests.support.waiting import until


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the real client leaves of an offline run, one record larger than a block of its log included."""
    folder = tmp_path_factory.mktemp("client")
    run = _begin(folder, name="mine", group="g", config={"lr": 0.1, "net": {"width": 3}})
    for step in range(5):
        run.log({"loss": 3.0 - step, "acc": {"top1": step / 4}, "bad": math.nan})
    run.log({"text": "x" * 70_000, "loss": 0.5})
    run.config.update({"later": 2})
    run.summary["perplexity"] = 11.5
    run.finish()
    _await_end(folder)
    return folder


def _begin(folder: Path, **more: Any) -> Any:
    """An offline run of the real client, in a folder."""
    wandb = pytest.importorskip("wandb", reason="needs the W&B client")
    settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_meta=True)
    own = {"project": "elsewhere", "mode": "offline", "reinit": "create_new"}
    return wandb.init(dir=str(folder), settings=settings, **own, **more)


def _await_end(folder: Path) -> None:
    """Until the client's log is whole: `finish` may return before its last records are on the disk."""

    def whole() -> bool:
        with contextlib.suppress(TrackingError):  # not even its first record is there yet
            return any(read_run(file).exit_code is not None for file in run_files(folder))
        return False

    until(whole, "the end of the client's log")


def test_an_offline_folder_becomes_a_trial_once(offline: Path, tmp_path: Path) -> None:
    root = Root(tmp_path)
    (name,) = import_folder(root, offline)
    assert [name] == list(import_folder(root, offline))
    with Store.open(root) as store:
        (trial,) = store.results("wandb-elsewhere")
        assert (trial.state, trial.label, trial.group) == ("finished", "mine", "g")
        assert trial.config == {"lr": 0.1, "net": {"width": 3}, "later": 2}
        assert [point.value for point in store.points(trial.id, "loss")] == [3.0, 2.0, 1.0, 0.0, -1.0, 0.5]
        assert [point.value for point in store.points(trial.id, "acc.top1")] == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert {point.value for point in store.points(trial.id, "bad")} == {None}
        assert trial.logged["perplexity"] == 11.5
        assert trial.evaluation is None, "only what is measured here is a perplexity"


def test_a_run_that_was_taken_in_half_written_is_made_whole_by_the_next_import(offline: Path, tmp_path: Path) -> None:
    (file,) = run_files(offline)
    data, folder, root = file.read_bytes(), tmp_path / "client", Root(tmp_path / "runs")
    folder.mkdir()
    (folder / file.name).write_bytes(data[: data.rindex(b"later") - 20])
    (name,) = import_folder(root, folder)
    with Store.open(root) as store:
        trial = store.result(name)
        assert (trial.state, trial.config) == ("failed", {"lr": 0.1, "net": {"width": 3}})
    shutil.copy(file, folder)
    assert [name] == list(import_folder(root, folder))
    with Store.open(root) as store:
        trial = store.result(name)
        assert (trial.state, trial.config) == ("finished", {"lr": 0.1, "net": {"width": 3}, "later": 2})
        assert [point.value for point in store.points(name, "loss")] == [3.0, 2.0, 1.0, 0.0, -1.0, 0.5]
    kept = TrialPlan.model_validate_json((root.path / trial.folder / "trial.json").read_text())
    assert kept.config == trial.config


def test_a_resumption_in_a_second_file_adds_to_the_configuration(tmp_path: Path) -> None:
    for part, config in (("a", {"lr": 0.1, "width": 3}), ("b", {"lr": 0.2})):
        run = _begin(tmp_path / part, id="same", config=config)
        run.log({"loss": 1.0})
        run.finish()
        _await_end(tmp_path / part)
    together = tmp_path / "both"
    for part in ("a", "b"):
        (folder,) = (tmp_path / part / "wandb").glob("offline-run-*")
        shutil.copytree(folder, together / f"offline-run-20260101_00000{'ab'.index(part)}-same")
    root = Root(tmp_path / "runs")
    assert len(set(import_folder(root, together))) == 1
    with Store.open(root) as store:
        assert store.result("wandb-elsewhere/same").config == {"lr": 0.2, "width": 3}


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_file_that_was_cut_off_gives_what_is_whole(offline: Path, tmp_path: Path, kept: float) -> None:
    (file,) = run_files(offline)
    data = file.read_bytes()
    cut = tmp_path / "run-cut.wandb"
    cut.write_bytes(data[: int(len(data) * kept)])
    found = read_run(cut)
    whole = read_run(file)
    assert len(found.rows) < len(whole.rows)  # the last row is the large one
    assert [row["loss"] for row in found.rows] == [row["loss"] for row in whole.rows][: len(found.rows)]
    assert found.exit_code is None


def test_a_damaged_record_ends_the_reading(offline: Path, tmp_path: Path) -> None:
    (file,) = run_files(offline)
    data = bytearray(file.read_bytes())
    place = data.rindex(b'"loss"' if b'"loss"' in data else b"loss")
    data[place + 1] ^= 0xFF
    broken = tmp_path / "run-broken.wandb"
    broken.write_bytes(bytes(data))
    assert len(read_run(broken).rows) <= len(read_run(file).rows)
    assert read_run(broken).exit_code is None


def test_system_metrics_and_what_a_run_says_of_itself_are_read(tmp_path: Path) -> None:
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="needs the W&B client")
    run, stats = pb.Record(), pb.Record()
    run.run.run_id, run.run.project, run.run.notes, run.run.job_type = "r1", "p", "why", "train"
    run.run.tags.extend(["a", "b"])
    stats.stats.timestamp.seconds = 7
    item = stats.stats.item.add()
    item.key, item.value_json = "cpu", "12.5"
    file = tmp_path / "run-r1.wandb"
    with file.open("wb") as log:
        log.write(b":W&B" + bytes(3))
        for record in (run, stats):
            piece = record.SerializeToString()
            log.write(struct.pack("<IHB", zlib.crc32(b"\x01" + piece), len(piece), 1) + piece)
    found = read_run(file)
    assert found.events == [{"system.cpu": 12.5, "_timestamp": 7.0}]
    assert (found.about["notes"], found.about["job_type"], found.about["tags"]) == ("why", "train", ("a", "b"))


@pytest.mark.parametrize("cut", range(8))
def test_a_file_without_a_run_does_not_end_the_import_and_is_named(offline: Path, tmp_path: Path, cut: int) -> None:
    folder = tmp_path / "client"
    shutil.copytree(offline, folder)
    (one,) = run_files(folder)
    (one.parent / "run-aa.wandb").write_bytes(one.read_bytes()[:cut])
    told: list[str] = []
    assert len(list(import_folder(Root(tmp_path / "runs"), folder, told.append))) == 1
    assert [f"{one.parent / 'run-aa.wandb'} holds no run" in line for line in told] == [True]
    one.unlink()
    with pytest.raises(TrackingError, match="it has 1 file without one"):
        list(import_folder(Root(tmp_path / "runs"), folder))


def test_a_file_that_is_none_of_the_clients_is_told_after_all_others_are_imported(
    offline: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "client"
    shutil.copytree(offline, folder)
    (one,) = run_files(folder)
    (one.parent / "run-aa.wandb").write_bytes(b"something else")
    with pytest.raises(TrackingError, match=r"1 of 2 files cannot be imported: .*run-aa\.wandb must be a file of the"):
        list(import_folder(Root(tmp_path / "runs"), folder))
    with Store.open(Root(tmp_path / "runs")) as store:
        assert len(store.results("wandb-elsewhere")) == 1


def test_what_is_no_folder_of_the_client_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="must hold runs of the W&B client"):
        list(import_folder(Root(tmp_path / "runs"), tmp_path))
    (tmp_path / "run-x.wandb").write_bytes(b"something else")
    with pytest.raises(TrackingError, match="does not begin like one"):
        list(import_folder(Root(tmp_path / "runs"), tmp_path))


class Api:
    """Two runs at W&B."""

    def __init__(self, rows: int = 3) -> None:
        self.rows = rows

    def runs(self, path: str) -> list[Any]:
        assert path == "team/study"
        return [self._run("aaa", "finished"), self._run("bbb", "crashed")]

    def sweep(self, path: str) -> Any:
        assert path == "team/study/sw1"
        return SimpleNamespace(runs=[self._run("aaa", "finished")])

    def _run(self, name: str, state: str) -> Any:
        return SimpleNamespace(
            id=name,
            name=f"run {name}",
            state=state,
            group=None,
            sweep=SimpleNamespace(id="sw1"),
            config={"lr": 0.1, "_private": 1},
            summary={"perplexity": 8.0, "sparsity": 0.5},
            created_at="2026-01-02T03:04:05Z",
            scan_history=lambda: [{"_step": step, "loss": float(step)} for step in range(self.rows)],
        )


def test_a_project_and_a_sweep_of_the_api_become_trials_and_grow(tmp_path: Path) -> None:
    root = Root(tmp_path)
    assert list(import_project(root, "team/study/sw1", Api())) == ["wandb-study/aaa"]
    assert list(import_project(root, "team/study", Api(5))) == ["wandb-study/aaa", "wandb-study/bbb"]
    with Store.open(root) as store:
        first, second = store.results("wandb-study")
        assert (first.state, second.state) == ("finished", "failed")
        assert second.error == "it is crashed at W&B."
        assert first.config == {"lr": 0.1}
        assert first.plan.run is not None
        assert (first.group, first.plan.run.sweep) == ("aaa", "sw1")
        assert [point.step for point in store.points(first.id, "loss")] == [0, 1, 2, 3, 4]
        assert first.logged["perplexity"] == 8.0


def test_a_path_that_is_none_and_an_api_that_fails_are_told(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="must be ENTITY/PROJECT or ENTITY/PROJECT/SWEEP, got 'study'"):
        list(import_project(Root(tmp_path), "study", Api()))

    class Down:
        def runs(self, _: str) -> Any:
            raise ConnectionError("no route")

    with pytest.raises(TrackingError, match="W&B has not given team/study: no route"):
        list(import_project(Root(tmp_path), "team/study", Down()))
