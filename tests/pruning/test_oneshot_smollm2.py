"""One-shot pruning of a real model: 135 million parameters, calibrated on WikiText-2 and measured on it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunegpt.lm.models import load_model
from prunegpt.lm.perplexity import evaluate
from prunegpt.lm.protocols import evaluation_windows
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.lm.views import block_matrices, select
from prunegpt.pruning.oneshot import prune_oneshot
from prunegpt.pruning.patterns import parse_pattern
from prunegpt.pruning.solvers.admm import admm
from prunegpt.pruning.solvers.base import reconstruction_error
from prunegpt.pruning.solvers.sparsegpt import sparsegpt
from prunegpt.pruning.statistics import block_statistics

pytestmark = [pytest.mark.slow, pytest.mark.shared]

WINDOWS, LENGTH = 32, 512


@pytest.fixture(scope="module", autouse=True)
def all_threads() -> Any:
    """The suites of tiny models run on one thread; this one has use for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(torch.multiprocessing.cpu_count())
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model(smollm2: Path) -> Any:
    return load_model(smollm2, device="cpu", dtype="float32")


@pytest.fixture
def calibration(smollm2: Path, wikitext2: Path) -> Tensor:
    """The first windows of the validation split as one string: int64 [windows, length]."""
    text = (wikitext2 / "validation.txt").read_text(encoding="utf-8")
    tokens = load_tokenizer(smollm2)(text, add_special_tokens=False).input_ids[: WINDOWS * LENGTH]
    return torch.tensor(tokens).view(WINDOWS, LENGTH)


def perplexity(model: Any, smollm2: Path, wikitext2: Path) -> float:
    tokenizer = load_tokenizer(smollm2)
    windows = evaluation_windows(
        "stream", tokenizer, path=wikitext2, split="test", block_size=LENGTH, max_windows=WINDOWS
    )
    return evaluate(model, windows)[0].perplexity


def test_sparsegpt_at_half(model: Any, calibration: Tensor, smollm2: Path, wikitext2: Path) -> None:
    """39.3, by the reference implementation on the same text."""
    result = prune_oneshot(
        model, block_matrices(model), method="sparsegpt", sparsity=0.5, calibration=calibration, propagate=True
    )
    assert len(result.rows) == 210
    assert result.sparsity == 0.5
    assert perplexity(model, smollm2, wikitext2) == pytest.approx(39.3, abs=0.3)


def test_magnitude_at_half(model: Any, smollm2: Path, wikitext2: Path) -> None:
    """471, by sorting each tensor."""
    prune_oneshot(model, block_matrices(model), method="magnitude", sparsity=0.5)
    assert perplexity(model, smollm2, wikitext2) == pytest.approx(471, abs=1)


@pytest.mark.parametrize(("pattern", "sparsity"), [("unstructured", 0.6), ("unstructured", 0.8), ("2:4", None)])
def test_methods_rank_on_every_layer_of_a_real_block(
    model: Any, calibration: Tensor, pattern: str, sparsity: float | None
) -> None:
    views = select(model, layers=[3])
    shape = parse_pattern(pattern)
    (statistics,) = block_statistics(model, views, calibration[:8], gram=True, propagate=False)
    for name, found in statistics.items():
        weight = views[name].matrix
        given = {"gram": found.gram, "pattern": shape, "sparsity": sparsity}
        by_wanda = shape.select(weight.abs() * found.input_norm, sparsity, rowwise=True)
        errors = [
            admm(weight, **given).error,
            sparsegpt(weight, **given).error,
            reconstruction_error(weight * by_wanda, weight, found.gram),
        ]
        assert errors == sorted(errors), name
