"""What a shell completes: every parameter that takes a name that is known, of every command; and no error gets out."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from prunegpt.cli import app
from tests.support.study import make_root, seeds

# Parameter -> what is typed, and one of the names that follow. Where commands differ, by command.
COMPLETED: Mapping[str, tuple[str, str]] = {
    "name": ("st", "study"),
    "sweep": ("st", "study"),
    "sweeps": ("st", "study"),
    "keep": ("b", "best"),
    "figure name": ("pa", "pareto"),
    "first": ("study/w", "study/wanda-0.9-seed1"),
    "second": ("study/w", "study/wanda-0.9"),  # a group
    "trial": ("study/", "study/magnitude-0.5"),
    "sweep stop trials": ("mag", "magnitude-0.5-seed2"),
    "sweep retry trials": ("mag", "magnitude-0.5-seed2"),
    "model": ("buil", "builtin:tiny-gpt2"),
    "one": ("study/w", "study/wanda-0.9-seed1"),
    "other": ("study/w", "study/wanda-0.9-seed1"),
    "reference": ("buil", "builtin:tiny-gpt2"),
    "data": ("", "builtin:text"),
    "calibration": ("", "builtin:text"),
    "validation": ("", "builtin:text"),
    "kind": ("one", "oneshot"),
    "sort": ("perp", "perplexity"),
    "columns": ("state,perp", "state,perplexity"),
    "group_by": ("me", "method"),
    "method": ("sp", "sparsegpt"),
    "pattern": ("2", "2:4"),
    "allocation": ("o", "owl"),
    "calibration_mode": ("", "random"),
    "refine": ("s", "swaps"),
    "repair": ("b", "block"),
    "choice": ("in", "influence"),
    "importance": ("t", "taylor"),
    "expert_choice": ("r", "reap"),
    "by": ("f", "ffn"),
    "protocol": ("st", "stream"),
    "device": ("c", "cuda"),
    "precision": ("b", "bfloat16"),
    "launcher": ("s", "slurm"),
    "format": ("la", "latex"),
    "only": ("", "trials"),
    "to": ("fo", "folder"),
    "dtype": ("b", "bfloat16"),
}
# Text that nothing stored is a name of, files by any name, and values of other programs.
FREE = {
    *("data_name", "text_column", "split", "batch_size", "host", "token", "allow_host", "caption", "overrides"),
    *("targets", "project", "entity", "interpreter", "arguments", "version", "digest", "source", "teacher"),
    *("sweep run only", "sweep check only", "sweep resume only", "wandb create only", "wandb trial only"),
    *("wandb agent sweep", "wandb upload sweep", "where", "eval tasks", "include_path", "max_shard_size"),
    "doctor device",
}  # fmt: skip
TEXTS = (str, list[str])


def parameters() -> Iterator[tuple[str, Any]]:
    """Every parameter that takes text, as `command parameter`, but for those of `train`, which are transformers'."""

    def walk(group: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, (*words, name))
            elif name != "train":
                for one in command.params:
                    if not getattr(one, "is_flag", False) and one.type_descriptor.annotation in TEXTS:
                        yield " ".join((*words, name, one.name)), one

    yield from walk(typer.main.get_command(app), ())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_root(folder / "runs", seeds())
    make_root(folder / "runs", name="other", windows=False)
    return folder / "runs"


def after(key: str) -> tuple[str, str] | None:
    """What is typed for a parameter, and what should follow; None of free text."""
    short = key.rpartition(" ")[2]
    return COMPLETED.get(key, None if key in FREE or short in FREE else COMPLETED.get(short))


def completions(made: Path, *words: str, **environment: str) -> list[str]:
    """What bash is given for the last of these words."""
    line = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    asked = {"_PRUNEGPT_COMPLETE": "complete_bash", "PRUNEGPT_ROOT": str(made), **line, **environment}
    done = CliRunner().invoke(app, [], env=asked, prog_name="prunegpt")
    assert done.exit_code == 0, done.output
    return done.output.split()


def test_every_parameter_is_completed_or_free() -> None:
    keys = [key for key, _ in parameters()]
    assert len(keys) > 40
    assert [key for key in keys if after(key) is None and key not in FREE and key.rpartition(" ")[2] not in FREE] == []


@pytest.mark.parametrize("key", sorted(key for key, _ in parameters() if after(key)))
def test_the_names_that_are_known_follow(key: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (*words, _), (typed, expected) = key.split(), after(key) or ("", "")
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    parameter = dict(parameters())[key]
    arguments = [one.name for one in command.params if one.param_type_name == "argument"]
    if parameter.name in arguments:
        words += ["study"] * arguments.index(parameter.name)
    else:
        words += [*(["study"] * len(arguments)), parameter.opts[0]]
    assert expected in completions(made, "prunegpt", *words, typed)


def test_specs_and_folders_are_completed_beside_what_is_stored(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strong.yaml").write_text("", encoding="utf-8")
    (tmp_path / "steps").mkdir()
    assert completions(made, "prunegpt", "table", "st") == ["study", "steps/", "strong.yaml"]
    assert completions(tmp_path, "prunegpt", "table", "st") == ["steps/", "strong.yaml"]  # nothing has run there
    assert "study/" in completions(made, "prunegpt", "trial", "show", "st")
    assert "study/wanda-0.9" in completions(tmp_path, "prunegpt", "export", "--root", str(made), "study/")


def test_no_error_reaches_the_shell_and_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "prunegpt.db").write_bytes(b"no database" * 100)
    code = (
        "import sys, atexit; sys.argv = ['prunegpt']\n"
        "from prunegpt.cli import main\n"
        "atexit.register(lambda: print([name for name in ('torch', 'transformers') if name in sys.modules]))\n"
        "main()"
    )
    line = {"COMP_WORDS": "prunegpt trial show st", "COMP_CWORD": "3", "_PRUNEGPT_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **line, "PRUNEGPT_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
