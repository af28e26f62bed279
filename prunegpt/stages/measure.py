"""What is measured of a model after every stage: perplexity, tasks, speed, zeros, and that its masks hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunegpt.lm.device import pick_dtype
from prunegpt.lm.perplexity import evaluate
from prunegpt.lm.speed import measure_speed
from prunegpt.lm.tasks import score
from prunegpt.lm.views import WeightView, block_matrices, outline, select
from prunegpt.lm.windows import Windows
from prunegpt.planning.inputs import Inputs
from prunegpt.pruning.masks import check, measure_sparsity
from prunegpt.pruning.patterns import parse_pattern
from prunegpt.records import Evaluation, SparsityRecord
from prunegpt.spec.methods import method_entry, scope_of
from prunegpt.spec.plan import PlannedEvaluation, StagePlan, TrialPlan
from prunegpt.stages import text
from prunegpt.stages.base import ModelState

Arrays = NDArray[np.float64] | Mapping[str, NDArray[np.float64]]


@dataclass
class Ruler:
    """Measures models the one way an evaluation asks for; its text is tokenised once."""

    plan: PlannedEvaluation
    device: torch.device
    dtype: torch.dtype
    inputs: Inputs
    reference: Callable[[str], PreTrainedModel] | None = None  # the model of a stage key, that speed is measured beside
    say: Callable[[str], None] = lambda _: None
    _windows: Windows | None = None

    @classmethod
    def of(
        cls,
        plan: PlannedEvaluation,
        trial: TrialPlan,
        device: torch.device,
        inputs: Inputs,
        reference: Callable[[str], PreTrainedModel],
        say: Callable[[str], None],
    ) -> "Ruler":
        """The ruler of one of a trial's evaluations."""
        dtype = pick_dtype(plan.evaluate.precision or trial.precision, device)
        return cls(plan, device, dtype, inputs, reference, say)

    def measure(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        progress: Callable[[int, int], None] | None = None,
        *,
        stage: str = "",
    ) -> tuple[Evaluation, Arrays]:
        """Measures a model, see `lm.perplexity.evaluate`, `lm.tasks.score` and `lm.speed.measure_speed`.

        Args:
            progress: gets the windows, requests or runs done, and their total.
            stage: key of the stage whose model it is.
        """
        spec = self.plan.evaluate
        if spec.speed is not None:
            itself = self.reference is None or stage == self.plan.reference
            return measure_speed(
                model,
                model if itself or self.reference is None else self.reference(self.plan.reference),
                spec.speed,
                key=self.plan.key,
                called=self.plan.called,
                dtype=self.dtype,
                progress=progress,
                say=self.say,
            )
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            if spec.tasks is not None:
                with self.inputs.reading(map(Path, self.plan.files)):
                    return score(model, tokenizer, spec, key=self.plan.key, device=self.device, progress=progress)
            if self._windows is None:
                self._windows = text.evaluation_windows(spec, tokenizer, self.inputs)
            return evaluate(
                model,
                self._windows,
                key=self.plan.key,
                split=spec.split,
                batch_size=spec.batch_size,
                device=self.device,
                progress=progress,
            )


def allocation_of(plan: StagePlan) -> str:
    """How the budget of a stage's pruning is spread: as its spec says, else as the method does by itself."""
    return plan.allocation(by_row=bool(plan.pruning and scope_of(method_entry(plan.pruning.method), None) == "row"))


def masked_views(state: ModelState) -> dict[str, WeightView]:
    """The tensors that masks belong to; the matrices of all blocks where nothing is pruned."""
    if not state.pruned.masks:
        return block_matrices(state.model)
    return select(state.model, targets=tuple(state.pruned.masks))


def count_zeros(state: ModelState) -> SparsityRecord:
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
        coverage=outline(state.model).coverage(views).share if pruned else None,
    )


def check_ledger(state: ModelState) -> None:
    """Weights are zero under their masks and the pattern holds.

    Raises:
        MaskDriftError: naming the tensor.
    """
    if state.pruned.masks:
        check(masked_views(state), state.pruned.masks, pattern=parse_pattern(state.pruned.pattern))
