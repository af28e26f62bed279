"""A running sweep on the terminal: a bar for the whole, a line for each running trial, a line for each that ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from prunegpt.cli.options import duration, located, number
from prunegpt.errors import counted, listed
from prunegpt.report.format import percent
from prunegpt.sweep import events

if TYPE_CHECKING:
    from prunegpt.spec.plan import SweepPlan


@contextmanager
def follow(plan: "SweepPlan") -> Iterator[Callable[[events.Event], None]]:
    """Shows events as they come, on standard error; plain lines where that is no terminal."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    notebook = console.is_jupyter and find_spec("ipywidgets") is not None  # without them a bar cannot move there
    with Progress(*columns, console=console, transient=True, disable=not (console.is_terminal or notebook)) as bars:
        for text in plan.unchecked:
            console.print(f"not checked: {text}", markup=False)
        yield _ProgressTable(plan, console, bars).show


@contextmanager
def bar(what: str) -> Iterator[Callable[..., None]]:
    """A progress bar for one long task; nothing if standard error is not a terminal.

    Yields:
        takes what is done, the whole, and what is being done, if it is not what the bar is for.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total, now=what: bars.update(task, completed=done, total=total, description=now)


class _ProgressTable:
    def __init__(self, plan: "SweepPlan", console: Console, bars: Progress) -> None:
        self.plan = plan
        self.console = console
        self.bars = bars
        self.whole = bars.add_task(plan.name, total=plan.expected, note="")
        self.running: dict[str, TaskID] = {}
        self.queued: tuple[events.Queued, TaskID] | None = None

    @property
    def _searched(self) -> str:
        """How many trials the searches of the plan suggest, in words."""
        counts = {one.name: one.spec.n_trials for one in self.plan.searches}
        ends = {name: "until its budget is used" if count is None else number(count) for name, count in counts.items()}
        return "".join(f"; {name} suggests trials: {end}" for name, end in ends.items())

    def line(self, text: str) -> None:
        with suppress(OSError):  # the screen may go; the sweep does not go with it
            self.console.print(located(text), markup=False, highlight=False, soft_wrap=True)

    def show(self, event: events.Event) -> None:
        match event:
            case events.Queued():
                self._wait(event)
            case events.SweepStarted():
                if self.queued:
                    self.bars.remove_task(self.queued[1])
                    self.line(f"{event.sweep}: its turn has come")
                known = event.trials + event.finished
                total = None if self.plan.expected is None else max(self.plan.expected, known)
                self.bars.update(self.whole, total=total, completed=event.finished)
                to_run = f"{counted(event.trials, 'trial')} to run"
                self.line(f"{event.sweep}: {to_run}, {event.finished} finished before{self._searched}")
                for trials, what in ((event.outdated, "compute again"), (event.remeasured, "measure again")):
                    if trials:
                        which = f"{counted(len(trials), 'finished trial')} ({listed(trials, _LISTED)})"
                        self.line(f"  {what}: {which}, as {'; '.join(event.because)}")
                if event.outdated:
                    self.line("  their earlier models stay in stages/")
                if event.replaced:
                    self.line(f"  {event.replaced}")
                for trial in event.lost:
                    self.line(f"  {trial}: its attempt was lost; it resumes from its last checkpoint")
            case events.CacheHit():
                self.line(f"  {event.trial}: from the cache, {_result(event.perplexity, event.sparsity)}")
                self.bars.advance(self.whole)
            case events.TrialStarted():
                cached = f"{event.cached} of {counted(event.stages, 'stage')} cached"
                self.line(f"  {event.trial}: {_again(event)}started, {cached}")
                self.running[event.trial] = self.bars.add_task(f"  {event.trial}", total=None, note="")
            case events.StagePublished():
                self.line(f"  {event.trial}: {event.kind} published after {event.seconds:.0f} s")
            case events.AttemptProgress():
                self._progress(event)
            case events.TrialFinished():
                result = _result(event.perplexity, event.sparsity)
                self._end(event.trial, f"{_again(event)}finished in {event.seconds:.0f} s, {result}")
            case events.TrialFailed():
                again = "; retrying" if event.retried else ""
                self._end(event.trial, f"{event.state} ({event.reason}): {event.error}{again}", done=not event.retried)
                if event.log:
                    self.line(f"    log: {event.log}")
            case events.TargetReached():
                self.line(
                    f"  {event.trial}: {event.metric} {number(event.value)} reaches the target {number(event.target)}: "
                    f"nothing more is started"
                )
            case events.LauncherTrouble():
                self.line(f"  {event.trial or 'launcher'}: {_TROUBLE[event.call]}: {event.error}")
            case events.Stopping():
                how = (
                    "stopping at once"
                    if event.kill
                    else "stopping: running stages write a checkpoint (Ctrl-C again kills)"
                )
                self.line(how)

    def _wait(self, event: events.Queued) -> None:
        """A line where the order changes, and a bar for how far the sweep is that runs."""
        before, task = self.queued or (None, self.bars.add_task("", note=""))
        runs = event.runs or "another sweep"
        now = f"{runs} runs ({event.by})" if event.by else "nothing runs for a moment"
        order = f"place {event.place} of {event.waiting} in the queue"
        done = f", {event.done} of {counted(event.trials, 'trial')} done" if event.trials else ""
        ahead = f", behind {', '.join(event.ahead)}" if event.ahead else ""
        if before is None or (before.ahead, before.by) != (event.ahead, event.by):
            self.line(f"{event.sweep}: waiting, {order}{ahead}; {now}{done}")
            if event.runs == event.sweep:
                self.line(f"  That is this very sweep: `prunegpt sweep watch {event.sweep}` shows it from here too.")
        if before is None:
            self.line("  Ctrl-C leaves the queue; nothing is lost. `prunegpt sweep status` shows it.")
        self.queued = event, task
        self.bars.update(task, description=f"waiting for {runs}", completed=event.done, total=event.trials, note=order)

    def _progress(self, event: events.AttemptProgress) -> None:
        task = self.running.get(event.trial)
        if task is None:
            return
        parts = [event.kind, *([f"{number(event.tokens)} tokens"] if event.tokens else [])]
        parts += [f"calibrating, {event.calibrated:.0%}"] if event.calibrated is not None else []
        parts += [f"loss {number(event.loss)}"] if event.loss is not None else []
        parts += [f"perplexity {number(event.perplexity)}"] if event.perplexity is not None else []
        parts += [f"{duration(event.eta)} left"] if event.eta is not None else []
        self.bars.update(task, completed=max(0, event.step), total=event.total, note=" · ".join(parts))

    def _end(self, trial: str, text: str, *, done: bool = True) -> None:
        self.line(f"  {trial}: {text}")
        task = self.running.pop(trial, None)
        if task is not None:
            self.bars.remove_task(task)
        if done:
            self.bars.advance(self.whole)


_LISTED = 4  # trials that a line names
_TROUBLE = {
    "submit": "not accepted yet, and submitted again later",
    "poll": "the launcher does not report its state, and is polled again",
    "cancel": "cannot be cancelled yet, and is tried again",
    "close": "cannot be closed",
}


def _again(event: events.TrialStarted | events.TrialFinished) -> str:
    """Which attempt, where it is not the first: its seconds are its own, those of a stage are of all attempts."""
    return f"attempt {event.attempt} " if event.attempt > 1 else ""


def _result(perplexity: float | None, sparsity: float | None) -> str:
    zeros = f", {percent(round(100 * sparsity, 10))}% sparse" if sparsity else ""
    return f"perplexity {number(perplexity)}{zeros}"
