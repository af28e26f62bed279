"""README and the pages keep their word: what is in them parses, their tables are what the records make."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from prunegpt.planning.opened import OpenedSpec
from prunegpt.report.archive import read_archive
from prunegpt.report.declared import tables_of
from prunegpt.report.regions import find_regions, replace_regions
from prunegpt.report.render import markdown
from prunegpt.spec.read import parse_document, plain_document
from prunegpt.spec.schema import STAGES, PruneSpec, Settings, Spec
from prunegpt.spec.yaml import built, compose
from tests.support.pages import CHECKOUT, PAGES, README, Block, blocks, links, parsed, text, words

ARCHIVES = sorted((CHECKOUT / "sweeps" / "results").glob("*/results.json"))
REPOSITORY = "https://github.com/prunegpt/prunegpt"
RAW = "https://raw.githubusercontent.com/prunegpt/prunegpt/main/"
FOREIGN = ("wandb", "pip", "python", "python3")  # programs of others, which are there wherever the tests run
SHELL = ("source", "export", "cd", "docker", "srun")  # what only a shell, a daemon or a cluster could check


def test_the_lists_are_not_empty() -> None:
    assert len(PAGES) > 40
    assert sum(len(block.commands) for page in PAGES for block in blocks(page, "sh")) > 80
    assert ARCHIVES


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_exist_and_take_what_it_gives_them(page: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for line in (line for block in blocks(page, "sh") for line in block.commands):
        program, *arguments = words(line)
        if program == "prunegpt":
            assert parsed(line).params
        elif program == "make":
            assert arguments[0] in targets
        elif program not in SHELL:
            assert program in FOREIGN
            assert shutil.which(program, path=Path(sys.executable).parent)


@pytest.mark.parametrize("page", PAGES)
def test_a_command_that_no_test_runs_says_what_it_needs(page: str) -> None:
    for block in blocks(page, "sh"):
        by_make = all(line.startswith("make ") for line in block.commands)
        assert block.mark.startswith("run") or by_make or block.marked, block.body


@pytest.mark.parametrize("page", PAGES)
def test_the_specs_of_a_page_are_well_formed(page: str) -> None:
    for block in blocks(page, "yaml"):
        if not block.mark.startswith("foreign"):
            opened = OpenedSpec(_document(block))
            assert [*opened.malformed, *opened.problems] == [], block.body
            assert opened.configurations or opened.searches


def _document(block: Block) -> Any:
    """A spec, or a part of one in the smallest spec that can hold it."""
    if re.search(r"^(trials|method):", block.body, re.MULTILINE):
        return parse_document(block.body, "the page")
    data = built(compose(block.body, "a part"))
    whole: dict[str, Any] = {"name": "part", "base": {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text"}}}
    trial: dict[str, Any] = {"name": "one"}
    if isinstance(data, list):
        trial["stages"] = data
    elif set(data) <= set(STAGES):
        trial["stages"] = [data]
    elif set(data) <= set(Spec.model_fields):
        whole = {**whole, **data, "base": {**whole["base"], **data.get("base", {})}}
    elif set(data) <= set(Settings.model_fields) | {"search", "vary"}:
        trial |= data
    else:
        assert set(data) <= set(PruneSpec.model_fields)
        trial["stages"] = [{"prune": {"method": "wanda", "sparsity": 0.5, **data}}]
    return plain_document({"trials": [trial], **whole}, "the page")


def test_tables_are_those_of_the_kept_records() -> None:
    for found in (read_archive(path.parent) for path in ARCHIVES):
        tables = markdown.regions(found.sweep, tables_of(found))
        holding = [page for page in PAGES if {region.name for region in find_regions(text(page))} & {*tables}]
        assert holding, found.sweep
        for page in holding:
            assert replace_regions(text(page), tables) == text(page), f"{page}: run `make tables`"


def test_the_readme_is_two_screens() -> None:
    assert text("README.md").count("\n") <= 200


def test_the_readme_leads_to_what_is_there_from_wherever_it_is_read() -> None:
    """On a package index too: links and pictures are absolute, and lead to files of this checkout."""
    found = [*links("README.md")]
    assert len(found) > 20
    for link in found:
        path = re.sub(rf"^({re.escape(RAW)}|{REPOSITORY}/(blob|tree)/main/)", "", link)
        assert link.startswith("https://")
        assert path == link or (CHECKOUT / path).exists(), link


def test_the_package_index_renders_the_readme() -> None:
    rendering = pytest.importorskip("readme_renderer.markdown")
    html = rendering.render(README.read_text(encoding="utf-8"), variant="GFM")
    assert html
    assert '<img src="https://raw.githubusercontent.com/' in html or "<img" in html
    assert "<table>" in html
    assert "prunegpt:table" not in html
