"""The recipes that tests read, and the whole way that one goes."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from prunegpt.errors import PruneGPTError
from prunegpt.recipes.convert import to_mapping, to_stages, to_yaml
from prunegpt.recipes.describe import describe, render
from prunegpt.recipes.load import meaning_of_text
from prunegpt.recipes.matching import TensorInfo

FIXTURES = sorted((Path(__file__).parents[1] / "recipes" / "fixtures").iterdir())


TEXTS = [path.read_text() for path in FIXTURES]


TENSORS = {
    "transformer.h.0.mlp.c_fc.weight": TensorInfo((4, 16), "Conv1D"),
    "lm_head.weight": TensorInfo((8, 4), "Linear"),
}


def through(text: str, overrides: dict[str, Any] | None = None) -> bool:
    """Reads, explains and converts; whether it was a recipe."""
    try:
        meaning = meaning_of_text(text, "fuzz.yaml", overrides)
        description = describe(meaning, 7, TENSORS)
    except PruneGPTError:
        return False
    json.dumps(description)
    render(description)
    for convert in (to_mapping, to_stages):
        for strict in (True, False):
            with suppress(PruneGPTError):
                converted: Any = convert(meaning, strict=strict)
                to_yaml(converted)
    return True
