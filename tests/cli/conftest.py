"""The command line in this process, on the small model of the end-to-end tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.errors import PruneGPTError
from tests.e2e.conftest import model_folder, text_files

__all__ = ["model_folder", "text_files"]

Invoke = Callable[..., Any]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs a command; an error meant for the user comes back as the text it is."""
    monkeypatch.setenv("PRUNEGPT_ROOT", str(tmp_path / "runs"))

    def call(*arguments: str, fails: bool = False) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if fails:
            assert result.exit_code != 0
            return str(result.exception) if isinstance(result.exception, PruneGPTError) else result.output
        assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
        return result.stdout

    return call
