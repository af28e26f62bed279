"""Curves written and read back: the store beside Optuna's trial.report on SQLite, both on disk.

The store takes points as the coordinator gives them to it, those of half a second in a transaction; Optuna one a call,
which is its only way. Reading opens the database anew.
"""

from collections.abc import Iterator
from time import perf_counter

import optuna

from prunegpt.points import Point
from prunegpt.root import Root
from prunegpt.store import Store
from tests.bench.harness import Ratio, Settings
from tests.bench.rows import Row
from tests.support.sweep_plans import make_plan, make_trial

BATCH = 500


def measure(settings: Settings) -> Iterator[Row]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ours, theirs = [], []
    for number in range(settings.pick(5, 2)):
        ours.append(_ours(settings, number, settings.pick(20_000, 1_000)))
        theirs.append(_optuna(settings, number, settings.pick(400, 40)))

    def ratio(index: int | None) -> Ratio:
        pick = (lambda pair: sum(pair)) if index is None else (lambda pair: pair[index])
        return Ratio(tuple(pick(b) / pick(a) for a, b in zip(ours, theirs, strict=True)))

    yield Row.of(
        "points",
        "Points written and read, a second",
        "Optuna's trial.report on SQLite",
        ratio(None),
        wanted=100,
        better="higher",
        figures={
            "× written": ratio(0).median,
            "× read": ratio(1).median,
            "points written a second": 1 / sorted(pair[0] for pair in ours)[len(ours) // 2],
            "by Optuna": 1 / sorted(pair[0] for pair in theirs)[len(theirs) // 2],
        },
    )


def _ours(settings: Settings, number: int, count: int) -> tuple[float, float]:
    """Seconds a point to write and to read."""
    root = Root(settings.work / f"runs-{number}")
    points = [
        Point(stage=1, step=step, epoch=0.0, name="loss", value=1.0 / (1 + step), time=0.0, tokens=step)
        for step in range(count)
    ]
    with Store.open(root) as store:
        (trial,) = store.save_sweep(make_plan(make_trial("t", "load ft")))
        attempt = store.start_attempt(trial.id)
        started = perf_counter()
        for start in range(0, count, BATCH):
            store.add_points(attempt.id, points[start : start + BATCH], offset=start)
        written = perf_counter() - started
    started = perf_counter()
    with Store.open(root, create=False) as store:
        found = store.points(trial.id, "loss")
    read = perf_counter() - started
    assert [point.value for point in found] == [point.value for point in points]
    return written / count, read / count


def _optuna(settings: Settings, number: int, count: int) -> tuple[float, float]:
    url = f"sqlite:///{settings.work}/optuna-{number}.db"
    trial = optuna.create_study(storage=url, study_name="bench").ask()
    started = perf_counter()
    for step in range(count):
        trial.report(1.0 / (1 + step), step)
    written = perf_counter() - started
    started = perf_counter()
    found = optuna.load_study(storage=url, study_name="bench").trials[0].intermediate_values
    read = perf_counter() - started
    assert len(found) == count
    return written / count, read / count
