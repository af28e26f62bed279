"""Models that leave the disk: results stay, what is needed stays, and what is wanted again is computed again."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from prunegpt.planning.resolve import plan_data
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep import keep
from prunegpt.sweep.dispatch import lack_of_room
from prunegpt.sweep.lock import Holder
from tests.support.small import Invoke

CALIBRATION = {"windows": 4, "length": 32}


class Sweep:
    """A small sweep on the command line."""

    def __init__(self, invoke: Invoke, folder: Path, base: dict[str, Any]) -> None:
        self.invoke, self.folder, self.base = invoke, folder, base
        self.root = Root(folder / "runs")

    def run(self, *trials: dict[str, Any], fails: bool = False, **more: Any) -> str:
        spec = {"name": "s", "base": self.base, "trials": list(trials), **more}
        (self.folder / "s.yaml").write_text(json.dumps(spec), encoding="utf-8")
        return str(self.invoke("sweep", "run", self.folder / "s.yaml", fails=fails))

    def perplexities(self) -> dict[str, float]:
        trials = json.loads(self.invoke("sweep", "status", "s", "--json"))["trials"]
        assert {trial["state"] for trial in trials} == {"finished"}
        return {trial["name"]: trial["perplexity"] for trial in trials}

    def key(self, trial: str) -> str:
        with Store.open(self.root) as store:
            return store.result(f"s/{trial}").plan.key

    def models(self) -> set[str]:
        return {path.parent.name for path in self.root.stages.glob("*/model")}


@pytest.fixture
def sweep(invoke: Invoke, forked: None, tmp_path: Path, model_folder: Path, text_files: dict[str, str]) -> Sweep:
    train = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1}
    data = {"files": text_files, "block_size": 32}
    base = {"model": str(model_folder), "data": data, "evaluate": {"max_windows": 4}, "train": train, "seeds": [1]}
    return Sweep(invoke, tmp_path, base)


def pruned(sparsity: float, *more: Any, name: str = "") -> dict[str, Any]:
    return {"name": name or f"p{sparsity}", "stages": [{"prune": {"sparsity": sparsity}}, *more]}


@pytest.mark.slow
def test_everything_is_kept_unless_asked(sweep: Sweep) -> None:
    sweep.run(pruned(0.5))
    assert sweep.models() == {sweep.key("p0.5")}
    assert "Specs keep all models unless they say `keep`" in sweep.invoke("gc")
    sweep.invoke("gc", "--yes")
    assert sweep.models() == {sweep.key("p0.5")}


def test_none_is_kept_and_what_builds_on_it_is_the_same(sweep: Sweep) -> None:
    """The figures of a chain whose first stages were removed are those of one that was kept."""
    chain = pruned(0.5, "finetune", name="longer")
    sweep.run(pruned(0.5), keep="none")
    assert not sweep.models()
    first, key = sweep.perplexities(), sweep.key("p0.5")
    assert sweep.root.is_published(key)
    assert list(sweep.root.stage(key).glob("evaluations/*/windows.npy"))
    again = sweep.run(pruned(0.5), keep="none")
    assert not sweep.models()
    assert "p0.5" in again
    sweep.run(pruned(0.5), chain, keep="all")
    assert sweep.models() == {key, sweep.key("longer")}  # the shared stage was computed again, and is kept now
    found = sweep.perplexities()
    assert found["p0.5"] == first["p0.5"]
    shutil.rmtree(sweep.root.path)
    sweep.run(pruned(0.5), chain)
    assert sweep.perplexities() == found


@pytest.mark.slow
def test_a_dry_run_removes_nothing_and_a_removed_model_comes_back(sweep: Sweep) -> None:
    sweep.run(pruned(0.5), pruned(0.7))
    before, key = sweep.perplexities(), sweep.key("p0.5")
    listed = json.loads(sweep.invoke("gc", "--keep", "none", "--json"))
    assert {one["key"] for one in listed["models"]} == sweep.models() == {key, sweep.key("p0.7")}
    assert not listed["removed"]
    assert all(one["bytes"] > 0 and one["seconds"] > 0 for one in listed["models"])
    assert "prunegpt gc s --keep none --yes" in sweep.invoke("gc", "s", "--keep", "none")
    sweep.invoke("gc", "s", "--keep", "none", "--yes")
    assert not sweep.models()
    assert sweep.perplexities() == before
    removed = json.loads((sweep.root.stage(key) / "removed.json").read_text(encoding="utf-8"))
    assert {"masks.safetensors", "model/model.safetensors"} <= set(removed)
    out = sweep.folder / "out"
    assert "was removed to save space; its results are kept" in sweep.invoke("export", "s/p0.5", out, fails=True)
    sweep.invoke("sweep", "retry", "s", "p0.5")
    sweep.invoke("sweep", "resume", "s")
    assert sweep.models() == {key}
    assert sweep.perplexities() == before
    assert list(sweep.root.stage(key).glob("evaluations/*/windows.npy"))
    sweep.invoke("export", "s/p0.5", out)


def test_what_is_asked_for_again_stays_where_nothing_is_kept(sweep: Sweep) -> None:
    sweep.run(pruned(0.5), keep="none")
    sweep.invoke("sweep", "retry", "s", "p0.5")
    sweep.invoke("sweep", "resume", "s")
    assert sweep.models() == {sweep.key("p0.5")}
    sweep.run(pruned(0.5), keep="none")
    sweep.invoke("export", "s/p0.5", sweep.folder / "out")
    sweep.invoke("gc", "--yes")
    assert not sweep.models()
    sweep.run(pruned(0.5), keep="none")
    assert not sweep.models()


@pytest.mark.slow
def test_a_teacher_that_was_removed_is_computed_again(sweep: Sweep) -> None:
    teacher = {"name": "t", "stages": ["finetune"]}
    sweep.run(teacher, keep="none")
    assert not sweep.models()
    student = {"name": "d", "stages": [{"distill": {"teacher": "t", "hardness": 0.5}}]}
    sweep.run(teacher, student, keep="none")
    assert set(sweep.perplexities()) == {"t", "d"}
    assert not sweep.models()


@pytest.mark.slow
def test_what_an_unfinished_trial_needs_stays(sweep: Sweep) -> None:
    teacher = {"name": "t", "stages": ["finetune"]}
    student = {"name": "d", "stages": [{"prune": {"sparsity": 0.5}}, {"distill": {"teacher": "t"}}]}
    sweep.run(teacher, student, pruned(0.7))
    with Store.open(sweep.root) as store:
        store.retry("s", ["d"], finished=True)
        chain = {stage.key for stage in store.result("s/d").plan.stages}
    sweep.invoke("gc", "--keep", "none", "--yes")
    assert sweep.models() <= chain | {sweep.key("t")}
    assert {sweep.key("d"), sweep.key("t")} <= sweep.models()


@pytest.mark.slow
def test_a_model_that_another_sweep_keeps_stays(sweep: Sweep) -> None:
    sweep.run(pruned(0.5), keep="none", name="other")
    assert not sweep.models()
    sweep.run(pruned(0.5, "finetune", name="mine"))
    kept = sweep.models()
    assert len(kept) == 2
    sweep.invoke("gc", "other", "--keep", "none", "--yes")
    assert sweep.models() == kept


@pytest.mark.slow
def test_the_best_seed_of_each_configuration(sweep: Sweep) -> None:
    sweep.base["seeds"] = [1, 2, 3]
    sweep.run({"name": "f", "stages": ["finetune"]}, keep="best")
    found = sweep.perplexities()
    assert len(found) == 3
    assert sweep.models() == {sweep.key(min(found, key=lambda name: found[name]))}


def test_the_front_of_a_search() -> None:
    def tried(name: str, perplexity: float | None, sparsity: float) -> Any:
        plan = SimpleNamespace(search="found-{number}", group=name)
        metrics = {"perplexity": perplexity, "sparsity": sparsity}
        return SimpleNamespace(id=hash(name), name=name, plan=plan, state="finished", metrics=metrics)

    search = {"n_trials": 4, "space": {"train.seed": {"low": 1, "high": 3}}, "objectives": ["perplexity", "sparsity"]}
    spec = {"trials": [{"name": "found-{number}", "search": search}]}
    results = [tried("a", 10.0, 0.5), tried("b", 20.0, 0.9), tried("worse", 30.0, 0.8), tried("none", None, 0.99)]
    assert keep.best_of(results, spec) == ["a", "b"]


def test_a_disk_without_room_stops_before_anything_is_written(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(
            "prunegpt.sweep.dispatch.shutil",
            SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=1000, total=10**12)),
        )
        sweep.run(pruned(0.5), fails=True)
    with Store.open(sweep.root) as store:
        assert [state for _, state in store.states("s")] == ["waiting"]
    assert not sweep.models()
    sweep.run(pruned(0.5))
    assert set(sweep.perplexities()) == {"p0.5"}


def test_gc_beside_a_running_sweep_ends_where_another_takes_its_turn(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is removable was decided beside the one that ran: the next may need it."""
    sweep.run(pruned(0.5), pruned(0.6))
    before = sweep.models()
    one, other = (Holder(pid, "here", float(pid), "elsewhere") for pid in (1, 2))
    holders = iter([one, one, other])
    monkeypatch.setattr("prunegpt.sweep.lock.coordinator", lambda root: next(holders))
    said = sweep.invoke("gc", "--keep", "none", "--yes")
    assert len(sweep.models()) == len(before) - 1
    assert "1 model removed" in said
    assert "run it again for the rest" in said


def test_room_is_for_what_is_written_and_not_for_what_is_read(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    """A model of 16 bits is solved and published in 32."""
    half = shutil.copytree(model_folder, sweep.folder / "half")
    AutoModelForCausalLM.from_pretrained(half, dtype=torch.float16).save_pretrained(half)
    spec = {"name": "s", "base": {**sweep.base, "model": str(half)}, "trials": [pruned(0.5)]}
    (trial,) = plan_data(spec, root=sweep.root).trials
    size = (half / "model.safetensors").stat().st_size
    for free, enough in ((3.5 * size, False), (4.5 * size, True)):  # what is solved, and what is published
        disk = SimpleNamespace(disk_usage=lambda _, free=free: SimpleNamespace(free=64 * 2**20 + free, total=10**12))
        monkeypatch.setattr("prunegpt.sweep.dispatch.shutil", disk)
        assert bool(lack_of_room(sweep.root, trial)) is not enough


@pytest.mark.slow
def test_check_says_what_the_disk_needs(sweep: Sweep) -> None:
    sweep.run(pruned(0.5))
    checked = json.loads(sweep.invoke("sweep", "check", sweep.folder / "s.yaml", "--json"))["disk"]
    assert checked["models"] == 0
    assert checked["free"] > 0
    sweep.invoke("sweep", "rm", "s", "--stages", "--yes")
    size = json.loads(sweep.invoke("sweep", "check", sweep.folder / "s.yaml", "--json"))["disk"]["models"]
    sweep.run(pruned(0.5))
    real = sum(path.stat().st_size for path in sweep.root.stages.glob("*/model/*.safetensors"))
    assert size == pytest.approx(real, rel=0.1)
