"""The command line. Heavy parts are imported inside the commands: `--help` and `sweep status` never import torch."""

import errno
import os
import platform
import sys

import typer

from prunegpt import __version__
from prunegpt.cli import (  # noqa: F401
    begin,
    control,
    doctor,
    export,
    gc,
    masks,
    models,
    recipe,
    reproduce,
    serve,
    shrink,
    speed,
    status,
    sweep,
    table,
    train,
    trial,
    wandb,
    watch,
)
from prunegpt.cli.options import app, say, sweep_app
from prunegpt.errors import PruneGPTError
from prunegpt.memory import reuse_memory
from prunegpt.planning.fingerprint import extra_versions, undecided, versions

WAYS_OUT = {
    errno.ENOSPC: "Free some space, or use another --root; then run the same command again to resume.",
    errno.EROFS: "Use another --root, or make the file system writable.",
    errno.ENAMETOOLONG: "Use an existing name, or a shorter path.",
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "There is a file where a folder is needed: move it, or use another path.",
    errno.EISDIR: "There is a folder where a file is needed: move it, or use another path.",
    errno.EACCES: "Use another --root, or get write permission.",
}


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    verbose: bool = typer.Option(False, "--verbose", help="With --version: of all that decides results, too."),
) -> None:
    if not version:
        if verbose:
            raise typer.BadParameter("--verbose goes with --version.")
        return
    typer.echo(f"PruneGPT {__version__}" if verbose else __version__)
    if verbose:
        for name, found in {"python": platform.python_version(), **versions(), **extra_versions()}.items():
            typer.echo(f"{name} {found}")
    raise typer.Exit


app.add_typer(sweep_app, name="sweep")
app.add_typer(trial.app, name="trial")
app.add_typer(recipe.app, name="recipe")
app.add_typer(masks.app, name="masks")
app.add_typer(wandb.app, name="wandb")


def main() -> None:
    """Runs the command line; an error meant for the user is its message and exit status 1."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads are slow beside any other process
    reuse_memory()
    if not sys.stderr.isatty():  # a bar that redraws itself makes a log unreadable
        for library in ("HF_HUB", "HF_DATASETS"):
            os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    if dropped := undecided(os.environ):
        say(f"note: {', '.join(dropped)} would change what is computed and is not used. Set `precision` and `train`.")
    try:
        app()
    except PruneGPTError as error:
        say(f"error: {error}")
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:  # a disk that is full or cannot be written; anything else is a defect, and shown whole
        if error.errno not in WAYS_OUT:
            raise
        say(f"error: {error}. {WAYS_OUT[error.errno]}")
        sys.exit(1)
