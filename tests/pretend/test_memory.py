"""Estimates of memory are what a device counts, and what the documentation says.

The device is a pretended one, as in `test_pretend`: it counts bytes of tensors.
"""

import re
from collections.abc import Mapping
from typing import Any, get_args

import pytest

from prunegpt.distill.chunked import CHUNK_BYTES, CHUNK_BYTES_ELSEWHERE
from prunegpt.distill.objective import LOGITS
from prunegpt.lm.perplexity import HEAD_ELEMENTS
from prunegpt.lm.views import memory_sizes, outline
from prunegpt.planning import memory
from prunegpt.planning.memory import Memory, Sizes, mask_bytes
from prunegpt.pruning.solvers.obert import CHUNK
from prunegpt.pruning.statistics.activations import micro_batch_of
from prunegpt.registry import ACTIVATIONS, CRITERIA, GRADIENTS, MASK_MODES, SOLVERS
from prunegpt.spec.methods import method_entry
from prunegpt.spec.repair import RepairSpec
from prunegpt.spec.schema import GradualSpec
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
    if job.endswith(" streamed"):
        method = job.removesuffix(" streamed")
        return memory.streamed(method, method_entry(method).needs, WINDOWS, LENGTH)
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


EAGER = {
    "gpt2": {"layers": 2, "width": 64, "vocabulary": 1024, "heads": 16},
    "llama": {"layers": 2, "width": 64, "inner": 128, "vocabulary": 1024, "heads": 16, "groups": 4},
}
WANTED: Mapping[str, frozenset[str]] = {name: method_entry(name).needs for name in ONE_SHOT}
QUICK = {"options": {"iterations": 4, "refine_iterations": 2}}  # of ADMM


def counted(pretend: Ask, job: str, family: str, shape: Mapping[str, int], **asked: Any) -> int:
    given = {"windows": WINDOWS, "length": LENGTH, "batch": BATCH, **(QUICK if job == "admm" else {}), **asked}
    found: int = pretend("peak", job=job, family=family, shape=shape, **given)
    return found


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("method", ONE_SHOT)
def test_estimates_of_the_stored_dtype_and_of_streaming(pretend: Ask, method: str, family: str) -> None:
    needs = WANTED[method]
    for shape in SHAPES[family]:
        memory = Memory(sizes(family, shape), stored=2)
        found = memory.one_shot(method, needs, WINDOWS, LENGTH)
        assert found == pytest.approx(counted(pretend, method, family, shape, storage="bfloat16"), rel=WITHIN)
        if needs & (ACTIVATIONS | GRADIENTS):
            for stored, dtype in ((2, "bfloat16"), (4, "float32")):
                found = Memory(memory.sizes, stored=stored).streamed(method, needs, WINDOWS, LENGTH)
                there = counted(pretend, method, family, shape, storage=dtype, place=True)
                assert found == pytest.approx(there, rel=WITHIN)


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_estimates_of_attention_maps(pretend: Ask, family: str, precision: str) -> None:
    shape = EAGER[family]
    memory = Memory(sizes(family, shape), half=precision != "float32", heads=shape["heads"])
    asked = {"attention": "eager", "precision": precision}
    found = memory.evaluation(BATCH * LENGTH, length=LENGTH)
    assert found == pytest.approx(counted(pretend, "evaluation", family, shape, **asked), rel=WITHIN)
    found = memory.training(BATCH * LENGTH, length=LENGTH)
    assert found == pytest.approx(counted(pretend, "training", family, shape, **asked), rel=WITHIN)
    for method in ("wanda", "wanda++", "taylor", "obert") if precision == "float32" else ():
        found = memory.one_shot(method, WANTED[method], WINDOWS, LENGTH)
        assert found == pytest.approx(counted(pretend, method, family, shape, attention="eager"), rel=WITHIN)


@pytest.mark.parametrize("family", SHAPES)
def test_estimates_of_what_processes_share(family: str) -> None:
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    shape = SHAPES[family][1]
    model = FAMILIES[family](**shape, positions=LENGTH)  # type: ignore[operator]
    buckets: list[int] = []

    def seen(_: Any, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        buckets.append(bucket.buffer().nbytes)
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        shared = DistributedDataParallel(model)
        shared.register_comm_hook(None, seen)
        tokens = torch.zeros(1, 4, dtype=torch.long)
        shared(input_ids=tokens, labels=tokens).loss.backward()
    finally:
        distributed.destroy_process_group()
    one, two = (Memory(sizes(family, shape)).training(BATCH * LENGTH, processes=count) for count in (1, 2))
    assert two - one == pytest.approx(sum(buckets), rel=WITHIN)
    assert sum(buckets) == 4 * sum(parameter.numel() for parameter in model.parameters())


MASKS: Mapping[str, dict[str, Any]] = {
    "held": {"fixed": True},
    **{name: {"method": name} for name in CRITERIA.names()},
    **{f"mode {name}": {"method": "magnitude", "mode": name} for name in MASK_MODES.names()},
}


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("case", MASKS)
def test_estimates_of_masks_in_training(pretend: Ask, family: str, case: str) -> None:
    asked = MASKS[case]
    spec = None if case == "held" else GradualSpec(sparsity=0.5, **asked)
    more = {} if spec is None else {"updates": [1, 3], "steps": 4}
    (shape, *_) = SHAPES[family]
    masks = mask_bytes(spec, held=True)
    found = Memory(sizes(family, shape)).training(BATCH * LENGTH, length=LENGTH, masks=masks)
    plain, there = (counted(pretend, "training", family, shape, **one) for one in ({}, {**asked, **more}))
    assert found == pytest.approx(there, rel=WITHIN)
    assert there - plain == pytest.approx(masks * sizes(family, shape).matrices, rel=WITHIN)


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_estimates_of_updates_in_training(pretend: Ask, method: str, family: str) -> None:
    (shape, *_) = SHAPES[family]
    memory = Memory(sizes(family, shape))
    calibration = {"windows": WINDOWS, "length": LENGTH}
    spec = GradualSpec(sparsity=0.5, method=method, calibration=calibration)  # type: ignore[arg-type]
    masks, update = mask_bytes(spec, held=True), memory.updating(spec)
    for batch in (BATCH, 1):  # one of many tokens, and one whose updates may take more than its steps
        found = memory.training(batch * LENGTH, length=LENGTH, masks=masks, update=update)
        asked = {"method": method, "updates": [1, 3], "steps": 4, "batch": batch, **(QUICK if method == "admm" else {})}
        assert found == pytest.approx(counted(pretend, "training", family, shape, **asked), rel=WITHIN)


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("scope", get_args(RepairSpec.model_fields["scope"].annotation))
def test_estimates_of_repair(pretend: Ask, family: str, scope: str) -> None:
    for shape, storage, batch in zip(SHAPES[family], (4, 2), (WINDOWS, 1), strict=True):
        memory = Memory(sizes(family, shape), stored=storage)
        spec = RepairSpec(scope=scope, batch_size=batch)  # type: ignore[arg-type]
        found = memory.one_shot("magnitude", WANTED["magnitude"], WINDOWS, LENGTH, repair=spec)
        asked = {"repair": scope, "batch": batch, "storage": "float32" if storage == 4 else "bfloat16"}
        assert found == pytest.approx(counted(pretend, "magnitude", family, shape, **asked), rel=WITHIN)


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
                "PAEMLDndfVG",
                (
                    size.parameters,
                    size.products,
                    size.tied,
                    size.matrices,
                    size.largest,
                    size.layer,
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
    for job in (
        "evaluation",
        *(["evaluation, alone"] if half else ()),
        "training",
        "distillation",
        "taylor streamed",
        *ONE_SHOT,
    ):
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
