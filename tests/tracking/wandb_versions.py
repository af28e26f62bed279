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
_LONGEST = 600.0  # seconds that installing may take


def client(version: str) -> Path | None:
    """The folder that goes first on PYTHONPATH for a version; None for the installed one. Skips where there is none."""
    if version == "installed":
        return None
    cache = _cache()
    folder = cache / f"wandb-{version}-py{sys.version_info.major}{sys.version_info.minor}"
    if not folder.is_dir():
        made = Path(mkdtemp(dir=cache))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1", "--target", made]
        try:
            subprocess.run(
                [*map(str, command), f"wandb=={version}", *_BESIDE],
                check=True, capture_output=True, text=True, timeout=_LONGEST,
            )  # fmt: skip
            if not folder.is_dir():
                made.rename(folder)
        except (subprocess.SubprocessError, OSError) as error:
            told = getattr(error, "stderr", None) or str(error)
            pytest.skip(f"wandb {version} cannot be installed: {str(told).strip().splitlines()[-1]}")
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder


def environment(version: str) -> Path:
    """The interpreter of an environment with a version of the client, made once. Skips where there is none."""
    if version == "installed":
        return Path(sys.executable)
    folder = _cache() / f"wandb-{version}-py{sys.version_info.major}{sys.version_info.minor}-venv"
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        commands = (
            (sys.executable, "-m", "venv", str(folder)),
            (
                str(python),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--retries",
                "1",
                f"wandb=={version}",
                "numpy",
                "setuptools",
            ),
        )
        try:
            for command in commands:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LONGEST)
            (folder / "made").touch()
        except (subprocess.SubprocessError, OSError) as error:
            told = getattr(error, "stderr", None) or str(error)
            pytest.skip(f"wandb {version} cannot be installed: {str(told).strip().splitlines()[-1]}")
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
