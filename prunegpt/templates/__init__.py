"""Specs to begin with: package data, filled in by `prunegpt init`; quickstart.yaml is run as it is."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

QUICKSTART = "quickstart"
GENERATED = 16  # tokens that a template's speed is measured on
_BUILTIN = {"BATCH": "16", "RATE": "2.0e-3", "LOWEST": "7.0e-4", "HIGHEST": "7.0e-3", "WINDOWS": "16", "PROMPT": "64"}
_OTHERS = {"BATCH": "4", "RATE": "5.0e-5", "LOWEST": "1.0e-5", "HIGHEST": "2.0e-4", "WINDOWS": "128", "PROMPT": "512"}


def names() -> list[str]:
    """The templates that `fill` takes."""
    found = (Path(entry.name) for entry in files(__name__).iterdir())
    return sorted(path.stem for path in found if path.suffix == ".yaml" and path.stem != QUICKSTART)


def text(name: str) -> str:
    """A template as it is in the package."""
    return files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def fill(template: str, *, name: str, model: str | None, data: Mapping[str, str], positions: int | None = None) -> str:
    """A spec made of a template.

    Args:
        name: of the sweep.
        model: a hub id, folder or file; None = the built-in model.
        positions: tokens that the model takes at most, where that is known: windows and prompts fit it.
        data: split -> file, or {"path": hub id, folder or file}; empty = the built-in text.
    """
    given = {key: _local(value) for key, value in data.items()} or {"path": "builtin:text"}
    fields = given if "path" in given else {"files": given}
    usual = _BUILTIN if model is None else _OTHERS
    block = min(128 if model is None else 512, positions or 512)
    values = {
        "NAME": json.dumps(name),
        "FILE": name,
        "MODEL": json.dumps(_local(model) if model else "builtin:tiny-gpt2"),
        "DATA": json.dumps({**fields, "block_size": block}, ensure_ascii=False),
        **usual,
        "GENERATED": str(GENERATED),
        "PROMPT": str(min(int(usual["PROMPT"]), max(1, (positions or 1024) - GENERATED))),
    }
    found = text(template)
    for token, value in values.items():
        found = found.replace(f"@{token}@", value)
    return found


def _local(source: str) -> str:
    """A path of this machine in full, for the spec may be in another folder; anything else as it is."""
    return str(Path(source).absolute()) if Path(source).exists() else source
