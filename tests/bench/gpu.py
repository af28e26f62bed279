"""What needs a GPU: training speed as a share of the card's peak, which defaults help, SparseGPT, two trials on a card.

    python -m tests.bench --device cuda

Without a card every row says so. Absolute figures are those of the card that is named under the table.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prunegpt.launch.local import LocalLauncher
from prunegpt.lm.models import save_model
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.lm.views import block_matrices
from prunegpt.planning.resolve import plan_data
from prunegpt.pruning.oneshot import prune_oneshot
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep
from tests.bench import evaluation, sparsegpt
from tests.bench.harness import Ratio, Settings, Stepwise, stepping
from tests.bench.models import gpt2, our_training, random_blocks
from tests.bench.rows import Row

# Dense bf16 operations a second by a part of the card's name, as its maker gives them.
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
WANTED = 0.45  # of the peak, on an H100
MFU = "finetune-mfu"
SHARED = "gpu-shared"
BLOCK_7B = "sparsegpt-7b"


@dataclass(frozen=True)
class Way:
    """One way to train: arguments of the Trainer beside a batch, and the precision."""

    name: str
    batch: int
    dtype: torch.dtype = torch.bfloat16
    arguments: Mapping[str, Any] = field(default_factory=dict)
    attention: str = "sdpa"


WAYS = (
    Way("float32, batch 8", 8, torch.float32),
    Way("bf16, batch 8, eager attention", 8, attention="eager"),
    Way("bf16, batch 8, plain optimizer", 8, arguments={"optim": "adamw_torch"}),
    Way("bf16, batch 8", 8),
    Way("bf16, batch 32", 32),
    Way("bf16, batch 8, compiled", 8, arguments={"torch_compile": True}),
    Way("bf16, batch 32, compiled", 32, arguments={"torch_compile": True}),
)


def measure(settings: Settings) -> Iterator[Row]:
    if not torch.cuda.is_available():
        why = "needs a CUDA device, and torch finds none here."
        for name, what in ((MFU, "Fine-tuning, share of the bf16 peak"), (BLOCK_7B, "SparseGPT of a 7 B model"),
                           ("sparsegpt-time", "SparseGPT"), ("evaluation", "Evaluation"),
                           (SHARED, "Two trials on one GPU")):  # fmt: skip
            yield Row(name, what, "", skipped=why)
        return
    print(f"  {torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB")
    yield throughput(settings, WAYS)
    yield seven(settings)
    yield from sparsegpt.measure(settings)
    yield from evaluation.measure(settings)
    yield shared(settings)


def throughput(settings: Settings, ways: tuple[Way, ...]) -> Row:
    """Fine-tuning tokens per second of GPT-2 small at block 1,024, by each way, and the best as a share of the peak."""
    length, steps = settings.pick(1024, 32), settings.pick(20, 2)
    found: dict[str, float] = {}
    model = gpt2(settings, positions=length)
    operations = 6 * (sum(p.numel() for p in model.parameters()) - length * model.config.n_embd)
    operations += 12 * model.config.n_layer * model.config.n_embd * length  # attention, of a token
    failed = []
    for number, way in enumerate(ways):
        try:
            found[way.name] = _tokens_a_second(settings, way, number, length, steps)
        except RuntimeError as error:  # a card too small for the batch, or no compiler
            failed.append(f"{way.name}: {str(error)[:200]}")
    best = max(found, key=lambda name: found[name])
    peak = _peak(settings)
    return Row.of(
        MFU,
        f"Fine-tuning GPT-2 small, block {length}, share of the bf16 peak ({best})",
        "",
        Ratio((found[best] * operations / peak,)),
        wanted=WANTED,
        better="higher",
        figures={**{f"tokens per second, {name}": value for name, value in found.items()}, "peak Tflop/s": peak / 1e12},
        note="; ".join(failed),
    )


def _tokens_a_second(settings: Settings, way: Way, number: int, length: int, steps: int) -> float:
    model = gpt2(settings, positions=length, attn_implementation=way.attention)
    tokens = random_blocks(model, 4 * way.batch, length)
    loop = our_training(
        settings, model, tokens, batch=way.batch, name=f"way-{number}", dtype=way.dtype, arguments=dict(way.arguments)
    )
    with stepping(way=loop) as lanes:
        _steps(settings, lanes["way"], settings.pick(8, 1))  # compiles, and fills the allocator
        started = time.perf_counter()
        _steps(settings, lanes["way"], steps)
        seconds = time.perf_counter() - started
    return steps * tokens[: way.batch].size / seconds


def _steps(settings: Settings, lane: Stepwise, count: int) -> None:
    for _ in range(count):
        lane()
    if settings.device == "cuda":
        torch.cuda.synchronize()


def _peak(settings: Settings) -> float:
    """Of this card; of an H100 where it is not known, and the row's figures say so."""
    name = torch.cuda.get_device_name() if settings.device == "cuda" else ""
    return next((peak for part, peak in PEAKS.items() if part in name), PEAKS["H100"])


def seven(settings: Settings) -> Row:
    """SparseGPT of one decoder layer of a 7 B model's shape, calibration included, and what 32 of them would take."""
    from transformers import LlamaConfig, LlamaForCausalLM

    full = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}
    small = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    length, windows = settings.pick(2048, 32), settings.pick(128, 4)
    config = LlamaConfig(
        **(small if settings.quick else full), vocab_size=1024, num_hidden_layers=1, max_position_embeddings=length,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    seconds = []
    for _ in range(settings.pick(3, 1)):
        model = LlamaForCausalLM(config).to(settings.device).eval()
        tokens = torch.randint(1024, (windows, length))
        started = time.perf_counter()
        prune_oneshot(model, block_matrices(model), method="sparsegpt", sparsity=0.5, calibration=tokens)
        seconds.append(time.perf_counter() - started)
    middle = sorted(seconds)[len(seconds) // 2]
    return Row(
        BLOCK_7B, f"SparseGPT of a 7 B model, {windows} × {length} tokens: 32 times one block", "", 32 * middle,
        32 * min(seconds), 32 * max(seconds), len(seconds), unit="s", figures={"seconds of a block": middle},
    )  # fmt: skip


def shared(settings: Settings) -> Row:
    """Two fine-tuning trials at a time on one card, over one after the other."""
    model = gpt2(settings, positions=settings.pick(1024, 32), vocab_size=1024)
    save_model(model, load_tokenizer("builtin:tiny-gpt2"), settings.work / "model")
    del model
    seconds = {slots: _sweep(settings, slots) for slots in (1, 2)}
    return Row.of(
        SHARED,
        "Two trials sharing one GPU",
        "one after the other",
        Ratio((seconds[2] / seconds[1],)),
        figures={"seconds side by side": seconds[2], "seconds one after the other": seconds[1]},
        note="From the start of the first worker to the end of the last trial.",
    )


def _sweep(settings: Settings, slots: int) -> float:
    """Seconds of a sweep of two trials."""
    folder: Path = settings.work / "model"
    train = {"max_steps": settings.pick(150, 2), "per_device_train_batch_size": settings.pick(8, 2)}
    spec: dict[str, Any] = {
        "name": "shared",
        "base": {
            "model": {"source": str(folder), "label": "GPT-2"},
            "data": {"path": "builtin:text", "block_size": settings.pick(1024, 32)},
            "evaluate": {"skip": True},
            "train": train,
        },
        "trials": [
            {"name": f"rate-{number}", "stages": [{"finetune": {"train": {"learning_rate": rate}}}]}
            for number, rate in enumerate((1e-4, 2e-4))
        ],
    }
    root = Root(settings.work / f"slots-{slots}")
    plan = plan_data(spec, root=root)
    started = time.perf_counter()
    with Store.open(root) as store:
        outcome = run_sweep(plan, root, store, LocalLauncher(root, slots))
    if not outcome.ok:
        raise RuntimeError(f"every trial must finish; {outcome.failed} did not.")
    return time.perf_counter() - started
