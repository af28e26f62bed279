"""One-shot SparseGPT to 50%: time of calibration and solve, and the perplexity that comes of it.

Beside it stands the published algorithm, column by column (`naive_sparsegpt`). Both prune the same model with the same
windows, one after the other; the spread is that of the decoder layers, which either side finishes one at a time.
`--model` and `--text` name the two: the figures of the page are of SmolLM2-135M on WikiText-2.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunegpt.lm.calibration import calibration_windows
from prunegpt.lm.data import read_documents
from prunegpt.lm.models import load_model
from prunegpt.lm.perplexity import evaluate
from prunegpt.lm.protocols import evaluation_windows
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.lm.views import block_matrices
from prunegpt.lm.windows import Windows
from prunegpt.pruning.oneshot import prune_oneshot
from tests.bench.harness import CLOCKS, Clock, Ratio, Settings
from tests.bench.naive_sparsegpt import prune_model
from tests.bench.rows import Row

SPARSITY = 0.5


def measure(settings: Settings) -> Iterator[Row]:
    torch.set_num_threads(settings.threads)
    folder, texts = settings.model, settings.text
    what = f"SparseGPT 50%, {folder.resolve().name if folder else 'a real model'}"
    beside = "the published algorithm, column by column"
    if settings.quick:
        yield from _rows(settings, what, beside, _tiny(), torch.randint(128, (4, 32)), None)
        return
    if folder is None or texts is None:
        why = "needs --model FOLDER and --text FOLDER, of a model and of validation.txt and test.txt."
        yield Row("sparsegpt-time", what, beside, skipped=why)
        yield Row("sparsegpt-perplexity", "the same: its perplexity", beside, skipped=why)
        return
    tokenizer = load_tokenizer(folder)
    calibration = read_documents(split="text", files={"text": [texts / "validation.txt"]})
    windows = calibration_windows(calibration, tokenizer, windows=16, length=512, mode="first")
    measured = evaluation_windows(
        "blocks", tokenizer, split="test", files={"test": [texts / "test.txt"]}, block_size=512, max_windows=16
    )

    def load() -> Any:
        return load_model(folder, dtype="float32", device=settings.device)

    yield from _rows(settings, what, beside, load, torch.from_numpy(windows), measured)


def _rows(
    settings: Settings, what: str, beside: str, load: Any, windows: Tensor, measured: Windows | None
) -> Iterator[Row]:
    ours, theirs = load(), load()
    seconds = _ours(ours, windows, settings.clock)
    naive = _theirs(theirs, windows, settings.clock)
    whole = sum(seconds) / sum(naive)
    by_block = Ratio(tuple(a / b for a, b in zip(seconds, naive, strict=True)))
    passes = _passes(load(), windows, settings.clock)
    yield Row(
        "sparsegpt-time",
        f"{what}, {len(windows)} × {windows.shape[1]} tokens",
        beside,
        whole,
        by_block.low,
        by_block.high,
        len(seconds),
        wanted=0.75 if settings.device == "cpu" else 0.4,
        floor=passes / sum(naive),
        figures={"seconds of ours": sum(seconds), "seconds of naive": sum(naive), "seconds of two passes": passes},
        note=f"The two passes over the windows, which both sides need, are {passes / sum(naive):.2f} of it.",
    )
    if measured is None:
        return
    found = {name: evaluate(model, measured)[0].perplexity for name, model in (("ours", ours), ("naive", theirs))}
    if settings.threads > 1:
        found["ours on one thread"] = _on_one_thread(settings, load(), windows, measured)
    yield Row.of(
        "sparsegpt-perplexity",
        "the same: its perplexity",
        beside,
        Ratio((found["ours"] / found["naive"],)),
        wanted=1.005,
        figures={f"perplexity of {name}": value for name, value in found.items()},
        note=(
            "Errors of rounding grow over the layers; naive, ours and ours on one thread are within "
            f"{max(found.values()) / min(found.values()) - 1:.1%} of each other."
        ),
    )


def _ours(model: Any, windows: Tensor, clock: Clock) -> list[float]:
    """Seconds of each decoder layer; calibration's first step belongs to the first block."""
    views = block_matrices(model)
    each = len(views) // model.config.num_hidden_layers
    marks = [_now(clock)]

    def progress(done: int, _: int, __: str) -> None:
        if done and done % each == 0:
            marks.append(_now(clock))

    prune_oneshot(model, views, method="sparsegpt", sparsity=SPARSITY, calibration=windows, progress=progress)
    return list(np.diff(marks))


def _on_one_thread(settings: Settings, model: Any, windows: Tensor, measured: Windows) -> float:
    """Perplexity where sums are added up in another order."""
    torch.set_num_threads(1)
    _ours(model, windows, settings.clock)
    torch.set_num_threads(settings.threads)
    return evaluate(model, measured)[0].perplexity


def _theirs(model: Any, windows: Tensor, clock: Clock) -> list[float]:
    marks = [_now(clock)]
    prune_model(model, windows, SPARSITY, lambda _: marks.append(_now(clock)))
    return list(np.diff(marks))


@torch.no_grad()
def _passes(model: Any, windows: Tensor, clock: Clock) -> float:
    """Seconds of two passes of the windows through the decoder layers."""
    started = _now(clock)
    for _ in range(2):
        for window in windows:
            model.get_decoder()(window[None].to(model.device), use_cache=False)
    return _now(clock) - started


def _now(clock: Clock) -> float:
    """The time when all that was asked of a card is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return CLOCKS[clock]()


def _tiny() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}

    def load() -> Any:
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**shape, **heads, bos_token_id=0, eos_token_id=0)).eval()

    return load
