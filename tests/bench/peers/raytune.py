"""Sweeps beside Ray Tune with its Optuna search: what a trivial trial costs, and a grid whose stages can be shared.

A trivial trial is that of `tests/bench/overhead.py`; what counts is from the end of one to the end of the next, one at
a time. Ours are 200, suggested by the same sampler; theirs are fewer in an actor of its own each, which is Ray Tune's
default, and 200 where actors are reused. The grid is the quickstart at a share of its steps: Ray Tune runs each trial
alone, in one actor for all, as it knows nothing of their stages. Seconds of the processor are those of all processes
that either side started.
"""

import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from prunegpt.launch.local import LocalLauncher
from prunegpt.planning.resolve import Planner
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep
from prunegpt.sweep.events import Event, TrialFinished
from prunegpt.sweep.search.open import open_search
from tests.bench.harness import Ratio, Settings, environment
from tests.bench.overhead import material
from tests.bench.peers.environments import Unavailable, outside, python_of, version
from tests.bench.peers.processes import run
from tests.bench.rows import Row
from tests.bench.spent import MARK, Spent

PEER = "raytune"
SCRIPT = Path(__file__).with_name("tune_trials.py")
GRID = Path(__file__).with_name("tune_grid.py")
RAY = {"RAY_AIR_NEW_OUTPUT": "0", "RAY_worker_niceness": "0"}  # else its workers wait behind all others
TRIALS, IN_ACTORS = 200, 4
SCALE = 40  # the grid is at 1/40 of its steps
REUSED = (
    "Such a trial is a call in a process that stays, and keeps no model; ours is recorded, and its model published."
)


def measure(settings: Settings, way: str) -> Iterator[Row]:
    """Rows of one way: trials, or grid."""
    rows = planned(way)
    try:
        python = python_of(PEER, settings.environments, install=not settings.quick)
    except Unavailable as why:
        yield from (replace(row, skipped=str(why)) for row in rows)
        return
    yield from (_grid if way == "grid" else _trials)(settings, python, *rows)


def _trials(settings: Settings, python: Path, *rows: Row) -> Iterator[Row]:
    model, text = material(settings.work)
    count = settings.pick(TRIALS, 3)
    ours = suggested(settings, model, text, count)
    for row, trials, more in zip(rows, (settings.pick(IN_ACTORS, 2), count), ((), ("--reuse-actors",)), strict=True):
        command = [python, "-P", SCRIPT, model, text, settings.work / row.name, "--trials", trials, *more]
        env = outside(OMP_NUM_THREADS=str(settings.threads), **RAY, **{MARK: row.name})
        theirs = statistics.median(_between(run(command, env).result[settings.clock]))
        figures = {"seconds of ours": statistics.median(ours), "seconds of theirs": theirs, "trials of theirs": trials}
        ratio = Ratio(tuple(each / theirs for each in ours))
        yield Row.of(row.name, row.what, row.beside, ratio, wanted=row.wanted, figures=figures, note=row.note)


def _grid(settings: Settings, python: Path, row: Row) -> Iterator[Row]:
    """The quickstart in one root, and each of its trials under Ray Tune in a root of its own."""
    scale = settings.pick(SCALE, 300)
    seconds = {}
    for lane, first, more in (("ours", sys.executable, ()), ("theirs", python, ("--tune", settings.work / "results"))):
        command = [first, "-P", GRID, "--scale", scale, "--root", settings.work / lane, *more]
        env = environment(settings.threads) | RAY | {MARK: lane}
        seconds[lane] = run(command, env).result[settings.clock]
    ratio = Ratio((seconds["ours"] / seconds["theirs"],))
    figures = {f"seconds of {lane}": value for lane, value in seconds.items()}
    yield Row.of(row.name, row.what, row.beside, ratio, wanted=row.wanted, figures=figures)


def planned(way: str) -> tuple[Row, ...]:
    """The rows of one way, without figures."""
    beside, what = f"Ray Tune {version(PEER, 'ray')}", f"{TRIALS} trials that Optuna suggests, trivial stage: a trial"
    if way == "grid":
        what = f"Quickstart at 1/{SCALE} of its steps: time"
        return (Row(f"{PEER}-grid", what, f"{beside}, each trial alone", wanted=0.4),)
    return (
        Row(f"{PEER}-trials", what, f"{beside}, an actor per trial", wanted=0.1),
        Row(f"{PEER}-trials-reused", what, f"{beside}, actors reused", wanted=0.1, note=REUSED),
    )


def _between(ends: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(ends)]


def suggested(settings: Settings, model: Path, text: Path, count: int) -> list[float]:
    """Seconds from the end of one trial to the end of the next."""
    stage = {"prune": {"method": "magnitude", "sparsity": 0.5}}
    space = {"stages.0.prune.sparsity": {"low": 0.1, "high": 0.9}}
    search = {"sampler": "tpe", "seed": 0, "n_trials": count, "objectives": "perplexity", "space": space}
    data = {"files": {"validation": str(text)}, "block_size": 32}
    spec = {
        "name": "trials",
        "base": {"model": {"source": str(model), "label": "tiny"}, "data": data},
        "trials": [{"name": "pruned-{number}", "stages": [stage], "search": search}],
    }
    root = Root(settings.work / "runs")
    planner = Planner(spec, root=root)
    ends: list[float] = []
    os.environ[MARK] = "ours"  # of the workers; this process counts by itself
    spent = Spent(os.environ[MARK])
    read = time.perf_counter if settings.clock == "wall" else lambda: time.process_time() + spent()

    def hear(event: Event) -> None:
        if isinstance(event, TrialFinished):
            ends.append(read())

    with Store.open(root) as store:
        suggester = open_search(planner.plan, store, planner)
        outcome = run_sweep(planner.plan, root, store, LocalLauncher(root, 1), on_event=hear, suggester=suggester)
    if not outcome.ok:
        raise RuntimeError(f"every trial must finish; {outcome.failed} did not.")
    return _between(ends)
