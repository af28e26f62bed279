"""Modes of masks in training: what all of them promise, and each beside a small loop that is written out."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim import AdamW

from prunegpt.errors import PruningError
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.patterns import parse_pattern
from prunegpt.registry import CRITERIA, MASK_MODES
from prunegpt.spec.schedules import Clock
from tests.support.mask_runs import Run, backward, calibration
from tests.support.toys import Toy

MakeToy = Callable[[], Toy]

PATTERNS = (("unstructured", "row"), ("unstructured", "global"), ("2:4", "tensor"), ("[4, 2]", "tensor"))  # and scopes
STEPS = 12
CLOCK = Clock.regular(2, 9, 2)
CASES = [
    (mode, method, pattern, scope)
    for mode in MASK_MODES.names()
    for method in CRITERIA.names()
    for pattern, scope in PATTERNS
]
assert CASES


def run_of(toy: Toy, mode: str, method: str, pattern: str, scope: str, masks: dict[str, Tensor]) -> Run:
    names = ("second.weight",) if pattern == "2:4" else ("first.weight", "second.weight")
    return Run(
        toy,
        method,
        views={name: view for name, view in toy.views().items() if name in names},
        masks={name: mask for name, mask in masks.items() if name in names},
        statistics=calibration(toy, "input_norm", names) if "input_norm" in CRITERIA.load(method).needs else None,
        clock=CLOCK,
        schedule="linear",
        final=0.5,
        pattern=pattern,
        scope=scope,
        mode=mode,
        seed=3,
    )


@pytest.mark.parametrize(("mode", "method", "pattern", "scope"), CASES, ids=lambda value: str(value))
def test_every_mode_ends_with_what_was_asked_for_and_resumes_exactly(
    make_toy: MakeToy, mode: str, method: str, pattern: str, scope: str
) -> None:
    toy = make_toy()
    held = {name: parse_pattern("[4, 2]").select(view.matrix.abs(), 0.25) for name, view in toy.views().items()}
    for view in toy.views().values():
        view.matrix.mul_(held[view.name])
    begun = {name: tensor.clone() for name, tensor in toy.state_dict().items()}

    def run() -> Run:
        fresh = make_toy()
        fresh.load_state_dict(begun)
        return run_of(fresh, mode, method, pattern, scope, held)

    whole = run()
    updates = whole.steps(range(STEPS))
    assert [update.step for update in updates] == list(CLOCK.updates)
    enforcer, job = whole.pruner.enforcer, whole.pruner.job
    job.verify(enforcer.masks, {name: Mask(held[name]) for name in job.sparsities})
    parse_pattern(pattern if pattern == "2:4" else "unstructured").check(whole.masks["second.weight"])
    for view in enforcer.views.values():
        assert not bool(view.matrix[~whole.masks[view.name]].any())
        assert method == "random" or bool(
            (view.matrix[whole.masks[view.name]] != 0).all()
        )  # else an output may be dead
        for moment in whole.optimizer.state[view.parameter].values():
            if moment.shape == view.parameter.shape:
                assert not bool(view.oriented(moment)[~whole.masks[view.name]].any())
    for stop in (1, 5, 9, 11):  # before the first update, between two, right before the last one, after it
        first = run()
        early = first.steps(range(stop))
        second = run().resume(first)
        assert early + second.steps(range(stop, STEPS)) == updates
        for parameter, expected in zip(second.toy.parameters(), whole.toy.parameters(), strict=True):
            assert torch.equal(parameter, expected)


def smallest(weights: Tensor, sparsity: float) -> Tensor:
    """Which weights are kept where the smallest go: by sorting."""
    order = weights.abs().flatten().argsort()
    kept = torch.ones(weights.numel(), dtype=torch.bool)
    kept[order[: round(weights.numel() * sparsity)]] = False
    return kept.reshape(weights.shape)


NAMES = ("first.weight", "second.weight")


@pytest.mark.parametrize(("decay", "ramp"), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.5)])
def test_live_weights_are_those_of_a_straight_through_loop(make_toy: MakeToy, decay: float, ramp: float) -> None:
    run = Run(
        make_toy(),
        clock=CLOCK,
        final=0.6,
        schedule="constant",
        mode="live",
        mode_options={"decay": decay, "ramp": ramp},
    )
    twin = make_toy()
    dense = dict(twin.named_parameters())
    optimizer = AdamW(twin.parameters(), lr=0.05, weight_decay=0.1)
    masks = {name: torch.ones_like(dense[name], dtype=torch.bool) for name in NAMES}
    opened = 0
    for step in range(STEPS):
        progress = CLOCK.progress(step)
        if step in CLOCK.updates:
            before = masks
            masks = {name: smallest(dense[name].detach(), 0.6) for name in NAMES}
            opened += sum(int((masks[name] & ~before[name]).sum()) for name in NAMES)
        if step == CLOCK.end:  # from here on pruned weights are zero
            for name in NAMES:
                dense[name].data *= masks[name]
                for moment in ("exp_avg", "exp_avg_sq"):
                    optimizer.state[dense[name]][moment] *= masks[name]
        shown = {name: (dense[name] * masks[name]).detach().requires_grad_() for name in NAMES}
        others = {name: parameter for name, parameter in dense.items() if name not in NAMES}
        twin.zero_grad()
        inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        functional_call(twin, {**others, **shown}, (inputs,)).square().sum().backward()  # type: ignore[no-untyped-call]
        strength = decay * (min(progress / ramp, 1.0) if ramp else 1.0)
        for name in NAMES:
            gradient = shown[name].grad
            assert gradient is not None
            pull = strength * ~masks[name] * dense[name].detach()
            dense[name].grad = gradient * masks[name] if step >= CLOCK.end else gradient + pull
        optimizer.step()
        run.steps(range(step, step + 1))
        for name, parameter in run.toy.named_parameters():
            expected = dense[name] * masks[name] if name in masks else dense[name]
            torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-6)
            if name in masks and step in CLOCK.updates:
                assert torch.equal(parameter != 0, masks[name])
    assert opened  # a weight came back, with what it had learnt


@pytest.mark.parametrize(("penalty", "ramp"), [(0.05, 0.0), (2.0, 0.0), (2.0, 1.0)])
def test_elsa_is_admm_written_out(make_toy: MakeToy, penalty: float, ramp: float) -> None:
    options = {"penalty": penalty, "ramp": ramp}
    run = Run(make_toy(), clock=CLOCK, final=0.6, schedule="constant", mode="elsa", mode_options=options)
    twin = make_toy()
    optimizer = AdamW(twin.parameters(), lr=0.05, weight_decay=0.1)
    x = {name: parameter for name, parameter in twin.named_parameters() if name in NAMES}
    z: dict[str, Tensor] = {}
    u = {name: torch.zeros_like(x[name]) for name in NAMES}
    masks: dict[str, Tensor] = {}
    squares = {"before": 0.0, "after": 0.0}
    for step in range(STEPS):
        if step in CLOCK.updates:
            for name in NAMES:
                if step == CLOCK.end:
                    masks[name] = smallest(x[name].detach(), 0.6)
                    squares["before"] += float(x[name].detach().square().sum())
                    x[name].data *= masks[name]
                    squares["after"] += float(x[name].detach().square().sum())
                    for moment in ("exp_avg", "exp_avg_sq"):
                        optimizer.state[x[name]][moment] *= masks[name]
                    continue
                begun = name in z
                z[name] = (x[name] + u[name]).detach() * smallest((x[name] + u[name]).detach(), 0.6)
                u[name] = u[name] + x[name].detach() - z[name] if begun else u[name]
        backward(twin, step)
        strength = penalty * (min(CLOCK.progress(step) / ramp, 1.0) if ramp else 1.0)
        for name in z:
            gradient = x[name].grad
            assert gradient is not None
            gradient *= masks.get(name, 1.0)
            gradient += 0.0 if masks else strength * (x[name].detach() - z[name] + u[name])
        optimizer.step()
        updates = run.steps(range(step, step + 1))
        for parameter, expected in zip(run.toy.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-6)
        if step == CLOCK.end:
            share = 1 - squares["after"] / squares["before"]
            assert updates[0].notes == (
                f"elsa: the last projection took {share:.2%} of the squared norm of the weights",
            )
        if step < CLOCK.end:
            assert not run.pruner.enforcer.closed  # the model is dense until the end
    assert all(torch.equal(dict(run.toy.named_parameters())[name] != 0, masks[name]) for name in NAMES)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_rigl_drops_and_grows_as_by_brute_force(make_toy: MakeToy, schedule: str) -> None:
    fraction = 0.5
    run = Run(make_toy(), clock=CLOCK, final=0.6, schedule=schedule, mode="rigl", mode_options={"fraction": fraction})
    gradients: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    grown = 0
    for step in range(STEPS):
        weights = {name: view.matrix.clone() for name, view in run.toy.views().items()}
        before = dict(run.masks)
        if step in CLOCK.updates:
            run.pruner.before_step(step, run.optimizer)
            sparsity = 0.6 if schedule == "constant" else 0.6 * CLOCK.progress(step)
            share = fraction / 2 * (1 + math.cos(math.pi * CLOCK.progress(step)))
            for name in NAMES:
                size = weights[name].numel()
                expected = smallest(weights[name], sparsity)
                if not bool(before[name].all()) and share > 0:
                    survivors = round(size * (1 - (1 - (1 - sparsity) * (1 - share))))
                    alive = [place for place in range(size) if before[name].flatten()[place]]
                    alive.sort(key=lambda place: -abs(float(weights[name].flatten()[place])))
                    kept = set(alive[:survivors])
                    mean = torch.stack(gradients[name]).mean(dim=0).abs().flatten()
                    rest = sorted((place for place in range(size) if place not in kept), key=lambda p: -float(mean[p]))
                    kept |= set(rest[: size - round(size * sparsity) - len(kept)])
                    expected = torch.tensor([place in kept for place in range(size)]).reshape(weights[name].shape)
                    grown += int((expected & ~before[name]).sum())
                assert torch.equal(run.masks[name], expected)
                matrix = run.toy.views()[name].matrix
                assert torch.equal(matrix, weights[name] * expected)  # what grows begins at zero
                gradients[name].clear()
        twin = make_toy()
        twin.load_state_dict(run.toy.state_dict())
        backward(twin, step)
        for name, view in twin.views().items():
            assert view.gradient is not None
            gradients[name].append(view.gradient.clone())
        run.steps(range(step, step + 1))
    assert grown


@pytest.mark.parametrize("mode", ["live", "elsa"])
def test_a_pull_has_the_scale_of_the_gradients(make_toy: MakeToy, mode: str) -> None:
    """As a gradient scaler leaves them where nothing is clipped."""
    found = []
    for scale in (1.0, 1024.0):
        run = Run(make_toy(), clock=CLOCK, final=0.5, schedule="constant", mode=mode)
        run.steps(range(4))
        backward(run.toy, 4)
        for parameter in run.toy.parameters():
            assert parameter.grad is not None
            parameter.grad *= scale
        run.pruner.enforcer.before_optimizer(scale=scale)
        found.append([parameter.grad / scale for parameter in run.toy.parameters() if parameter.grad is not None])
    for plain, scaled in zip(*found, strict=True):
        torch.testing.assert_close(plain, scaled)


@pytest.mark.parametrize("mode", MASK_MODES.names())
def test_a_solver_goes_with_projected_weights_alone(make_toy: MakeToy, mode: str) -> None:
    def make() -> Any:
        toy = make_toy()
        return Run(toy, "sparsegpt", clock=CLOCK, final=0.5, mode=mode, statistics=calibration(toy, "gram"))

    if mode == "projected":
        assert make().pruner
        return
    with pytest.raises(PruningError, match=f"mode {mode} chooses masks by scores alone; sparsegpt is a solver"):
        make()


def test_options_of_modes_are_no_others() -> None:
    """All options of a pruning are in one field."""
    from prunegpt.registry import ALLOCATIONS, SOLVERS

    modes = {name for mode in MASK_MODES.names() for name in MASK_MODES.entry(mode).valid_options}
    for registry in (CRITERIA, ALLOCATIONS):
        for part in registry.names():
            assert not modes & set(registry.entry(part).valid_options)
    assert SOLVERS.names()  # go with `projected`, which has no options
    assert not MASK_MODES.entry("projected").valid_options
