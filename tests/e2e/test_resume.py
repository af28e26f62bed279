"""A worker killed in mid-training: the trial resumes from its last checkpoint and ends with the same figures."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.small import Run, status, write_spec
from tests.support.waiting import until


@pytest.mark.parametrize("trial", ["distilled", pytest.param("gradual", marks=pytest.mark.slow)])
def test_a_killed_worker_goes_on_from_its_checkpoint(
    run: Run, spec: dict[str, Any], tmp_path: Path, trial: str
) -> None:
    spec["base"]["train"] |= {"max_steps": 60, "save_strategy": "steps", "save_steps": 5}
    for item in spec["trials"]:
        for stage in item.get("stages", []):
            if isinstance(stage, dict) and "prune" in next(iter(stage.values())):
                next(iter(stage.values()))["prune"] |= {"start": 5, "end": 50, "every": 3}
    path = write_spec(tmp_path / "small.yaml", spec)
    run("sweep", "run", path, "--only", trial)
    undisturbed = status(run, "small")[trial]

    root = tmp_path / "disturbed"
    environment = {**os.environ, "PRUNEGPT_ROOT": str(root)}
    command = [sys.executable, "-m", "prunegpt", "sweep", "run", path, "--only", trial]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        points = root / "trials" / "small" / trial / "attempt-1" / "points.jsonl"
        until(lambda: points.exists() and any(root.glob("work/*/checkpoint-*/prunegpt.json")) and _step(points) >= 12)
        _kill_tree(process.pid)
    finally:
        process.wait(timeout=60)

    run("sweep", "run", path, "--only", trial, PRUNEGPT_ROOT=str(root))
    resumed = {item["name"]: item for item in _status(run, root)}[trial]
    assert resumed["state"] == "finished"
    assert resumed["attempts"] == 2
    assert resumed["perplexity"] == undisturbed["perplexity"]
    assert resumed["sparsity"] == undisturbed["sparsity"]
    log = (root / "trials" / "small" / trial / "attempt-2" / "log.txt").read_text(encoding="utf-8")
    assert "resuming from step" in log


def _status(run: Run, root: Path) -> list[dict[str, Any]]:
    import json

    found: list[dict[str, Any]] = json.loads(run("sweep", "status", "small", "--json", PRUNEGPT_ROOT=str(root)).stdout)[
        "trials"
    ]
    return found


def _step(points: Path) -> int:
    import json

    lines = points.read_bytes().splitlines()[:-1]
    return max((json.loads(line)["step"] for line in lines), default=0)


def _kill_tree(pid: int) -> None:
    """Kills a process and its children as a crash would, without a chance to clean up."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    for child in [*map(int, children.stdout.split()), pid]:
        os.kill(child, signal.SIGKILL)
