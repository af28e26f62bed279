"""A virtual environment for each peer, made once from its pinned requirements."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements")
_MARK = "installed"  # the file that says that an environment is whole
_LIMIT = 1800  # seconds of an installation


class Unavailable(RuntimeError):
    """Why a peer cannot be measured here."""


def default_folder() -> Path:
    """Where environments are kept: a folder of the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunegpt-bench"


def python_of(peer: str, folder: Path, *, install: bool, requirements: Path = REQUIREMENTS) -> Path:
    """The Python of a peer's environment, which is made where it is not there.

    Args:
        peer: name of a file of requirements.
        folder: of all environments; each is named by what its requirements hold.
        install: whether a missing one may be made.

    Raises:
        Unavailable: it may not, or its packages cannot be installed.
    """
    wanted = requirements / f"{peer}.txt"
    digest = hashlib.sha256(wanted.read_bytes() + sys.version.encode()).hexdigest()[:12]
    home = folder / f"{peer}-{digest}"
    python = home / "bin" / "python"
    if (home / _MARK).exists():
        return python
    if not install:
        raise Unavailable("--quick installs nothing, and its environment is not there. Run --peers without it first.")
    shutil.rmtree(home, ignore_errors=True)
    for command in ([sys.executable, "-m", "venv", home], [python, "-m", "pip", "install", "--quiet", "-r", wanted]):
        try:
            done = subprocess.run(
                [str(word) for word in command], env=outside(), capture_output=True, text=True, check=False,
                timeout=_LIMIT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Unavailable(f"its packages were not installed after {_LIMIT} seconds.") from None
        if done.returncode:
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise Unavailable(f"its packages cannot be installed: {said[-1] if said else 'pip gave no reason'}")
    (home / _MARK).touch()
    return python


def version(peer: str, package: str, *, requirements: Path = REQUIREMENTS) -> str:
    """The version of a package that a peer's requirements pin."""
    lines = (requirements / f"{peer}.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    return next(pin for name, pin in pins.items() if name.split("[")[0] == package)


def outside(**more: str) -> dict[str, str]:
    """The environment variables of a process that must not find our packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")} | more
