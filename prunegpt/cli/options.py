"""The command line itself, options that several of its commands share, and how they print."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from prunegpt.errors import PruneGPTError, alternatives
from prunegpt.root import ROOT_VARIABLE, Root

app = typer.Typer(
    name="prunegpt",
    help="Prune GPT-style language models, recover the loss by distillation, and get tables of the measured results.",
    epilog="Start with: prunegpt quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in help are brackets, and a flag takes no <bool>
    context_settings={"help_option_names": ["-h", "--help"]},
)
sweep_app = typer.Typer(help="Check, run and inspect sweeps.", no_args_is_help=True)

_chosen: list[Root] = []  # the root of the command that runs, where it has one


def _root(given: str) -> Root:
    if given and Path(given).is_file():
        raise typer.BadParameter(f"Directory {given!r} is a file.")
    _chosen[:] = [Root.find(given)]
    return _chosen[0]


ROOT: Any = typer.Option(
    "",
    "--root",
    envvar=ROOT_VARIABLE,
    help="Results directory (default: ./runs).",
    metavar="DIRECTORY",
    parser=_root,
    show_default=False,
)
_outputs: list[TextIO] = []  # where JSON goes while nothing else may go there


def _alone(context: typer.Context, asked: bool) -> bool:
    """Has standard output to JSON alone: libraries print there, some when they are imported."""
    if asked:
        _outputs.append(sys.stdout)
        context.call_on_close(_outputs.pop)
        context.with_resource(redirect_stdout(sys.stderr))
    return asked


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.", callback=_alone)]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Override a field of the spec, such as base.model=gpt2. Repeatable."
    ),
]

TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Allow running code from the model's repository; review it first.")
]


def goes_with(other: str, **given: Any) -> None:
    """Refuses options that would have no effect, as what they go with was not given.

    Args:
        other: what they go with.
        given: name of an option -> its value; None, False or empty where it was not given.

    Raises:
        PruneGPTError: one was given.
    """
    found = [
        f"--{name.replace('_', '-')}"
        for name, value in given.items()
        if value or (isinstance(value, int) and not isinstance(value, bool))
    ]
    if found:
        named = alternatives(found)
        raise PruneGPTError(f"{named} would have no effect here: it goes with {other}. Add that, or leave it out.")


def located(text: str) -> str:
    """A message whose commands, between backticks, run on the root of the command that runs."""
    return _chosen[0].located(text) if _chosen else text


def say(text: str) -> None:
    """A line for people, on standard error, so that standard output stays what a script reads."""
    print(located(text), file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """JSON on standard output. NaN and infinity are refused."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False), file=_outputs[-1] if _outputs else None)


def number(value: Any) -> str:
    """A figure as tables show it: four significant digits, counts with separators, nothing for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    digits = 4
    while float(text := f"{value:.{digits}g}") == 1 != value and digits < 17:  # a share that is not whole
        digits += 1
    return text


def numbers(*values: float | None) -> list[str]:
    """Numbers that are shown together, in one notation."""
    texts = [number(value) for value in values]
    if not any("e" in text for text in texts):
        return texts
    return [number(value) if value is None else f"{value:.3e}" for value in values]


def duration(seconds: float | None) -> str:
    """1:02:03, or a dash where it is not known."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
