"""A distillation step of GPT-2 small's shape from a teacher of the same size: its time, its memory, a cached teacher.

Beside it stands a Trainer whose loss is the usual one: both models' logits of all tokens, CE and the KL divergence of
the softened distributions. Time is that of whole optimizer steps, taken in turn. Memory is that of the first step,
forward and backward, in a process of its own: the peak of the resident size over what it was with the models there.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer

from prunegpt.distill.cache import build_cache
from prunegpt.distill.chunked import chunked_losses
from prunegpt.distill.head import Head
from prunegpt.distill.losses.forward_kl import FORWARD_KL
from prunegpt.distill.objective import DistillationObjective
from prunegpt.distill.targets import HiddenTargets
from prunegpt.distill.teachers import Teacher
from tests.bench.harness import Ratio, Settings, environment, peak, reset_peak, resident, rounds, stepping
from tests.bench.models import example_training, gpt2, our_training, random_blocks
from tests.bench.rows import Row

HARDNESS, TEMPERATURE, K = 0.5, 2.0, 64
BESIDE = "Trainer with a full-logits KL"
WAYS = ("ours", "whole", "body", "ours head", "whole head")


class WholeLogits(Trainer):
    """Distillation as scripts usually have it."""

    teacher: torch.nn.Module

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with torch.no_grad():
            target = self.teacher(input_ids=inputs["input_ids"]).logits
        outputs = model(**inputs)
        loss = outputs.loss * (1 - HARDNESS) + HARDNESS * softened(outputs.logits[:, :-1], target[:, :-1])
        return (loss, outputs) if return_outputs else loss


def softened(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of logits [batch, length, vocab] at the temperature, a mean over tokens."""
    log_q = F.log_softmax(student / TEMPERATURE, dim=-1).flatten(0, -2)  # [tokens, vocab]
    p = F.softmax(teacher / TEMPERATURE, dim=-1).flatten(0, -2)  # [tokens, vocab]
    return F.kl_div(log_q, p, reduction="batchmean") * TEMPERATURE**2


def measure(settings: Settings) -> Iterator[Row]:
    torch.set_num_threads(settings.threads)
    yield from _time(settings)
    yield from _memory(settings)


def _time(settings: Settings) -> Iterator[Row]:
    length, count = settings.pick(512, 32), settings.pick(4, 2)
    students = {name: gpt2(settings, positions=length, seed=1) for name in ("plain", "whole", "live", "cached")}
    teacher = gpt2(settings, positions=length, seed=2).eval().requires_grad_(False)
    tokens = random_blocks(teacher, settings.pick(8, 4), length)
    cache = build_cache(
        settings.work / "cache", Teacher(teacher), tokens, teacher_key="bench", data_key="bench", k=K,
        temperatures=(TEMPERATURE,), device=settings.device,
    )  # fmt: skip
    whole = type("WholeLogitsOfOne", (WholeLogits,), {"teacher": teacher})

    def objective(target: Any) -> DistillationObjective:
        return DistillationObjective(target, FORWARD_KL, hardness=HARDNESS, temperature=TEMPERATURE)

    with stepping(
        plain=example_training(settings, students["plain"], tokens, batch=1),
        whole=example_training(settings, students["whole"], tokens, batch=1, trainer=whole),
        live=our_training(
            settings, students["live"], tokens, batch=1, name="live", objective=objective(Teacher(teacher))
        ),
        cached=our_training(settings, students["cached"], tokens, batch=1, name="cached", objective=objective(cache)),
    ) as lanes:  # fmt: skip
        times = rounds(lanes, count=count, warmup=1, clock=settings.clock)
    shape = f"GPT-2 small's shape, 1 × {length} tokens"
    yield Row.of(
        "distill-time", f"Distillation step, {shape}", BESIDE, times.ratio("live", "whole"), wanted=0.9,
        figures=times.medians,
    )  # fmt: skip
    yield Row.of(
        "distill-cached",
        "Step with a cached teacher",
        "with a live teacher of the same size",
        times.ratio("cached", "live"),
        wanted=0.85,
        note="The student's own three passes are three quarters of a step with a live teacher.",
    )
    yield Row.of(
        "distill-cached-plain",
        "Step with a cached teacher",
        "fine-tuning step of the example, no teacher",
        times.ratio("cached", "plain"),
        wanted=1.1,
    )


def _memory(settings: Settings) -> Iterator[Row]:
    found = {way: _in_process(settings, way) for way in WAYS}
    figures = {f"MiB {way}": value for way, value in found.items()}
    floor = found["body"] / found["whole"]
    yield Row.of(
        "distill-memory",
        "the same step: peak memory above the models, vocabulary 50,257",
        BESIDE,
        Ratio((found["ours"] / found["whole"],)),
        wanted=0.4,
        floor=floor,
        figures=figures,
        note=(
            f"A step of the two bodies without any output layer, gradients of all weights included, is "
            f"{floor:.2f} of it; the losses and output layers alone are {found['ours head'] / found['whole head']:.2f}."
        ),
    )


def _in_process(settings: Settings, way: str) -> float:
    shape = [] if not settings.quick else ["--quick"]
    command = [sys.executable, "-m", "tests.bench.distillation", way, str(settings.work), *shape]
    run = subprocess.run(
        command, env=environment(settings.threads), capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr}")
    return float(json.loads(run.stdout.splitlines()[-1])["MiB"])


def peak_of(settings: Settings, way: str) -> float:
    """MiB that a step takes at its peak above what was there before it."""
    length = settings.pick(1024, 32)
    step = _head_step(settings, way, length) if way.endswith("head") else _body_step(settings, way, length)
    torch.mm(torch.ones(8, 8), torch.ones(8, 8))  # wakes the thread pool
    reset_peak()
    before = resident()
    step()
    return peak() - before


def _body_step(settings: Settings, way: str, length: int) -> Callable[[], object]:
    student = gpt2(settings, positions=length, seed=1).train()
    other = gpt2(settings, positions=length, seed=2).eval().requires_grad_(False)
    ids = torch.from_numpy(random_blocks(student, 1, length).astype(np.int64))  # [1, length]
    objective = DistillationObjective(Teacher(other), FORWARD_KL, hardness=HARDNESS, temperature=TEMPERATURE)

    def whole() -> None:
        with torch.no_grad():
            target = other(input_ids=ids).logits
        outputs = student(input_ids=ids, labels=ids)
        (outputs.loss * (1 - HARDNESS) + HARDNESS * softened(outputs.logits[:, :-1], target[:, :-1])).backward()

    def ours() -> None:
        objective(student, {"input_ids": ids, "labels": ids})[0].backward()

    def body() -> None:
        with torch.no_grad():
            other.transformer(ids, use_cache=False)
        student.transformer(ids, use_cache=False).last_hidden_state.sum().backward()

    return {"whole": whole, "ours": ours, "body": body}[way]


def _head_step(settings: Settings, way: str, length: int) -> Callable[[], object]:
    width, vocabulary = settings.pick(768, 64), settings.pick(50_257, 1024)
    hidden, theirs = torch.randn(length, width, requires_grad=True), torch.randn(length, width)
    weight = (0.05 * torch.randn(vocabulary, width)).requires_grad_()
    other = 0.05 * torch.randn(vocabulary, width)
    labels = torch.randint(vocabulary, (length,))

    def whole() -> None:
        with torch.no_grad():
            target = theirs @ other.t()  # [length, vocab]
        logits = hidden @ weight.t()  # [length, vocab]
        ((1 - HARDNESS) * F.cross_entropy(logits, labels) + HARDNESS * softened(logits, target)).backward()

    def ours() -> None:
        chunked_losses(
            hidden, Head(weight), labels, HiddenTargets(theirs, Head(other)), loss=FORWARD_KL, hardness=HARDNESS,
            temperature=TEMPERATURE,
        ).total.backward()  # fmt: skip

    return {"whole head": whole, "ours head": ours}[way]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the memory of one way in this process.")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("work", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    settings = Settings(arguments.quick, "cpu", torch.get_num_threads(), "wall", arguments.work)
    print(json.dumps({"MiB": peak_of(settings, arguments.way)}))


if __name__ == "__main__":
    main()
