"""The recipes that tests read, and the whole way that one goes."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from prunegpt.errors import PruneGPTError
from prunegpt.recipes.convert import to_mapping, to_stages, to_yaml
from prunegpt.recipes.describe import describe, render
from prunegpt.recipes.load import meaning_of_text
from prunegpt.recipes.matching import ModelNames
from prunegpt.spec.names import Matrix

FIXTURES = sorted((Path(__file__).parents[1] / "recipes" / "fixtures").iterdir())


TEXTS = [path.read_text() for path in FIXTURES]


MODEL = ModelNames(
    [Matrix("transformer.h.0.mlp.c_fc.weight", 0, (16, 4)), Matrix("lm_head.weight", None, (8, 4))],
    {"transformer.h.0.mlp.c_fc.weight": "Conv1D", "lm_head.weight": "Linear"},
)


def through(text: str, overrides: dict[str, Any] | None = None) -> bool:
    """Reads, explains and converts; whether it was a recipe."""
    try:
        meaning = meaning_of_text(text, "fuzz.yaml", overrides)
        description = describe(meaning, 7, MODEL)
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
