"""Failures by cause: what is tried again, how often, with what, and what is kept of it."""

import errno
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from prunegpt.errors import DivergedError, PruneGPTError
from prunegpt.launch.base import Exited, queues
from prunegpt.launch.local import LocalLauncher
from prunegpt.records import AttemptRecord
from prunegpt.root import Root
from prunegpt.spec.execution import RETRIES, FailureSpec
from prunegpt.sweep import watchdog
from prunegpt.sweep.events import TrialFailed
from prunegpt.sweep.failures import Ending, divided, divisible, judge, tried, unrecorded
from prunegpt.sweep.interrupt import Interrupt
from prunegpt.sweep.watchdog import Watchdog
from prunegpt.trial import cause_of
from tests.support import fake_worker
from tests.support.fork_launcher import ForkLauncher
from tests.support.sweep_plans import make_trial

CHECKPOINT = {"checkpoint": True, "steps": 40, "seconds": 2.0}


def reasons(bench: Any, trial: str = "words/a") -> list[tuple[str, str]]:
    return [(attempt.reason, attempt.outcome) for attempt in bench.store.attempts(trial)]


@pytest.mark.parametrize("reason", sorted(RETRIES))
def test_each_reason_is_tried_again_as_often_as_the_policy_says(bench: Any, reason: str) -> None:
    policy = FailureSpec(retries={reason: 3})
    trial = make_trial("a", "load a", train={"per_device_train_batch_size": 64}, fail="a", reason=reason)
    outcome = bench.run(trial, failures=policy)
    assert outcome.failed == ("words/a",)
    assert reasons(bench) == [*[(reason, "retried")] * 3, (reason, "failed")]
    assert [event.retried for event in bench.heard(TrialFailed)] == [True, True, True, False]


def test_the_defaults_are_those_of_the_spec(bench: Any) -> None:
    for reason, times in RETRIES.items():
        assert FailureSpec().allowed(reason) == times
        assert FailureSpec(retries={"signal": 7}).allowed(reason) == (7 if reason == "signal" else times)
    assert FailureSpec().allowed("diverged") == 0
    with pytest.raises(ValueError, match="unknown reason 'diverged'"):
        FailureSpec(retries={"diverged": 1})


def test_divergence_is_a_result_and_never_tried_again(bench: Any) -> None:
    bench.run(make_trial("a", "load a", diverge="a"), failures=FailureSpec(retries=dict.fromkeys(RETRIES, 5)))
    assert reasons(bench) == [("diverged", "diverged")]


def test_reasons_are_counted_apart(bench: Any) -> None:
    policy = FailureSpec(retries={"signal": 1, "exit": 1})
    trial = make_trial("a", "load a b", kill="a", exit="b", once=1)
    assert bench.run(trial, failures=policy).ok
    trial = make_trial("c", "load c", kill="c")
    bench.run(trial, failures=FailureSpec(retries={"signal": 0}))
    assert reasons(bench, "words/c") == [("signal", "failed")]


def test_what_was_tried_is_counted_from_the_last_end_on() -> None:
    endings = [
        ("signal", "retried"),
        ("signal", "failed"),
        ("signal", "retried"),
        ("lost", "waiting"),
        ("exit", "retried"),
        ("stopped", "waiting"),
        ("exit", ""),
    ]
    assert tried(endings) == Counter(signal=1, exit=1)
    assert tried(endings[:2]) == Counter()


def test_retries_are_counted_across_coordinators(bench: Any) -> None:
    interrupt = Interrupt()
    bench.listen = lambda event: interrupt.request() if isinstance(event, TrialFailed) else None
    trial = make_trial("a", "load a", kill="a")
    assert bench.run(trial, interrupt=interrupt).waiting == ("words/a",)
    assert reasons(bench) == [("signal", "retried")]
    bench.listen = lambda _: None
    assert bench.run(trial).failed == ("words/a",)
    assert reasons(bench) == [("signal", "retried"), ("signal", "failed")]
    bench.run(trial)  # whoever runs a failed trial again gives it all its chances again
    assert reasons(bench)[2:] == [("signal", "retried"), ("signal", "failed")]


def test_out_of_memory_halves_the_micro_batch_until_it_fits(bench: Any) -> None:
    train = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3}
    trial = make_trial("a", "load a", train=train, sequence_mb=100, room_mb=350)
    outcome = bench.run(trial)
    assert outcome.ok
    assert reasons(bench) == [("out-of-memory", "retried"), ("out-of-memory", "retried"), ("", "finished")]
    assert bench.store.attempts("words/a")[0].log.endswith("MemoryError")
    assert bench.store.result("words/a").stages[-1].notes == (
        "micro-batches of 2 instead of 8, 12 instead of 3 to an optimizer step: the same 24 sequences, in less memory",
    )


def test_a_trial_that_ran_out_of_memory_before_starts_smaller_next_time(bench: Any) -> None:
    train = {"per_device_train_batch_size": 8}
    trial = make_trial("a", "load a", train=train, sequence_mb=100, room_mb=350)
    assert bench.run(trial, failures=FailureSpec(retries={"out-of-memory": 0})).failed
    assert bench.run(trial, failures=FailureSpec(retries={"out-of-memory": 1})).ok
    assert [reason for reason, _ in reasons(bench)] == ["out-of-memory", "out-of-memory", ""]


def test_what_cannot_be_divided_is_not_tried_again(bench: Any) -> None:
    trial = make_trial("a", "load a", train={"per_device_train_batch_size": 2}, fail="a", reason="out-of-memory")
    bench.run(trial, failures=FailureSpec(retries={"out-of-memory": 9}))
    assert [outcome for _, outcome in reasons(bench)] == ["retried", "failed"]
    assert "micro-batches cannot become smaller" in bench.store.result("words/a").error


def test_division_is_bounded_by_the_micro_batch() -> None:
    trial = make_trial("a", "load a b", train={"per_device_train_batch_size": 6})
    ends = [("out-of-memory", "retried")]
    assert [divided(trial, ends * times).micro_batch_divisor for times in range(5)] == [1, 2, 4, 6, 6]
    assert [divisible(divided(trial, ends * times)) for times in range(4)] == [True, True, False, False]
    assert divided(make_trial("a", "load"), ends).micro_batch_divisor == 1
    assert not divisible(make_trial("a", "load"))


def test_a_silent_attempt_is_lost_and_goes_on_from_its_checkpoint(bench: Any) -> None:
    trial = make_trial("a", "load a", freeze="a", once=1, **CHECKPOINT)
    policy = FailureSpec().model_copy(update={"heartbeat": 1.0})
    assert bench.run(trial, failures=policy).ok
    assert reasons(bench) == [("lost", "retried"), ("", "finished")]
    assert bench.store.attempts("words/a")[0].error == "it sent no heartbeat for 1 s, and was killed."


@pytest.mark.parametrize("deaf", [False, True])
def test_a_time_limit_ends_an_attempt(bench: Any, deaf: bool) -> None:
    trial = make_trial("a", "load a", seconds=60.0, steps=600, deaf=deaf)
    policy = FailureSpec(time_limit=1.0)
    assert bench.run(trial, failures=policy, grace=0.3).failed == ("words/a",)
    assert reasons(bench) == [("time-limit", "failed")]
    assert "longer than its time limit of 1 s" in bench.store.result("words/a").error


def test_retries_after_the_time_limit_go_on_from_the_checkpoint(bench: Any) -> None:
    policy = FailureSpec(time_limit=1.2, retries={"time-limit": 19})
    trial = make_trial("a", "load a", **{**CHECKPOINT, "seconds": 6.0})  # a coordinator that stands still lets it go on
    assert bench.run(trial, failures=policy).ok
    assert [reason for reason, _ in reasons(bench)][:1] == ["time-limit"]
    points = bench.store.points("words/a", "loss", stage=1)
    assert [point.step for point in points] == list(range(40))


def test_a_preempted_attempt_goes_on(bench: Any) -> None:
    class Preempting(ForkLauncher):
        def poll(self, handle: str) -> Exited | None:
            exited = super().poll(handle)
            return Exited("preempted") if exited and exited.reason == "ended" else exited

    trial = make_trial("a", "load a", stop="a", once=2)
    assert bench.run(trial, launcher=Preempting(fake_worker.run)).ok
    assert reasons(bench) == [("preempted", "retried"), ("preempted", "retried"), ("", "finished")]
    assert "a checkpoint is kept" in bench.store.attempts("words/a")[0].error


def test_an_attempt_that_others_stopped_is_tried_again_once(bench: Any) -> None:
    assert bench.run(make_trial("a", "load a", stop="a", once=1)).ok
    assert reasons(bench) == [("stopped", "retried"), ("", "finished")]
    assert bench.run(make_trial("b", "load b", stop="b")).failed == ("words/b",)


RECORD = AttemptRecord(sweep="words", trial="a", attempt=1, state="failed", reason="exception", error="no")
EARLY = Ending("early-stop", "worse than the median.", "stopped")


@pytest.mark.parametrize(
    ("record", "asked", "draining", "expected"),
    [
        ({"state": "finished"}, EARLY, True, ("finished", "exception", False)),
        ({"state": "diverged", "reason": "diverged"}, EARLY, True, ("diverged", "diverged", False)),
        ({}, EARLY, False, ("stopped", "early-stop", False)),
        ({"state": "stopped", "reason": "stopped"}, EARLY, True, ("stopped", "early-stop", False)),
        ({}, None, True, ("failed", "exception", False)),
        ({"state": "stopped", "reason": "stopped"}, None, True, ("waiting", "stopped", False)),
        ({"reason": "signal"}, None, True, ("waiting", "signal", False)),
        ({"reason": "signal"}, None, False, ("waiting", "signal", True)),
        ({"reason": "signal"}, Ending("lost", "silent.", "failed"), False, ("waiting", "lost", True)),
        ({"reason": "signal"}, Ending("time-limit", "long.", "failed"), False, ("failed", "time-limit", False)),
        ({"reason": "disk-full"}, None, False, ("failed", "disk-full", False)),
    ],
)
def test_the_verdict(record: dict[str, str], asked: Ending | None, draining: bool, expected: tuple[str, ...]) -> None:
    verdict = judge(
        RECORD.model_copy(update=record),
        make_trial("a", "load a"),
        asked=asked,
        draining=draining,
        policy=FailureSpec(),
        endings=[],
    )
    assert (verdict.state, verdict.record.reason, verdict.retried) == expected


@pytest.mark.parametrize(
    ("exited", "log", "reason"),
    [
        (None, "", "lost"),
        (Exited("cancelled"), "", "stopped"),
        (Exited("preempted"), "", "preempted"),
        (Exited("time-limit"), "", "time-limit"),
        (Exited("out-of-memory", signal=9), "", "out-of-memory"),
        (Exited("signal", signal=9), "", "signal"),
        (Exited("signal", signal=9), "slurmstepd: error: Detected 1 oom-kill event", "out-of-memory"),
        (Exited("signal", signal=6), "terminate called after throwing 'std::bad_alloc'", "out-of-memory"),
        (Exited("failed", code=3), "", "exit"),
        (Exited("failed", code=1), "numpy: MemoryError", "out-of-memory"),
        (Exited("ended"), "", "lost"),
        (Exited("lost"), "", "lost"),
    ],
)
def test_the_reason_where_there_is_no_record(exited: Exited | None, log: str, reason: str) -> None:
    assert unrecorded(exited, log)[0] == reason


def _from(error: Exception, cause: Exception) -> Exception:
    try:
        raise error from cause
    except Exception as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no"), ("failed", "exception")),
        (PruneGPTError("no"), ("failed", "exception")),
        (DivergedError("nan"), ("diverged", "diverged")),
        (KeyboardInterrupt(), ("stopped", "stopped")),
        (MemoryError(), ("failed", "out-of-memory")),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), ("failed", "out-of-memory")),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), ("failed", "out-of-memory")),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), ("failed", "out-of-memory")),
        (RuntimeError("std::bad_alloc"), ("failed", "out-of-memory")),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ("failed", "out-of-memory")),
        (OSError(errno.ENOSPC, "No space left on device"), ("failed", "disk-full")),
        (OSError(errno.ENOENT, "No such file"), ("failed", "exception")),
        (RuntimeError("Error while serializing: No space left on device (os error 28)"), ("failed", "disk-full")),
        (_from(RuntimeError("cannot save"), OSError(errno.ENOSPC, "No space")), ("failed", "disk-full")),
        (_from(RuntimeError("step failed"), MemoryError()), ("failed", "out-of-memory")),
    ],
)
def test_the_cause_of_an_exception(error: BaseException, expected: tuple[str, str]) -> None:
    assert cause_of(error) == expected


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_watchdog_counts_by_its_own_clock_from_the_first_sign_of_life(tmp_path: Path) -> None:
    clock = Clock()
    dog = Watchdog(FailureSpec(heartbeat=20.0, time_limit=60.0), clock)
    clock.now += 1000
    assert dog.look([tmp_path]) == {}  # queued, however long
    beat = tmp_path / "heartbeat"
    for second in range(13):
        beat.write_text(str(second))
        clock.now += 5
        assert dog.look([tmp_path]) == {}
    clock.now += 5
    assert dog.look([tmp_path])[tmp_path].reason == "time-limit"
    dog = Watchdog(FailureSpec(heartbeat=20.0), clock)
    for _ in range(5):
        assert dog.look([tmp_path]) == {}
        clock.now += 5
    assert dog.look([tmp_path])[tmp_path].reason == "lost"


def test_an_attempt_that_cannot_be_queued_must_begin(tmp_path: Path) -> None:
    clock = Clock()
    dog = Watchdog(FailureSpec(heartbeat=20.0), clock, queues=False)
    other = tmp_path / "begun"
    other.mkdir()
    (other / "heartbeat").write_text("1")
    dog.look([tmp_path, other])
    clock.now += 3600  # asleep: nobody had a chance to begin
    assert dog.look([tmp_path, other]) == {}
    for second in range(20):
        clock.now += 5
        (other / "heartbeat").write_text(f"again {second}")
        assert dog.look([tmp_path, other]) == {}
    clock.now += 5
    (other / "heartbeat").unlink()  # cannot be read for a moment
    ending = dog.look([tmp_path, other])[tmp_path]
    assert (ending.reason, ending.message) == ("lost", "it sent no first heartbeat within 100 s, and was killed.")
    (tmp_path / "heartbeat").write_text("1")
    assert dog.look([tmp_path]) == {}


def test_a_worker_that_hangs_before_its_first_sign_of_life_is_replaced(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang_once(folder: Path) -> str:
        if folder.name == "attempt-1":
            signal.pause()
        return fake_worker.run(folder)

    launcher = ForkLauncher(hang_once)
    launcher.queues = False  # type: ignore[attr-defined]
    monkeypatch.setattr(watchdog, "STARTS", 0.05)  # of 15 s
    assert bench.run(make_trial("a", "load a"), launcher=launcher, failures=FailureSpec(heartbeat=15.0)).ok
    first, second = bench.store.attempts("words/a")
    assert (first.state, first.reason, second.state) == ("failed", "lost", "finished")
    assert "no first heartbeat" in first.error


def test_which_launchers_queue(tmp_path: Path) -> None:
    local = LocalLauncher(Root(tmp_path))
    assert not queues(local)
    assert queues(ForkLauncher(fake_worker.run))  # one that does not say
    local.close()


def test_a_coordinator_that_was_asleep_takes_nobody_for_lost(tmp_path: Path) -> None:
    clock = Clock()
    dog = Watchdog(FailureSpec(heartbeat=20.0), clock)
    (tmp_path / "heartbeat").write_text("1")
    dog.look([tmp_path])
    clock.now += 3600
    assert dog.look([tmp_path]) == {}
    for _ in range(4):
        clock.now += 5
        assert dog.look([tmp_path]) == {}
    clock.now += 5
    assert dog.look([tmp_path])[tmp_path].reason == "lost"
