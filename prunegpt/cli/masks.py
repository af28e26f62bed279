"""prunegpt masks: the masks of pruned models, from the shell."""

from pathlib import Path
from typing import Annotated

import typer

from prunegpt.cli import complete
from prunegpt.cli.options import ROOT, JsonOption, number, print_json
from prunegpt.errors import counted
from prunegpt.root import Root

app = typer.Typer(help="Verify and compare pruning masks.", no_args_is_help=True)
MaskedArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Saved model with masks.safetensors, or SWEEP/TRIAL.",
        show_default=False,
        autocompletion=complete.models,
    ),
]


@app.command(epilog="Example: prunegpt masks check ./gpt2-50")
def check(
    folder: Annotated[Path, typer.Argument(help="Saved model with masks.safetensors, or a stage folder.")],
    as_json: JsonOption = False,
) -> None:
    """Verify a saved model against its masks.

    Mask hash, zeros under every mask, N:M or block pattern. Exits with 1 on a mismatch.
    """
    from prunegpt.cli.tables import print_sparsities
    from prunegpt.lm.models import load_model
    from prunegpt.lm.views import select
    from prunegpt.pruning import masks
    from prunegpt.pruning.patterns import parse_pattern

    model_folder = folder / "model" if (folder / "model").is_dir() else folder
    file = masks.load_masks(folder / "masks.safetensors")
    model = load_model(model_folder, device="cpu")
    views = select(model, targets=tuple(file.masks))
    masks.check(views, file.masks, pattern=parse_pattern(file.pattern))
    found = masks.measure_sparsity(views, dict(model.named_parameters()))
    report = {
        "ok": True,
        "method": file.method,
        "pattern": file.pattern,
        "target": file.target,
        "sparsity": found.pruned,
        "sparsity_of_all_parameters": found.model,
        "sha256": file.sha256,
        "by_tensor": dict(found.by_tensor),
    }
    if as_json:
        print_json(report)
        return
    print_sparsities(found.by_tensor)
    print(f"the masks hold: {file.method}, {file.pattern}, sparsity {number(found.pruned)}, sha256 {file.sha256[:16]}")


@app.command(epilog="Example: prunegpt masks compare sweep/wanda-bfloat16 sweep/wanda-float32")
def compare(one: MaskedArgument, other: MaskedArgument, root: Root = ROOT, as_json: JsonOption = False) -> None:
    """Count the weights that two models both keep, or both prune.

    Two masks of sparsity s that have nothing in common but that agree in 1 - 2s(1 - s) of their weights.
    """
    from prunegpt.pruning import masks

    found = [masks.load_masks(_folder(name, root) / "masks.safetensors").masks for name in (one, other)]
    shares, overall = masks.agreement(*found)
    if as_json:
        print_json({"agreement": overall, "by_tensor": shares})
        return
    least = min(shares, key=lambda name: shares[name])
    print(f"the masks agree in {overall:.4%} of the weights of {counted(len(shares), 'tensor')}")
    print(f"least in {least}: {shares[least]:.4%}")


def _folder(source: str, root: Root) -> Path:
    """The folder with a model's masks."""
    from prunegpt.cli.measure import stored_result

    trial = stored_result(source, root)
    return root.stage(trial.plan.key) if trial else Path(source)
