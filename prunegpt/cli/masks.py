"""prunegpt masks: does a saved model keep what its masks say?"""

from pathlib import Path
from typing import Annotated

import typer

from prunegpt.cli.options import JsonOption, number, print_json, print_table

app = typer.Typer(help="Look after the masks of saved models.", no_args_is_help=True)


@app.command(epilog="Example: prunegpt masks check ./gpt2-50")
def check(
    folder: Annotated[Path, typer.Argument(help="A saved model with masks.safetensors, or a stage's folder.")],
    as_json: JsonOption = False,
) -> None:
    """Verify a saved model: the masks' hash, zeros under every mask, N:M or blocks; exit status 1 where it drifted."""
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
    print_table(["tensor", "sparsity"], found.by_tensor.items())
    print(f"the masks hold: {file.method}, {file.pattern}, sparsity {number(found.pruned)}, sha256 {file.sha256[:16]}")
