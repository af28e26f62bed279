"""Hundreds of small trials with the dashboard open: memory and file handles of every process must stay flat.

`python -m tests.robust.soak --seconds 1200 --real` trains a tiny model in each trial; without `--real` the trials
compute nothing. The exit status is 1 where something grew.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prunegpt.launch.local import WORKER, LocalLauncher
from prunegpt.root import Root
from prunegpt.spec.plan import SweepPlan
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep
from prunegpt.sweep.events import Event, TrialFinished
from prunegpt.sweep.interrupt import Interrupt
from tests.support.sweep_plans import make_plan, make_trial

CHECKOUT = Path(__file__).resolve().parents[2]
FAKE = (sys.executable, "-m", "tests.support.hashing_worker")
SAMPLES = 60  # of each process in a run, about
WARM = 0.3  # of a run, in which caches fill and pools grow
KILOBYTES_A_TRIAL = 30.0  # of resident memory that a process may grow by: 3 MiB every 100 trials
HANDLES_A_TRIAL = 0.01
FEWEST = 11  # samples of a process from which a slope is told
DATABASE_A_TRIAL = 20_000  # bytes a trial of some twenty points takes, and what SQLite keeps ready


@dataclass
class Process:
    """What one process took, over the trials that were finished by then."""

    name: str
    pid: int
    trials: list[int] = field(default_factory=list)
    kilobytes: list[int] = field(default_factory=list)  # resident
    handles: list[int] = field(default_factory=list)

    def sample(self, trials: int) -> None:
        try:
            resident = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())
            handles = len(os.listdir(f"/proc/{self.pid}/fd"))
        except OSError:
            return
        if resident:
            self.trials.append(trials)
            self.kilobytes.append(int(resident[1]))
            self.handles.append(handles)

    def growth(self) -> tuple[float, float]:
        """Kilobytes and file handles that it took more with each trial, once warm: slopes of straight lines."""
        first = int(len(self.trials) * WARM)
        if len(self.trials) - first < 5 or len(set(self.trials[first:])) < 2:
            return 0.0, 0.0
        x = np.array(self.trials[first:], dtype=float)
        memory, handles = (
            np.polyfit(x, np.array(y[first:], dtype=float), 1)[0] for y in (self.kilobytes, self.handles)
        )
        return float(memory), float(handles)


@dataclass(frozen=True)
class Outcome:
    """What a soak came to."""

    trials: int
    seconds: float
    database: int  # bytes
    processes: tuple[Process, ...]

    def problems(self) -> list[str]:
        """What grew, or was not watched long enough to say; nothing where all is well."""
        found = [f"no {one.name} was seen" for one in self.processes if not one.trials]
        for one in self.processes:
            memory, handles = one.growth()
            if len(one.trials) < FEWEST:
                found.append(f"{one.name} must be looked at {FEWEST} times; was {len(one.trials)} times")
            if memory > KILOBYTES_A_TRIAL:
                found.append(f"{one.name} grows by {memory:.0f} KiB a trial, over {KILOBYTES_A_TRIAL:g}")
            if handles > HANDLES_A_TRIAL:
                found.append(f"{one.name} opens {handles:.2f} files a trial that it does not close")
        if self.database > DATABASE_A_TRIAL * self.trials:
            found.append(
                f"the database has {self.database / self.trials:,.0f} bytes a trial, over {DATABASE_A_TRIAL:,}"
            )
        return found

    def lines(self) -> list[str]:
        told = [f"{self.trials} trials in {self.seconds:.0f} s; the database has {self.database / 2**20:.1f} MiB"]
        for one in self.processes:
            memory, handles = one.growth()
            grown = f"{memory * 100 / 1024:+.2f} MiB and {handles * 100:+.2f} file handles every 100 trials"
            told.append(f"{one.name}: {(one.kilobytes or [0])[-1] / 1024:.0f} MiB, {grown}")
        return told


def soak(root: Root, *, seconds: float, trials: int, real: bool = False, dashboard: bool = True) -> Outcome:
    """Runs trials for so long, or until they are done."""
    plan = _real_plan(root, trials) if real else _empty_plan(trials)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with Store.open(root) as store:
        store.save_sweep(plan)
        server = _serve(root) if dashboard else None
        try:
            return _run(
                plan, root, store, LocalLauncher(root, command=WORKER if real else FAKE), server, seconds, trials
            )
        finally:
            if server:
                server[0].terminate()
                server[0].wait(timeout=20)


def _run(
    plan: SweepPlan,
    root: Root,
    store: Store,
    launcher: LocalLauncher,
    server: "tuple[subprocess.Popen[str], str] | None",
    seconds: float,
    trials: int,
) -> Outcome:
    begun, interrupt, done = time.monotonic(), Interrupt(), [0]
    worker = Process("worker", 0)
    processes = [Process("coordinator", os.getpid()), worker]
    if server:
        processes.append(Process("dashboard", server[0].pid))
    every = max(1, trials // SAMPLES)
    last = [0.0]

    def hear(event: Event) -> None:
        if not isinstance(event, TrialFinished):
            return
        done[0] += 1
        worker.pid = _worker(server[0].pid if server else 0) or worker.pid
        if done[0] % max(1, trials // 10) == 0:
            print(f"{done[0]} of {trials} trials in {time.monotonic() - begun:.0f} s", flush=True)
        if done[0] % every == 0 or time.monotonic() - last[0] > seconds / SAMPLES:
            last[0] = time.monotonic()
            if server:
                for page in ("/", f"/api/v1/sweeps/{plan.name}", "/api/v1/sweeps"):
                    if not _look(server[1] + page):
                        raise RuntimeError(f"the dashboard must answer throughout; {page} did not")
            for process in processes:
                process.sample(done[0])
        if time.monotonic() - begun > seconds:
            interrupt.request()

    run_sweep(plan, root, store, launcher, on_event=hear, interrupt=interrupt)
    size = root.database.stat().st_size
    return Outcome(done[0], time.monotonic() - begun, size, tuple(processes))


def _worker(server: int) -> int:
    """The process of the one warm worker: the child that is not the dashboard; 0 where there is none."""
    own = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    children = [int(pid) for pid in own.read_text().split()] if own.exists() else []
    return next((pid for pid in children if pid != server and b"tracker" not in _command(pid)), 0)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b"tracker"  # it has ended


def _serve(root: Root) -> "tuple[subprocess.Popen[str], str]":
    command = [sys.executable, "-m", "prunegpt", "serve", "--root", str(root.path), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT)
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"http://[\w.:]+", line):
            address = found[0].rstrip("/")
            break
    else:
        raise RuntimeError("the dashboard did not start")
    for _ in range(100):
        if _look(f"{address}/api/v1/sweeps"):
            return server, address
        time.sleep(0.1)
    raise RuntimeError(f"the dashboard does not answer at {address}")


def _look(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=20) as answer:
            answer.read()
    except OSError:
        return False
    return True


def _empty_plan(trials: int) -> SweepPlan:
    return make_plan(*(make_trial(f"t{index}", f"load ft t{index}") for index in range(trials)))


def _real_plan(root: Root, trials: int) -> SweepPlan:
    """Trials that train a tiny model for three steps, each with a seed of its own."""
    from prunegpt.builtin.text import rows
    from prunegpt.planning.resolve import plan_data
    from tests.support.small import make_model

    folder = root.path / "made"
    model = make_model(folder / "model", layers=2)
    files = {}
    for split, count in (("train", 120), ("validation", 40)):
        lines = [line for row in rows(split) for line in row.splitlines()][:count]
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        files[split] = str(folder / f"{split}.txt")
    base = {
        "model": str(model),
        "data": {"files": files, "block_size": 32},
        "train": {"max_steps": 3, "per_device_train_batch_size": 4},
    }
    trial = {"name": "t", "stages": [{"finetune": {"prune": {"sparsity": 0.5, "unit": "steps", "start": 0, "end": 2}}}]}
    return plan_data({"name": "words", "base": base, "trials": [{**trial, "seeds": list(range(trials))}]}, root=root)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--no-dashboard", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    place = Path(tempfile.mkdtemp(prefix="soak"))
    try:
        outcome = soak(
            Root(place / "runs"),
            seconds=min(given.seconds, 1200.0),
            trials=given.trials,
            real=given.real,
            dashboard=not given.no_dashboard,
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print("\n".join(outcome.lines()))
    if given.json:
        print(json.dumps({one.name: one.growth() for one in outcome.processes}))
    problems = outcome.problems()
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
