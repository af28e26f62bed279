"""prunegpt recipe: what a recipe means here, SparseML's included, and its translation."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegpt.cli import complete
from prunegpt.cli.options import JsonOption, goes_with, print_json, say

if TYPE_CHECKING:
    from prunegpt.recipes.matching import ModelNames

app = typer.Typer(help="Show or convert recipes, including both SparseML dialects.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="A recipe: YAML, or Markdown with YAML front matter.")]
ArgsOption = Annotated[
    list[str] | None,
    typer.Option("--recipe-args", metavar="NAME=VALUE", help="Override a recipe variable. Repeatable."),
]
VersionOption = Annotated[
    str | None, typer.Option("--strict-version", help="Match tensors as this version of SparseML did, such as 0.9.")
]


@app.command(epilog="Example: prunegpt recipe show recipe.yaml --steps-per-epoch 2318")
def show(
    file: FileArgument,
    steps_per_epoch: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps per epoch, to simulate the schedule.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model whose tensors are matched: a transformers folder or builtin:NAME.",
            autocompletion=complete.models,
        ),
    ] = None,
    arguments: ArgsOption = None,
    version: VersionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain what a recipe does.

    Tensors, mask updates, sparsity and learning rate over time, distillation, unsupported parts with the reason, and
    known problems with a fix.
    """
    from prunegpt.recipes.describe import describe, render
    from prunegpt.recipes.load import parse_overrides, read_meaning

    names = _names(model) if model else None
    meaning = read_meaning(file, parse_overrides(arguments or []), version=version, model=names)
    description: dict[str, Any] = describe(meaning, steps_per_epoch, names)
    if as_json:
        print_json(description)
    else:
        print("\n".join(render(description)))


def _names(model: str) -> "ModelNames":
    """What there is to match: the model without its weights, and among them what a run selects."""
    from prunegpt.lm.skeleton import build_empty
    from prunegpt.lm.views import matrices
    from prunegpt.recipes.matching import ModelNames

    empty = build_empty(model)
    classes = {
        f"{path}.{name}": type(module).__name__
        for path, module in empty.named_modules(remove_duplicate=False)
        for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)
    }
    return ModelNames(matrices(empty), classes)


@app.command(epilog="Example: prunegpt recipe fields --update sweeps/RECIPES.md")
def fields(
    update: Annotated[Path | None, typer.Option(help="Write it to this file instead.")] = None,
) -> None:
    """Print what becomes of each field of a modifier.

    Of SparseML and llm-compressor, as Markdown.
    """
    from prunegpt.recipes.catalogue import reference
    from prunegpt.root import write_text

    if update:
        write_text(update, reference())
        say(f"wrote {update}")
    else:
        print(reference(), end="")


@app.command(epilog="Example: prunegpt recipe convert old.yaml --out new.yaml")
def convert(
    file: FileArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; standard output if not given.")
    ] = None,
    stages: Annotated[
        bool, typer.Option("--stages", help="Write the `stages` of a spec instead of one recipe.")
    ] = False,
    teacher: Annotated[str | None, typer.Option(help="Teacher trial for distillation stages.")] = None,
    arguments: ArgsOption = None,
    lenient: Annotated[bool, typer.Option("--lenient", help="Skip unsupported modifiers with a warning.")] = False,
) -> None:
    """Convert a SparseML recipe to PruneGPT's YAML.

    For the `recipe` field of a stage, or as stages of a spec.
    """
    from prunegpt.recipes.convert import to_mapping, to_stages, to_yaml
    from prunegpt.recipes.load import parse_overrides, read_meaning
    from prunegpt.root import write_text

    if not stages:
        goes_with("--stages", teacher=teacher)
    meaning = read_meaning(file, parse_overrides(arguments or []))
    data: Any = (
        {"stages": to_stages(meaning, teacher=teacher, strict=not lenient)}
        if stages
        else to_mapping(meaning, strict=not lenient)
    )
    for note in meaning.notes:
        if note.level != "supported":
            say(f"note: {note.text}")
    text = to_yaml(data)
    if out:
        write_text(out, text)
        say(f"wrote {out}")
    else:
        print(text, end="")
