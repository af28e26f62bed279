"""What to look at first on a real GPU, in about eight minutes: `make gpu-check`, or this program and some sections.

Checks pass or fail; notes are figures beside what is expected of an H200. `--device cpu --small` runs all of it on tiny
shapes without a GPU, to see that the program itself works.
"""

import argparse
import gc
import os
import resource
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import torch
import transformers
from torch.nn import Module

from prunegpt.launch.distributed import environment, free_port
from prunegpt.lm.models import load_model, save_model
from prunegpt.lm.perplexity import evaluate
from prunegpt.lm.views import block_matrices
from prunegpt.lm.windows import Windows
from prunegpt.pruning.oneshot import prune_oneshot
from prunegpt.registry import CRITERIA, SOLVERS
from tests.support.trained import VOCABULARY, fit, gpt2, llama

GIB = 2**30
LIMIT = 520.0  # seconds after which no further section begins
METHODS = [
    name
    for registry in (CRITERIA, SOLVERS)
    for name in registry.builtin_names()
    if not registry.entry(name).only_in_training
]
# Share of mask bits that may differ from the host's: sums are taken in another order.
DIFFERS = {"admm": 0.03, "sparsegpt": 0.005, "obert": 0.002}
SMALL_8B = {"width": 64, "inner": 224, "heads": 4, "groups": 2}
LLAMA_8B = {"width": 4096, "inner": 14336, "heads": 32, "groups": 8}
LLAMA_1B = {"width": 2048, "inner": 8192, "heads": 32, "groups": 8}


class Check:
    """Where it runs, and what was found."""

    def __init__(self, device: str, *, small: bool) -> None:
        self.device, self.small = device, small
        self.failed: list[str] = []
        self.passed = 0

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    def expect(self, name: str, found: object, expected: str, holds: bool) -> None:
        print(f"{'pass' if holds else 'FAIL'}  {name}: {found}   (expected {expected})", flush=True)
        if holds:
            self.passed += 1
        else:
            self.failed.append(name)

    def note(self, name: str, found: object, expected: str = "") -> None:
        print(f"note  {name}: {found}" + (f"   (expected {expected})" if expected else ""), flush=True)

    @property
    def now(self) -> int:
        return torch.cuda.memory_allocated() if self.cuda else 0

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.cuda else 0

    def reset(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    @contextmanager
    def timed(self) -> Iterator[list[float]]:
        """The seconds of the block, once the device has done it."""
        found, started = [0.0], time.perf_counter()
        yield found
        if self.cuda:
            torch.cuda.synchronize()
        found[0] = time.perf_counter() - started

    def made(self, make: Callable[..., Any], dtype: torch.dtype = torch.float32, **shape: Any) -> Any:
        """A random model, made on the device in its dtype."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(self.device):
                return make(**shape)
        finally:
            torch.set_default_dtype(before)


def tokens_of(vocabulary: int, count: int, length: int) -> Any:
    return numpy.random.default_rng(0).integers(0, vocabulary, (count, length))


def windows_of(vocabulary: int, count: int, length: int) -> Windows:
    ones = numpy.ones(count, dtype=numpy.int64)
    starts = numpy.arange(count) * length
    return Windows(tokens_of(vocabulary, count, length).ravel(), starts, ones * length, ones, ones, ones, "check")


def parity(check: Check) -> None:
    """Every method and an evaluation give on the device what they give on the host, in float32."""
    tokens = torch.from_numpy(tokens_of(VOCABULARY, 8, 64))
    cases: list[tuple[str, dict[str, Any]]] = [(name, {"sparsity": 0.5}) for name in METHODS]
    cases += [("magnitude", {"sparsity": 0.5, "allocation": "global"}), ("sparsegpt", {"pattern": "2:4"})]
    for make, shape in ((gpt2, {"layers": 2, "width": 64}), (llama, {"width": 64})):
        for method, asked in cases:
            here, there = make(**shape), make(**shape).to(check.device)
            one = prune_oneshot(here, block_matrices(here), method=method, calibration=tokens, **asked)
            other = prune_oneshot(there, block_matrices(there), method=method, calibration=tokens, **asked)
            bits = sum(mask.numel() for mask in one.masks.values())
            differ = sum(int((mask != other.masks[name]).sum()) for name, mask in one.masks.items()) / bits
            most = DIFFERS.get(method, 2e-4)
            check.expect(
                f"{make.__name__} {method} {asked}: mask bits", f"{differ:.1e}", f"<= {most:g}", differ <= most
            )
        windows = windows_of(VOCABULARY, 24, 64)
        here, there = make(**shape), make(**shape).to(check.device)
        far = abs(float(evaluate(there, windows)[0].loss or 0) / float(evaluate(here, windows)[0].loss or 1) - 1)
        check.expect(f"{make.__name__} loss, of float32", f"{far:.1e}", "<= 1e-5", far <= 1e-5)


def training(check: Check) -> None:
    """Trainings end where those of the host do, wait for nothing of ours, and give their memory back."""
    tokens, shape = tokens_of(VOCABULARY, 32, 32), {"layers": 2, "width": 64}
    cases: Mapping[str, dict[str, Any]] = {
        "plain": {},
        "fixed masks": {"fixed": True},
        "magnitude": {"method": "magnitude", "updates": (1, 3)},
        "movement": {"method": "movement", "updates": (1, 3)},
        "sparsegpt": {"method": "sparsegpt", "updates": (1, 3)},
    }
    for name, asked in cases.items():
        here, there = gpt2(**shape), gpt2(**shape).to(check.device)
        fit(here, "cpu", tokens, steps=6, **asked)
        fit(there, check.device, tokens, steps=6, **asked)
        weights = {name: weight.detach().cpu() for name, weight in there.named_parameters()}
        far = max(float((one.detach() - weights[name]).abs().max()) for name, one in here.named_parameters())
        zeros = [sum(int((one == 0).sum()) for one in model.parameters()) for model in (here, there)]
        close = far <= 2e-3 and abs(zeros[0] - zeros[1]) <= 1e-3 * max(zeros[0], 1)
        check.expect(f"train {name}, float32, 6 steps", f"{far:.1e}, zeros {zeros}", "<= 2e-3, equal zeros", close)
    if not check.cuda:
        return
    _waits(check, tokens, shape)
    gc.collect()
    gc.disable()
    model = check.made(gpt2, layers=6, width=512, heads=8)
    before = check.now
    fit(model, check.device, tokens, steps=2, precision="bfloat16")
    left = (check.now - before) / sum(parameter.numel() for parameter in model.parameters())
    gc.enable()
    check.expect("bytes a parameter that stay when a training has returned", f"{left:.2f}", "0", left < 0.1)


def _waits(check: Check, tokens: Any, shape: Mapping[str, int]) -> None:
    steps: list[int] = []

    def stop() -> bool:
        torch.cuda.set_sync_debug_mode("warn" if len(steps) == 2 else "default")
        steps.append(1)
        return False

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = gpt2(**shape).to(check.device)
        fit(model, check.device, tokens, steps=5, fixed=True, precision="bfloat16", stop=stop)
        torch.cuda.set_sync_debug_mode("default")
    found = [f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)]
    check.expect("waits in a step of two micro-batches, masks, bfloat16", found, "one a forward pass", len(found) <= 2)


def layers_8b(check: Check) -> None:
    """One-shot pruning at the width of Llama-3-8B, two layers."""
    shape = SMALL_8B if check.small else LLAMA_8B
    count, length = (4, 64) if check.small else (128, 2048)
    tokens = torch.from_numpy(tokens_of(VOCABULARY, count, length))
    cases: list[tuple[str, dict[str, Any]]] = [
        ("wanda", {"sparsity": 0.5}),
        ("sparsegpt", {"sparsity": 0.5}),
        ("sparsegpt", {"pattern": "2:4"}),
    ]
    for dtype in (torch.float32, torch.bfloat16):
        for method, asked in cases:
            model = check.made(llama, dtype, layers=2, positions=length, **shape)
            check.reset()
            before = check.now
            with check.timed() as seconds:
                found = prune_oneshot(model, block_matrices(model), method=method, calibration=tokens, **asked)
            solving = sum(row.seconds for row in found.rows) / 2
            check.note(
                f"8B's width, {str(dtype)[6:]}, {method} {asked}",
                f"{seconds[0] / 2:.1f} s a layer, of it {solving:.1f} solving; {(check.peak - before) / GIB:.1f} GiB "
                f"beside the weights; damping {sorted({row.damping for row in found.rows if row.damping})}",
                "wanda <= 4 s, sparsegpt <= 6 s a layer; damping 0.01",
            )
            del model, found


def evaluation_8b(check: Check) -> None:
    """Evaluation at a context of 4,096 and a vocabulary of 128,256."""
    shape = SMALL_8B if check.small else LLAMA_8B
    vocabulary, layers, length, count = (2048, 2, 64, 4) if check.small else (128256, 4, 4096, 6)
    for dtype in (torch.float32, torch.bfloat16):
        model = check.made(llama, dtype, layers=layers, vocabulary=vocabulary, positions=length, **shape)
        check.reset()
        before = check.now
        with torch.autocast(check.device, torch.bfloat16, enabled=dtype == torch.float32), check.timed() as seconds:
            evaluate(model, windows_of(vocabulary, count, length))
        beside = (check.peak - before) / GIB
        name = f"evaluation, weights in {str(dtype)[6:]}"
        check.note(name, f"{count * length / seconds[0]:.0f} tokens/s, {beside:.1f} GiB beside the weights")
        if check.cuda and dtype == torch.bfloat16:
            check.expect(f"{name}: no array of tokens x vocabulary", f"{beside:.1f} GiB", "<= 3", beside <= 3)
        del model


def training_1b(check: Check) -> None:
    """A student of 1B: fine-tuning, and distillation from 8B."""
    student, teacher = (SMALL_8B, SMALL_8B) if check.small else (LLAMA_1B, LLAMA_8B)
    vocabulary, length, batch, steps = (2048, 64, 2, 3) if check.small else (128256, 2048, 4, 6)
    layers, deep = (2, 2) if check.small else (16, 32)
    tokens = tokens_of(vocabulary, 4 * batch, length)
    for distilled in (False, True):
        model = check.made(llama, layers=layers, vocabulary=vocabulary, positions=length, tied=True, **student)
        other = None
        if distilled:
            place = {"layers": deep, "vocabulary": vocabulary, "positions": length, "seed": 1}
            other = check.made(llama, torch.bfloat16, **place, **teacher)
        check.reset()
        asked = {"batch": batch, "accumulate": 1, "fixed": True, "precision": "bfloat16", "teacher": other}
        try:
            fit(model, check.device, tokens, steps=2, **asked)
            with check.timed() as seconds:
                fit(model, check.device, tokens, steps=steps, **asked)
        except torch.OutOfMemoryError as error:
            check.expect(f"1B, distilled {distilled}", str(error)[:120], "fits", False)
            continue
        speed = steps * batch * length / seconds[0]
        check.note(f"1B, distilled {distilled}", f"{speed:.0f} tokens/s with the start, {check.peak / GIB:.1f} GiB")
        del model, other


def throughput(check: Check) -> None:
    """GPT-2 small at 16 x 1,024: tokens a second, and what masks cost."""
    shape = {"layers": 2, "width": 64, "heads": 2, "vocabulary": 512, "positions": 64}
    batch, steps = 2, 4
    if not check.small:
        shape = {"layers": 12, "width": 768, "heads": 12, "vocabulary": 50257, "positions": 1024}
        batch, steps = 16, 25
    tokens = tokens_of(shape["vocabulary"], 4 * batch, shape["positions"])
    cases: Mapping[str, dict[str, Any]] = {
        "no masks": {},
        "fixed masks": {"fixed": True},
        "an update every 5 steps": {"method": "magnitude", "updates": tuple(range(1, steps, 5))},
        "compiled": {"arguments": {"torch_compile": True}},
    }
    work = 6 * 124e6 + 12 * 12 * 768 * 1024  # operations a token
    for name, asked in cases.items():
        if check.small and name == "compiled":
            continue
        seconds = []
        for count in (5, 5 + steps):  # the difference is without the start
            limits = {"updates": tuple(step for step in asked["updates"] if step < count)} if "updates" in asked else {}
            model = check.made(gpt2, **shape)
            with check.timed() as took:
                fit(
                    model,
                    check.device,
                    tokens,
                    steps=count,
                    batch=batch,
                    accumulate=1,
                    precision="bfloat16",
                    **{**asked, **limits},
                )
            seconds.append(took[0])
            del model
            check.reset()
        speed = steps * batch * shape["positions"] / max(seconds[1] - seconds[0], 1e-9)
        share = speed * work / 989e12
        check.note(
            f"GPT-2 small, {name}", f"{speed:.0f} tokens/s, {share:.0%} of 989 TFLOPS", ">= 45 %; masks <= 3 % less"
        )


def loading(check: Check) -> None:
    """Seconds and host memory of loading at 8B's width."""
    shape = SMALL_8B if check.small else LLAMA_8B
    model = check.made(llama, torch.bfloat16, layers=2 if check.small else 6, **shape)
    with TemporaryDirectory() as folder:
        save_model(model, None, Path(folder) / "m")
        size = sum(parameter.numel() for parameter in model.parameters())
        del model
        check.reset()
        with check.timed() as seconds:
            loaded: Module = load_model(Path(folder) / "m", dtype="float32", device=check.device)
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
        check.note(
            "load_model of bfloat16 in float32",
            f"{seconds[0]:.1f} s, {check.now / size:.1f} bytes a weight on the device; the host has had {host:.1f} GiB",
        )
        del loaded


def together(check: Check) -> None:
    """More processes than cards are refused before they wait for one another."""
    count = torch.cuda.device_count() + 1 if check.cuda else 1
    program = (
        "import torch; from prunegpt.lm import ranks\n"
        f"with ranks.joined(): ranks.check_device(torch.device('{check.device}'))"
    )
    port, words = free_port(), [sys.executable, "-c", program]
    running = [
        subprocess.Popen(words, env={**os.environ, **environment(rank, count, port)}, stderr=subprocess.PIPE, text=True)
        for rank in range(count)
    ]
    said = [process.communicate(timeout=120)[1] for process in running]
    refused = all("device of its own" in one for one in said)
    check.expect("more processes than cards", said[0][-200:], "refused", refused or not check.cuda)


SECTIONS = (parity, training, layers_8b, evaluation_8b, training_1b, throughput, loading, together)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [section.__name__ for section in SECTIONS]
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny shapes")
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    check, started = Check(asked.device, small=asked.small), time.monotonic()
    card = torch.cuda.get_device_name() if check.cuda else "cpu"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {card}", flush=True)
    for section in SECTIONS:
        if asked.sections and section.__name__ not in asked.sections:
            continue
        if time.monotonic() - started > LIMIT:
            print(f"left out for want of time: {section.__name__}")
            continue
        print(f"== {section.__name__}: {section.__doc__}", flush=True)
        began = time.monotonic()
        try:
            section(check)
        except Exception as error:
            traceback.print_exc(limit=-6)
            check.expect(section.__name__, repr(error)[:300], "no exception", False)
        print(f"== {section.__name__}: {time.monotonic() - began:.0f} s", flush=True)
        check.reset()
    failed = f"; failed: {', '.join(check.failed)}" if check.failed else ""
    print(f"{check.passed} of {check.passed + len(check.failed)} checks passed{failed}")
    return bool(check.failed)


if __name__ == "__main__":
    sys.exit(main())
