"""What surrounds the package: its metadata, citation, container and forms, and the site's reference of all of it."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import prunegpt
from prunegpt.cli import app
from prunegpt.registry import Registry
from prunegpt.spec.columns import COLUMNS
from prunegpt.spec.figures import KINDS
from prunegpt.spec.reference import parts
from prunegpt.spec.yaml import built, compose
from prunegpt.web.endpoint import ENDPOINTS, PREFIX
from tests.support.pages import CHECKOUT, DOCS
from tests.support.small import make_model

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """What makes the generated pages."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "_site" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def registered(group: Any, *words: str) -> Iterator[tuple[str, Any]]:
    """Every command, by its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from registered(command, *words, name)
        elif not command.hidden:
            yield " ".join((*words, name)), command


def plain(path: str) -> Any:
    return built(compose((CHECKOUT / path).read_text(encoding="utf-8"), path))


def test_the_version_is_in_one_place() -> None:
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", prunegpt.__version__)


def test_the_addresses_are_those_of_the_site_and_the_citation() -> None:
    urls, pages, citation = PROJECT["urls"], plain("mkdocs.yml"), plain("CITATION.cff")
    assert urls["Homepage"] == pages["repo_url"] == citation["repository-code"]
    assert urls["Documentation"] == pages["site_url"] == citation["url"]
    assert all(url.startswith("https://") for url in urls.values())


def test_the_citation_has_what_its_format_asks_for() -> None:
    """The required fields of the Citation File Format 1.2.0, and the licence of the package."""
    citation = plain("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"] == [{"name": "PruneGPT developers"}]
    assert citation["license"] == PROJECT["license"]


def test_the_container_passes_its_linter() -> None:
    linter = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, CHECKOUT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_container_copies_is_there_and_not_ignored() -> None:
    lines = (CHECKOUT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    kept = (CHECKOUT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied
    assert {f"!{name}" for name in copied} == {line for line in kept if line.startswith("!")}
    assert all((CHECKOUT / name).exists() for name in copied)


@pytest.mark.parametrize("path", sorted((CHECKOUT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.stem)
def test_a_form_of_issues_has_what_the_platform_asks_for(path: Path) -> None:
    form = plain(str(path.relative_to(CHECKOUT)))
    if path.stem == "config":
        assert all({"name", "url", "about"} == one.keys() for one in form["contact_links"])
        return
    assert {"name", "description", "body"} <= form.keys()
    names = [one["id"] for one in form["body"]]
    assert len(names) == len(set(names))
    assert all(one["type"] == "textarea" and one["attributes"]["label"] for one in form["body"])


def test_every_field_column_and_kind_of_figure_is_in_the_reference(site: ModuleType) -> None:
    text = site.GENERATED["spec"]()
    names = {name for part in parts() for name in part.model_fields} | {*COLUMNS} | {*KINDS}
    assert len(names) > 150
    assert [name for name in sorted(names) if f"| `{name}` |" not in text] == []


def test_every_command_and_option_is_in_the_reference(site: ModuleType) -> None:
    chapters = dict(re.findall(r"^## prunegpt (.+?)\n(.*?)(?=^## |\Z)", site.cli(), re.MULTILINE | re.DOTALL))
    commands = dict(registered(typer.main.get_command(app)))
    assert len(commands) > 30
    assert chapters.keys() == commands.keys()
    for name, command in commands.items():
        shown = [option for one in command.params if not one.hidden for option in one.opts if option.startswith("-")]
        assert [option for option in shown if option not in chapters[name]] == [], name


def test_every_address_of_the_api_is_in_the_reference(site: ModuleType) -> None:
    text = site.api().replace("&#123;", "{").replace("&#125;", "}")
    assert [one.path for one in ENDPOINTS if f"## {one.method} {PREFIX}{one.path}\n" not in text] == []
    linked, chapters = re.findall(r"\]\(#(\w+)\)", text), re.findall(r"^### (\w+)$", text, re.MULTILINE)
    assert {*linked} <= {name.lower() for name in chapters}


def test_every_error_and_every_named_part_is_in_the_reference(site: ModuleType) -> None:
    errors, methods = site.errors(), site.methods()
    classes = [name for name, value in vars(prunegpt.errors).items() if isinstance(value, type)]
    ours = [name for name in classes if issubclass(getattr(prunegpt.errors, name), prunegpt.errors.PruneGPTError)]
    assert [name for name in ours if f"| `{name}` |" not in errors] == []
    registries = [one for one in vars(prunegpt.registry).values() if isinstance(one, Registry)]
    names = [name for one in registries for name in one.builtin_names()]
    assert len(names) > 60
    assert [name for name in names if f"| `{name}` |" not in methods] == []


def test_every_public_name_of_python_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    names = [name for name in prunegpt.__all__ if not name.startswith("_")]
    assert [name for name in names if f"::: prunegpt.api.{name}\n" not in page] == []


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, but for the built-in model, which would be trained first: a random one of its kind takes its place."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PRUNEGPT_ROOT", str(tmp_path / "runs"))
    source = DOCS / "notebooks" / "first-look.ipynb"
    model = make_model(tmp_path / "tiny", layers=2, positions=128)
    text = source.read_text(encoding="utf-8")
    assert not any(cell.get("outputs") for cell in json.loads(text)["cells"])
    assert text.count("builtin:tiny-gpt2") == 1
    notebook = nbformat.reads(text.replace("builtin:tiny-gpt2", str(model)), as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("Perplexity" in str(output.get("text", "")) for output in outputs)
    assert any("image/png" in output.get("data", {}) or "image/svg+xml" in output.get("data", {}) for output in outputs)
