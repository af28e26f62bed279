"""The damped inverse of a Gram matrix, as its Cholesky factor: with escalation where it fails, which is reported."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prunegpt.errors import PruningError

LIMIT = 1.0  # the highest damping that is tried
_FIRST_STEP = 1e-4  # where escalation starts from no damping at all


@dataclass(frozen=True, eq=False)
class InverseFactor:
    """The inverse of H = G / mean(diag G) + damping · I, as H⁻¹ = Uᵀ·U.

    Attributes:
        upper: U, float32 [in, in], upper triangular.
        dead: bool [in], the inputs that were zero on every token. H has a one on the diagonal there.
        damping: what was added to the diagonal of H.
        notes: how the factor was got where it was not at the first attempt, and how many inputs are dead.
    """

    upper: Tensor
    dead: Tensor
    damping: float
    notes: tuple[str, ...]


def normalise(gram: Tensor) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """G / mean(diag G) with ones on the diagonal for dead inputs, which inputs those are, and a note about them.

    Args:
        gram: [in, in].

    Returns:
        [in, in] float32, bool [in], notes.

    Raises:
        PruningError: the Gram matrix is not finite or has a negative diagonal.
    """
    diagonal = gram.diagonal().float()  # [in]
    if not bool(torch.isfinite(gram).all()) or bool((diagonal < 0).any()):
        raise PruningError(
            "a Gram matrix must be finite with a diagonal of at least 0; this one is not. Check the calibration data, "
            "and run the model in float32 or bfloat16 if its activations overflow float16."
        )
    dead = diagonal == 0  # [in]
    count = int(torch.count_nonzero(dead))
    scale = diagonal.double().sum() / max(diagonal.numel() - count, 1)
    matrix = gram.float() / (scale.float() if count < diagonal.numel() else 1.0)  # [in, in]
    matrix.diagonal()[dead] = 1.0
    notes = (f"{count} of {diagonal.numel()} inputs are zero on all calibration tokens",) if count else ()
    return matrix, dead, notes


def damping_schedule(damping: float) -> Iterator[tuple[torch.dtype, float]]:
    """The attempts: ten times the damping each, up to :data:`LIMIT`, in float32, and then the same in float64.

    Raises:
        PruningError: the damping is not between 0 and the limit.
    """
    if not 0.0 <= damping <= LIMIT:
        raise PruningError(
            f"damping is a share of the mean diagonal between 0 and {LIMIT:g}, got {damping:g}. 0.01 is usual."
        )
    steps = [damping]
    while (following := steps[-1] * 10 or _FIRST_STEP) <= LIMIT * (1 + 1e-9):
        steps.append(following)
    for dtype in (torch.float32, torch.float64):
        for step in steps:
            yield dtype, step


def inverse_factor(gram: Tensor, *, damping: float = 0.01) -> InverseFactor:
    """The upper Cholesky factor of the damped inverse (Frantar & Alistarh 2023, arXiv 2301.00774, section 3.2).

    With P the matrix that turns the order around and P·H·P = L·Lᵀ, the factor is U = P·L⁻¹·P: one factorisation and
    one triangular inverse, without forming H⁻¹.

    Args:
        gram: [in, in].
        damping: what is added to the diagonal, as a share of its mean.

    Raises:
        PruningError: the Gram matrix is not finite, or has no factor at any damping up to 1 in float64.
    """
    matrix, dead, notes = normalise(gram)
    for dtype, added in damping_schedule(damping):
        turned = matrix.flip(0, 1).to(dtype)  # [in, in]
        turned.diagonal().add_(added)
        lower, failed = torch.linalg.cholesky_ex(turned)  # [in, in]
        del turned  # a matrix of the widest layer takes a gigabyte
        if int(failed):
            continue
        identity = torch.eye(lower.shape[0], dtype=dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(lower, identity, upper=False)  # [in, in]
        del lower, identity
        upper = inverse.flip(0, 1).float().contiguous()  # [in, in]
        del inverse
        if bool(torch.isfinite(upper).all()):
            return InverseFactor(upper, dead, added, (*notes, *escalation_notes(damping, added, dtype)))
    raise PruningError(
        f"the Gram matrix must have a Cholesky factor; it has none at any damping from {damping:g} to {LIMIT:g}, in "
        "float64 either. Calibrate on more tokens."
    )


def escalation_notes(asked: float, used: float, dtype: torch.dtype) -> tuple[str, ...]:
    """The note on an attempt that was not the first."""
    notes = []
    if used != asked:
        notes.append(f"damping raised from {asked:g} to {used:g} because the Gram matrix was not positive definite")
    if dtype == torch.float64:
        notes.append("factorised in float64 because float32 failed")
    return tuple(notes)
