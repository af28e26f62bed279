"""A toy in training while its masks change, in the order in which a trainer does it."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import AdamW

from prunegpt.lm.views import WeightView
from prunegpt.pruning.evidence import Evidence
from prunegpt.pruning.gradual import GradualPruner, MaskUpdate, Statistics
from prunegpt.pruning.job import GradualJob, enforcer_of, resolve_gradual
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.statistics.inputs import LayerStatistics
from tests.support.toys import Toy


def backward(model: nn.Module, step: int) -> None:
    """The gradients of a step."""
    model.zero_grad()
    inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
    model(inputs).square().sum().backward()


def pruner_of(
    toy: Toy,
    method: str = "magnitude",
    *,
    views: Mapping[str, WeightView] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    statistics: Statistics | None = None,
    **options: Any,
) -> GradualPruner:
    views = toy.views() if views is None else views
    held = {name: Mask(kept) for name, kept in (masks or {}).items()}
    job = resolve_gradual(views, method=method, **options)
    job = GradualJob.model_validate_json(job.model_dump_json())  # what an attempt reads back
    return GradualPruner(job, enforcer_of(job, views, held), statistics=statistics)


class Run:
    """A toy in training: the loop that a trainer runs, in the order it runs it."""

    def __init__(self, toy: Toy, method: str = "magnitude", **options: Any) -> None:
        self.toy = toy
        self.optimizer = AdamW(toy.parameters(), lr=0.05, weight_decay=0.1)
        self.pruner = pruner_of(toy, method, **options)

    @property
    def masks(self) -> dict[str, Tensor]:
        return {name: mask.kept for name, mask in self.pruner.enforcer.masks.items()}

    def resume(self, other: "Run") -> "Run":
        """Takes up what another run has come to, by way of what a checkpoint holds."""
        self.toy.load_state_dict(other.toy.state_dict())
        self.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))
        self.pruner.load_state_dict(load(save(other.pruner.state_dict())))
        self.pruner.enforcer.set_masks(other.pruner.enforcer.masks)
        self.pruner.enforcer.mask_weights()
        return self

    def steps(self, steps: range) -> list[MaskUpdate]:
        updates = []
        for step in steps:
            update = self.pruner.before_step(step, self.optimizer)
            updates += [update] if update else []
            backward(self.toy, step)
            self.pruner.accumulate()
            self.pruner.enforcer.mask_gradients()
            self.pruner.enforcer.before_optimizer()
            self.optimizer.step()
            self.pruner.enforcer.mask_weights()
            self.pruner.enforcer.verify()
        return updates


def calibration(toy: Toy, need: str, names: Sequence[str] = ("first.weight", "second.weight")) -> Statistics:
    """Norms or Gram matrices of what the present weights make of fixed inputs, and drawn regional gradients."""

    def statistics(seed: int) -> list[dict[str, Evidence]]:
        inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(99))
        seen = {"first.weight": inputs, "second.weight": torch.tanh(toy.first(inputs)).detach()}
        views, generator = toy.views(), torch.Generator().manual_seed(seed)
        found = {
            name: LayerStatistics(
                x.norm(dim=0),
                x.mean(dim=0),
                x.t() @ x if need == "gram" else None,
                len(x),
                torch.rand(views[name].matrix.shape, generator=torch.Generator().manual_seed(98)),
            )
            for name, x in seen.items()
        }
        needs = frozenset({need, "regional_gradient"})
        return [{name: Evidence(views[name], needs, generator, found[name], None) for name in names}]

    return statistics
