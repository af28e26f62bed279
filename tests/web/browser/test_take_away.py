"""What is copied or saved in the browser is read again: tables, configurations, figures."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen
from xml.etree import ElementTree

import pytest

from tests.support.serving import until

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
_TABLE = "Pruning and distillation"
_SUFFIXES = {"Markdown": "md", "LaTeX": "tex", "CSV": "csv", "JSON": "json"}


@pytest.fixture
def copying(open_page: "Callable[..., Page]") -> "Page":
    """A page that may use the clipboard."""
    return open_page(permissions=["clipboard-read", "clipboard-write"])


def _copied(page: "Page", button: str, told: str) -> str:
    page.click(button)
    page.wait_for_selector(f"#messages:has-text('{told}')")
    return str(until(page, "navigator.clipboard.readText()"))


def test_tables_are_copied_as_they_are_downloaded(copying: "Page", address: str) -> None:
    copying.goto(f"{address}/sweeps/study/tables")
    copied = {
        label: _copied(copying, f"button[aria-label='Copy {_TABLE} as {label}']", f"{_TABLE} as {label} copied")
        for label in _SUFFIXES
    }
    name = "pruning-and-distillation"
    for label, suffix in _SUFFIXES.items():
        with urlopen(f"{address}/api/v1/sweeps/study/tables/{name}.{suffix}") as answer:
            assert copied[label] == answer.read().decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(copied["CSV"])))
    assert len(rows) == 15
    assert "63.40" in copied["Markdown"]
    assert "\\begin{tabular}" in copied["LaTeX"]
    assert json.loads(copied["JSON"])


def test_the_configuration_and_the_command_are_copied(copying: "Page", address: str) -> None:
    copying.goto(f"{address}/trials/study/recovered")
    config = json.loads(_copied(copying, "button:has-text('Copy as JSON')", "Configuration copied"))
    assert config["name"] == "recovered"
    assert config["stages"][2]["distill"]["temperature"] == 2
    command = _copied(copying, "button[aria-label='Copy: Command that runs this trial']", "Command copied")
    assert command.startswith("prunegpt sweep run sweeps/study.yaml --only recovered")


@pytest.mark.parametrize(
    ("path", "button"),
    [
        ("/trials/study/recovered", "Save recovered-loss as "),
        ("/trials/study/recovered", "Save recovered-layers as "),
        ("/compare?trial=study/recovered&trial=study/finetuned", "Save compare-perplexity as "),
    ],
    ids=["curves", "layers", "compared"],
)
def test_figures_of_the_page_are_saved(page: "Page", address: str, path: str, button: str) -> None:
    page.goto(address + path)
    panel = page.locator(".figure", has=page.locator(f"button[aria-label='{button}SVG']"))
    panel.scroll_into_view_if_needed()
    panel.locator(".main-svg").first.wait_for()
    with page.expect_download() as started:
        page.click(f"button[aria-label='{button}SVG']")
    assert started.value.suggested_filename.endswith(".svg")
    picture = ElementTree.fromstring(Path(started.value.path()).read_bytes())
    assert picture.tag.endswith("svg")
    assert sum(1 for _ in picture.iter("{http://www.w3.org/2000/svg}path")) > 1
    with page.expect_download() as started:
        page.click(f"button[aria-label='{button}PNG']")
    file = Path(started.value.path()).read_bytes()
    assert file.startswith(b"\x89PNG")
    assert int.from_bytes(file[16:20], "big") == 2 * 960  # its width, twice as fine as on the page


@pytest.mark.parametrize("figure", ["Perplexity over sparsity", "Searched values and objective"])
def test_figures_of_the_server_are_saved(page: "Page", address: str, figure: str) -> None:
    page.goto(f"{address}/sweeps/study")
    page.locator("#figures").scroll_into_view_if_needed()
    with page.expect_download() as started:
        page.click(f"a[aria-label='{figure} as SVG']")
    assert figure.partition(" and ")[0] in Path(started.value.path()).read_text(encoding="utf-8")
    with page.expect_download() as started:
        page.click(f"a[aria-label='{figure} as PNG']")
    assert Path(started.value.path()).read_bytes().startswith(b"\x89PNG")
