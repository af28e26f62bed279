"""axe-core, where it is installed: the rules of accessibility that a machine can check."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

_PACKAGES = ("axe_playwright_python", "axe_core_python")


def script() -> Path:
    """axe.min.js: of PRUNEGPT_AXE, or of a Python package that carries it; skips the test where there is none."""
    named = os.environ.get("PRUNEGPT_AXE")
    if named:
        return Path(named)
    for package in _PACKAGES:
        found = find_spec(package)
        for folder in (found.submodule_search_locations or ()) if found else ():
            for file in sorted(Path(folder).rglob("axe.min.js")):
                return file
    pytest.skip("axe-core is not installed: pip install axe-playwright-python, or set PRUNEGPT_AXE to axe.min.js")


def findings(page: "Page", file: Path, only: str = "") -> list[str]:
    """Serious and critical findings of the page as it is, by all rules or by one."""
    page.evaluate(file.read_text(encoding="utf-8") + "; void 0")
    rules = f", runOnly: ['{only}']" if only else ""
    found: dict[str, Any] = page.evaluate(f"axe.run(document, {{resultTypes: ['violations']{rules}}})")
    return [
        f"{rule['id']}: {rule['help']}: {node['html'][:160]} {node.get('failureSummary', '')[:300]}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


SIZES = (1440, 1024, 390)  # pixels across: a screen, a tablet, a phone


def everywhere(page: "Page", file: Path, ready: Callable[[], object]) -> list[str]:
    """The findings at every size, light and dark; `ready` waits until what is in view is drawn."""
    found = []
    for width in SIZES:
        for scheme in ("light", "dark"):
            page.set_viewport_size({"width": width, "height": 1000})
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
            ready()
            only = "color-contrast" if scheme == "dark" else ""  # all else is as in the light
            found += [f"{width} {scheme}: {one}" for one in findings(page, file, only)]
    return found
