"""How attention is computed: in keys where it is set, and refused where it could not be."""

from typing import Any

import pytest

from prunegpt.errors import SpecError
from prunegpt.spec.schema import ModelSpec
from tests.support.specs import BASE, trial_of

KINDS = ("sdpa", "eager")


def keys(**model: Any) -> list[str]:
    return [
        stage.key for stage in trial_of("finetune", base={**BASE, "model": {"source": BASE["model"], **model}}).stages
    ]


def test_it_decides_where_it_is_set() -> None:
    usual = [stage.key for stage in trial_of("finetune").stages]
    assert keys() == keys(attention=None) == usual
    sdpa, eager = keys(attention="sdpa"), keys(attention="eager")
    assert all(len(set(found)) == 3 for found in zip(usual, sdpa, eager, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_taken(kind: str) -> None:
    assert ModelSpec(source="gpt2", attention=kind).attention == kind  # type: ignore[arg-type]


def test_another_is_refused() -> None:
    with pytest.raises(SpecError, match="attention"):
        keys(attention="flash_attention_2")
