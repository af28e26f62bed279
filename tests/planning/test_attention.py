"""How attention is computed: in keys where it is set, and refused where it could not be."""

from importlib.util import find_spec
from typing import Any

import pytest

from prunegpt.errors import SpecError
from prunegpt.planning.checks import attention_problem
from prunegpt.spec.execution import LauncherSpec
from prunegpt.spec.schema import ModelSpec
from tests.support.specs import BASE, problems_of, trial_of

LOCAL, SLURM = LauncherSpec(), LauncherSpec(kind="slurm", gpus=1)
FLASH = "flash_attention_2"
KINDS = ("sdpa", "eager", FLASH)


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


@pytest.mark.parametrize(
    ("device", "precision", "launcher", "told"),
    [
        ("cpu", "bfloat16", LOCAL, "is computed on a CUDA device, got device cpu. Use sdpa"),
        ("mps", "bfloat16", SLURM, "is computed on a CUDA device, got device mps. Use sdpa"),
        ("cuda", "float32", SLURM, "computes in bfloat16 or float16, got precision float32. Set precision: bfloat16"),
        ("auto", "float16", SLURM, None),
    ],
)
def test_what_flash_attention_needs(device: str, precision: str, launcher: LauncherSpec, told: str | None) -> None:
    found = attention_problem(FLASH, device, precision, launcher)
    assert found is None if told is None else told in str(found)
    assert all(attention_problem(kind, device, precision, launcher) is None for kind in (None, "sdpa", "eager"))


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_its_package_is_looked_for_where_it_would_run() -> None:
    found = attention_problem(FLASH, "cuda", "bfloat16", LOCAL)
    assert "needs the package flash-attn, got none here. pip install flash-attn" in str(found)


def test_a_spec_names_its_field() -> None:
    base = {**BASE, "device": "cpu", "model": {"source": BASE["model"], "attention": FLASH}}
    (found,) = problems_of({"name": "one"}, base=base)
    assert "model.attention" in str(found)
    with pytest.raises(SpecError, match="attention"):
        keys(attention="fast")
