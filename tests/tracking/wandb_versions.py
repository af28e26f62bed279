"""Other versions of the W&B client, each installed once into a folder of the user's cache."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

import pytest

OLDER = "0.21.0"  # a year older than the one that is tested
_BESIDE = ("protobuf>=6,<7", "gitpython", "gitdb", "smmap", "sentry-sdk>=2,<3")  # what it needs and the newer has not
_PYTHON = f"py{sys.version_info.major}{sys.version_info.minor}"
_LONGEST = 600.0  # seconds that installing may take


def client(version: str) -> Path | None:
    """The folder that goes first on PYTHONPATH for a version; None for the installed one. Skips where there is none."""
    return None if version == "installed" else _folder(f"wandb-{version}", f"wandb=={version}", *_BESIDE)


def lightning() -> Path:
    """The folder that goes first on PYTHONPATH for PyTorch Lightning. Skips where there is none."""
    return _folder("lightning", "pytorch-lightning", "lightning-utilities", "torchmetrics")


def _folder(name: str, *packages: str) -> Path:
    """Packages without what they need, installed once into a folder. Skips where there is none."""
    folder = _cache() / f"{name}-{_PYTHON}"
    if not folder.is_dir():
        made = Path(mkdtemp(dir=folder.parent))
        install = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1", "--target")
        try:
            _run(name, *install, str(made), *packages)
            if not folder.is_dir():
                made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder


def _run(name: str, *command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LONGEST)
    except (subprocess.SubprocessError, OSError) as error:
        told = getattr(error, "stderr", None) or str(error)
        pytest.skip(f"{name} cannot be installed: {str(told).strip().splitlines()[-1]}")


def environment(version: str) -> Path:
    """The interpreter of an environment with a version of the client, made once. Skips where there is none."""
    if version == "installed":
        return Path(sys.executable)
    folder = _cache() / f"wandb-{version}-{_PYTHON}-venv"
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _run(f"wandb {version}", sys.executable, "-m", "venv", str(folder))
        install = (str(python), "-m", "pip", "install", "--quiet", "--retries", "1")
        _run(f"wandb {version}", *install, f"wandb=={version}", "numpy", "setuptools")
        (folder / "made").touch()
    return python


def _cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunegpt-tests"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def version_of(folder: Path | None) -> str:
    """The version of the client in a folder, or of the installed one."""
    if folder is None:
        return importlib.metadata.version("wandb")
    return next(found.version for found in importlib.metadata.distributions(name="wandb", path=[str(folder)]))
