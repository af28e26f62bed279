"""Layers of which many weights are worth the same, and the masks that a stable sort gives them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from prunegpt.pruning.criteria.base import Criterion
from prunegpt.pruning.patterns import Block, NOfM, Pattern, Unstructured
from prunegpt.pruning.selection import select_masks
from prunegpt.registry import CRITERIA, SOLVERS, Scope

OUT, IN = 8, 12
SPARSITIES = (0.1, 0.3, 0.5, 0.8)
OPTIONS = {"admm": {"iterations": 1}}  # with more, what a first step prunes and keeps is no longer worth the same
Masks = tuple[str, Tensor, Tensor]  # what was pruned, the mask, the one that a stable sort gives


def differing(method: str, device: str = "cpu") -> list[str]:
    """What a registered method prunes in another order than a stable sort of [out, in] does, row by row."""
    found = _of_criterion if method in CRITERIA else _of_solver
    return [case for case, mask, expected in found(method, device) if not torch.equal(mask.cpu(), expected)]


def _of_criterion(method: str, device: str) -> Iterator[Masks]:
    criterion: Criterion = CRITERIA.load(method)
    scores = {}
    for name, transposed in (("linear", False), ("conv1d", True)):
        weight = _few_values(len(scores), transposed).to(device)
        scores[name] = criterion.score(weight, **_needed(criterion, transposed, device))
    host = {name: tensor.cpu() for name, tensor in scores.items()}
    assert method == "random" or all(tensor.unique().numel() < OUT * IN / 4 for tensor in host.values())

    def masks(pattern: Pattern, sparsity: float, scope: Scope) -> dict[str, Tensor]:
        return select_masks(scores, dict.fromkeys(scores, sparsity), pattern=pattern, scope=scope)

    for sparsity in SPARSITIES:
        for name, mask in masks(Unstructured(), sparsity, "tensor").items():
            yield f"{name} {sparsity}", mask, _of_all(host[name], sparsity)
        for name, mask in masks(Unstructured(), sparsity, "row").items():
            yield f"{name} {sparsity} by row", mask, _of_parts(host[name], round(IN * sparsity))
        for name, mask in masks(Block(2, 3), sparsity, "tensor").items():
            tiles = host[name].reshape(OUT // 2, 2, IN // 3, 3).mean(dim=(1, 3))  # [tile rows, tile columns]
            kept = _of_all(tiles, sparsity).repeat_interleave(2, 0).repeat_interleave(3, 1)  # [out, in]
            yield f"{name} {sparsity} by block", mask, kept
        together = masks(Unstructured(), sparsity, "global")
        joined = torch.cat([host[name].flatten() for name in host])
        yield f"global {sparsity}", torch.cat([mask.flatten() for mask in together.values()]), _of_all(joined, sparsity)
    for name, mask in masks(NOfM(2, 4), 0.5, "tensor").items():
        safe = _of_parts(host[name].reshape(-1, 4), 2).reshape(OUT, IN)
        yield f"{name} 2:4", mask, safe
        early = masks(NOfM(2, 4), 0.3, "tensor")[name]
        yield f"{name} 2:4 at 0.3", early, _of_all(host[name].masked_fill(safe, torch.inf), 0.3)


def _of_solver(method: str, device: str) -> Iterator[Masks]:
    """On inputs of equal norm that have nothing in common: a weight is worth its square, and repairs no other one."""
    solver = SOLVERS.load(method)
    given = {"gram": 4.0 * torch.eye(IN), "gradients": 2.0 * torch.eye(IN).unsqueeze(1).expand(IN, OUT, IN)}
    needed = {need: given[need].to(device) for need in solver.needs}
    options: dict[str, Any] = {"mask": None, **needed, **OPTIONS.get(method, {})}
    for name, transposed in (("linear", False), ("conv1d", True)):
        weight = _few_values(0, transposed)  # [out, in]
        for sparsity in SPARSITIES:
            found = solver.solve(weight.to(device), pattern=Unstructured(), sparsity=sparsity, **options)
            yield f"{name} {sparsity}", found.mask, _of_all(weight.abs(), sparsity)
        found = solver.solve(weight.to(device), pattern=NOfM(2, 4), sparsity=0.5, **options)
        yield f"{name} 2:4", found.mask, _of_parts(weight.abs().reshape(-1, 4), 2).reshape(OUT, IN)


def _few_values(seed: int, transposed: bool) -> Tensor:
    """1, 2, 3 and their negatives, [out, in]; in the layout of a Conv1D's view where asked."""
    drawn = torch.randint(1, 4, (OUT, IN), generator=Generator().manual_seed(seed)).float()  # [out, in]
    drawn[:, ::2] *= -1
    return drawn.t().contiguous().t() if transposed else drawn


def _needed(criterion: Criterion, transposed: bool, device: str) -> dict[str, Any]:
    given: dict[str, Any] = {
        **{need: _few_values(7, transposed).to(device) for need in ("gradient", "movement")},
        "squared_gradient": _few_values(7, transposed).square().to(device),
        "input_norm": torch.full((IN,), 2.0, device=device),
        "regional_gradient": torch.full((OUT, IN), 0.5, device=device),
        "generator": Generator().manual_seed(2),
    }
    return {need: given[need] for need in criterion.needs}


def _of_all(scores: Tensor, sparsity: float) -> Tensor:
    """Kept where a share of all scores is pruned, of any shape."""
    return _of_parts(scores.reshape(1, -1), round(scores.numel() * sparsity)).reshape(scores.shape)


def _of_parts(scores: Tensor, zeros: int) -> Tensor:
    """Kept where each row of [parts, scores] loses as many."""
    lowest = scores.sort(dim=1, stable=True).indices[:, :zeros]  # [parts, zeros]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)
