"""What was tested: the exact versions of all that `prunegpt[dev]` needs, as they are installed here.

python -m tests.robust.lock writes .ci/requirements.lock; `make lock` calls it.
"""

import platform
import tomllib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).resolve().parents[2]
LOCK = CHECKOUT / ".ci" / "requirements.lock"
HEAD = """\
# What PruneGPT was last tested with: prunegpt[dev] and all that it needs, Python {python} on {system}.
# Made by `make lock`; `make audit` looks for known vulnerabilities in it. pip install -r FILE installs the same.
"""


def direct(pyproject: Mapping[str, object] | None = None) -> list[Requirement]:
    """What pyproject.toml asks for itself, with the extra `dev`."""
    project = pyproject or tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert isinstance(project, dict)
    return [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]


def installed(name: str) -> tuple[str, Iterable[Requirement]]:
    """Version of an installed package, and what it needs.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    found = distribution(name)
    return found.version, map(Requirement, found.requires or ())


def resolved(
    wanted: Iterable[Requirement], look: Callable[[str], tuple[str, Iterable[Requirement]]] = installed
) -> dict[str, str]:
    """Package -> version, of these and of all that they need in this environment, by name.

    A label of a local build such as +cpu is left out: it names a file, and no other code.
    """
    versions: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    waiting = [(one, extra) for one in wanted for extra in ("", *one.extras)]
    while waiting:
        requirement, extra = waiting.pop()
        name = str(canonicalize_name(requirement.name))
        if (name, extra) in done:
            continue
        done.add((name, extra))
        version, needs = look(name)
        versions[name] = version.partition("+")[0]
        for need in needs:
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                waiting += [(need, inner) for inner in ("", *need.extras)]
    return dict(sorted(versions.items()))


def read(text: str) -> dict[str, str]:
    """Package -> version, of a lock file."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def text_of(versions: Mapping[str, str]) -> str:
    head = HEAD.format(python=platform.python_version(), system=platform.system())
    return head + "".join(f"{name}=={version}\n" for name, version in versions.items())


if __name__ == "__main__":
    LOCK.write_text(text_of(resolved([one for one in direct() if not one.marker or one.marker.evaluate()])))
    print(f"{LOCK.relative_to(CHECKOUT)}: {len(read(LOCK.read_text()))} packages")
