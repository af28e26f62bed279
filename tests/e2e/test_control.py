"""A sweep stopped from another terminal, resumed without its spec, and watched meanwhile."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.small import Run, status, write_spec
from tests.support.waiting import until


@pytest.mark.slow
def test_stopped_from_another_terminal_and_resumed_without_its_file(
    run: Run, spec: dict[str, Any], tmp_path: Path
) -> None:
    spec["base"]["train"] |= {"max_steps": 400, "logging_steps": 1}
    spec["trials"] = [{"name": "finetuned", "stages": ["finetune"]}]
    spec["tables"] = [{"title": "Small", "rows": ["*"], "columns": ["trial", "perplexity"]}]
    folder = tmp_path / "specs"
    folder.mkdir()
    path = write_spec(folder / "small.yaml", spec)
    points = tmp_path / "runs" / "trials" / "small" / "finetuned" / "attempt-1" / "points.jsonl"
    environment = {**os.environ, "PRUNEGPT_ROOT": str(tmp_path / "runs")}
    process = subprocess.Popen(
        [sys.executable, "-m", "prunegpt", "sweep", "run", path],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: points.exists() and '"loss"' in points.read_text(encoding="utf-8"), "the first loss")
        seen: list[dict[str, Any]] = []
        until(lambda: _slots(run, seen) and seen[-1]["tokens"] > 0, "a slot with tokens")
        assert seen[-1]["tokens_total"] == 400 * 4 * 32
        assert (seen[-1]["kind"], seen[-1]["stage"], seen[-1]["stages"]) == ("finetune", 1, 2)
        run("sweep", "stop", "small")
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "prunegpt sweep resume small" in err
    assert status(run, "small")["finetuned"]["state"] == "waiting"
    (folder / "small.yaml").unlink()
    table = run("sweep", "resume", "small", "--slots", "1").stdout
    assert "| finetuned |" in table
    trial = status(run, "small")["finetuned"]
    assert (trial["state"], trial["attempts"]) == ("finished", 2)
    log = (tmp_path / "runs" / trial["log"]).read_text(encoding="utf-8")
    assert "resuming from step" in log
    run("sweep", "rm", "small", "--stages", "--yes")
    assert json.loads(run("sweep", "status", "--json").stdout) == {"trials": []}
    assert list((tmp_path / "runs" / "stages").iterdir()) == []


def _slots(run: Run, seen: list[dict[str, Any]]) -> bool:
    seen += json.loads(run("sweep", "watch", "small", "--json").stdout)["slots"]
    return bool(seen)
