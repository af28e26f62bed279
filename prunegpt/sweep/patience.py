"""A launcher whose refusals stay with the attempt they are about: asked again later, or that attempt's end."""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from prunegpt.launch.base import Exited, Launcher
from prunegpt.launch.job import ABANDONED
from prunegpt.launch.log import LOG, append
from prunegpt.launch.refusal import passes, reason_of
from prunegpt.root import write_text
from prunegpt.sweep.attempt import Attempt
from prunegpt.sweep.events import Call, LauncherTrouble
from prunegpt.sweep.scheduler import name_of

FIRST, LONGEST = 1.0, 60.0  # seconds between tries: doubled after each
_TRIES = 8  # polls in a row that fail for good before the attempt is abandoned; about two minutes
_TRIES_KILLED = 3  # that fail in any way, of an attempt that was killed


@dataclass
class _Wait:
    """Of a call that was refused, until it is made again."""

    tries: int = 0
    due: float = -math.inf
    words: str = ""


@dataclass
class _State:
    waits: dict[Call, _Wait] = field(default_factory=lambda: defaultdict(_Wait))
    order: bool | None = None  # a cancel that is still to be passed on: with `kill` or without
    killed: bool = False
    ended: Exited | None = None


class PatientLauncher:
    """Calls a launcher for one attempt at a time, and never raises what the launcher does.

    A submission that is refused for now (see `launch.refusal`) is made again by `poll`, less and less often; any other
    refusal is the attempt's end, with the launcher's words. A poll or a cancel that fails is made again likewise; an
    attempt whose polls keep failing permanently is killed and abandoned.

    Args:
        report: called with every new refusal.
        clock: seconds that only grow.
    """

    def __init__(
        self, launcher: Launcher, tell: Callable[[LauncherTrouble], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._launcher = launcher
        self._tell = tell
        self._clock = clock
        self._slots = launcher.slots
        self._states: defaultdict[int, _State] = defaultdict(_State)

    @property
    def slots(self) -> int:
        """How many attempts the launcher takes, by its last answer."""
        with suppress(Exception):  # it reports it again when it can
            self._slots = self._launcher.slots
        return self._slots

    def submit(self, attempt: Attempt) -> None:
        """Writes an attempt's trial.json and hands it over, now or later; it has a handle once the launcher has it."""
        try:
            write_text(attempt.folder / "trial.json", attempt.trial.model_dump_json(indent=2) + "\n")
            attempt.handle = self._launcher.submit(attempt.folder)
        except Exception as error:
            if passes(error):
                self._refused(attempt, "submit", error)
            else:
                self._give_up(attempt, "submit", error)

    def poll(self, attempt: Attempt) -> Exited | None:
        """None while it runs, or waits to be taken."""
        state = self._states[attempt.id]
        if state.ended is None and not attempt.handle and self._is_due(state, "submit"):
            self.submit(attempt)
        if state.ended is None and state.order is not None and self._is_due(state, "cancel"):
            self.cancel(attempt, kill=state.order)
        if state.ended is None and attempt.handle and self._is_due(state, "poll"):
            self._poll(attempt, state)
        if state.ended is not None:
            del self._states[attempt.id]
        return state.ended

    def cancel(self, attempt: Attempt, *, kill: bool = False) -> None:
        """Asks an attempt to end; one that was not taken yet has ended."""
        state = self._states[attempt.id]
        if kill and not state.killed:
            state.killed = True
            state.waits.clear()  # whatever it refused before, it is asked again at once
        if not attempt.handle:
            state.ended = state.ended or Exited("cancelled")
            with suppress(OSError):  # a scheduler that did not answer may have it all the same
                (attempt.folder / ABANDONED).touch()
            return
        try:
            self._launcher.cancel(attempt.handle, kill=kill)
            state.order = None
        except Exception as error:
            state.order = kill
            self._refused(attempt, "cancel", error)

    def close(self) -> None:
        """Closes the launcher."""
        try:
            self._launcher.close()
        except Exception as error:
            self._tell(LauncherTrouble("", "close", reason_of(error), 0.0))

    def _poll(self, attempt: Attempt, state: _State) -> None:
        try:
            state.ended = self._launcher.poll(attempt.handle)
            state.waits.pop("poll", None)
        except Exception as error:
            tries = self._refused(attempt, "poll", error)
            if state.killed and tries >= _TRIES_KILLED:
                self._give_up(attempt, "poll", error)
            elif tries >= _TRIES and not passes(error):
                self.cancel(attempt, kill=True)

    def _is_due(self, state: _State, call: Call) -> bool:
        return call not in state.waits or self._clock() >= state.waits[call].due

    def _refused(self, attempt: Attempt, call: Call, error: Exception) -> int:
        """Puts the next try off; how many there were in a row."""
        wait = self._states[attempt.id].waits[call]
        pause = min(FIRST * 2**wait.tries, LONGEST)
        wait.tries, wait.due = wait.tries + 1, self._clock() + pause
        words = reason_of(error)
        if words != wait.words:
            wait.words = words
            self._tell(LauncherTrouble(name_of(attempt.trial), call, words, pause))
            _log(attempt, call, words)
        return wait.tries

    def _give_up(self, attempt: Attempt, call: Call, error: Exception) -> None:
        words = reason_of(error)
        self._states[attempt.id].ended = Exited("refused", words=words)
        _log(attempt, call, words)


def _log(attempt: Attempt, call: Call, words: str) -> None:
    with suppress(OSError):  # a full disk may be what it is about
        append(attempt.folder / LOG, f"launcher, {call}: {words}")
