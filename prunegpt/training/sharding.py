"""Training a model of which each process holds a part (FSDP2): its weights, gradients and moments.

What is trained is a twin of the model that has the same parameters until accelerate shards them. The model itself is
left empty meanwhile, and gets the trained weights, whole, at the end: nothing that knows it has to know of parts.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from prunegpt.errors import PruneGPTError
from prunegpt.lm.views import WeightView
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.gradual import GradualPruner


def twin_of(model: PreTrainedModel) -> PreTrainedModel:
    """Another model with the same parameters."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def enable(accelerator: Accelerator, plugin: Mapping[str, Any]) -> None:
    """Lets accelerate shard the model that it prepares, on a CPU too, where by itself it does not.

    Precision is that of autocast, as without: weights are gathered, and gradients summed, in float32.
    """
    state = accelerator.state
    if state.distributed_type != DistributedType.FSDP:
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**plugin)
        state.distributed_type = DistributedType.FSDP
        PartialState().distributed_type = DistributedType.FSDP  # from which each AcceleratorState takes it again
    state.fsdp_plugin.mixed_precision_policy = None


def split(twin: nn.Module, enforcer: Enforcer, pruner: GradualPruner | None) -> None:
    """Lets masks, and what is gathered to choose them by, follow the parameters of a model that is sharded."""
    _rebind(enforcer.views, twin)
    enforcer.split()
    if pruner:
        pruner.split()


def empty(model: nn.Module) -> None:
    """Frees the weights of a model whose twin is sharded."""
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)


@torch.no_grad()
def join(model: nn.Module, twin: nn.Module, enforcer: Enforcer) -> None:
    """Gives a model the weights of its twin, whole and on the host, and masks to match: all processes together."""
    masks = enforcer.masks
    trained = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.data = _whole(trained[name])
    _rebind(enforcer.views, model)
    enforcer.join(masks)


def is_sharded(model: nn.Module) -> bool:
    """Whether each process has a part of the parameters."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def joined_state(optimizer: Any) -> dict[str, Any]:
    """The state of an optimizer as that of a whole model, on the host: all processes together."""
    state: dict[str, Any] = optimizer.state_dict()
    return {**state, "state": {index: _each(kept, _whole) for index, kept in state["state"].items()}}


def load_state(optimizer: Any, state: Mapping[str, Any]) -> None:
    """Takes our part of what :func:`joined_state` gave."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parts = {index: _each(kept, partial(_part, parameters[index])) for index, kept in state["state"].items()}
    optimizer.load_state_dict({**state, "state": parts})


@torch.no_grad()
def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Takes our part of the weights of a checkpoint; all of them where the model is whole.

    Raises:
        PruneGPTError: the checkpoint lacks some.
    """
    missing = dict(model.named_parameters())
    for path in sorted(checkpoint.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(missing.keys() & set(file.keys())):  # in one order everywhere
                parameter = missing.pop(name)
                parameter.copy_(_part(parameter, file.get_tensor(name)))
    if missing:
        raise PruneGPTError(
            f"a checkpoint must hold all weights of the model; {checkpoint} lacks {min(missing)}. Remove that folder "
            "to resume from an earlier one."
        )


def _each(kept: Mapping[str, Any], made: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {name: made(value) if isinstance(value, Tensor) else value for name, value in kept.items()}


def _whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def _part(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Our part of a whole tensor of a parameter's shape, sharded as that is; any other tensor itself."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


def _rebind(views: Mapping[str, WeightView], model: nn.Module) -> None:
    for name, view in views.items():
        view.parameter = model.get_parameter(name.partition("[")[0])
