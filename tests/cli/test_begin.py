"""quickstart and init: what they write is a spec that can be run, from the package alone."""

import json
import re
from pathlib import Path

import pytest

import prunegpt
from prunegpt.templates import QUICKSTART, fill, names, text
from tests.support.small import Invoke

CHECKOUT = Path(__file__).resolve().parent.parent.parent
PACKAGE = Path(prunegpt.__file__).parent


def test_the_list_of_templates_is_whole() -> None:
    assert set(names()) == {"oneshot", "recover", "search", "seeds", "shrink", "study"}


@pytest.mark.parametrize("kind", names())
def test_a_template_passes_the_check(invoke: Invoke, tmp_path: Path, counted: Path, kind: str) -> None:
    said = invoke("init", kind, tmp_path / "a b" / f"my {kind}.yaml")
    spec = tmp_path / "a b" / f"my {kind}.yaml"
    assert "Next: prunegpt sweep check" in said
    checked = invoke("sweep", "check", spec, "--root", counted)
    assert f"my-{kind}" in checked
    assert "not checked" not in checked
    if "max_steps" in spec.read_text():  # as its comment offers
        assert f"my-{kind}" in invoke("sweep", "check", spec, "--root", counted, "--set", "base.train.max_steps=7")
    assert len(re.findall(r"(?m)#", spec.read_text())) >= 5
    assert "already" in invoke("init", kind, spec, fails=True)


def shorter(written: str) -> list[str]:
    """Settings by which a spec fits the small model."""
    settings = ["base.data.block_size=32"]
    if "speed: " in written:
        settings += ["base.evaluate.0.max_windows=4", "base.evaluate.1.speed={prompt: 16, generate: 8, repeats: 6}"]
    return [word for setting in settings for word in ("--set", setting)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", names())
def test_what_a_template_writes_runs(
    invoke: Invoke, forked: None, tmp_path: Path, model_folder: Path, text_files: dict[str, str], kind: str
) -> None:
    spec, root = tmp_path / f"{kind}.yaml", tmp_path / "runs"
    texts = ("--data", text_files["train"], "--validation", text_files["validation"])
    invoke("init", kind, spec, "--model", model_folder, *texts)
    less = ("--set", "base.data.max_train_blocks=120")
    invoke("sweep", "run", spec, *shorter(spec.read_text(encoding="utf-8")), *less, "--root", root)
    states = {row["state"] for row in json.loads(invoke("sweep", "status", kind, "--json", "--root", root))["trials"]}
    assert states <= {"finished", "stopped"}  # by early stopping
    assert "finished" in states


@pytest.mark.parametrize("kind", names())
def test_a_template_takes_a_model_and_texts(
    invoke: Invoke, tmp_path: Path, model_folder: Path, text_files: dict[str, str], kind: str
) -> None:
    spec = tmp_path / f"{kind}.yaml"
    texts = ("--data", text_files["train"], "--validation", text_files["validation"])
    invoke("init", kind, spec, "--model", model_folder, *texts)
    written = spec.read_text(encoding="utf-8")
    assert str(model_folder) in written
    assert text_files["validation"] in written
    assert kind in invoke("sweep", "check", spec)  # though the model takes few tokens, and the texts are short
    one = fill(kind, name=kind, model="gpt2", data={"path": "wikitext"})
    assert '"gpt2"' in one
    assert '{"path": "wikitext", "block_size": 512}' in one
    assert not re.search("@[A-Z]+@", one)


def test_what_does_not_go_together_is_refused(invoke: Invoke, tmp_path: Path) -> None:
    out = tmp_path / "s.yaml"
    assert "Did you mean 'oneshot'?" in invoke("init", "one-shot", out, fails=True)
    assert "--validation goes with --data FILE" in invoke("init", "study", out, "--validation", out, fails=True)
    assert not out.exists()


def test_there_is_one_quickstart() -> None:
    """That of the repository is the one of the package."""
    assert (CHECKOUT / "sweeps" / f"{QUICKSTART}.yaml").resolve() == PACKAGE / "templates" / f"{QUICKSTART}.yaml"
    assert text(QUICKSTART) == (CHECKOUT / "sweeps" / f"{QUICKSTART}.yaml").read_text(encoding="utf-8")


def test_what_help_and_pages_name_is_in_the_package() -> None:
    """No file of the repository that a wheel lacks is named, and every spec that an example reads can be written."""
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".js", ".html", ".md")]
    assert len(files) > 300
    for path in files:
        content = path.read_text(encoding="utf-8")
        assert not re.search(r"sweeps/[\w./-]+\.yaml", content), path
        for command in re.findall(r"prunegpt (?:sweep|wandb) (?:check|run|create) [\w.-]+\.yaml", content):
            assert Path(command.split()[-1]).stem in (*names(), QUICKSTART), f"{path}: {command}"
