"""What a launcher refuses harms the trial that it was asked for alone: every call of the protocol × every exception."""

import errno
import inspect
import subprocess
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from prunegpt.errors import LaunchError, MissingPackageError
from prunegpt.launch.base import Exited, Launcher
from prunegpt.launch.refusal import passes
from prunegpt.sweep import patience
from prunegpt.sweep.attempt import Attempt
from prunegpt.sweep.events import AttemptProgress, LauncherTrouble
from prunegpt.sweep.interrupt import Interrupt
from prunegpt.sweep.patience import PatientLauncher
from tests.support import fake_worker
from tests.support.fork_launcher import ForkLauncher
from tests.support.sweep_plans import make_trial

CALLS = sorted(name for name in vars(Launcher) if not name.startswith("_"))
QOS = "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: "
POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


def _from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


PASSING = {
    "submit-limit": LaunchError(QOS + POLICY),
    "group-limit": LaunchError(f"sbatch: error: AssocGrpSubmitJobsLimit\nsbatch: error: {POLICY}"),
    "some-limit": LaunchError(f"sbatch: error: Batch job submission failed: {POLICY}"),
    "full-queue": LaunchError("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying"),
    "unavailable": LaunchError("sbatch: error: Batch job submission failed: Resource temporarily unavailable"),
    "sbatch-slow": LaunchError("Batch job submission failed: Socket timed out on send/recv operation"),
    "away": LaunchError("Unable to contact slurm controller (connect failure)"),
    "pbs-limit": LaunchError("qsub: would exceed queue generic's per-user limit of jobs in 'Q' state"),
    "slots": LaunchError("at most 2 attempts run at a time, and all slots are taken."),
    "again": OSError(errno.EAGAIN, "Resource temporarily unavailable"),
    "files": OSError(errno.EMFILE, "Too many open files"),
    "disk": OSError(errno.ENOSPC, "No space left on device"),
    "wrapped": _from(LaunchError("worker 'python' did not start"), OSError(errno.EAGAIN, "busy")),
    "timeout": TimeoutError(),
    "process-timeout": subprocess.TimeoutExpired("sbatch", 20),
    "refused-connection": ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
}
LASTING = {
    "partition": LaunchError("sbatch: error: Batch job submission failed: Invalid partition name specified"),
    "account": LaunchError("Batch job submission failed: Invalid account or account/partition combination specified"),
    "size": LaunchError(f"sbatch: error: QOSMaxCpuPerJobLimit\nsbatch: error: {POLICY}"),
    "option": LaunchError("sbatch: unrecognized option '--colour'"),
    "no-such-program": FileNotFoundError(errno.ENOENT, "No such file or directory", "sbatch"),
    "package": MissingPackageError("the launcher needs a package"),
    "defect": KeyError("job"),
    "assertion": AssertionError(),
}
ERRORS = {**PASSING, **LASTING}


@pytest.mark.parametrize("name", ERRORS)
def test_what_passes_and_what_stays(name: str) -> None:
    assert passes(ERRORS[name]) == (name in PASSING)


class Refusing(ForkLauncher):
    """Raises in one of its calls for the attempts of the trial `a`, so many times."""

    def __init__(self, call: str, error: Exception, times: float, slots: int = 2) -> None:
        self.call, self.error, self.left = call, error, times
        self.armed = call != "slots"  # how many there are must be known before anything runs
        self.asked: Counter[str] = Counter()
        self.of: dict[str, str] = {}
        super().__init__(fake_worker.run, slots)

    def _maybe(self, call: str, trial: str) -> None:
        if call == self.call and trial in ("a", "") and self.armed and self.left > 0:
            self.left -= 1
            self.asked[call] += 1
            raise self.error

    @property
    def slots(self) -> int:
        self._maybe("slots", "")
        return super().slots

    def submit(self, folder: Path) -> str:
        self._maybe("submit", folder.parent.name)
        handle = super().submit(folder)
        self.of[handle] = folder.parent.name
        self.armed = True
        return handle

    def poll(self, handle: str) -> Exited | None:
        self._maybe("poll", self.of[handle])
        return super().poll(handle)

    def cancel(self, handle: str, *, kill: bool = False) -> None:
        self._maybe("cancel", self.of[handle])
        super().cancel(handle, kill=kill)

    def close(self) -> None:
        super().close()
        self._maybe("close", "")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(patience, "FIRST", 0.001)
    monkeypatch.setattr(patience, "LONGEST", 0.01)


def test_every_call_of_the_protocol_is_refused_below() -> None:
    assert set(CALLS) == {"slots", "submit", "poll", "cancel", "close"}
    assert [name for name, _ in inspect.getmembers(Refusing) if name in CALLS] == sorted(CALLS)


KINDS = {type(error): name for name, error in reversed(ERRORS.items())}  # the first of each


@pytest.mark.parametrize(
    ("call", "name"),
    [
        pytest.param(call, name, marks=() if call == "submit" or name in KINDS.values() else pytest.mark.slow)
        for call, name in product(CALLS, ERRORS)
    ],
)
def test_a_refusal_harms_no_other_trial(bench: Any, call: str, name: str) -> None:
    """Three times over; a cancel is asked for by the person who stops the sweep, so the others are stopped, too."""
    launcher = Refusing(call, ERRORS[name], times=3)
    interrupt = Interrupt()
    if call == "cancel":
        bench.listen = lambda event: (
            interrupt.request() if isinstance(event, AttemptProgress) and not interrupt.count else None
        )
    seconds = 60.0 if call == "cancel" else 0.0
    trials = [make_trial(one, f"load-{one} {one}", steps=600 if seconds else 1, seconds=seconds) for one in "abc"]
    outcome = bench.run(*trials, launcher=launcher, interrupt=interrupt)
    states = bench.states()
    assert launcher.asked[call] == (1 if call == "submit" and name in LASTING else 3 if call != "close" else 1)
    if call == "cancel":
        assert states == dict.fromkeys("abc", "waiting")
        assert {attempt.reason for attempt in bench.store.attempts("words/a")} == {"stopped"}
    elif call == "submit" and name in LASTING:
        assert states == {"a": "failed", "b": "finished", "c": "finished"}
        (attempt,) = bench.store.attempts("words/a")
        assert (attempt.state, attempt.reason) == ("failed", "refused")
        assert " ".join(str(ERRORS[name]).split()) in attempt.error
        assert outcome.failed == ("words/a",)
        assert bench.store.retry("words", ["a"])
        assert bench.run(*trials).finished == ("words/a",)
    else:
        assert states == dict.fromkeys("abc", "finished")
        assert [attempt.state for attempt in bench.store.attempts("words/a")] == ["finished"]
    if call in ("poll", "cancel") or (call == "submit" and name in PASSING):
        (heard,) = bench.heard(LauncherTrouble)
        assert (heard.trial, heard.call) == ("words/a", call)


@pytest.mark.parametrize("name", LASTING)
def test_an_attempt_that_nobody_can_ask_after_is_killed_and_fails_by_itself(bench: Any, name: str) -> None:
    launcher = Refusing("poll", LASTING[name], times=float("inf"))
    trials = [make_trial("a", "loada a", seconds=60.0, steps=600), make_trial("b", "loadb b"), make_trial("c", "c")]
    outcome = bench.run(*trials, launcher=launcher)
    assert (outcome.failed, bench.states()) == (("words/a",), {"a": "failed", "b": "finished", "c": "finished"})
    assert [attempt.reason for attempt in bench.store.attempts("words/a")] == ["refused"]


def test_what_the_attempt_itself_says_counts_even_where_nobody_can_ask_after_it(bench: Any) -> None:
    class Forgetful(ForkLauncher):
        """Knows nothing any more of what has written its record."""

        def submit(self, folder: Path) -> str:
            self.record = folder / "record.json"
            return super().submit(folder)

        def poll(self, handle: str) -> Exited | None:
            if self.record.exists():
                raise KeyError(handle)
            return None

    assert bench.run(make_trial("a", "load a"), launcher=Forgetful(fake_worker.run)).finished == ("words/a",)


def test_a_sweep_ends_on_demand_while_its_launcher_takes_nothing(bench: Any) -> None:
    interrupt = Interrupt()
    bench.listen = lambda event: (
        interrupt.request() if isinstance(event, LauncherTrouble) and not interrupt.count else None
    )
    launcher = Refusing("submit", PASSING["submit-limit"], times=float("inf"))
    outcome = bench.run(make_trial("a", "load a"), launcher=launcher, interrupt=interrupt)
    assert (outcome.waiting, bench.states()) == (("words/a",), {"a": "waiting"})
    assert "QOSMaxSubmitJobPerUserLimit" in (bench.root.attempt("words", "a", 1) / "log.txt").read_text()
    assert bench.run(make_trial("a", "load a")).ok


def test_a_sweep_is_killed_on_demand_while_its_launcher_is_away(bench: Any) -> None:
    interrupt = Interrupt()

    def stop(event: Any) -> None:
        while isinstance(event, LauncherTrouble) and interrupt.count < 2:
            interrupt.request()

    bench.listen = stop
    launcher = Refusing("poll", PASSING["away"], times=float("inf"))
    trial = make_trial("a", "load a", seconds=60.0, steps=600)
    assert bench.run(trial, launcher=launcher, interrupt=interrupt).interrupted


# -- how long it waits -----------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """Takes nothing until it is told to."""

    slots = 1

    def __init__(self, error: Exception) -> None:
        self.error: Exception | None = error
        self.calls: list[str] = []

    def _do(self, call: str) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    def submit(self, folder: Path) -> str:
        self._do("submit")
        return "one"

    def poll(self, handle: str) -> Exited | None:
        self._do("poll")
        return None

    def cancel(self, handle: str, *, kill: bool = False) -> None:
        self._do("kill" if kill else "ask")

    def close(self) -> None:
        self._do("close")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], tuple[Any, ...]]:
    monkeypatch.undo()  # as it is for users
    told: list[LauncherTrouble] = []

    def make(error: Exception) -> tuple[Any, ...]:
        clock, scripted = Clock(), Scripted(error)
        return PatientLauncher(scripted, told.append, clock), scripted, clock, told

    return make


def pauses(ask: Callable[[], object], scripted: Scripted, clock: Clock, seconds: int) -> list[float]:
    """When calls come, asked every half second."""
    found = []
    for tick in range(2 * seconds):
        clock.now = tick / 2
        before = len(scripted.calls)
        ask()
        found += [clock.now] * (len(scripted.calls) - before)
    return found


def test_tries_get_rarer_and_never_end(made: Any, tmp_path: Path) -> None:
    launcher, scripted, clock, told = made(PASSING["submit-limit"])
    attempt = Attempt(1, 1, make_trial("a", "load a"), tmp_path)
    launcher.submit(attempt)
    assert pauses(lambda: launcher.poll(attempt), scripted, clock, 250) == [1, 3, 7, 15, 31, 63, 123, 183, 243]
    assert len(told) == 1  # the same words again and again
    scripted.error = PASSING["away"]
    clock.now = 310
    launcher.poll(attempt)
    assert [(one.call, one.seconds) for one in told] == [("submit", 1.0), ("submit", 60.0)]
    scripted.error, clock.now = None, 400
    assert launcher.poll(attempt) is None
    assert (attempt.handle, scripted.calls[-2:]) == ("one", ["submit", "poll"])


def test_what_was_not_taken_yet_ends_at_once_and_shall_not_begin(made: Any, tmp_path: Path) -> None:
    launcher, scripted, _, _ = made(PASSING["away"])
    attempt = Attempt(1, 1, make_trial("a", "load a"), tmp_path)
    launcher.submit(attempt)
    launcher.cancel(attempt)
    assert launcher.poll(attempt) == Exited("cancelled")
    assert scripted.calls == ["submit"]
    assert (tmp_path / "abandoned").exists()  # a scheduler that did not answer may have it


def test_a_cancel_is_passed_on_until_it_is_heard(made: Any, tmp_path: Path) -> None:
    launcher, scripted, clock, _ = made(PASSING["away"])
    attempt = Attempt(1, 1, make_trial("a", "load a"), tmp_path, handle="one")
    launcher.cancel(attempt)
    clock.now = 5
    launcher.poll(attempt)
    launcher.cancel(attempt, kill=True)
    scripted.error, clock.now = None, 10
    launcher.poll(attempt)
    launcher.poll(attempt)
    assert scripted.calls == ["ask", "ask", "poll", "kill", "kill", "poll", "poll"]


def test_polls_that_pass_are_made_for_ever_but_not_of_what_was_killed(made: Any, tmp_path: Path) -> None:
    launcher, scripted, clock, _ = made(PASSING["away"])
    attempt = Attempt(1, 1, make_trial("a", "load a"), tmp_path, handle="one")
    assert len(pauses(lambda: launcher.poll(attempt), scripted, clock, 1000)) > 20
    launcher.cancel(attempt, kill=True)
    ends = []
    for _ in range(10):
        clock.now += 10
        ends.append(launcher.poll(attempt))
        if ends[-1]:
            break
    assert [end.reason if end else None for end in ends] == [None, None, "refused"]


def test_files_of_an_attempt_that_cannot_be_read_harm_nobody(bench: Any, tmp_path: Path) -> None:
    for name in ("points.jsonl", "log.txt", "record.json"):
        (tmp_path / name).mkdir()
    attempt = Attempt(1, 1, make_trial("a", "load a"), tmp_path)
    assert attempt.store_points(bench.store) == []
    assert attempt.last_words() == ""
    assert attempt.record(Exited("failed", 1)).state == "failed"
