"""prunegpt quickstart and init: what a newcomer types first. Both need nothing but the installed package."""

import re
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from prunegpt.cli import complete
from prunegpt.cli.control import LauncherOption, SlotsOption, execute
from prunegpt.cli.options import ROOT, app, say
from prunegpt.root import Root
from prunegpt.spec.only import RunOptions


@app.command(epilog="Example: prunegpt quickstart --slots 2")
def quickstart(root: Root = ROOT, launcher: LauncherOption = None, slots: SlotsOption = None) -> None:
    """Run a small study on the built-in model.

    Fine-tuned, distilled, pruned to 90%, and each layer alone: minutes on two cores, with no download. Run it again to
    resume; a second run takes everything from the cache.
    """
    from prunegpt.planning.resolve import Planner
    from prunegpt.sweep.curves import curves_in
    from prunegpt.templates import QUICKSTART

    with as_file(files("prunegpt.templates") / f"{QUICKSTART}.yaml") as spec:
        execute(Planner(spec, [], root, curves_in(root), strict=True), root, RunOptions(None, launcher, slots))
    begun = "prunegpt init oneshot --model MODEL --data FILE (a spec of your own)"
    print(f"Next: {root.command('serve')} (the dashboard), {begun}")


@app.command(epilog="Example: prunegpt init oneshot --model gpt2 --data train.txt --validation test.txt")
def init(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="[study|oneshot|search|seeds|recover|shrink]",
            help="Template.",
            show_default=False,
            autocompletion=complete.templates,
        ),
    ] = "study",
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="Spec to write (default: KIND.yaml).", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Hub id, folder, or .gguf file (default: the built-in model).",
            autocompletion=complete.models,
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FILE|HUB",
            help="Dataset: file, folder or hub id (default: the built-in text).",
            autocompletion=complete.datasets,
            show_default=False,
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            "--validation",
            metavar="FILE",
            help="File to evaluate on, where --data is a single file.",
            autocompletion=complete.datasets,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a commented spec to start from.

    study: pruning, fine-tuning and distillation; oneshot: methods by sparsities; search: two objectives with early
    stopping; seeds: means over seeds; recover: prune, then distil; shrink: fewer and narrower layers, healed.
    """
    from prunegpt.errors import PruneGPTError, unknown
    from prunegpt.planning.facts import positions_of
    from prunegpt.root import write_text
    from prunegpt.templates import fill, names

    if kind not in names():
        raise PruneGPTError(unknown("template", kind, names()))
    spec = out or Path(f"{kind}.yaml")
    if spec.exists():
        raise PruneGPTError(f"init writes a new file; {spec} is there already. Name another, or remove it.")
    if validation is not None and (data is None or not Path(data).is_file()):
        raise PruneGPTError(f"--validation goes with --data FILE, got --data {data}. Pass the file to train on.")
    texts = {"train": data, "validation": validation} if data and validation else {"path": data} if data else {}
    name = re.sub(r"[^A-Za-z0-9._=+,@-]", "-", spec.stem)
    write_text(spec, fill(kind, name=name, model=model, data=texts, positions=positions_of(model)))
    check, run = (Root.find().command("sweep", what, str(spec)) for what in ("check", "run"))
    print(f"{spec}: written. Next: {check}, then {run}")
    if data and not validation and Path(data).is_file():
        say(f"note: {data} is trained and evaluated on; pass --validation FILE for another text to evaluate on.")
