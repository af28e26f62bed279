"""Time and memory of one distillation step, chunked against whole logits. Prints JSON.

    python tests/bench/distill_step.py [--tokens 1024 --vocab 50257 --width 768 --threads N --repeats 5]
    python tests/bench/distill_step.py --layers 12      # with the bodies of a student and a teacher too

Each way of computing runs in a process of its own. Memory is the peak of its resident size during the first step minus
the size just before it, when the weights and inputs are there and no gradients yet; time is the best of the steps that
follow. On a busy machine compare cpu_seconds at --threads 1.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prunegpt.distill.chunked import chunked_losses
from prunegpt.distill.head import Head
from prunegpt.distill.losses.forward_kl import FORWARD_KL
from prunegpt.distill.objective import DistillationObjective
from prunegpt.distill.targets import HiddenTargets, TopKTargets, shift_labels
from prunegpt.distill.teachers import Teacher
from prunegpt.registry import DISTILLATION_LOSSES

HARDNESS, TEMPERATURE, K = 0.5, 2.0, 64
WAYS = ["whole", "chunked", "reverse_kl", "jensen_shannon", "top_k", "cached", "ce_whole", "ce_chunked"]
BODY_WAYS = ["whole", "chunked", "ce_whole", "ce_chunked"]


def whole_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """CE and forward KL on whole logits [tokens, vocab], as scripts usually have it."""
    ce = F.cross_entropy(student.float(), labels)
    log_q = F.log_softmax(student.float() / TEMPERATURE, dim=-1)
    p = F.softmax(teacher.float() / TEMPERATURE, dim=-1)
    kd = F.kl_div(log_q, p, reduction="batchmean") * TEMPERATURE**2
    return (1 - HARDNESS) * ce + HARDNESS * kd


def head_step(way: str, tokens: int, vocab: int, width: int, chunk: int | None) -> Callable[[], Tensor]:
    """The loss from given hidden states."""
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = (0.05 * torch.randn(vocab, width)).requires_grad_()
    labels = torch.randint(vocab, (tokens,))
    teacher = HiddenTargets(torch.randn(tokens, width), Head(0.05 * torch.randn(vocab, width)))
    cached = TopKTargets(torch.randint(vocab, (tokens, K)).sort(-1).values, torch.randn(tokens, K + 1).log_softmax(-1))

    def reset() -> None:
        hidden.grad = weight.grad = None

    def whole() -> Tensor:
        reset()
        with torch.no_grad():
            target = teacher.hidden @ teacher.head.weight.t()
        return whole_loss(hidden @ weight.t(), target, labels)

    def chunked() -> Tensor:
        reset()
        name = way if way in DISTILLATION_LOSSES else "forward_kl"
        targets = cached if way == "cached" else teacher
        return chunked_losses(
            hidden,
            Head(weight),
            labels,
            targets,
            loss=DISTILLATION_LOSSES.load(name),
            hardness=HARDNESS,
            temperature=TEMPERATURE,
            chunk_tokens=chunk,
        ).total

    def ce_whole() -> Tensor:
        reset()
        return F.cross_entropy(hidden @ weight.t(), labels)

    def ce_chunked() -> Tensor:
        reset()
        return chunked_losses(hidden, Head(weight), labels, chunk_tokens=chunk).total

    return {"whole": whole, "ce_whole": ce_whole, "ce_chunked": ce_chunked}.get(way, chunked)


def body_step(way: str, tokens: int, vocab: int, width: int, layers: int, chunk: int | None) -> Callable[[], Tensor]:
    """The loss of a GPT-2 of that shape against another."""
    config = GPT2Config(
        vocab_size=vocab, n_positions=tokens, n_embd=width, n_layer=layers, n_head=width // 64, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    student, other = GPT2LMHeadModel(config).train(), GPT2LMHeadModel(config).eval()
    inputs = torch.randint(vocab, (1, tokens))
    batch = {"input_ids": inputs, "labels": inputs}
    objective = DistillationObjective(Teacher(other), FORWARD_KL, hardness=HARDNESS, temperature=TEMPERATURE)
    objective.chunk_tokens = chunk

    def whole() -> Tensor:
        student.zero_grad()
        with torch.no_grad():
            target = other(inputs, use_cache=False).logits[0, :-1]
        return whole_loss(student(inputs, use_cache=False).logits[0, :-1], target, inputs[0, 1:])

    def chunked() -> Tensor:
        student.zero_grad()
        return objective(student, batch)[0]

    def ce_whole() -> Tensor:
        student.zero_grad()
        return student(**batch, use_cache=False).loss

    def ce_chunked() -> Tensor:
        student.zero_grad()
        states = student.transformer(inputs, use_cache=False).last_hidden_state[0]
        return chunked_losses(states, Head(student.lm_head.weight), shift_labels(inputs), chunk_tokens=chunk).total

    return {"whole": whole, "chunked": chunked, "ce_whole": ce_whole, "ce_chunked": ce_chunked}[way]


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """One way of computing, in this process."""
    torch.manual_seed(0)
    shape = (arguments.tokens, arguments.vocab, arguments.width)
    if arguments.layers:
        step = body_step(arguments.way, *shape, arguments.layers, arguments.chunk)
    else:
        step = head_step(arguments.way, *shape, arguments.chunk)
    torch.mm(torch.ones(8, 8), torch.ones(8, 8))  # wakes the thread pool
    before = resident()
    loss = step()
    loss.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = processor = float("inf")
    for _ in range(arguments.repeats):
        started, used = time.perf_counter(), time.process_time()
        step().backward()
        seconds = min(seconds, time.perf_counter() - started)
        processor = min(processor, time.process_time() - used)
    return {
        "loss": round(float(loss.detach()), 5),
        "peak_mb": round(peak - before, 1),
        "seconds": round(seconds, 3),
        "cpu_seconds": round(processor, 3),
    }


def resident() -> float:
    """Resident size in MiB now."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=0, help="decoder blocks of both models; 0: output layers alone")
    parser.add_argument("--chunk", type=int, help="chunk_tokens; left out: the default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help="measure this one here; left out: all, each in its own process")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.way:
        print(json.dumps(measure(arguments)))
        return
    found = {}
    for way in BODY_WAYS if arguments.layers else WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        found[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for way, figures in found.items():
        against = found["ce_whole" if way.startswith("ce_") else "whole"]
        figures["of_whole"] = {
            name: round(figures[name] / against[name], 3) for name in ("peak_mb", "seconds", "cpu_seconds")
        }
    print(json.dumps({"settings": vars(arguments), "torch": torch.__version__, "ways": found}, indent=2))


if __name__ == "__main__":
    main()
