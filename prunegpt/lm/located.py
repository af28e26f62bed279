"""Where a model or a tokeniser is, in the arguments of transformers, and what it raises there as errors of ours."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from prunegpt.builtin import is_builtin
from prunegpt.errors import ModelError
from prunegpt.planning import hub
from prunegpt.planning.sources import model_place, refuse_adapter, tensor_shapes, weight_files


def locate(
    source: str | Path, revision: str | None, trust_remote_code: bool, *, weights: bool = True
) -> tuple[str, dict[str, Any]]:
    """What transformers is to be called with, after the checks that a local source allows."""
    text = str(source)
    if is_builtin(text):
        raise ModelError(
            f"a built-in model has no stored weights; {text!r} was to be loaded. It is built and trained before its "
            "first use; load the folder of that training."
        )
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    path = model_place(text)
    if path is None:
        if weights:
            with suppress(hub.Unreachable):  # what loads it then reports that, after tries of its own
                refuse_adapter(text, hub.commit(text, revision))
        return text, {**options, "revision": revision} if revision else options
    if path.is_file():
        return str(path.parent), {**options, "gguf_file": path.name}
    if weights:
        tensor_shapes(path, weight_files(path))  # refuses what is damaged
    return str(path), options


@contextmanager
def explained(source: str | Path, what: str = "model") -> Iterator[None]:
    """Turns what transformers and the hub raise while loading into a ModelError."""
    try:
        yield
    except (torch.OutOfMemoryError, ModelError):
        raise
    except Exception as error:  # a broken file, the hub and the network raise anything
        text = str(error).strip()
        lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
        told = " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")
        if "trust_remote_code" in text:
            way_out = f"{source} runs its own code. Set trust_remote_code: true where you have read and trust it."
        elif Path(source).expanduser().exists():
            way_out = f"{source} failed: {told}. Check that the folder or file is complete."
        elif os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
            way_out = (
                f"{source} is not in the local hub cache and HF_HUB_OFFLINE is set. Download it where there is a "
                f"network (hf download {source}), unset the variable, or give a local folder."
            )
        else:
            way_out = f"{source} failed: {told}. Check the name, the network, or give a local folder."
        raise ModelError(f"the {what} did not load: {way_out}") from error
