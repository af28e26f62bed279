"""prunegpt doctor: what is installed, where results go, what would not work and why; and repairing a damaged root."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegpt.cli import complete
from prunegpt.cli.options import ROOT, JsonOption, app, goes_with, located, print_json
from prunegpt.errors import PruneGPTError
from prunegpt.root import Root

if TYPE_CHECKING:
    from prunegpt.sweep.repair import Finding

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "optuna", "wandb", "SQLAlchemy", "typer")
OPTIONAL = {"submitit": "launcher slurm", "ray": "launcher ray", "psycopg": "a PostgreSQL store"}


@app.command(epilog="Example: prunegpt doctor --model gpt2 --block-size 512")
def doctor(
    model: Annotated[
        str | None,
        typer.Option(
            help="Describe this model instead: what would be pruned, memory, what would not work. Loads no weights.",
            autocompletion=complete.models,
        ),
    ] = None,
    windows: Annotated[
        int | None, typer.Option(min=1, help="With --model: calibration windows (default: 128).")
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(min=1, help="With --model: tokens per window and sequence (default: 1024).")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="With --model: sequences trained on at a time (default: 8).")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="With --model: memory of a device to compare with, such as 24GiB."),
    ] = None,
    root: Root = ROOT,
    repair: Annotated[
        bool, typer.Option("--repair", help="Verify all results and repair damaged ones; asks before deleting.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --repair: delete leftovers without confirmation.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check the installation and the results.

    Packages, devices, root and network; reports what would not work and why.

    --model describes a model instead, from its config and the headers of its files. --repair fixes results that were
    truncated, edited, or partly copied or deleted, and reports each fix.
    """
    from prunegpt import __version__
    from prunegpt.sweep.repair import examine

    asked = {"windows": windows, "block_size": block_size, "batch_size": batch_size, "device": device}
    given = {name: value for name, value in asked.items() if value is not None}
    _check_together(model, given, repair=repair)
    if not repair:
        goes_with("--repair", yes=yes)
    if model is not None:
        from prunegpt.cli.model_report import Asked, print_report
        from prunegpt.cli.model_report import report as report_of

        described = report_of(model, Asked(windows or 128, block_size or 1024, batch_size or 8, device))
        (print_json if as_json else print_report)(described)
        return
    if repair:
        _repair(root, yes, as_json)
        return
    report: dict[str, Any] = {
        "prunegpt": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in (*PACKAGES, *OPTIONAL)},
        "devices": _devices(),
        "root": _root(root.path),
        "hub_offline": os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True"),
    }
    found = examine(root, deep=False)
    report["findings"] = [_finding(one, root) for one in found]
    report["problems"] = [*_problems(report)]
    for one in found:
        hint = " `prunegpt doctor --repair` fixes it." if one.fix else ""
        text = f"{_below(one, root)}: {one.text}{hint}"
        severe = one.kind == "folder" or (bool(one.fix) and not one.deletes)
        report["problems"].append({"severe": severe, "text": text})
    if as_json:
        print_json(report)
    else:
        _print(report)
    if any(problem["severe"] for problem in report["problems"]):
        raise typer.Exit(1)


def _check_together(model: str | None, given: Mapping[str, Any], *, repair: bool) -> None:
    """Refuses options that would have no effect.

    Args:
        given: what is asked of a model.
    """
    if given and model is None:
        wrong = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items())
        raise PruneGPTError(f"what is asked of a model goes with --model, got {wrong} alone. Add --model MODEL.")
    if repair and model is not None:
        raise PruneGPTError(f"--repair is of a root, got --model {model} beside it. Leave one of the two out.")


def _repair(root: Root, yes: bool, as_json: bool) -> None:
    from prunegpt.sweep.repair import repair

    def may(finding: "Finding") -> bool:
        if not finding.deletes or yes:
            return True
        if as_json or not sys.stdin.isatty():
            return False
        return typer.confirm(f"{_below(finding, root)}: {finding.text} Delete it?", err=True)

    done = repair(root, may)
    if as_json:
        print_json({"root": str(root.path), "findings": [_finding(one, root) | {"mended": did} for one, did in done]})
        return
    for one, did in done:
        status = "fixed" if did else "left (pass --yes to delete it)" if one.deletes else "left"
        print(f"{_below(one, root)}: {one.text}" + (f" {status}: {one.fix}." if one.fix else ""))
    print(
        f"{root.path}: {sum(did for _, did in done)} of {len(done)} findings fixed." if done else "no problems found."
    )


def _finding(finding: "Finding", root: Root) -> dict[str, Any]:
    told = {"kind": finding.kind, "text": finding.text, "mend": finding.fix, "deletes": finding.deletes}
    return {**told, "path": _below(finding, root)}


def _below(finding: "Finding", root: Root) -> str:
    return finding.path.relative_to(root.path).as_posix()


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    """What torch can compute on; asking it is the one thing here that imports torch."""
    try:
        import torch
    except ImportError as error:
        return [{"name": "none", "error": str(error)}]
    found: list[dict[str, Any]] = [{"name": "cpu", "threads": torch.get_num_threads()}]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        found.append({"name": f"cuda:{index}", "card": card.name, "gigabytes": round(card.total_memory / 2**30, 1)})
    if torch.backends.mps.is_available():
        found.append({"name": "mps"})
    return found


def _root(path: Path) -> dict[str, Any]:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return {
        "path": str(path),
        "exists": path.exists(),
        "writable": os.access(existing, os.W_OK),
        "free_gigabytes": round(shutil.disk_usage(existing).free / 2**30, 1),
    }


def _problems(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name in PACKAGES:
        if report["packages"][name] is None:
            yield {"severe": True, "text": f"{name} is not installed: pip install {name}"}
    for name, use in OPTIONAL.items():
        if report["packages"][name] is None:
            yield {"severe": False, "text": f"{name} is not installed: {use} would not work"}
    if report["devices"][0].get("error"):
        yield {"severe": True, "text": f"torch does not import: {report['devices'][0]['error']}"}
    elif len(report["devices"]) == 1:
        yield {"severe": False, "text": "no accelerator: everything runs, on the CPU"}
    if not report["root"]["writable"]:
        yield {"severe": True, "text": f"{report['root']['path']} cannot be written: pass --root or set PRUNEGPT_ROOT"}
    if report["root"]["free_gigabytes"] < 5:
        yield {"severe": False, "text": f"only {report['root']['free_gigabytes']} GB free under the root"}
    if report["hub_offline"]:
        yield {
            "severe": False,
            "text": "HF_HUB_OFFLINE is set: models and datasets that are not cached are unavailable",
        }


def _print(report: dict[str, Any]) -> None:
    from prunegpt.cli.tables import print_table

    print(f"PruneGPT {report['prunegpt']}, Python {report['python']}")
    print_table(["package", "version"], ([name, found or "missing"] for name, found in report["packages"].items()))
    for device in report["devices"]:
        print("device " + ", ".join(f"{key} {value}" if key != "name" else str(value) for key, value in device.items()))
    root = report["root"]
    print(f"root {root['path']} ({'exists' if root['exists'] else 'not there yet'}, {root['free_gigabytes']} GB free)")
    for problem in report["problems"]:
        print(f"{'problem' if problem['severe'] else 'note'}: {located(problem['text'])}")
