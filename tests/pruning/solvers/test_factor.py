"""The damped inverse: what it is, and what it says when it is hard to get."""

import pytest
import torch

from prunegpt.errors import PruningError
from prunegpt.pruning.solvers.admm import spectrum
from prunegpt.pruning.solvers.factor import damping_schedule, inverse_factor
from tests.pruning.solvers.layers import damped, layer


@pytest.mark.parametrize("damping", [0.001, 0.01, 0.1])
def test_the_factor_is_that_of_the_inverse(damping: float) -> None:
    gram = layer(4, 24).gram
    factor = inverse_factor(gram, damping=damping)
    hessian = damped(gram, damping) / gram.diagonal().double().mean()
    upper = factor.upper.double()
    torch.testing.assert_close(upper.t() @ upper, torch.linalg.inv(hessian), rtol=1e-3, atol=1e-3)
    assert torch.equal(factor.upper, factor.upper.triu())
    assert (factor.damping, factor.notes) == (damping, ())


def test_it_is_the_cholesky_factor_of_the_paper() -> None:
    gram = layer(4, 16).gram
    hessian = damped(gram, 0.01) / gram.diagonal().double().mean()
    expected = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    torch.testing.assert_close(inverse_factor(gram).upper.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_scale_of_the_inputs_does_not_matter() -> None:
    gram = layer(4, 16).gram
    torch.testing.assert_close(inverse_factor(gram * 1e-20).upper, inverse_factor(gram).upper, rtol=1e-4, atol=1e-4)


def test_dead_inputs_are_found_and_said() -> None:
    made = layer(4, 16)
    made.inputs[:, [2, 9]] = 0
    factor = inverse_factor(made.gram)
    assert factor.dead.nonzero().flatten().tolist() == [2, 9]
    assert factor.notes == ("2 of 16 inputs are zero on all calibration tokens",)
    alive = [index for index in range(16) if index not in (2, 9)]
    rest = inverse_factor(made.gram[alive][:, alive]).upper
    torch.testing.assert_close(factor.upper[alive][:, alive], rest)


def test_damping_rises_where_it_must_and_is_reported() -> None:
    column = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    gram = (column @ torch.ones(1, 12)).t() @ (column @ torch.ones(1, 12))  # of rank one
    factor = inverse_factor(gram, damping=0.0)
    assert factor.damping > 0
    assert factor.notes[0].startswith("damping raised from 0 to ")
    assert bool(torch.isfinite(factor.upper).all())
    assert spectrum(gram, damping=0.0).notes[0].startswith("damping raised from 0 to ")


def test_float64_comes_after_float32_has_failed_at_every_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    original, tried = torch.linalg.cholesky_ex, []

    def only_double(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tried.append((matrix.dtype, round(float(matrix.diagonal().min()), 6)))
        lower, info = original(matrix)
        return lower, info + int(matrix.dtype == torch.float32)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", only_double)
    factor = inverse_factor(torch.eye(3), damping=0.01)
    assert tried == [(torch.float32, 1.01), (torch.float32, 1.1), (torch.float32, 2.0), (torch.float64, 1.01)]
    assert factor.damping == 0.01
    assert factor.notes == ("factorised in float64 because float32 failed",)


@pytest.mark.parametrize("function", [inverse_factor, spectrum])
def test_what_no_damping_can_mend_is_an_error(function: object) -> None:
    assert callable(function)
    indefinite = torch.ones(4, 4) + 5 * (torch.ones(4, 4) - torch.eye(4))  # eigenvalues -5 and 19
    with pytest.raises(PruningError, match=r"at any damping from 0.01 to 1, in\s+float64 either. Calibrate on more"):
        function(indefinite)
    broken = torch.eye(4)
    broken[1, 1] = torch.nan
    with pytest.raises(PruningError, match=r"must be finite with a diagonal of at least 0"):
        function(broken)
    with pytest.raises(PruningError, match=r"between 0 and 1, got 7"):
        function(torch.eye(4), damping=7.0)


def test_the_ladder_ends_at_the_limit() -> None:
    steps = [(str(dtype).removeprefix("torch."), step) for dtype, step in damping_schedule(0.1)]
    assert steps == [("float32", 0.1), ("float32", 1.0), ("float64", 0.1), ("float64", 1.0)]
