"""The whole quickstart, beside each of its trials alone in an empty root: trained tokens, and time.

Tokens are counted for the quickstart as it is. Time is that of a scaled-down one: the same spec and model with a share
of the steps and of the text to measure on. Both sides run in this process, so that neither waits for an interpreter.
Everything counts that a root without a cache has to do, the training of the built-in model too; the figures tell what
is left of the ratio without it.
"""

import contextlib
import gc
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from prunegpt.builtin import BUILTIN_MODELS
from prunegpt.planning.resolve import plan_file
from prunegpt.records import AttemptRecord
from prunegpt.root import Root
from prunegpt.running import chosen
from prunegpt.spec.plan import SweepPlan
from prunegpt.stages.counting import Counting
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep
from tests.bench.harness import Ratio, Settings
from tests.bench.rows import Row
from tests.bench.study import SPECS, own, tokens
from tests.support.here import Here

SPEC = SPECS / "quickstart.yaml"
BESIDE = "each trial alone without the stage cache"


class InProcess(Here):
    """The same, where every trial must finish."""

    def submit(self, folder: Path) -> str:
        handle = super().submit(folder)
        record = AttemptRecord.read(folder / "record.json")
        if record.state != "finished":
            raise RuntimeError(f"{record.trial} must finish, got {record.state}: {record.error}")
        return handle


def measure(settings: Settings) -> Iterator[Row]:
    torch.set_num_threads(settings.threads)
    yield _tokens(settings)
    yield _time(settings)


def _tokens(settings: Settings) -> Row:
    root = Root(settings.work / "paper")
    plan = plan_file(SPEC, root=root)
    with contextlib.redirect_stderr(io.StringIO()):
        together, alone = tokens([plan], root)
        pretraining = Counting(root).costs(chosen(plan, "zero-shot")).train_tokens or 0
    without = (together - pretraining) / (sum(alone) - pretraining * len(alone))
    return Row.of(
        "quickstart-tokens",
        f"Quickstart, {len(alone)} trials: trained tokens",
        BESIDE,
        Ratio((together / sum(alone),)),
        wanted=0.4,
        figures={"tokens": together, "tokens alone": sum(alone), "× without training the built-in model": without},
    )


def _time(settings: Settings) -> Row:
    scale = settings.pick(40, 300)
    with scaled(scale, settings.work / "plan") as plan:
        names = own(plan)[: settings.pick(len(own(plan)), 4)]
        if settings.quick:
            plan = plan.model_copy(update={"trials": tuple(chosen(plan, "zero-shot")) + tuple(chosen(plan, "layer-*"))})
            names = own(plan)
        run(plan, settings.work / "warm", only=names[0])  # imports, and the text's rows
        together = run(plan, settings.work / "together")
        alone = [run(plan, settings.work / f"alone-{name}", only=name) for name in names]
    return Row.of(
        "quickstart-time",
        f"the same at 1/{scale} of its steps: time",
        BESIDE,
        Ratio((together / sum(alone),)),
        wanted=0.4,
        figures={"seconds": together, "seconds alone": sum(alone)},
    )


@contextmanager
def scaled(scale: int, folder: Path) -> Iterator[SweepPlan]:
    """The quickstart at a share of its steps; the model that it begins with is shortened inside the block only."""
    overrides = [f"base.train.max_steps={max(2, 400 // scale)}", f"base.evaluate.max_windows={640 // scale}"]
    overrides += [f"base.data.max_train_blocks={16 * max(2, 400 // scale)}"]
    with _short_pretraining(max(2, 600 // scale)):
        yield plan_file(SPEC, overrides, root=Root(folder))


def run(plan: SweepPlan, folder: Path, only: str | None = None) -> float:
    """Seconds of a run in an empty root."""
    root = Root(folder)
    gc.collect()  # what the run before left
    started = time.perf_counter()
    with Store.open(root) as store:
        outcome = run_sweep(plan, root, store, InProcess(), only=only)
    if not outcome.ok:
        raise RuntimeError(f"every trial must finish; {outcome.failed} did not.")
    return time.perf_counter() - started


@contextmanager
def _short_pretraining(steps: int) -> Iterator[None]:
    """The built-in model trained for so many steps only, inside the block."""
    model = BUILTIN_MODELS["builtin:tiny-gpt2"]
    before = model.pretraining
    arguments = {**before.arguments, "max_steps": steps, "warmup_steps": 1}
    object.__setattr__(model, "pretraining", replace(before, arguments=arguments))
    try:
        yield
    finally:
        object.__setattr__(model, "pretraining", before)
