"""A task beside lm-evaluation-harness: its command line and ours on the same folder, each a process.

The task is local, `tests/support/choices.py` makes it from the text. Time is that of the whole process.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.harness import Settings, environment
from tests.bench.peers.environments import Unavailable, outside, python_of, version
from tests.bench.peers.material import needs_text, tiny
from tests.bench.peers.processes import Finished, in_turn, ratio, run
from tests.bench.rows import Row
from tests.support.choices import NAME, write_task

PEER = "lmeval"
FIGURES = ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")
BATCH, DOCUMENTS = 8, 200


def measure(settings: Settings) -> Iterator[Row]:
    time, figures = planned()
    try:
        model, text = tiny(settings.work) if settings.quick else needs_text(settings)
        python = python_of(PEER, settings.environments, install=not settings.quick)
    except Unavailable as why:
        yield from (replace(row, skipped=str(why)) for row in (time, figures))
        return
    count = settings.pick(DOCUMENTS, 4)
    task = write_task(settings.work / "task", (text / "test.txt").read_text(encoding="utf-8"), documents=count)
    lanes = {"ours": partial(_ours, settings, model, task), "theirs": partial(_theirs, settings, python, model, task)}
    found = in_turn(lanes, settings.pick(3, 1))
    clock = settings.clock
    yield Row.of(
        time.name,
        time.what,
        time.beside,
        ratio(found["ours"], found["theirs"], lambda one: one.seconds(clock)),
        wanted=time.wanted,
        figures={
            **{f"seconds of {lane}": runs[-1].seconds(clock) for lane, runs in found.items()},
            **{f"MiB of {lane} at the peak": runs[-1].peak for lane, runs in found.items()},
        },
    )
    ours, theirs = found["ours"][-1].result, found["theirs"][-1].result
    difference = max(abs(ours[name] - theirs[name]) for name in FIGURES)
    sides = {"ours": ours, "theirs": theirs}
    yield replace(
        figures,
        value=difference,
        low=difference,
        high=difference,
        rounds=1,
        figures={f"{name} of {lane}": side[name] for lane, side in sides.items() for name in FIGURES},
    )


def planned() -> tuple[Row, Row]:
    """The rows, without figures."""
    what, beside = f"A local task of {DOCUMENTS} documents", f"`lm_eval` {version(PEER, 'lm_eval')}"
    return (
        Row(f"{PEER}-time", f"{what}: time", beside, wanted=1.0),
        Row(f"{PEER}-figures", "the same: largest difference of a figure", beside, wanted=0.0, unit=""),
    )


def _ours(settings: Settings, model: Path, task: Path) -> Finished:
    words = ["-m", "prunegpt", "eval", model, "--tasks", NAME, "--include-path", task, "--batch-size", BATCH]
    command = [sys.executable, *words, "--device", "cpu", "--json", "--root", settings.work / "runs"]
    return run(command, environment(settings.threads), parse=_our_figures)


def _our_figures(printed: str) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for score in json.loads(printed)["scores"]:
        found |= {score["metric"]: score["value"], f"{score['metric']}_stderr": score["stderr"]}
    return found


def _theirs(settings: Settings, python: Path, model: Path, task: Path) -> Finished:
    out = settings.work / "lm-eval"
    words = ["--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--tasks", NAME]
    words += ["--include_path", str(task), "--batch_size", str(BATCH), "--device", "cpu"]
    command = [python, "-P", "-m", "lm_eval", "run", *words, "--output_path", out]
    return run(command, outside(OMP_NUM_THREADS=str(settings.threads)), parse=lambda _: _their_figures(out))


def _their_figures(out: Path) -> Mapping[str, float]:
    newest = max(out.rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
    found: Mapping[str, Any] = json.loads(newest.read_text(encoding="utf-8"))["results"][NAME]
    return {name.removesuffix(",none"): value for name, value in found.items() if name.removesuffix(",none") in FIGURES}
