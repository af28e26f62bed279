"""Versions of the client against `prunegpt serve`: what each logs is there once, under its name, and comes back."""

from pathlib import Path

import pytest

from prunegpt.store import Store
from tests.tracking.schedules import LONGEST, Schedule
from tests.tracking.wandb_versions import environment

pytestmark = pytest.mark.slow

SCRIPT = """
import os, sys, tempfile, pathlib, wandb
about = dict(project="col 2", config={"lr": 0.1, "net": {"w": 3}}, tags=["a", "b"], notes="why", job_type="train")
for mode, first in (("never", 0), ("allow", 3), ("must", 6)):
    run = wandb.init(id="r1", name="shown", resume=mode, **about)
    for row in range(first, first + 3):
        run.log({"train/loss": float(row), "acc": {"top1": row / 9}})
    if mode == "never":
        folder = pathlib.Path(tempfile.mkdtemp())
        (folder / "a.txt").write_text("hello")
        (folder / "large.bin").write_bytes(os.urandom(21_000_000))
        artifact = wandb.Artifact("data", "dataset", metadata={"k": 1})
        artifact.add_dir(str(folder))
        run.log_artifact(artifact, aliases=["best"])
        pathlib.Path("saved.txt").write_text("saved")
        run.save("saved.txt")
        run.alert(title="Title", text="said")
    run.finish()
try:
    wandb.init(id="r1", resume="never", **about)
except Exception as error:
    assert "never" in str(error) or "already exists" in str(error), error
else:
    raise AssertionError("never must refuse")
wandb.teardown()
api = wandb.Api()
found = api.run("local/col 2/r1")
assert (found.state, found.name, found.config) == ("finished", "shown", {"lr": 0.1, "net": {"w": 3}}), found.config
assert found.summary["train/loss"] == 8.0
assert [row["train/loss"] for row in found.scan_history(keys=["train/loss"])] == [float(row) for row in range(9)]
assert len(found.history(pandas=False)) == 9
assert [run.id for run in api.runs("local/col 2", filters={"config.lr": 0.1})] == ["r1"]
assert len(api.runs("local/col 2", filters={"state": "running"})) == 0
there = found.file("saved.txt").download(root=tempfile.mkdtemp(), replace=True)
assert open(there.name).read() == "saved"
back = pathlib.Path(api.artifact("local/col 2/data:best").download(root=tempfile.mkdtemp()))
assert (back / "a.txt").read_text() == "hello"
assert (back / "large.bin").stat().st_size == 21_000_000
found.tags.append("c")
found.update()
assert wandb.Api().run("local/col 2/r1").tags == ["a", "b", "c"]
"""
OFFLINE = """
import wandb
run = wandb.init(project="col_2", id="r1", mode="offline", config={"lr": 0.2})
for row in range(5):
    run.log({"train/loss": float(row)})
run.finish()
"""


@pytest.mark.parametrize("version", ["installed", "0.21.4", "0.19.11", "0.18.7", "0.17.9"])
def test_a_client_logs_resumes_syncs_and_reads_back(version: str, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the W&B client")
    pytest.importorskip("psutil", reason="ends what clients have started")
    python = environment(version)
    world = Schedule(tmp_path, 0, python)
    try:
        for name, text in (("whole.py", SCRIPT), ("offline.py", OFFLINE)):
            (tmp_path / name).write_text(text)
            assert world.start(python, name).wait(2 * LONGEST) == 0, world.output()
        for _ in range(2):
            for folder in (tmp_path / "wandb").glob("offline-run-*"):
                for mark in folder.glob("*.synced"):
                    mark.unlink()
                sync = world.start(python.with_name("wandb"), "sync", "--include-synced", folder)
                assert sync.wait(LONGEST) == 0, world.output()
    finally:
        world.close()
    with Store.open(world.root) as store:
        runs = {
            trial.plan.run.project: trial
            for one in store.sweeps()
            for trial in store.results(one.name)
            if trial.plan.run
        }
        assert set(runs) == {"col 2", "col_2"}
        curves = {name: [point.value for point in store.points(trial.id, "train/loss")] for name, trial in runs.items()}
        assert curves == {"col 2": [float(row) for row in range(9)], "col_2": [float(row) for row in range(5)]}
        run = runs["col 2"].plan.run
        assert run is not None
        assert (run.notes, run.job_type, run.tags) == ("why", "train", ("a", "b", "c"))
        assert "Title: said" in (world.root.path / runs["col 2"].folder / "log.txt").read_text()
