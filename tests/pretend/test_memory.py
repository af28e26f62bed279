"""Estimates of memory are what a device counts, and what the documentation says.

The device is a pretended one, as in `test_pretend`: it counts bytes of tensors.
"""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from prunegpt.distill.chunked import CHUNK_BYTES, CHUNK_BYTES_ELSEWHERE
from prunegpt.distill.objective import LOGITS
from prunegpt.lm.perplexity import HEAD_ELEMENTS
from prunegpt.lm.views import memory_sizes, outline
from prunegpt.planning import memory
from prunegpt.planning.memory import Memory, Sizes
from prunegpt.pruning.solvers.obert import CHUNK
from prunegpt.pruning.statistics.activations import micro_batch_of
from prunegpt.registry import CRITERIA, SOLVERS
from prunegpt.spec.methods import method_entry
from tests.support.pretend.process import CHECKOUT, Ask
from tests.support.trained import gpt2, llama

WITHIN = 0.1
METHODS = [*CRITERIA.names(), *SOLVERS.names()]
ONE_SHOT = [name for name in METHODS if not method_entry(name).only_in_training]
FAMILIES = {"gpt2": gpt2, "llama": llama}
SHAPES: Mapping[str, tuple[dict[str, int], ...]] = {
    "gpt2": ({"layers": 2, "width": 64, "vocabulary": 2048}, {"layers": 4, "width": 48, "vocabulary": 1024}),
    "llama": (
        {"layers": 2, "width": 32, "inner": 256, "vocabulary": 2048},
        {"layers": 4, "width": 48, "inner": 128, "vocabulary": 1024},
    ),
}
WINDOWS, LENGTH, BATCH = 2, 64, 4


def sizes(family: str, shape: Mapping[str, int]) -> Sizes:
    model = FAMILIES[family](**shape, positions=LENGTH)  # type: ignore[operator]
    return memory_sizes(outline(model), model.config)


def estimate(memory: Memory, job: str) -> int:
    if job.startswith("evaluation"):
        return memory.evaluation(BATCH * LENGTH, alone=job != "evaluation")
    if job == "training":
        return memory.training(BATCH * LENGTH)
    if job == "distillation":
        return memory.training(BATCH * LENGTH, distilled=memory.weights // (2 if memory.half else 1))
    return memory.one_shot(job, method_entry(job).needs, WINDOWS, LENGTH)


CASES = [
    *(
        (job, family, place, precision)
        for job in ("evaluation", "training", "distillation")
        for family in SHAPES
        for place, precision in ((0, "float32"), (1, "float32"), (0, "bfloat16"))
    ),
    *(("evaluation, alone", family, place, "bfloat16") for family in SHAPES for place in (0, 1)),
    *((method, family, 0, "float32") for method in ONE_SHOT for family in SHAPES),
]


@pytest.mark.parametrize(("job", "family", "place", "precision"), CASES)
def test_an_estimate_is_what_a_device_counts(pretend: Ask, job: str, family: str, place: int, precision: str) -> None:
    shape = SHAPES[family][place]
    asked: dict[str, Any] = {"options": {"iterations": 4, "refine_iterations": 2}} if job == "admm" else {}
    counted = pretend(
        "peak",
        job=job,
        family=family,
        shape=shape,
        windows=WINDOWS,
        length=LENGTH,
        batch=BATCH,
        precision=precision,
        **asked,
    )
    found = estimate(Memory(sizes(family, shape), half=precision != "float32"), job)
    assert found == pytest.approx(counted, rel=WITHIN)


def _rows(page: str) -> dict[str, list[str]]:
    """First word of a row of a table -> its formulas."""
    rows = (line.strip("|").split("|") for line in page.splitlines() if re.match(r"\| .*`", line))
    return {name: [cell.strip().strip("`") for cell in cells] for first, *cells in rows for name in _names(first)}


def _names(first: str) -> list[str]:
    symbol = re.match(r" `(\w)`", first)
    return [symbol[1]] if symbol else [first.strip(), *(name.strip() for name in first.split(","))]


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("half", [False, True])
def test_the_documentation_has_the_same_formulas(family: str, half: bool) -> None:
    rows = _rows((CHECKOUT / "docs/how-to/gpu.md").read_text())
    size = sizes(family, SHAPES[family][0])
    inputs = size.inputs, size.read, size.outputs
    known: dict[str, Any] = (
        dict(
            zip(
                "PAEMLndfVG",
                (
                    size.parameters,
                    size.products,
                    size.tied,
                    size.matrices,
                    size.largest,
                    size.layers,
                    size.width,
                    size.inner,
                    size.vocabulary,
                    size.grams,
                ),
                strict=True,
            )
        )
        | dict(zip("IRO", inputs, strict=True))
        | {"min": min, "max": max}
    )
    column = 2 * (family == "gpt2") + half
    known |= {name: eval(cells[column], {}, known) for name, cells in rows.items() if len(name) == 1}
    weights = 4 * size.parameters
    teacher = weights // 2 if half else weights
    known |= {"w": weights, "t": teacher, "T": BATCH * LENGTH, "S": LENGTH, "N": WINDOWS, "Q": WINDOWS * LENGTH}
    named = {"training": "fine-tuning", "evaluation, alone": "evaluation alone, in bfloat16"}
    for job in ("evaluation", *(["evaluation, alone"] if half else ()), "training", "distillation", *ONE_SHOT):
        (formula,) = rows[named.get(job, job)]
        assert eval(formula, {}, known) == estimate(Memory(size, half=half), job), job
    assert set(ONE_SHOT) <= set(rows)


def test_what_is_done_at_a_time_is_what_the_estimates_take() -> None:
    import torch

    assert memory.CHUNK == HEAD_ELEMENTS
    assert {"cpu": CHUNK_BYTES["cpu"] // 4, "cuda": CHUNK_BYTES_ELSEWHERE // 4} == memory.DISTILLED
    assert (memory.WHOLE, memory.FISHER) == (LOGITS, CHUNK)
    one = torch.zeros(1, 1)
    assert {name: micro_batch_of(one, torch.device(name), None) for name in memory.CALIBRATED} == memory.CALIBRATED
