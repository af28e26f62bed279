"""What is measured of a model after every stage: perplexity, zeros, and that its masks hold."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunegpt.lm.perplexity import evaluate
from prunegpt.lm.views import WeightView, block_matrices, select
from prunegpt.lm.windows import Windows
from prunegpt.pruning.masks import check, measure_sparsity
from prunegpt.pruning.patterns import parse_pattern
from prunegpt.records import Evaluation, SparsityRecord, finite
from prunegpt.spec.schema import EvaluateSpec
from prunegpt.stages import text
from prunegpt.stages.base import State


@dataclass(frozen=True)
class Measurement:
    """A record, and the losses it was made of."""

    evaluation: Evaluation
    windows: np.ndarray[Any, Any]  # float64 [windows, 2]: summed nats, scored tokens


def known(value: float | None) -> float | None:
    """The value, or None where there is none or it is not finite."""
    return None if value is None else finite(value)


@dataclass
class Ruler:
    """Measures models the one way a trial asks for; the text is tokenised once."""

    spec: EvaluateSpec
    key: str
    device: torch.device
    dtype: torch.dtype
    _windows: Windows | None = None

    def measure(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        progress: Callable[[int, int], None] | None = None,
    ) -> Measurement:
        """Measures a model; `progress` is told how many windows of how many are done."""
        if self._windows is None:
            self._windows = text.evaluation_windows(self.spec, tokenizer)
        started = time.monotonic()
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=mixed):
            found = evaluate(
                model, self._windows, batch_size=self.spec.batch_size, device=self.device, progress=progress
            )
        record = Evaluation(
            key=self.key,
            protocol=found.protocol + (f" {str(self.dtype).removeprefix('torch.')}" if mixed else ""),
            split=self.spec.split,
            perplexity=finite(found.perplexity),
            loss=finite(found.loss),
            bits_per_byte=known(found.bits_per_byte),
            word_perplexity=known(found.word_perplexity),
            tokens=found.tokens,
            windows=found.windows,
            finite=found.finite,
            seconds=time.monotonic() - started,
        )
        return Measurement(record, np.stack([found.window_losses, found.window_tokens], axis=1))  # [windows, 2]


def masked_views(state: State) -> dict[str, WeightView]:
    """The tensors that masks belong to; the matrices of all blocks where nothing is pruned."""
    if not state.pruned.masks:
        return block_matrices(state.model)
    return select(state.model, targets=tuple(state.pruned.masks))


def count_zeros(state: State) -> SparsityRecord:
    """Sparsity counted from the weights, whatever the config says."""
    views = masked_views(state)
    found = measure_sparsity(views, dict(state.model.named_parameters()))
    pruned = bool(state.pruned.masks)
    return SparsityRecord(
        pruned=found.pruned,
        overall=found.model,
        selected=found.weights,
        parameters=found.model_weights,
        target=state.pruned.target if pruned else None,
        by_tensor=found.by_tensor,
        layers=tuple(found.by_block) if pruned else (),
    )


def check_ledger(state: State) -> None:
    """Weights are zero under their masks and the pattern holds.

    Raises:
        MaskDriftError: naming the tensor.
    """
    if state.pruned.masks:
        check(masked_views(state), state.pruned.masks, pattern=parse_pattern(state.pruned.pattern))
