"""No process of ours takes a module from the working directory: it may be a stranger's root, or hold a `random.py`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import prunegpt
from prunegpt.launch.job import BY_HAND, TRIAL
from prunegpt.launch.local import WORKER

PACKAGE = Path(prunegpt.__file__).parent


def interpreters() -> list[tuple[str, list[object]]]:
    """Every command line in the package that names `-m` or `-c`, as far as it is literal."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.List | ast.Tuple):
                words = [one.value if isinstance(one, ast.Constant) else None for one in node.elts]
                option = next((index for index, word in enumerate(words) if word in ("-m", "-c")), None)
                if option is not None and words[option + 1 :]:
                    found.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", words[: option + 1]))
    return found


def test_every_python_that_is_started_leaves_it_out() -> None:
    found = interpreters()
    assert len(found) >= 6
    assert [place for place, words in found if "-P" not in words] == []


@pytest.mark.parametrize("command", [WORKER, (sys.executable, *BY_HAND), (sys.executable, *TRIAL)], ids=str)
def test_a_module_in_the_working_directory_is_not_imported(command: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("typer", "torch", "random", "click"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\nraise SystemExit(7)\n")
    done = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()
