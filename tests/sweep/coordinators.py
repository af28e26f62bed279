"""Coordinators that are processes of their own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prunegpt.root import Root

SCRIPT = Path(__file__).with_name("coordinate.py")


def start(root: Root, plan: Any, slots: int = 1) -> subprocess.Popen[str]:
    """A coordinator in a process of its own."""
    file = root.path.with_name("plan.json")
    file.write_text(plan.model_dump_json())
    command = [sys.executable, str(SCRIPT), str(file), str(root.path), str(slots)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def line_with(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return line
    pytest.fail(f"no line with {word!r}; {process.stderr and process.stderr.read()}")
