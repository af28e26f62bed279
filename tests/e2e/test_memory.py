"""Training that does not fit into memory: the trial goes on with smaller micro-batches, to the same figures."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from prunegpt.launch.local import LocalLauncher
from prunegpt.planning.resolve import plan_data
from prunegpt.records import TrialResult
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep

WORKER = Path(__file__).with_name("small_worker.py")
CHECKOUT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process by RLIMIT_DATA")
def test_a_batch_that_does_not_fit_is_trained_in_parts(
    spec: dict[str, Any], text_files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    train, long = Path(text_files["train"]), tmp_path / "long.txt"
    long.write_text(train.read_text(encoding="utf-8") * 10, encoding="utf-8")
    spec["base"]["data"] = {"files": {**text_files, "train": str(long)}, "block_size": 32}
    spec["base"]["train"] = {"max_steps": 3, "per_device_train_batch_size": 512, "learning_rate": 0.003}
    spec["base"]["evaluate"] = {"batch_size": 8, "max_windows": 32}
    spec["trials"] = [{"name": "finetuned", "stages": ["finetune"]}]
    spec["tables"] = []
    large = run(spec, Root(tmp_path / "large"), megabytes=8000)
    small = run(spec, Root(tmp_path / "small"), megabytes=280)
    assert large.attempts == 1
    assert large.stages[-1].notes == ()
    assert small.attempts > 1
    assert "to an optimizer step: the same 512 sequences" in small.stages[-1].notes[0]
    assert small.stages[-1].train_tokens == large.stages[-1].train_tokens
    assert small.stages[-1].steps == large.stages[-1].steps == 3
    assert small.evaluation
    assert large.evaluation
    assert small.evaluation.perplexity == pytest.approx(large.evaluation.perplexity, rel=0.02)  # dropout differs


def run(spec: dict[str, Any], root: Root, *, megabytes: int) -> TrialResult:
    launcher = LocalLauncher(root, command=(sys.executable, str(WORKER), str(megabytes)))
    with Store.open(root) as store:
        outcome = run_sweep(plan_data(spec, root=root), root, store, launcher)
        attempts = store.attempts("small/finetuned")
        assert outcome.ok, [attempt.error for attempt in attempts]
        assert all(attempt.reason == "out-of-memory" for attempt in attempts[:-1])
        return store.result("small/finetuned")
