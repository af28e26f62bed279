"""A toy that several processes train in parts, and the same toy as a whole beside it. Each process runs this program.

    python -m tests.support.sharded FOLDER CASES   # CASES: JSON, [[mode, method, pattern, scope, schedule], ...]

What differs is in FOLDER/RANK.json: case -> what.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.optim import AdamW

from prunegpt.lm import ranks
from prunegpt.lm.views import WeightView
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.patterns import parse_pattern
from prunegpt.spec.schedules import Clock
from prunegpt.training.sharding import split
from tests.support.mask_runs import Run
from tests.support.toys import Toy

STEPS = 12
CLOCK = Clock.regular(2, 9, 2)
STOP = 6  # between two updates


def made(mode: str, method: str, pattern: str, scope: str, schedule: str) -> Run:
    """A run from the beginning, some of whose weights an earlier stage has pruned."""
    torch.manual_seed(0)
    toy = Toy()
    for parameter in toy.parameters():
        nn.init.normal_(parameter, std=0.5)
    names = ("second.weight",) if pattern == "2:4" else ("first.weight", "second.weight")
    views = {name: view for name, view in toy.views().items() if name in names}
    held = {name: parse_pattern("[4, 2]").select(view.matrix.abs(), 0.25) for name, view in views.items()}
    for name, view in views.items():
        view.matrix.mul_(held[name])
    asked: dict[str, Any] = {"pattern": pattern, "scope": scope, "schedule": schedule, "mode": mode, "final": 0.5}
    return Run(toy, method, views=views, masks=held, clock=CLOCK, regrow=mode == "projected", seed=3, **asked)


def sharded(*case: str) -> Run:
    """The same in parts."""
    run = made(*case)
    fully_shard(run.toy)
    run.optimizer = AdamW(run.toy.parameters(), lr=0.05, weight_decay=0.1)
    split(run.toy, run.pruner.enforcer, run.pruner)
    return run


def weights(run: Run) -> dict[str, Tensor]:
    """All parameters, whole."""
    found = {name: parameter.detach() for name, parameter in run.toy.named_parameters()}
    return {name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for name, tensor in found.items()}


def moments(run: Run) -> dict[str, Tensor]:
    """What the optimizer keeps of pruned matrices, [out, in]."""
    views = run.pruner.enforcer.views
    return {
        f"{name} {key}": view.whole(view.oriented(value))
        for name, view in views.items()
        for key, value in run.optimizer.state[view.parameter].items()
        if value.shape == view.parameter.shape
    }


def differs(whole: dict[str, Tensor], parts: dict[str, Tensor]) -> list[str]:
    """The names of tensors that are not close."""
    if whole.keys() != parts.keys():
        return sorted(whole.keys() ^ parts.keys())
    return [name for name, one in whole.items() if not torch.allclose(one, parts[name], rtol=1e-5, atol=1e-6)]


def compared(*case: str) -> list[str]:
    """What differs between a run as a whole and one in parts, which is resumed half way."""
    one, other = made(*case), sharded(*case)
    updates, theirs = one.steps(range(STOP)), other.steps(range(STOP))
    state = other.pruner.state_dict()
    found = [f"state {name}" for name in differs(one.pruner.state_dict(), state)]
    masks = other.pruner.enforcer.masks
    other.pruner.load_state_dict(state)
    other.pruner.enforcer.set_masks(masks)
    updates += one.steps(range(STOP, STEPS))
    theirs += other.steps(range(STOP, STEPS))
    found += [f"update {mine.step}" for mine, their in zip(updates, theirs, strict=True) if mine != their]
    found += [f"weight {name}" for name in differs(weights(one), weights(other))]
    found += [f"moment {name}" for name in differs(moments(one), moments(other))]
    ours, masks = one.pruner.enforcer.masks, other.pruner.enforcer.masks
    found += [f"mask {name}" for name, mask in ours.items() if not mask.same(masks[name])]
    zeros = {name: view.whole(view.matrix) for name, view in other.pruner.enforcer.views.items()}
    return found + [f"nonzero {name}" for name, matrix in zeros.items() if masks[name].alive(matrix)]


class Stacked(nn.Module):
    """Matrices in one parameter, on an axis of their own or one below the other."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(float(torch.Size(shape).numel())).reshape(shape))


def joined(shape: tuple[int, ...], count: int, transposed: bool) -> list[str]:
    """The matrices of a stack that are not what they were after they were parted and joined."""
    module = Stacked(shape)
    places = range(count) if count > 1 else (None,)
    views = [WeightView(f"weight[{place}]", module.weight, module, transposed, 0, place, count) for place in places]
    before = [view.matrix.clone() for view in views]
    fully_shard(module)
    found = []
    for view, matrix in zip(views, before, strict=True):
        view.parameter = module.weight
        same = torch.equal(view.whole(view.matrix), matrix) and torch.equal(view.part(matrix), view.matrix)
        bits = Mask(view.part(matrix % 3 > 0), like=view.matrix)
        bits.apply(view.matrix)
        same = same and torch.equal(view.whole(view.matrix), matrix * (matrix % 3 > 0))
        found += [] if same else [view.name]
    return found


STACKS = [((5, 4), 1), ((3, 4), 1), ((3, 4, 5), 3), ((6, 2, 3), 6), ((6, 5), 2), ((9, 4), 3)]


def main(folder: Path, cases: list[list[str]]) -> None:
    """Runs all cases."""
    with ranks.joined():
        found = {" ".join(case): compared(*case) for case in cases}
        for shape, count in STACKS:
            for transposed in (False, True):
                found[f"stack {shape} {count} {transposed}"] = joined(shape, count, transposed)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
