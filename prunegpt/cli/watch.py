"""prunegpt sweep watch: a running sweep in the terminal, from the store alone."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from prunegpt.cli import complete
from prunegpt.cli.options import ROOT, JsonOption, duration, number, print_json, sweep_app
from prunegpt.root import Root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from prunegpt.sweep.live import End, Frame, Slot
    from prunegpt.sweep.queue import Waiter

_REFRESH = 1.0  # seconds
_ORDER = ("finished", "running", "waiting", "failed", "diverged", "stopped")
_COLOURS = {"finished": "green", "running": "cyan", "failed": "red", "diverged": "magenta", "stopped": "yellow"}


@sweep_app.command(epilog="Example: prunegpt sweep watch quickstart")
def watch(
    name: Annotated[
        str | None,
        typer.Argument(help="Sweep name (default: all sweeps).", show_default=False, autocompletion=complete.sweeps),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print the current state once and exit.")] = False,
    root: Root = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Watch running trials live.

    Stage, tokens, time left, loss and perplexity per slot, and recent results.

    Works from any terminal, on any machine that can read the root. Exits when the sweep ends, or with Ctrl-C.
    """
    from prunegpt.store import Store
    from prunegpt.sweep.live import look

    with Store.open(root, create=False) as store:
        if as_json:
            print_json(asdict(look(root, store, name)))
            return
        from rich.console import Console
        from rich.live import Live

        console = Console()
        frame = look(root, store, name)
        if once:
            console.print(picture(frame, name, console.width))
            return
        try:
            with Live(picture(frame, name, console.width), console=console, auto_refresh=False) as live:
                while frame.slots or frame.coordinator is not None or frame.queue:
                    time.sleep(_REFRESH)
                    frame = look(root, store, name)
                    live.update(picture(frame, name, console.width), refresh=True)
        except KeyboardInterrupt:
            return


def picture(frame: "Frame", name: str | None, width: int) -> "RenderableType":
    """One frame as text for a terminal of that many columns."""
    from rich.console import Group
    from rich.text import Text

    from prunegpt.cli.tables import build

    counts = [f"{count} {state}" for state in _ORDER if (count := frame.states.get(state, 0))]  # type: ignore[call-overload]
    head = Text(f"{name or 'all sweeps'}: ", style="bold") + Text(" · ".join(counts) or "no trials", style="not bold")
    who = frame.coordinator
    head.append("\n")
    other = f"{who.sweep} is " if who and who.sweep and who.sweep != name else ""
    head.append(f"{other}run by process {who.pid} on {who.host}" if who else "nothing runs", style="dim")
    for line in queue_lines(frame.queue):
        head.append(f"\n{line}", style="dim")
    columns = ("trial", "stage", "progress", "done", "left", "perplexity", "loss")
    table = build(columns, [_row(slot, name) for slot in frame.slots], width, spare=("done", "loss", "progress"))
    ends = [_line(end, name) for end in frame.ends]
    return Group(head, *([table] if frame.slots else []), *ends)


def queue_lines(queue: "Sequence[Waiter]") -> list[str]:
    """Who waits to run, in order."""
    return [
        f"waits, place {place}: {one.sweep} (priority {one.priority}, process {one.pid} on {one.host})"
        for place, one in enumerate(queue, 1)
    ]


def _row(slot: "Slot", name: str | None) -> list["str | RenderableType"]:
    from rich.progress_bar import ProgressBar

    tokens, total, done = slot.tokens_total, slot.total or 0, max(0, slot.step)
    share = f"{_short(slot.tokens)}" + (f" of {_short(tokens)}" if tokens else "") if slot.tokens else ""
    if slot.calibrated is not None:
        total, done, share = 100, round(100 * slot.calibrated), f"calibrating, {slot.calibrated:.0%}"
    elif total and not slot.tokens:
        share = f"{done} of {total}"
    bar = ProgressBar(total=total, completed=min(done, total), width=20) if total else ""
    again = f" (attempt {slot.attempt})" if slot.attempt > 1 else ""
    return [
        slot.trial.removeprefix(f"{name}/") + again,
        f"{slot.stage + 1}/{slot.stages} {slot.kind}",
        bar,
        share,
        duration(slot.eta),
        number(slot.perplexity),
        number(slot.loss),
    ]


def _line(end: "End", name: str | None) -> "RenderableType":
    from rich.text import Text

    clock = time.strftime("%H:%M:%S", time.localtime(end.ended))
    text = f"{clock} {end.trial.removeprefix(f'{name}/')}: {end.outcome}"
    if end.reason and end.reason not in (end.outcome, "cache"):
        text += f" ({end.reason})"
    if end.error:
        text += f": {end.error.splitlines()[0]}"
    return Text(text, style=_COLOURS.get(end.outcome, ""), overflow="ellipsis", no_wrap=True)


def _short(count: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
