"""What our own commands cost in seconds of the processor: a large grid checked, large tables printed.

Each is a process of its own, its start included; nothing is measured beside them. The floor of each is a process that
starts and validates once what each trial is read from: of a spec its configuration, of a root its plan.
"""

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from prunegpt.planning.resolve import plan_file
from prunegpt.root import Root
from prunegpt.spec.schema import TableSpec
from prunegpt.store import Store
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
    trials = [json.dumps(dict(trial.config)) for trial in plan_file(spec).trials]
    reading = "from prunegpt import running; from prunegpt.spec.schema import TrialSpec as Kept"
    what = f"`sweep check`, {side * side:,} trials"
    yield _row(settings, "check", what, 1.0, ["sweep", "check", str(spec)], root, reading, trials)
    reading = "from prunegpt import api; from prunegpt.spec.plan import TrialPlan as Kept"
    for name, count, wanted, what, tables in (
        ("best", settings.pick(10_000, 60), 0.7, "the best 50, with intervals", ()),
        ("table", settings.pick(5_000, 60), 10.0, "all of them, with intervals and differences", (EVERY,)),
    ):
        root = settings.work / name
        make_many(Root(root), count, tables=tables)
        with Store.open(Root(root)) as store:
            trials = [trial.plan.model_dump_json() for trial in store.results("many")]
        what = f"`table` of {count:,} trials: {what}"
        yield _row(settings, name, what, wanted, ["table", "many"], root, reading, trials)


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


def _row(
    settings: Settings,
    name: str,
    what: str,
    wanted: float,
    words: Sequence[str],
    root: Path,
    reading: str,
    trials: Sequence[str],
) -> Row:
    """The row of a command.

    Args:
        reading: imports what the command needs at least, and as `Kept` what its trials are read as.
        trials: what each is read from, as JSON.
    """
    lines = settings.work / f"{name}.jsonl"
    lines.write_text("\n".join(trials), encoding="utf-8")
    command = [sys.executable, "-m", "prunegpt", *words, "--root", str(root)]
    least = f"import gc, sys; gc.disable(); {reading}; kept = [*map(Kept.model_validate_json, open(sys.argv[1]))]"
    rounds = settings.pick(3, 1)
    (_, *taken), (_, *floor) = (  # the first reads disks
        [_seconds(each, settings.threads) for _ in range(rounds + 1)]
        for each in (command, [sys.executable, "-c", least, str(lines)])
    )
    return Row(
        f"own-{name}", what, "", statistics.median(taken), min(taken), max(taken), rounds, wanted, unit="s",
        floor=statistics.median(floor), note="The floor starts and validates each trial once.",
    )  # fmt: skip


def _seconds(command: Sequence[str], threads: int) -> float:
    """Of the processor, in the process and the system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, env=environment(threads))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
