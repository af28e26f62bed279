"""Versions of the client, and libraries, against `prunegpt serve`: all that is logged is there once, and seen."""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from prunegpt.store import Store
from tests.support import serving
from tests.tracking.schedules import CHECKOUT, LONGEST, TOKEN, Schedule
from tests.tracking.wandb_versions import environment, lightning

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


TRAINER = """
import json, torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
rows = [{"input_ids": torch.arange(8) + row, "labels": torch.arange(8) + row} for row in range(8)]
trainer = Trainer(
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=16)),
    TrainingArguments(
        "out", report_to="wandb", run_name="tiny", logging_steps=1, max_steps=6, eval_strategy="steps", eval_steps=3,
        learning_rate=0.25, per_device_train_batch_size=2, save_strategy="no", disable_tqdm=True,
    ),
    train_dataset=rows, eval_dataset=rows,
)
trainer.train()
def logged(name):
    return "train/global_step" if name == "step" else f"eval/{name[5:]}" if name[:5] == "eval_" else f"train/{name}"
in_summary = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")
rows = [
    {logged(name): value for name, value in row.items() if name not in in_summary} for row in trainer.state.log_history
]
json.dump(rows, open("logged.json", "w"))
"""
LIGHTNING = """
import json, torch, pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger
class Logger(WandbLogger):
    rows = []
    def log_metrics(self, metrics, step=None):
        self.rows.append({**metrics, "trainer/global_step": step})
        super().log_metrics(metrics, step)
class Model(pl.LightningModule):
    def __init__(self, learning_rate):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(4, 1)
    def loss(self, batch, name):
        loss = self.layer(batch[0]).square().mean()
        self.log(name, loss)
        return loss
    def training_step(self, batch, index):
        return self.loss(batch, "train/loss")
    def validation_step(self, batch, index):
        return self.loss(batch, "val/loss")
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.learning_rate)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(12, 4)), batch_size=4)
logger = Logger(name="tiny", project="foreign")
trainer = pl.Trainer(max_epochs=2, logger=logger, log_every_n_steps=1, enable_checkpointing=False, accelerator="cpu",
                     enable_progress_bar=False, enable_model_summary=False)
trainer.fit(Model(0.25), data, data)
json.dump(logger.rows, open("logged.json", "w"))
"""


@pytest.mark.parametrize("name", ["Trainer", "Lightning"])
def test_what_libraries_log_is_there_once_under_its_name_and_seen(name: str, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the W&B client")
    pytest.importorskip("psutil", reason="ends what clients have started")
    before = [lightning()] if name == "Lightning" else []
    (tmp_path / "whole.py").write_text(LIGHTNING if name == "Lightning" else TRAINER)
    paths = os.pathsep.join(map(str, [*before, CHECKOUT]))
    world = Schedule(tmp_path, 0, PYTHONPATH=paths, WANDB_PROJECT="foreign", HF_HUB_OFFLINE="1")
    try:
        assert world.start(Path(sys.executable), "whole.py").wait(2 * LONGEST) == 0, world.output()
        with Store.open(world.root) as store:
            (trial,) = store.results("wandb-foreign")
            assert (trial.state, trial.label) == ("finished", "tiny")
            rows = json.loads((tmp_path / "logged.json").read_text())
            logged = defaultdict(list)
            for row in rows:
                for metric, value in row.items():
                    logged[metric].append(value)
            assert len(logged["train/loss"]) == 6
            for metric, values in logged.items():
                found = [point.value for point in store.points(trial.id, metric)]
                assert found == pytest.approx(values), metric
        _see(world.address, trial.address, list(logged))
    finally:
        world.close()


def _see(address: str, trial: str, metrics: list[str]) -> None:
    """The page of a run draws these metrics, and has the learning rate among its configuration, and a summary."""
    if serving.chromium() is None:
        return
    with serving.browser() as chromium:
        context = chromium.new_context(extra_http_headers={"Authorization": f"Bearer {TOKEN}"})
        page = context.new_page()
        page.goto(f"{address}/trials/{trial}")
        page.wait_for_selector("main .js-plotly-plot .main-svg")
        for metric in metrics:
            panel = page.locator("div.panel.figure", has=page.get_by_role("heading", name=metric, exact=True))
            panel.scroll_into_view_if_needed()
            panel.locator(".js-plotly-plot .main-svg").first.wait_for()
        for title, row in (("Summary", "train/loss"), ("Configuration", "learning_rate")):
            section = page.locator("section", has=page.get_by_role("heading", name=title))
            if title == "Configuration":
                section.get_by_role("button", name="Everything").click()
            section.get_by_text(row, exact=title == "Summary").first.wait_for()
