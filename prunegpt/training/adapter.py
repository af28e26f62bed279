"""Mask-preserving LoRA: W + M ⊙ (BA · alpha / rank) in place of W, merged at the end without opening a mask bit.

Zimmer et al. 2023, "PERP: Rethinking the prune-retrain paradigm in the era of LLMs" (arXiv 2312.15230), MaskLoRA: W and
M are frozen; A [rank, in], B [out, rank] and what `also` names are trained. A begins as uniform(±1/√in), B as 0, as in
LoRA (Hu et al. 2021, arXiv 2106.09685), so that training begins with the model as it is.

Written with torch's own parametrization rather than peft (0.21): there the update is B(A x) beside the layer, which has
no place for a mask. BA itself exists only in its merge and in its wrapper of experts, which take no mask; a layer class
of our own for each kind of layer would be more than what is here, and every module would have another name.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from prunegpt.errors import PruneGPTError
from prunegpt.lm.views import WeightView, matrices, select
from prunegpt.pruning.mask import Mask
from prunegpt.spec.adapter import AdapterSpec, adapter_problems

STATE = "adapter.safetensors"  # in a checkpoint: all that is trained


class MaskedLowRank(nn.Module):
    """A weight plus the masked product of two thin matrices, for all matrices that a parameter holds.

    Args:
        views: of one parameter; of experts, those that are adapted.
        masks: by parameter name; a name that is missing is all kept.
        rank: of the products.
        scale: of the products.
        generator: draws A.
    """

    pruned: Tensor | None

    def __init__(
        self,
        views: Iterable[WeightView],
        masks: Mapping[str, Mask],
        *,
        rank: int,
        scale: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        views = list(views)
        first = views[0]
        out, inputs = first.matrix.shape
        parameter, bound = first.parameter, 1 / math.sqrt(inputs)
        drawn = torch.empty(first.matrices, rank, inputs, dtype=parameter.dtype).uniform_(
            -bound, bound, generator=generator
        )
        self.a = nn.Parameter(drawn.to(parameter.device))  # [matrices, rank, in]
        self.b = nn.Parameter(torch.zeros(first.matrices, out, rank, dtype=parameter.dtype, device=parameter.device))
        self.scale = scale
        self.transposed = first.transposed
        pruned = torch.ones_like(parameter, dtype=torch.bool)  # of a mixture, what is no target stays as it is
        for view in views:
            mask = masks.get(view.name)
            view.oriented(pruned).copy_(mask.kept.logical_not() if mask else torch.zeros(()))
        self.register_buffer("pruned", pruned if bool(pruned.any()) else None, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its update, in the weight's own precision: what is trained is what is merged."""
        with torch.autocast(weight.device.type, enabled=False):
            update = (self.b * self.scale) @ self.a  # [matrices, out, in]
            update = (update.mT if self.transposed else update).reshape(weight.shape)
            return weight + (update if self.pruned is None else update.masked_fill(self.pruned, 0.0))


class Adapter:
    """Freezes a model but for low-rank updates of its matrices and what the spec names beside them.

    Names, values and masks of the model's parameters are as they were once it is merged. Until then each adapted module
    computes its weight where it is used.

    Args:
        model: a causal language model.
        spec: ranks and targets.
        masks: what stays closed, by parameter name.
        seed: of the A matrices.

    Attributes:
        note: what the record of a training says of it.

    Raises:
        PruneGPTError: the spec does not fit the model, or leaves nothing to train.
    """

    def __init__(self, model: PreTrainedModel, spec: AdapterSpec, masks: Mapping[str, Mask], *, seed: int) -> None:
        if problems := [message for _, message in adapter_problems(spec, matrices(model))]:
            raise PruneGPTError(" ".join(problems))
        self.model = model
        self._whole = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._adapted: dict[nn.Parameter, tuple[MaskedLowRank, list[tuple[nn.Module, str]]]] = {}
        weights, chosen = sum(parameter.numel() for parameter in model.parameters()), _named(model, spec.also)
        model.requires_grad_(False)
        if spec.rank:
            self._adapt(spec, masks, torch.Generator().manual_seed(seed))
        for parameter in chosen:
            parameter.requires_grad_(True)
        trained = sum(parameter.numel() for parameter in self._trained().values())
        if not trained:
            raise PruneGPTError(
                f"an adapter must train something; {type(model).__name__} has no {' and no '.join(spec.also)}. Set a "
                "rank."
            )
        self.note = (
            f"adapter of rank {spec.rank}: {trained:,} weights trained, beside {weights:,} ({trained / weights:.2%})"
        )

    def _adapt(self, spec: AdapterSpec, masks: Mapping[str, Mask], generator: torch.Generator) -> None:
        views: defaultdict[nn.Parameter, list[WeightView]] = defaultdict(list)
        for view in select(self.model, targets=spec.targets, layers=spec.layers, exclude=spec.exclude).values():
            views[view.parameter].append(view)
        holders: defaultdict[nn.Parameter, list[tuple[nn.Module, str]]] = defaultdict(list)  # several where tied
        for module in self.model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                holders[parameter].append((module, name))
        for parameter, own in views.items():
            update = MaskedLowRank(own, masks, rank=spec.rank, scale=spec.alpha / spec.rank, generator=generator)
            self._adapted[parameter] = update, holders[parameter]
            for module, name in holders[parameter]:
                parametrize.register_parametrization(module, name, update, unsafe=True)

    @torch.no_grad()
    def merge(self) -> None:
        """Writes the updates into the weights; the model is an ordinary one again."""
        for parameter, (update, holders) in self._adapted.items():
            merged = update(parameter)
            for module, name in holders:
                parametrize.remove_parametrizations(module, name, leave_parametrized=False)
            parameter.copy_(merged)
        self._adapted.clear()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self._whole)

    def save(self, folder: Path) -> None:
        """Writes what is trained into a checkpoint."""
        save_file({name: one.detach().contiguous() for name, one in self._trained().items()}, folder / STATE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Takes back what :meth:`save` wrote.

        Raises:
            PruneGPTError: the checkpoint is of another adapter.
        """
        stored, trained = load_file(folder / STATE), self._trained()
        shapes = [{name: tuple(one.shape) for name, one in found.items()} for found in (stored, trained)]
        if shapes[0] != shapes[1]:
            raise PruneGPTError(
                f"a training with an adapter must resume from a checkpoint of it; {folder} is of another one. Remove "
                "that folder to resume from an earlier one."
            )
        for name, parameter in trained.items():
            parameter.copy_(stored[name])

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: one for name, one in self.model.named_parameters() if one.requires_grad}


def _named(model: PreTrainedModel, also: Iterable[str]) -> list[nn.Parameter]:
    """The parameters that are trained whole."""
    found: dict[nn.Parameter, None] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            norm = "norm" in type(module).__name__.lower()
            if ("norms" in also and norm) or ("biases" in also and name.endswith("bias") and not norm):
                found[parameter] = None
    for kind, layer in (("embeddings", model.get_input_embeddings()), ("head", model.get_output_embeddings())):
        if kind in also:
            found |= dict.fromkeys(layer.parameters())
    return list(found)
