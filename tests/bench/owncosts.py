"""What our own commands cost in seconds of the processor: a large grid checked, large tables printed.

Each is a process of its own, its start included; nothing is measured beside them.
"""

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from prunegpt.root import Root
from prunegpt.spec.schema import TableSpec
from tests.bench.harness import Settings, environment
from tests.bench.rows import Row
from tests.support.many_trials import make_many

COLUMNS = [{"value": name} for name in ("trial", "sparsity", "perplexity", "difference")]
EVERY = TableSpec.model_validate({"title": "All", "rows": [{"trial": "*"}], "columns": COLUMNS})


def measure(settings: Settings) -> Iterator[Row]:
    side = settings.pick(100, 4)
    spec = settings.work / "grid.yaml"
    spec.write_text(json.dumps(grid(side)), encoding="utf-8")
    root = settings.work / "checked"
    yield _row(settings, "check", f"`sweep check`, {side * side:,} trials", 1.0, ["sweep", "check", str(spec)], root)
    for name, trials, wanted, what, tables in (
        ("best", settings.pick(10_000, 60), 0.7, "the best 50, with intervals", ()),
        ("table", settings.pick(5_000, 60), 10.0, "all of them, with intervals and differences", (EVERY,)),
    ):
        root = settings.work / name
        make_many(Root(root), trials, tables=tables)
        yield _row(settings, name, f"`table` of {trials:,} trials: {what}", wanted, ["table", "many"], root)


def grid(side: int) -> dict[str, object]:
    """A spec of two stages, each with so many values of one setting."""
    stages = [{"finetune": {"train": {"max_steps": 10}}}, {"prune": {"method": "magnitude", "sparsity": 0.5}}]
    vary = {
        "stages.0.finetune.train.learning_rate": [round(1e-5 * 1.07**place, 9) for place in range(side)],
        "stages.1.prune.sparsity": [round(0.01 + 0.98 * place / side, 4) for place in range(side)],
    }
    data = {"path": "builtin:text", "block_size": 128}
    trial = {"name": "t-{learning_rate}-{sparsity}", "stages": stages, "vary": vary}
    return {"name": "grid", "base": {"model": "builtin:tiny-gpt2", "data": data}, "trials": [trial]}


def _row(settings: Settings, name: str, what: str, wanted: float, words: Sequence[str], root: Path) -> Row:
    command = [sys.executable, "-m", "prunegpt", *words, "--root", str(root)]
    _, *taken = [_seconds(command, settings.threads) for _ in range(settings.pick(3, 1) + 1)]  # the first reads disks
    middle = statistics.median(taken)
    return Row(f"own-{name}", what, "", middle, min(taken), max(taken), len(taken), wanted=wanted, unit="s")


def _seconds(command: Sequence[str], threads: int) -> float:
    """Of the processor, in the process and the system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, env=environment(threads))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
