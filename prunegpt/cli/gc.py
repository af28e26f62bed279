"""prunegpt gc: what may go from the disk of a root, and what computing it again would take."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunegpt.cli import complete
from prunegpt.cli.options import ROOT, JsonOption, app, duration, print_json
from prunegpt.errors import counted, in_bytes, listed
from prunegpt.root import Root

if TYPE_CHECKING:
    from prunegpt.sweep.keep import Removable

_TRIALS = 3  # named in a row


@app.command(epilog="Example: prunegpt gc quickstart --keep best")
def gc(
    sweeps: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SWEEP]...",
            help="Only these sweeps (default: all).",
            show_default=False,
            autocompletion=complete.sweeps,
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            metavar="none|best|all",
            help="Models that stay (default: as each spec says).",
            show_default=False,
            autocompletion=complete.choice("none", "best", "all"),
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove; without it, only list.")] = False,
    root: Root = ROOT,
    as_json: JsonOption = False,
) -> None:
    """List models that may be removed, and remove them with --yes.

    Results, evaluations and mask hashes always stay, and so does every model that an unfinished trial needs. A model
    that is needed again is computed again: by the trials that build on it, or by `sweep retry` and `sweep resume`.
    Beside a running sweep, the models of that sweep are left alone.
    """
    from prunegpt.cli.tables import print_table
    from prunegpt.errors import PruneGPTError, unknown
    from prunegpt.store import Store
    from prunegpt.sweep.keep import KEEP, removable, remove_model
    from prunegpt.sweep.lock import coordinating, coordinator

    if keep is not None and keep not in KEEP:
        raise PruneGPTError(unknown("choice of models to keep", keep, KEEP))
    running = coordinator(root)
    with Store.open(root, create=False) as store, coordinating(root) if yes and not running else nullcontext():
        names = [store.sweep(name).name for name in sweeps or ()]
        policies = dict.fromkeys(names or [sweep.name for sweep in store.sweeps()], keep) if keep else {}
        found = removable(root, store, policies, spared=[running.sweep] if running else [], only=names or None)
        left = [] if names or running else _leftovers(root)
        gone = 0
        for one in found if yes else ():
            if running and coordinator(root) != running:  # the next one may need what this one does not
                break
            remove_model(root, one.key)
            gone += 1
        for _, remove in left if yes else ():
            remove()
    broken_off, found = yes and gone < len(found), found[:gone] if yes else found
    freed, seconds = sum(one.bytes for one in found), sum(one.seconds for one in found)
    if as_json:
        removed = {"removed": yes, "bytes": freed, "seconds_to_compute_again": seconds}
        print_json({**removed, "models": [asdict(one) for one in found], "leftovers": [str(path) for path, _ in left]})
        return
    if found:
        print_table(["stage", "kind", "trials", "size", "to compute again"], map(_row, found))
    for path, _ in left:
        print(f"leftover: {path}")
    print(f"{counted(len(found), 'model')} {'removed' if yes else 'may be removed'}: {in_bytes(freed)}.")
    if found:
        print(f"Computing all of them again would take {duration(seconds)}.")
    if running:
        print(f"{running.sweep or 'a sweep'} is running: its models were left alone.")
    if broken_off:
        print("Another sweep has begun or this one has ended meanwhile: run it again for the rest.")
    if (found or left) and not yes:
        again = root.command("gc", *names, *(["--keep", keep] if keep else []), "--yes")
        print(f"Remove them: {again}")
    elif not found and not keep:
        print(
            f"Specs keep all models unless they say `keep`: {root.command('gc', '--keep', 'best')} lists what would go."
        )


def _row(one: "Removable") -> list[str]:
    used = listed(one.trials, _TRIALS) if one.trials else "an earlier configuration"
    return [one.key, one.kind, used, in_bytes(one.bytes), duration(one.seconds)]


def _leftovers(root: Root) -> "list[tuple[Path, Callable[[], object]]]":
    """What crashes left and nobody reads, and how to remove it."""
    from prunegpt.sweep.repair.leftovers import leftovers

    return [(found.path, found.apply) for found in leftovers(root) if found.deletes]
