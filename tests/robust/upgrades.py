"""An upgrade of each dependency in turn: what is computed again, whether it is said why, and whether the table holds.

`python -m tests.robust.upgrades [PACKAGE …]` needs a package index and minutes. For each dependency of pyproject.toml
it installs, beside the environment, the newest earlier release that everything installed agrees with; runs a small
sweep with that, and the same root again with what is installed. A table in Markdown says what came of it. The exit
status is 1 where the upgraded root shows another figure than a fresh one.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from prunegpt.root import Root
from prunegpt.store import Store
from tests.robust.lock import CHECKOUT

_LONGEST = 900.0  # seconds of one command
Figures = dict[str, float | None]  # trial -> perplexity


class CannotInstallError(Exception):
    """There is no earlier release that fits, or it cannot be had."""


@dataclass(frozen=True)
class Upgrade:
    """What one upgrade did."""

    package: str
    before: str
    now: str
    started: bool  # whether the earlier release ran the sweep at all
    again: int = 0  # finished trials that were computed again after the upgrade
    trials: int = 0
    reason: str = ""  # what the user was shown of it
    changed: bool = False  # whether the two releases compute other figures
    holds: bool = True  # the upgraded root shows what a fresh one does

    def row(self) -> str:
        if not self.started:
            return (
                f"| {self.package} | {self.before} | {self.now} | does not run with the rest of what is installed | | |"
            )
        bits = "others" if self.changed else "equal"
        table = "as fresh" if self.holds else "**not as fresh**"
        again = f"{self.again} of {self.trials}{f': {self.reason}' if self.reason else ''}"
        return f"| {self.package} | {self.before} | {self.now} | {bits} | {again} | {table} |"


def requirements() -> list[Requirement]:
    """What the package needs, without extras."""
    own = map(Requirement, importlib.metadata.requires("prunegpt") or ())
    return [one for one in own if one.marker is None or one.marker.evaluate({"extra": ""})]


def install(package: str, into: Path) -> str:
    """The newest earlier release of a package, in a folder, with those of its needs that what is installed misses.

    Raises:
        CannotInstallError: there is none that all installed packages agree with.
    """
    now = importlib.metadata.version(package)
    limits = {f"<{now.partition('+')[0]}"}
    for distribution in importlib.metadata.distributions():
        for one in map(Requirement, distribution.requires or ()):
            applies = one.marker is None or one.marker.evaluate({"extra": ""})
            if applies and canonicalize_name(one.name) == canonicalize_name(package):
                limits |= {str(limit) for limit in one.specifier if limit.operator != "=="}
    _pip(into, f"{package}{','.join(sorted(limits))}")
    found = next(importlib.metadata.distributions(name=package, path=[str(into)]))
    for one in map(Requirement, found.requires or ()):
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            try:
                fits = one.specifier.contains(importlib.metadata.version(one.name), prereleases=True)
            except importlib.metadata.PackageNotFoundError:
                fits = False
            if not fits:
                _pip(into, f"{one.name}{one.specifier}")
    return found.version


def _pip(into: Path, what: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(into), what]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LONGEST)
    except (subprocess.SubprocessError, OSError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        raise CannotInstallError(said[-1]) from error


def run(spec: Path, root: Root, first: Path | None = None) -> str | None:
    """Runs the spec on a root with a folder first on the module path; what was printed, or None where it failed."""
    paths = os.pathsep.join(map(str, [*([first] if first else []), CHECKOUT]))
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "COLUMNS": "300"}
    command = [sys.executable, "-P", "-m", "prunegpt", "sweep", "run", str(spec), "--root", str(root.path)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_LONGEST, check=True)
    except subprocess.SubprocessError as error:
        print(str(getattr(error, "stderr", error))[-600:], file=sys.stderr)
        return None
    return done.stdout + done.stderr


def figures(root: Root) -> Figures:
    with Store.open(root, create=False) as store:
        return {one.name: one.evaluation.perplexity if one.evaluation else None for one in store.results("upgrades")}


def upgrade(package: str, spec: Path, fresh: Figures, folder: Path) -> Upgrade:
    """The earlier release of one package, and then the installed one."""
    now = importlib.metadata.version(package)
    beside, root = folder / "beside", Root(folder / "runs")
    before = install(package, beside)
    if run(spec, root, beside) is None:
        return Upgrade(package, before, now, started=False)
    earlier = figures(root)
    said = run(spec, root) or ""
    lines = [line.strip() for line in said.splitlines()]
    reason = next((line.partition("): ")[2] for line in lines if "are computed again" in line), "nothing is said")
    again = sum(": started," in line for line in lines)
    upgraded = figures(root)
    return Upgrade(
        package, before, now, True, again, len(fresh), reason if again else "", earlier != fresh, upgraded == fresh
    )


def write_spec(folder: Path) -> Path:
    """Trials over a folder of text and one of JSON lines: one-shot, gradual and distilled, on the CPU."""
    from prunegpt.builtin.text import rows
    from tests.support.small import make_model

    folder.mkdir(parents=True)
    model = make_model(folder / "model", layers=2)
    lines = [line for line in rows("train") if line][:400]
    for split, part in (("train", lines[::2]), ("validation", lines[1::4])):
        text = "".join(json.dumps({"text": line}) + "\n" for line in part)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    files = {split: [str(folder / f"{split}.jsonl")] for split in ("train", "validation")}
    tune = {"finetune": {}}
    spec: dict[str, Any] = {
        "name": "upgrades",
        "base": {
            "model": str(model),
            "device": "cpu",
            "data": {"files": files, "block_size": 32},
            "train": {"max_steps": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        },
        "trials": [
            {"name": "tuned", "stages": [tune]},
            {
                "name": "pruned",
                "stages": [
                    tune,
                    {"prune": {"method": "wanda", "sparsity": 0.5, "calibration": {"windows": 4, "length": 32}}},
                ],
            },
            {
                "name": "gradual",
                "stages": [{"finetune": {"prune": {"sparsity": 0.5, "unit": "steps", "start": 0, "end": 3}}}],
            },
            {"name": "distilled", "stages": [{"distill": {"teacher": "tuned", "loss": "forward_kl"}}]},
        ],
    }
    path = folder / "upgrades.yaml"
    path.write_text(json.dumps(spec), encoding="utf-8")
    return path


def main() -> int:
    folder = Path(mkdtemp(prefix="upgrades-"))
    try:
        spec = write_spec(folder / "sweep")
        if run(spec, Root(folder / "fresh")) is None:
            return 2
        fresh = figures(Root(folder / "fresh"))
        print(
            "| Package | Before | Now | Figures | Computed again | Table after the upgrade |\n|---|---|---|---|---|---|"
        )
        failed = False
        for package in sys.argv[1:] or [one.name for one in requirements()]:
            place = folder / package
            try:
                found = upgrade(package, spec, fresh, place)
                failed |= not found.holds
                print(found.row(), flush=True)
            except CannotInstallError as error:
                print(f"| {package} | | | not tried: {error} | | |", flush=True)
            finally:
                rmtree(place, ignore_errors=True)
        return int(failed)
    finally:
        rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
