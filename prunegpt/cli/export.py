"""prunegpt export: a model as files that others run."""

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegpt.builtin import is_builtin
from prunegpt.cli import complete
from prunegpt.cli.models import ModelArgument, check_out
from prunegpt.cli.options import ROOT, JsonOption, TrustOption, app, print_json
from prunegpt.errors import PruneGPTError
from prunegpt.registry import EXPORT_FORMATS
from prunegpt.root import Root

if TYPE_CHECKING:
    from prunegpt.records import TrialResult
    from prunegpt.spec.plan import TrialPlan
    from prunegpt.stages.base import ModelState

_FORMATS = ", ".join(EXPORT_FORMATS.builtin_names())


@app.command(
    epilog="Example: prunegpt export quickstart/pruned90 ./pruned90; prunegpt export ./pruned90 --to gguf "
    "./pruned90.gguf --dtype q8_0; prunegpt export ./pruned90 --to packed ./packed --dtype bfloat16"
)
def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder or file to write.", show_default=False)],
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help=f"{_FORMATS}.", autocompletion=complete.export_formats)
    ] = "folder",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the weights in it; auto: the narrowest that holds every weight bit for bit.",
            autocompletion=complete.choice("auto", "float32", "bfloat16", "float16", "q8_0"),
        ),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Of one safetensors file of a folder, such as 5GB.")] = "50GB",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT where it is empty or an export of ours.")
    ] = False,
    trust_remote_code: TrustOption = False,
    root: Root = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Write a model for others, and check what was written.

    folder: an ordinary transformers folder with tokenizer, model card and, where it was pruned, masks.safetensors.

    gguf: one file for llama.cpp, Ollama and LM Studio, of the families that transformers reads back.

    packed: a folder whose weights are stored without their zeros, and unpack.py, which reads it without PruneGPT.

    OUT appears when the check has passed, or not at all.
    """
    from prunegpt.cli.measure import open_model, stored_result
    from prunegpt.cli.progress import bar
    from prunegpt.exporting.base import Export, narrowest
    from prunegpt.exporting.card import model_card
    from prunegpt.exporting.run import format_of, run

    check_out(out, overwrite)
    if not re.fullmatch(r"(?!0+(\.0*)?[a-z])\d+(\.\d+)?[kmgt]b", max_shard_size, re.IGNORECASE):
        raise PruneGPTError(f"a size is a number above 0 with KB, MB, GB or TB, got {max_shard_size!r}. Write 5GB.")
    form, kind = format_of(to, out, dtype)
    result = stored_result(model, root)
    state = open_model(model, root, "cpu", trust_remote_code=trust_remote_code)
    kind = narrowest(state.model) if kind == "auto" else kind
    name = result.address if result else Path(model).name
    about = {"model": name, "format": to, "dtype": kind, **_weights(state), **_origin(model, result, root)}
    table = _table(result, root) if result else ""
    made = Export(
        state,
        dtype=kind,
        about=about,
        card=model_card(about, table, state.notes),
        max_shard_size=max_shard_size,
        code=(result.plan.model.source if result else model) if trust_remote_code else None,
    )
    check_out(out, overwrite)  # once more: what came before may have taken minutes
    with bar(f"exporting to {to}") as progress:
        made.progress = progress
        found = run(form, made, out, replace=overwrite)
    if as_json:
        print_json({**about, "out": str(out), "bytes": found.size, "checks": [asdict(one) for one in found.checks]})
        return
    for check in found.checks:
        print(check)
    for note in state.notes:
        print(f"note: {note}")
    print(f"saved {out}: {found.size / 1e6:,.1f} MB, {kind}")


def _weights(state: "ModelState") -> dict[str, Any]:
    """What is counted from the weights."""
    from prunegpt.stages.measure import count_zeros

    zeros = count_zeros(state)
    return {
        "parameters": zeros.parameters,
        "nonzero": round(zeros.parameters * (1 - zeros.overall)),
        "sparsity": zeros.pruned,
        "method": state.pruned.method,
        "pattern": state.pruned.pattern,
    }


def _origin(model: str, result: "TrialResult | None", root: Root) -> dict[str, Any]:
    """Where a model came from, without paths of this machine; equal for equal results."""
    from importlib.metadata import version

    from prunegpt import __version__
    from prunegpt.planning.hub import license_of
    from prunegpt.planning.sources import model_place
    from prunegpt.report.archive import public
    from prunegpt.spec.schema import ModelSpec

    plan = result.plan if result else None
    base = plan.model if plan else ModelSpec(source=model)
    local = is_builtin(base.source) or model_place(base.source) is not None
    here = {name: version(name) for name in ("torch", "transformers")}
    versions = dict(result.stages[-1].versions) if result and result.stages else here
    measured = result.measured if result else None
    return {
        "base": {
            "source": base.name if local else base.source,
            "revision": base.revision,
            "hub": not local,
            "license": license_of(base.source, base.revision),
        },
        "stages": [{"kind": stage.kind, "key": stage.key} for stage in result.stages] if result else [],
        "evaluation": measured.model_dump(mode="json", exclude={"seconds", "scores"}) if measured else None,
        "datasets": _datasets(plan) if plan else [],
        "versions": {"prunegpt": __version__, **versions},
        "config": public(result.model_dump(mode="json")["plan"]["config"]) if result else {},
    }


def _datasets(plan: "TrialPlan") -> list[str]:
    """What was trained and measured on, by name."""
    specs = (plan.data, *(one.evaluate.data for one in plan.evaluations))
    found = [
        " ".join(filter(None, (Path(data.path).name if data.path.startswith("/") else data.path, data.name)))
        if data.path
        else ", ".join(sorted({Path(file).name for files in (data.files or {}).values() for file in files}))
        for data in specs
        if data
    ]
    return list(dict.fromkeys(found))


def _table(result: "TrialResult", root: Root) -> str:
    """The row of a trial as tables show it, in Markdown."""
    from prunegpt.api import stored
    from prunegpt.report.declared import tables_of
    from prunegpt.report.render import markdown

    found = stored(result.sweep, root)
    alone = tuple(one for one in found.results if one.address == result.address)
    return "\n".join(markdown.body(table) for table in tables_of(replace(found, tables=(), results=alone)))
