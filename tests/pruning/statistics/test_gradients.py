"""Gradients over windows against a plain backward pass for each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunegpt.errors import Interrupted, PruningError
from prunegpt.lm.views import block_matrices
from prunegpt.pruning.statistics import gradient_statistics
from prunegpt.pruning.statistics.gradients import KEEP_SECONDS

Make = Callable[[str], Any]


def plain(model: Any, windows: Tensor) -> dict[str, Tensor]:
    """Layer name -> [windows, out, in], from the loss that transformers computes."""
    views = block_matrices(model)
    found: dict[str, list[Tensor]] = {name: [] for name in views}
    for window in windows:
        model.zero_grad()
        model(input_ids=window[None], labels=window[None]).loss.backward()
        for name, view in views.items():
            assert view.gradient is not None
            found[name].append(view.gradient.clone())
    model.zero_grad()
    return {name: torch.stack(parts) for name, parts in found.items()}


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_they_are_those_of_the_loss(make_model: Make, windows: Tensor, tmp_path: Path, family: str) -> None:
    model = make_model(family)
    expected = plain(model, windows)
    found = gradient_statistics(model, block_matrices(model), windows, samples=tmp_path, sample_dtype=torch.float32)
    assert (found.windows, found.tokens) == (5, 60)
    for name, gradients in expected.items():
        torch.testing.assert_close(found.gradient[name], gradients.mean(dim=0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.squared_gradient[name], gradients.square().mean(dim=0), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(found.samples(name), gradients, rtol=1e-4, atol=1e-6)


def test_single_gradients_are_kept_in_bfloat16(make_model: Make, windows: Tensor, tmp_path: Path) -> None:
    model = make_model("gpt2")
    name = "transformer.h.1.mlp.c_fc.weight"
    expected = plain(model, windows)[name]
    found = gradient_statistics(model, {name: block_matrices(model)[name]}, windows, samples=tmp_path).samples(name)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=1e-6)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == 2 * expected.numel()


def test_the_model_is_left_as_it_was(make_model: Make, windows: Tensor) -> None:
    model = make_model("gpt2").train()
    model.transformer.wte.requires_grad_(False)
    model(input_ids=windows, labels=windows).loss.backward()
    before = {name: (p.requires_grad, p.grad, p.detach().clone()) for name, p in model.named_parameters()}
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        gradient_statistics(model, block_matrices(model), windows)
    assert model.training
    for name, parameter in model.named_parameters():
        wanted, gradient, value = before[name]
        assert parameter.requires_grad == wanted
        assert parameter.grad is gradient
        assert torch.equal(parameter, value)
        assert gradient is None or torch.equal(gradient, grads[name])


def test_dropout_is_off(make_model: Make, windows: Tensor) -> None:
    model = make_model("gpt2").train()
    views = block_matrices(model)
    first, second = (gradient_statistics(model, views, windows) for _ in range(2))
    name = next(iter(views))
    assert torch.equal(first.gradient[name], second.gradient[name])


def test_a_pass_that_is_broken_off_resumes_to_the_same_bits(make_model: Make, windows: Tensor, tmp_path: Path) -> None:
    """Stopped, killed after a writing, and once more after its end: no window is run that is in the sums."""
    model = make_model("gpt2")
    views = block_matrices(model)
    expected = gradient_statistics(model, views, windows)
    runs: list[int] = []

    def calibrated(done: int, total: int) -> None:
        runs.append(done)
        if len(runs) == 2:
            raise Interrupted("stopped")
        if len(runs) == 4:
            raise KeyboardInterrupt

    for ends in (Interrupted, KeyboardInterrupt):
        with pytest.raises(ends):
            gradient_statistics(model, views, windows, kept=tmp_path / "kept", calibrated=calibrated)
    found = gradient_statistics(model, views, windows, kept=tmp_path / "kept", calibrated=calibrated)
    assert runs == [1, 2, 3, 4, 3, 4, 5]
    again = gradient_statistics(model, views, windows, kept=tmp_path / "kept", calibrated=calibrated)
    assert len(runs) == 7, "the sums of the whole pass are kept"
    for one in (found, again):
        for name in views:
            assert torch.equal(one.gradient[name], expected.gradient[name])
            assert torch.equal(one.squared_gradient[name], expected.squared_gradient[name])


def test_a_long_pass_is_kept_from_time_to_time(make_model: Make, windows: Tensor, tmp_path: Path) -> None:
    model = make_model("gpt2")
    views = block_matrices(model)
    now, written = [0.0], []
    kept = tmp_path / "kept"

    def calibrated(done: int, total: int) -> None:
        written.append(json.loads((kept / "windows.json").read_text())["windows"] if kept.exists() else 0)
        now[0] += KEEP_SECONDS / 2 + 1

    gradient_statistics(model, views, windows, kept=kept, calibrated=calibrated, clock=lambda: now[0])
    assert written == [0, 0, 3, 3, 5]


def test_what_was_not_kept_cannot_be_had(make_model: Make, windows: Tensor) -> None:
    model = make_model("gpt2")
    views = block_matrices(model)
    found = gradient_statistics(model, views, windows)
    with pytest.raises(PruningError, match=r"single gradients of .* were not kept. Give gradient_statistics a folder"):
        found.samples(next(iter(views)))


def test_a_loss_that_is_not_finite_is_refused(make_model: Make, windows: Tensor) -> None:
    model = make_model("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(torch.inf)
    with pytest.raises(PruningError, match=r"must be finite; that of window 0 is"):
        gradient_statistics(model, block_matrices(model), windows)
    assert all(parameter.requires_grad for parameter in model.parameters())
