"""What every stage is given, and what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunegpt.planning.inputs import Inputs
from prunegpt.points import Emit
from prunegpt.pruning.mask import Masks
from prunegpt.root import Root
from prunegpt.spec.plan import StagePlan


@dataclass
class Pruned:
    """The masks that travel with a model, and what they were meant to be."""

    masks: Masks = field(default_factory=dict)
    method: str = ""
    pattern: str = "unstructured"
    target: float | None = None  # the sparsity asked for


@dataclass(frozen=True)
class RemainingLayers:
    """Which decoder layers are left of the model that a chain starts from."""

    kept: tuple[int, ...]  # as they are numbered there, ascending
    of: int  # how many it has


@dataclass
class ModelState:
    """A model between two stages. The model is trained and pruned in place."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pruned: Pruned
    stored: str = "float32"  # the dtype of the files that the model was loaded from
    notes: tuple[str, ...] = ()  # on how it was loaded
    processor: Mapping[str, bytes] = field(default_factory=dict)  # files of what prepares images and sounds, by name
    layers: RemainingLayers | None = None  # None: all


@dataclass(frozen=True)
class Result:
    """What a stage says of itself besides the state."""

    train_tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    layers: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class StageContext:
    """Where a stage runs."""

    root: Root
    inputs: Inputs
    device: torch.device
    dtype: torch.dtype  # of the arithmetic; weights are trained in float32
    emit: Emit
    measure: Callable[[PreTrainedModel, PreTrainedTokenizerBase], Mapping[str, float]]  # in mid-training
    stop: Callable[[], bool]
    teacher: Callable[[str], ModelState]  # the published model of a stage key
    products: torch.dtype | None = None  # of a stored model that is measured and nothing else
    wanted: bool = True  # whether the model is measured or worked on once the stage is published
    micro_batch_divisor: int = 1  # see `planning.budget.micro_batch`


StageFunction = Callable[[StagePlan, ModelState, StageContext], Result]
