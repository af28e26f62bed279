"""The pages under docs/ keep their word: who follows one from top to bottom comes to what it promises."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from prunegpt.planning.resolve import plan_file
from prunegpt.recipes.convert import to_stages
from prunegpt.recipes.load import meaning_of_text
from prunegpt.root import Root
from prunegpt.spec.read import parse_document
from prunegpt.spec.yaml import built, compose
from prunegpt.store import Store
from tests.support.pages import CHECKOUT, DOCS, PAGES, Block, blocks, files, followed, text
from tests.support.served import TOKEN, served
from tests.support.small import Run, make_model

# What each page leaves behind where it was followed.
LEFT = {
    "tutorials/measured-speed": ["half/masks.safetensors", "speed.pdf"],
    "tutorials/smaller-models": [
        "shallow/config.json",
        "narrow/config.json",
        "speed.pdf",
        "healed/README.md",
        "faster/config.json",
        "shapes.pdf",
    ],
    "tutorials/compare-methods": [
        "methods.pdf",
        "report/index.html",
        "report/figures/methods.pdf",
        "pruned/masks.safetensors",
    ],
    "tutorials/two-objectives": ["front.pdf", "study.db", "runs/figures/front/front.pdf"],
    "tutorials/own-model": ["oneshot.yaml", "sparse/masks.safetensors"],
    "tutorials/recover": ["loss.pdf", "recovered/masks.safetensors"],
    "tutorials/slurm-and-ray": ["runs/prunegpt.db"],
    "tutorials/seeds-to-paper": ["recovery.tex", "recovery.pdf", "loss.pdf", "runs/figures/seeds/recovery.pdf"],
}
FOLLOWED = [f"docs/{page}.md" for page in LEFT]
SAVED = [page for page in PAGES if files(page)]
MOST = 300  # lines of a page that one reads to its end
SOON = 30  # lines before the first example


@pytest.fixture
def place(tmp_path: Path, model_folder: Path, text_files: dict[str, str]) -> Callable[[str], Path]:
    """Makes what the pages ask for, and writes the files of one."""

    def made(page: str) -> Path:
        if page == "docs/tutorials/own-model.md":  # its spec is a template, for models of usual lengths
            make_model(tmp_path / "my-model", layers=2, positions=512)
        else:
            shutil.copytree(model_folder, tmp_path / "my-model")
        (tmp_path / "my-text").mkdir()
        for split, file in text_files.items():
            shutil.copy(file, tmp_path / "my-text" / f"{split}.txt")
        for name, body in files(page).items():
            (tmp_path / name).write_text(body, encoding="utf-8")
        return tmp_path

    return made


def test_every_page_that_is_followed_is_listed() -> None:
    assert {page for page in PAGES if followed(page)} == {*FOLLOWED}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short_and_has_an_example(page: str) -> None:
    assert text(page).count("\n") <= MOST
    assert blocks(page)
    assert text(page).partition("```")[0].count("\n") < SOON, "show the use first, then explain"


@pytest.mark.parametrize("page", SAVED)
def test_the_specs_of_a_page_are_sound(
    page: str, place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place(page))
    for name in files(page):
        plan = plan_file(Path(name), strict=True)
        assert plan.trials or plan.searches
        assert not plan.unchecked


@pytest.mark.slow
@pytest.mark.parametrize("page", FOLLOWED)
def test_a_page_is_followed_in_one_try(page: str, place: Callable[[str], Path], run: Run) -> None:
    folder = place(page)
    for line in followed(page):
        line, _, file = line.partition(" > ")
        done: subprocess.CompletedProcess[str] = run(*shlex.split(line, comments=True)[1:], COLUMNS="80")
        assert done.stdout or done.stderr
        if file:
            (folder / file).write_text(done.stdout, encoding="utf-8")
    left = LEFT[page.removeprefix("docs/").removesuffix(".md")]
    assert [name for name in left if not (folder / name).stat().st_size] == []


@pytest.mark.slow
def test_the_page_of_agents_is_followed(place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The server in this process, on a port of its own; the rest as the page has it."""
    page = "docs/tutorials/wandb-agents.md"
    folder = place(page)
    environment = {**os.environ, "PRUNEGPT_ROOT": str(folder / "runs"), "HOME": str(folder), "WANDB_API_KEY": TOKEN}
    environment.pop("WANDB_MODE", None)
    printed = ["ENTITY/PROJECT/ID"]
    with served(Root(folder / "runs")) as address:
        for line in (line for block in blocks(page, "sh") if block.mark == "run: agents" for line in block.commands):
            words = shlex.split(line.replace("ENTITY/PROJECT/ID", printed[0]))[1:]
            done = subprocess.run(
                [sys.executable, "-m", "prunegpt", *words],
                cwd=folder,
                env={**environment, "WANDB_BASE_URL": address},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            printed = done.stdout.splitlines() if "create" in line else printed
    with Store.open(Root(folder / "runs"), create=False) as store:
        assert [trial.state for trial in store.results("grid")] == ["finished"] * 4


@pytest.mark.slow
def test_the_page_of_clusters_runs_on_ray(place: Callable[[str], Path]) -> None:
    pytest.importorskip("ray")
    folder = place("docs/tutorials/slurm-and-ray.md")
    words = ["sweep", "run", "cluster.yaml", "--launcher", "ray", "--root", "runs"]
    done = subprocess.run(
        [sys.executable, "-m", "prunegpt", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


PAIRS = [
    (page, *pair)
    for page in PAGES
    if page.startswith("docs/migrating/")
    for pair in pairwise(blocks(page))
    if pair[0].mark.startswith("foreign")
]


def test_every_foreign_file_has_a_spec_beside_it() -> None:
    assert {page.rpartition("/")[2] for page, *_ in PAIRS} == {
        f"{name}.md" for name in ("sparseml", "llm-compressor", "sparsegpt-wanda", "wandb-sweeps")
    }


@pytest.mark.parametrize(("page", "theirs", "ours"), PAIRS)
def test_the_spec_beside_a_foreign_file_is_what_it_means(page: str, theirs: Block, ours: Block) -> None:
    right = built(compose(ours.body, page))
    if theirs.mark == "foreign: recipe":
        meaning = meaning_of_text(theirs.body, "theirs.yaml")
        assert right == {"stages": to_stages(meaning, teacher="dense")}
    elif theirs.mark == "foreign: sweep":
        assert right == parse_document(theirs.body, page).data
    else:
        (stage,) = right["trials"][0]["stages"]
        prune, (line,) = stage["prune"], theirs.commands
        words = shlex.split(line)
        given = dict(pairwise(words))
        assert right["base"]["model"] in words
        assert prune["method"] == given.get("--prune_method", "sparsegpt")
        assert prune.get("pattern", "unstructured") == given.get("--sparsity_type", "unstructured")
        assert prune.get("sparsity", 0.5) == float(given.get("--sparsity", "") or given["--sparsity_ratio"])
        assert prune["calibration"]["windows"] == int(given["--nsamples"])
        assert str(prune.get("options", {}).get("damping")) == given.get("--percdamp", "None")


@pytest.mark.slow
def test_the_commands_on_the_quickstart_run(tmp_path: Path) -> None:
    """README first, then the pages: all in one folder, as somebody who reads them has it."""
    (tmp_path / "sweeps").symlink_to(CHECKOUT / "sweeps")
    marked = [block for page in PAGES for block in blocks(page, "sh") if block.mark == "run: quickstart"]
    lines = ["prunegpt quickstart", *(line for block in marked for line in block.commands)]
    assert len(lines) > 15
    for line in lines:
        words = shlex.split(line, comments=True)
        done = subprocess.run(
            [sys.executable, "-m", "prunegpt", *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_every_page_is_in_the_table_of_contents() -> None:
    """mkdocs checks it too, where it is installed."""
    listed = re.findall(r"(\S+\.md)$", (CHECKOUT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
