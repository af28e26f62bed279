"""Random layers with correlated inputs, as the solvers need them, and optimal brain surgery in float64."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Layer:
    weight: Tensor  # [out, in]
    inputs: Tensor  # [tokens, in]

    @property
    def gram(self) -> Tensor:
        return self.inputs.t() @ self.inputs  # [in, in]

    @property
    def gradients(self) -> Tensor:
        """Gradients such as a loss could have, [samples, out, in]: outer products of output errors and inputs."""
        errors = torch.randn(12, 3, self.weight.shape[0], generator=Generator().manual_seed(5))
        rows = self.inputs[:36].view(12, 3, -1)  # [samples, 3, in]
        return torch.einsum("sto,sti->soi", errors, rows)  # [samples, out, in]


def layer(out: int, width: int, *, tokens: int = 512, seed: int = 0) -> Layer:
    """A layer whose inputs have scales from 0.03 to 3 and share three directions."""
    generator = Generator().manual_seed(seed)
    scales = torch.logspace(-1.5, 0.5, width)[torch.randperm(width, generator=generator)]  # [in]
    shared = torch.randn(tokens, 3, generator=generator) @ torch.randn(3, width, generator=generator)
    inputs = (shared + torch.randn(tokens, width, generator=generator)) * scales  # [tokens, in]
    return Layer(torch.randn(out, width, generator=generator), inputs)


def damped(gram: Tensor, damping: float) -> Tensor:
    """The matrix that a solver inverts, float64 [in, in]."""
    exact = gram.double()
    return exact + damping * exact.diagonal().mean() * torch.eye(gram.shape[0], dtype=torch.float64)


def best_on_support(weight: Tensor, hessian: Tensor, mask: Tensor, free: Tensor | None = None) -> Tensor:
    """The least squares of each row with its pruned weights at zero, float64 [out, in], by solving normal equations.

    Weights that are kept but not `free` stay as they are.
    """
    solution = weight.double() * mask  # [out, in]
    free = mask if free is None else free & mask
    for row in range(weight.shape[0]):
        moving, fixed = free[row].nonzero().squeeze(1), (~free[row]).nonzero().squeeze(1)
        missing = weight[row, fixed].double() - solution[row, fixed]
        push = torch.linalg.solve(hessian[moving][:, moving], hessian[moving][:, fixed] @ missing)
        solution[row, moving] = weight[row, moving].double() + push
    return solution


def output_error(solution: Tensor, of: Layer) -> float:
    """Relative squared error of the layer's outputs, from the outputs themselves."""
    outputs = of.inputs.double() @ of.weight.double().t()  # [tokens, out]
    changed = of.inputs.double() @ solution.double().t()  # [tokens, out]
    return float((changed - outputs).square().sum() / outputs.square().sum())
