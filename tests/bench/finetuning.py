"""A fine-tuning step of GPT-2 small's shape: dense, with fixed masks, and over a run with 400 mask updates.

Beside it stands the plain Trainer setup of the causal-LM example. All sides step in turn, in one process, with the same
batch and arguments. What an update costs is timed by itself and spread over the steps of the run that the study
makes: 10 epochs of WikiText-2 at batch 1, 400 updates between epochs 1 and 5.
"""

from collections.abc import Iterator
from time import perf_counter

import torch

from prunegpt.lm.views import block_matrices
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.gradual import GradualPruner
from prunegpt.pruning.job import resolve_gradual
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.threshold import keep_largest
from prunegpt.spec.schedules import Clock
from tests.bench.harness import Ratio, Settings, rounds, stepping
from tests.bench.models import example_training, gpt2, our_training, random_blocks
from tests.bench.rows import Row

STEPS, UPDATES = 23_350, 400  # of the study's run
BESIDE = "the causal-LM example's Trainer"


def measure(settings: Settings) -> Iterator[Row]:
    torch.set_num_threads(settings.threads)
    length, count = settings.pick(1024, 32), settings.pick(4, 2)
    models = {name: gpt2(settings, positions=length) for name in ("plain", "dense", "masks")}
    tokens = random_blocks(models["plain"], 64, length)
    views = block_matrices(models["masks"])
    masks = {name: Mask(keep_largest(view.matrix.abs(), view.matrix.numel() * 9 // 10)) for name, view in views.items()}
    with stepping(
        plain=example_training(settings, models["plain"], tokens, batch=1),
        dense=our_training(settings, models["dense"], tokens, batch=1, name="dense"),
        masks=our_training(
            settings, models["masks"], tokens, batch=1, name="masks", enforcer=Enforcer(views, masks)
        ),
    ) as lanes:  # fmt: skip
        times = rounds(lanes, count=count, warmup=1, clock=settings.clock)
    shape = f"GPT-2 small's shape, 1 × {length} tokens"
    yield Row.of(
        "finetune-dense", f"Fine-tuning step, {shape}: dense", BESIDE, times.ratio("dense", "plain"), wanted=1.0,
        figures=times.medians,
    )  # fmt: skip
    masked = times.ratio("masks", "plain")
    passes = _enforcing(models["masks"], Enforcer(views, masks))
    yield Row.of(
        "finetune-masks", "the same with masks at every step", BESIDE, masked, wanted=1.03,
        figures={"seconds of masking gradients and weights": passes, "share of a step": passes / times.median("plain")},
    )  # fmt: skip
    del models["plain"], models["dense"]
    update = _updating(models["masks"], settings.pick(5, 2))
    share = UPDATES * update / (STEPS * times.median("plain"))
    yield Row.of(
        "finetune-gradual",
        f"the same over {STEPS:,} steps with {UPDATES} mask updates",
        BESIDE,
        Ratio(tuple(each + share for each in masked.pairs)),
        wanted=1.05,
        figures={"seconds of an update": update, "updates in steps": update / times.median("plain")},
        note=f"An update takes {update / times.median('plain'):.2f} steps; the run has one in {STEPS // UPDATES}.",
    )


def _enforcing(model: torch.nn.Module, enforcer: Enforcer) -> float:
    """Seconds that both passes of a step take by themselves."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    started = perf_counter()
    for _ in range(3):
        enforcer.mask_gradients()
        enforcer.mask_weights()
    return (perf_counter() - started) / 3


def _updating(model: torch.nn.Module, count: int) -> float:
    """Seconds of a mask update of the whole model, its optimizer's moments included."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    optimizer.step()
    views = block_matrices(model)
    job = resolve_gradual(views, method="magnitude", clock=Clock.regular(0, 100, 1), final=0.9, initial=0.3)
    pruner = GradualPruner(job, Enforcer(views))
    pruner.before_step(0, optimizer)
    seconds = []
    for step in range(1, 1 + count):
        started = perf_counter()
        pruner.before_step(step * 10, optimizer)
        seconds.append(perf_counter() - started)
    return sorted(seconds)[len(seconds) // 2]
