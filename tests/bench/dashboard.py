"""The dashboard: its first page with thousands of trials, a trial with long curves, and how soon a new point is seen.

A page is what a browser fetches for it, from a server that has just started and has read nothing yet.
"""

import statistics
import time
from collections.abc import Iterator, Sequence

from starlette.testclient import TestClient

from prunegpt.points import Point
from prunegpt.root import Root
from prunegpt.store import Store
from tests.bench.harness import CLOCKS, Settings
from tests.bench.rows import Row
from tests.support.many_trials import make_long, make_many
from tests.support.served import ORIGIN, Listener, open_app, served

API = "/api/v1"
FIRST = ("/", f"{API}/sweeps", f"{API}/sweeps/many", f"{API}/sweeps/many/trials")
LONG = ("/trials/long/long", f"{API}/trials/long/long", f"{API}/trials/long/long/curves?points=1000")


def measure(settings: Settings) -> Iterator[Row]:
    wide, long = Root(settings.work / "wide"), Root(settings.work / "long")
    trials, points = settings.pick(5000, 50), settings.pick(100_000, 1000)
    make_many(wide, trials)
    make_long(long, points)
    rounds = settings.pick(5, 2)
    yield _row(
        "dashboard-first", f"First pages of a sweep of {trials:,} trials", pages(settings, wide, FIRST, rounds), 1.0
    )
    yield _row("dashboard-trial", f"A trial with {points:,} points", pages(settings, long, LONG, rounds), 1.0)
    yield _row("dashboard-update", "From a point in the store to the browser", updates(long, 2 * rounds), 2.0)


def pages(settings: Settings, root: Root, paths: Sequence[str], rounds: int) -> list[float]:
    """Seconds until all of these are answered, of servers that have just started."""
    clock = CLOCKS[settings.clock]
    taken = []
    for _ in range(rounds):
        app = open_app(root)
        with TestClient(app, base_url=ORIGIN) as client:
            started = clock()
            for path in paths:
                assert client.get(path).status_code == 200
            taken.append(clock() - started)
    return taken


def updates(root: Root, rounds: int) -> list[float]:
    """Seconds from writing a point to its event in a listener."""
    taken = []
    with served(root) as address, Store.open(root) as store:
        listener = Listener(f"{address}{API}/events?sweep=long")
        listener.wait("ready")
        attempt = store.running_attempts()[0]
        last = max(curve.last_step for curve in store.curves("long/long"))
        for step in range(last + 1, last + 1 + rounds):
            point = Point(stage=1, step=step, epoch=0.0, name="loss", value=1.0, time=time.time(), tokens=step)
            started = time.monotonic()
            store.add_points(attempt.id, [point], offset=attempt.offset + step)
            while listener.wait("points")[3]["last"]["loss"]["step"] != step:
                pass
            taken.append(time.monotonic() - started)
        listener.close()
    return taken


def _row(name: str, what: str, taken: Sequence[float], wanted: float) -> Row:
    low, middle, high = statistics.quantiles(taken, n=4, method="inclusive")
    return Row(name, what, "", middle, low, high, len(taken), wanted=wanted, unit="s")
