"""How attempts ended, as people read it: reason, the last lines of the log, and where the whole log lies."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunegpt.cli.options import number, print_table

if TYPE_CHECKING:
    from prunegpt.records import TrialResult
    from prunegpt.root import Root
    from prunegpt.store import AttemptRow, Store

_LOG = "log.txt"
_LINES = 3  # of a log, where several trials are listed
_SHOWN = 20  # trials whose failure is told


def print_failures(results: "Sequence[TrialResult]", store: "Store", root: "Root") -> None:
    """Trials that came to no good end: why, and the end of their logs."""
    from prunegpt.records import EARLY_STOP

    failed = [result for result in results if result.state in ("failed", "diverged", "stopped")]
    for result in failed[:_SHOWN]:
        print(f"{result.sweep}/{result.name}: {result.state} ({result.reason}): {result.error.strip()}")
        ran = [attempt for attempt in store.attempts(result.id) if attempt.folder]
        if ran and result.reason not in ("dependency", EARLY_STOP):
            for line in ran[-1].log.splitlines()[-_LINES:]:
                print(f"    {line}")
            print(f"  log: {_log(root, ran[-1].folder)}")
    if len(failed) > _SHOWN:
        print(f"and {len(failed) - _SHOWN} more")


def print_attempts(attempts: "Sequence[AttemptRow]", root: "Root") -> None:
    """All attempts of a trial, and the end of the last log where that one did not finish."""
    if not attempts:
        print("No attempt yet.")
        return
    print_table(
        ["attempt", "state", "reason", "then", "started", "seconds", "log"],
        (
            [
                str(one.number),
                one.state,
                one.reason,
                "tried again" if one.outcome == "retried" else one.outcome,
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.started)),
                number(round(max(0.0, one.ended - one.started), 1)) if one.ended else "",
                f"{one.folder}/{_LOG}" if one.folder else "no worker ran",
            ]
            for one in attempts
        ),
        title="Attempts",
    )
    ran = [one for one in attempts if one.folder]
    if ran and ran[-1].log:
        print(f"The end of the log of attempt {ran[-1].number}:")
        for line in ran[-1].log.splitlines():
            print(f"    {line}")
    if ran:
        print(f"Log: {_log(root, ran[-1].folder)}")


def as_data(attempt: "AttemptRow") -> dict[str, Any]:
    """An attempt for a script."""
    return {
        "number": attempt.number,
        "state": attempt.state,
        "reason": attempt.reason,
        "error": attempt.error,
        "outcome": attempt.outcome,
        "started": attempt.started,
        "ended": attempt.ended,
        "log": f"{attempt.folder}/{_LOG}" if attempt.folder else None,
        "last_lines": attempt.log,
    }


def _log(root: "Root", folder: str) -> Path:
    return root.path / folder / _LOG
