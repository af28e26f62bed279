"""With --json standard output is JSON and nothing else, whatever libraries print."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.cli.options import JsonOption, print_json

LINE = "a line that a library prints when it is imported"


def json_options(command: Any, name: str = "prunegpt") -> Iterator[Any]:
    """Every option --json below a command, by the command's name."""
    for one in command.params:
        if "--json" in one.opts:
            yield pytest.param(one, id=name)
    for below, child in getattr(command, "commands", {}).items():
        yield from json_options(child, f"{name} {below}")


@pytest.mark.parametrize("option", [*json_options(typer.main.get_command(app))])
def test_every_json_has_standard_output_to_itself(option: Any) -> None:
    assert option.callback is not None


def test_what_else_is_printed_goes_to_standard_error() -> None:
    demo = typer.Typer()

    @demo.command()
    def show(as_json: JsonOption = False) -> None:
        print(LINE)
        print_json({"json": as_json})

    runner = CliRunner()
    alone, mixed = runner.invoke(demo, ["--json"]), runner.invoke(demo, [])
    assert json.loads(alone.stdout) == {"json": True}
    assert alone.stderr == LINE + "\n"
    assert mixed.stdout.startswith(LINE)
    assert mixed.stderr == ""
