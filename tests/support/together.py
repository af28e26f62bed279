"""Trials that several processes have trained, beside those of one."""

from pathlib import Path

import pytest
import torch

from prunegpt.planning.inputs import Inputs
from prunegpt.pruning.masks import load_masks, masks_hash
from prunegpt.records import AttemptRecord
from prunegpt.root import Root
from prunegpt.spec.schema import ModelSpec
from prunegpt.stages import cache


def result_of(folder: Path, record: AttemptRecord) -> tuple[dict[str, torch.Tensor], str]:
    """The weights that an attempt came to, and the hash of its masks."""
    root, key = Root(folder.parents[3]), record.stages[-1].key
    state = cache.load(root, key, ModelSpec(source="unused"), Inputs(None), device=torch.device("cpu"))
    return dict(state.model.named_parameters()), masks_hash(load_masks(root.stage(key) / "masks.safetensors").masks)


def check_alike(one: tuple[Path, AttemptRecord], other: tuple[Path, AttemptRecord]) -> None:
    """Two attempts of a trial came to the same perplexity, masks and weights, but for rounding."""
    first, second = one[1].stages[-1], other[1].stages[-1]
    assert (first.key, first.steps, first.train_tokens) == (second.key, second.steps, second.train_tokens)
    assert first.sparsity == second.sparsity
    assert first.evaluation is not None
    assert second.evaluation is not None
    assert second.evaluation.perplexity == pytest.approx(first.evaluation.perplexity, rel=1e-4)
    (weights, masks), (others, other_masks) = result_of(*one), result_of(*other)
    assert masks == other_masks
    for tensor, weight in weights.items():
        torch.testing.assert_close(others[tensor], weight, rtol=1e-4, atol=1e-6)
