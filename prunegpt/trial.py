"""Runs one trial from its folder. Knows no database: it writes points.jsonl and record.json, and reads trial.json."""

import errno
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path

from prunegpt.errors import DivergedError, Interrupted, PruneGPTError, untrusted
from prunegpt.planning.fingerprint import versions
from prunegpt.points import Point, PointWriter, beating
from prunegpt.records import AttemptRecord, StageRecord, finite, record_path
from prunegpt.redact import redact
from prunegpt.root import Root
from prunegpt.signals import on_stop_signals
from prunegpt.spec.part import in_short
from prunegpt.spec.plan import TrialPlan
from prunegpt.usage import Usage

_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "alloc_failed")
_NO_SPACE = ("no space left on device", "disk quota exceeded")  # from libraries that raise errors of their own


def run_trial(
    folder: Path, done: Callable[[StageRecord], None] = lambda _: None, *, trust_remote_code: bool = False
) -> AttemptRecord:
    """Runs the trial in an attempt folder; ends with record.json there, whatever happens.

    Args:
        done: called with each finished stage and its evaluation, in order.
        trust_remote_code: whether models that its plan trusts may run their own code. A folder that came from elsewhere
            brings no trust with it.

    Of several processes that train it together (see `launch.distributed`) the first writes points, heartbeat and
    record.json, the others a record of their own.

    Raises:
        PruneGPTError: the folder holds no trial.json that can be read. Nothing else is raised: a failure is a record.
    """
    plan = read_plan(folder)
    if plan.foreign:
        raise PruneGPTError(f"only a trial of a spec can be run; {folder} is a run that a W&B client has logged.")
    number = int(folder.name.rpartition("-")[2]) if folder.name.startswith("attempt-") else 1
    root = Root(folder.absolute().parents[3])  # ROOT/trials/SWEEP/TRIAL/attempt-N
    rank = int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0
    stages: list[StageRecord] = []
    points = PointWriter(folder / "points.jsonl") if rank == 0 else None
    started = time.time()
    state, reason, message, trace = "finished", "", "", ""

    asked: list[int] = []  # signals that asked for a checkpoint and an end
    usage, writing = Usage(), threading.Lock()  # two threads write points
    reached = [(0, 0, 0.0, 0)]  # stage, step, epoch and tokens of the newest one

    def emit(stage: int, step: int, epoch: float, name: str, value: float, tokens: int) -> None:
        with writing:
            reached[0] = (stage, step, epoch, tokens)
            if points is not None:
                now, known = time.time(), finite(value)
                points.write(
                    Point(stage=stage, step=step, epoch=epoch, name=name, value=known, time=now, tokens=tokens)
                )

    def measure() -> None:
        stage, step, epoch, tokens = max(reached[0], (min(len(stages), len(plan.stages) - 1), 0, 0.0, 0))
        for name, value in usage.look().items():
            emit(stage, step, epoch, name, value, tokens)

    with (
        nullcontext() if points is None else closing(points),
        nullcontext() if rank else beating(folder, then=measure),
        on_stop_signals(asked.append),
    ):
        try:
            from prunegpt.stages.graph import Chain  # here, so that a broken installation is a record too

            def through(stage: StageRecord) -> None:
                stages.append(stage)
                done(stage)

            if plan.trusts and not trust_remote_code:
                raise untrusted(str(folder), plan.trusts)
            Chain(plan, root, emit, _say, lambda: bool(asked)).run(through)
        except BaseException as error:
            state, reason = cause_of(error)
            message = str(error) or type(error).__name__
            trace = traceback.format_exc()
            print(redact(trace), file=sys.stderr, flush=True)
            if isinstance(error, SystemExit):
                raise
    record = AttemptRecord(
        sweep=plan.sweep,
        trial=plan.name,
        attempt=number,
        state=state,
        reason=reason,
        error=message,
        trace=trace,
        stages=tuple(stages),
        started=started,
        ended=time.time(),
        device=stages[-1].device if stages else "",
        versions=versions(),
    )
    record.write(record_path(folder, rank))
    return record


def read_plan(folder: Path) -> TrialPlan:
    """The plan in a folder.

    Raises:
        PruneGPTError: there is none, or it is not a plan.
    """
    path = folder / "trial.json"
    try:
        return TrialPlan.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PruneGPTError(
            f"an attempt folder must hold trial.json; {folder} does not. Give ROOT/trials/SWEEP/TRIAL/attempt-N."
        ) from error
    except OSError as error:
        raise PruneGPTError(
            f"an attempt folder must be one that can be read; {str(folder)[:200]} is not: {error.strerror}. Give "
            "ROOT/trials/SWEEP/TRIAL/attempt-N."
        ) from error
    except ValueError as error:
        raise PruneGPTError(f"trial.json must be a trial plan; {path} is not: {in_short(error)}.") from error


def cause_of(error: BaseException) -> tuple[str, str]:
    """State and reason of an attempt that ended with an exception."""
    if isinstance(error, DivergedError):
        return "diverged", "diverged"
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return "stopped", "stopped"
    return "failed", next((reason for reason in map(_shortage, _chain(error)) if reason), "exception")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _shortage(error: BaseException) -> str | None:
    """The reason where an exception says that the machine was too small."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "out-of-memory"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk-full"
    text = str(error).lower()
    if any(words in text for words in _NO_MEMORY):
        return "out-of-memory"
    return "disk-full" if any(words in text for words in _NO_SPACE) else None


def _say(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)
