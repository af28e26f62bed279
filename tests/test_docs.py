"""The pages under docs/ keep their word: their specs are sound, their commands run as they are written, in one try."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from prunegpt.cli import app
from prunegpt.planning.resolve import plan_file
from tests.support.small import Run

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(page.stem for page in DOCS.glob("*.md"))
_FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
_RUN = re.compile(r"<!-- run -->\n```sh\n(.*?)```", re.DOTALL)
_FENCED = re.compile(r"^(<!-- .* -->\n)?```(\w*)$", re.MULTILINE)
# What each page leaves behind where it was followed.
LEFT = {
    "measured-speed": ["half/masks.safetensors", "speed.pdf"],
    "smaller-models": [
        "shallow/config.json",
        "narrow/config.json",
        "speed.pdf",
        "healed/README.md",
        "faster/config.json",
        "shapes.pdf",
    ],
    "compare-methods": ["methods.pdf", "report/index.html", "report/figures/methods.pdf", "pruned/masks.safetensors"],
    "two-objectives": ["front.pdf", "study.db", "runs/figures/front/front.pdf"],
    "seeds-to-paper": ["recovery.tex", "recovery.pdf", "loss.pdf", "runs/figures/seeds/recovery.pdf"],
}


def text(page: str) -> str:
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def commands(page: str) -> list[str]:
    return [line for body in _RUN.findall(text(page)) for line in body.splitlines() if line.strip()]


@pytest.fixture
def place(tmp_path: Path, model_folder: Path, text_files: dict[str, str]) -> Callable[[str], Path]:
    """Makes what the pages ask for, and writes the files of one."""

    def made(page: str) -> Path:
        shutil.copytree(model_folder, tmp_path / "my-model")
        (tmp_path / "my-text").mkdir()
        for split, file in text_files.items():
            shutil.copy(file, tmp_path / "my-text" / f"{split}.txt")
        for name, body in _FILE.findall(text(page)):
            (tmp_path / name).write_text(body, encoding="utf-8")
        return tmp_path

    return made


def test_the_wishes_are_pages() -> None:
    assert set(LEFT) <= set(PAGES)
    for page in LEFT:
        assert f"docs/{page}.md" in (DOCS.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_exist_and_take_what_it_gives_them(page: str) -> None:
    for line in commands(page):
        program, *words = shlex.split(line.partition(" > ")[0], comments=True)
        assert program == "prunegpt"
        command, arguments = typer.main.get_command(app), list(words)
        context = command.make_context("prunegpt", list(arguments))
        while hasattr(command, "resolve_command"):
            name, command, arguments = command.resolve_command(context, list(arguments))
            context = command.make_context(name, list(arguments), parent=context)
        assert context.params


@pytest.mark.parametrize("page", LEFT)
def test_the_specs_of_a_page_are_sound(
    page: str, place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place(page))
    for name, _ in _FILE.findall(text(page)):
        plan = plan_file(Path(name), strict=True)
        assert plan.trials
        assert not plan.unchecked


@pytest.mark.slow
@pytest.mark.parametrize("page", LEFT)
def test_a_page_is_followed_in_one_try(page: str, place: Callable[[str], Path], run: Run) -> None:
    folder = place(page)
    for line in commands(page):
        line, _, file = line.partition(" > ")
        done: subprocess.CompletedProcess[str] = run(*shlex.split(line, comments=True)[1:], COLUMNS="80")
        assert done.stdout or done.stderr
        if file:
            (folder / file).write_text(done.stdout, encoding="utf-8")
    assert [name for name in LEFT[page] if not (folder / name).stat().st_size] == []
