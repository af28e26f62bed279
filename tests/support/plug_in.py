"""Parts of a package that is not installed: declared by entry point, as a plug-in declares them."""

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from typing import Any

import pytest

import prunegpt.registry
from prunegpt.registry import Registry

PlugIn = Callable[[str, str, Any], None]  # kind, name, object
GIVEN: dict[str, Any] = {}  # what the entry points lead to: attributes of this module


def __getattr__(name: str) -> Any:
    try:
        return GIVEN[name]
    except KeyError:
        raise AttributeError(name) from None


def declaring(monkeypatch: pytest.MonkeyPatch) -> PlugIn:
    """Declares a part: every registry of its kind finds it until the test ends."""
    points: list[EntryPoint] = []

    def entry_points(*, group: str) -> list[EntryPoint]:
        return [point for point in points if point.group == group]

    def declare(kind: str, name: str, part: Any) -> None:
        monkeypatch.setitem(GIVEN, name, part)
        points.append(EntryPoint(name, f"{__name__}:{name}", f"prunegpt.{kind.replace(' ', '_')}"))
        forget()

    monkeypatch.setattr(prunegpt.registry, "entry_points", entry_points)
    return declare


def forget() -> None:
    """Makes every registry look for plug-ins anew."""
    for registry in vars(prunegpt.registry).values():
        if isinstance(registry, Registry):
            registry.__dict__.pop("_plugins", None)


def steep(
    sizes: Mapping[str, int], sparsity: float, *, blocks: Mapping[str, int | None], slope: float = 0.1
) -> dict[str, float]:
    """A third-party allocation: later blocks lose more."""
    return {name: sparsity + slope * (blocks[name] or 0) for name in sizes}
