"""Peak memory of a trial that prunes while it fine-tunes, over that of a dense one. Each runs in a process of its own.

What is asked of the excess is a copy of the model, for the scores, and the packed masks, and 10 % of both.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from prunegpt.lm.views import block_matrices
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.gradual import GradualPruner
from prunegpt.pruning.job import resolve_gradual
from prunegpt.spec.schedules import Clock
from tests.bench.harness import Settings, environment, peak, reset_peak
from tests.bench.models import gpt2, our_training, random_blocks
from tests.bench.rows import Row

STEPS = 4


def measure(settings: Settings) -> Iterator[Row]:
    dense, pruning = (_in_process(settings, way) for way in ("dense", "pruning"))
    allowed = pruning["model"] + pruning["packed"]
    value = (pruning["peak"] - dense["peak"]) / allowed
    yield Row(
        "trial-memory",
        "Peak memory of a trial with gradual pruning over a dense one",
        "the model and packed masks",
        value,
        value,
        value,
        1,
        wanted=1.1,
        figures={
            "MiB dense": dense["peak"],
            "MiB pruning": pruning["peak"],
            "MiB model": pruning["model"],
            "MiB packed masks": pruning["packed"],
        },
    )


def _in_process(settings: Settings, way: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.memory", way, str(settings.work), *["--quick"] * settings.quick]
    run = subprocess.run(
        command, env=environment(settings.threads), capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr}")
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def trial(settings: Settings, way: str) -> dict[str, float]:
    """MiB of this process at its peak while it takes a few steps, and of the model and its packed masks."""
    length = settings.pick(128, 32)
    model = gpt2(settings, positions=length)
    views = block_matrices(model)
    pruned = sum(view.matrix.numel() for view in views.values())
    left = [STEPS]

    class Enough(Exception):
        pass

    def pause() -> None:
        left[0] -= 1
        if not left[0]:
            raise Enough

    job = resolve_gradual(views, method="magnitude", clock=Clock.regular(0, STEPS, 1), final=0.9)
    parts = {"pruner": GradualPruner(job, Enforcer(views))} if way == "pruning" else {}
    reset_peak()
    with suppress(Enough):
        our_training(settings, model, random_blocks(model, 16, length), batch=1, name=way, **parts)(pause)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return {"peak": peak(), "model": weights * 4 / 2**20, "packed": pruned / 8 / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures one way in this process.")
    parser.add_argument("way", choices=["dense", "pruning"])
    parser.add_argument("work", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    settings = Settings(arguments.quick, "cpu", torch.get_num_threads(), "wall", arguments.work)
    print(json.dumps(trial(settings, arguments.way)))


if __name__ == "__main__":
    main()
