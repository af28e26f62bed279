from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.pruning.gradients import GatheredGradients
from prunegpt.pruning.masks import check
from prunegpt.pruning.patterns import NOfM, Unstructured
from prunegpt.registry import CRITERIA
from prunegpt.spec.schedules import Clock, cubic
from tests.support.mask_runs import Run, calibration, pruner_of
from tests.support.toys import Toy

MakeToy = Callable[[], Toy]


def test_sparsity_follows_the_schedule_to_the_weight(make_toy: MakeToy) -> None:
    clock = Clock.regular(2, 14, 3)
    updates = Run(make_toy(), clock=clock, final=0.9, initial=0.2).steps(range(20))
    assert [update.step for update in updates] == [2, 5, 8, 11, 14]
    sizes = {"first.weight": 48, "second.weight": 32}
    for update in updates:
        target = 0.2 + 0.7 * cubic((update.step - 2) / 12)
        assert update.target == pytest.approx(target)
        counts = {name: round(size * target) for name, size in sizes.items()}
        assert update.by_tensor == {name: counts[name] / size for name, size in sizes.items()}
        assert update.achieved == sum(counts.values()) / 80
        assert update.opened == 0
    assert sum(update.closed for update in updates) == round(48 * 0.9) + round(32 * 0.9)


def test_between_updates_masks_are_held(make_toy: MakeToy) -> None:
    run = Run(make_toy(), clock=Clock.regular(1, 9, 4), final=0.8)
    seen = []
    for step in range(12):
        run.steps(range(step, step + 1))
        seen.append({name: mask.tolist() for name, mask in run.masks.items()})
    changes = [step for step in range(1, 12) if seen[step] != seen[step - 1]]
    assert changes == [5, 9]
    assert run.pruner.done


@pytest.mark.parametrize("name", CRITERIA.names())
def test_every_criterion_prunes_monotonically_and_resumes_exactly(make_toy: MakeToy, name: str) -> None:
    criterion = CRITERIA.load(name)

    def run_of(toy: Toy) -> Run:
        statistics = calibration(toy, "input_norm") if "input_norm" in criterion.needs else None
        return Run(toy, name, clock=Clock.regular(2, 16, 2), final=0.5, statistics=statistics, seed=3)

    whole = run_of(make_toy())
    before = {n: m.clone() for n, m in whole.masks.items()}
    updates = []
    for step in range(20):
        updates += whole.steps(range(step, step + 1))
        assert not any(bool((mask & ~before[n]).any()) for n, mask in whole.masks.items())
        before = whole.masks
    assert updates[-1].achieved == 0.5

    for stop in (1, 7, 8, 9, 19):
        first = run_of(make_toy())
        early = first.steps(range(stop))
        second = run_of(make_toy()).resume(first)
        assert early + second.steps(range(stop, 20)) == updates
        for parameter, expected in zip(second.toy.parameters(), whole.toy.parameters(), strict=True):
            assert torch.equal(parameter, expected)


def test_acdc_opens_and_closes_and_ends_compressed(make_toy: MakeToy) -> None:
    run = Run(make_toy(), clock=Clock.regular(2, 14, 3), final=0.5, schedule="acdc")
    updates = run.steps(range(18))
    assert [(update.step, update.target, update.achieved) for update in updates] == [
        (2, 0.0, 0.0),
        (5, 0.5, 0.5),
        (8, 0.0, 0.5),  # opened, but the weights are still zero
        (11, 0.5, 0.5),
    ]
    assert [update.opened for update in updates] == [0, 0, 40, 0]
    assert [update.closed for update in updates] == [0, 40, 0, 40]


def test_acdc_weights_come_back_in_a_dense_phase(make_toy: MakeToy) -> None:
    run = Run(make_toy(), clock=Clock.regular(2, 14, 3), final=0.5, schedule="acdc")
    run.steps(range(8))
    closed = {name: ~mask for name, mask in run.masks.items()}
    run.steps(range(8, 11))
    assert all(bool((view.matrix[closed[name]] != 0).all()) for name, view in run.toy.views().items())


def test_a_mask_that_may_reopen_follows_the_scores(make_toy: MakeToy) -> None:
    """Movement without monotony: a weight with a low score today may have a high one tomorrow."""
    held, free = (
        Run(
            make_toy(),
            "movement",
            clock=Clock.regular(1, 12, 1),
            final=0.5,
            schedule="constant",
            regrow=regrow,
        )
        for regrow in (False, True)
    )
    assert [update.step for update in held.steps(range(14))] == [1]  # the others would ask for the same again
    free_updates = free.steps(range(14))
    assert [update.step for update in free_updates] == list(range(1, 13))
    assert all(update.closed == update.opened for update in free_updates[1:])


def test_global_scope_spends_the_budget_where_weights_are_small(make_toy: MakeToy) -> None:
    toy = make_toy()
    toy.second.weight.data *= 10.0
    (update,) = Run(toy, clock=Clock.regular(0, 0), final=0.5, scope="global").steps(range(1))
    assert update.achieved == 0.5
    assert update.by_tensor["first.weight"] > 0.7 > 0.3 > update.by_tensor["second.weight"]


def test_an_allocation_scales_with_the_schedule(make_toy: MakeToy) -> None:
    sparsities = {"first.weight": 0.75, "second.weight": 0.25}
    updates = Run(make_toy(), clock=Clock.regular(0, 4, 2), sparsities=sparsities, schedule="linear").steps(range(5))
    assert [update.by_tensor["first.weight"] for update in updates] == [0.0, 18 / 48, 36 / 48]
    assert [update.by_tensor["second.weight"] for update in updates] == [0.0, 4 / 32, 8 / 32]
    assert updates[-1].target == pytest.approx((0.75 * 48 + 0.25 * 32) / 80)


def test_wanda_compares_within_rows_unless_told_otherwise(make_toy: MakeToy) -> None:
    for scope, alike in ((None, True), ("tensor", False)):
        toy = make_toy()
        run = Run(
            toy, "wanda", clock=Clock.regular(0, 0), final=0.5, scope=scope, statistics=calibration(toy, "input_norm")
        )
        run.steps(range(1))
        rows = {int(count) for count in (~run.masks["second.weight"]).sum(dim=1)}
        assert (rows == {4}) is alike


def test_an_n_of_m_pattern_grows_and_is_checked_when_it_is_there(make_toy: MakeToy) -> None:
    toy = make_toy()
    views = {"second.weight": toy.views()["second.weight"]}
    pruner = pruner_of(toy, views=views, clock=Clock.regular(0, 4, 1), pattern="2:4")
    counts = []
    for step in range(5):
        update = pruner.before_step(step)
        assert update is not None
        counts.append(round(update.achieved * 32))
        assert pruner.done is (step == 4)
    assert counts == [round(16 * cubic(step / 4)) for step in range(5)]
    check(views, pruner.enforcer.masks, pattern=NOfM(2, 4))
    pruner.job.verify(pruner.enforcer.masks, {})


def test_blocks_are_pruned_whole(make_toy: MakeToy) -> None:
    run = Run(make_toy(), clock=Clock.regular(0, 4, 2), final=0.5, pattern="[4, 2]")
    assert run.steps(range(6))[-1].achieved == 0.5


@pytest.mark.parametrize("name", ["sparsegpt", "admm"])
def test_a_solver_repairs_the_weights_it_keeps(make_toy: MakeToy, name: str) -> None:
    toy, plain = make_toy(), make_toy()
    run = Run(
        toy,
        name,
        clock=Clock.regular(1, 5, 2),
        final=0.5,
        statistics=calibration(toy, "gram"),
        options={"damping": 0.02},
    )
    first = run.pruner.before_step(1)
    assert first is not None
    assert first.achieved == 0.0
    last = run.pruner.before_step(5)
    assert last is not None
    assert last.achieved == 0.5
    check(toy.views(), run.pruner.enforcer.masks)
    kept = run.masks["first.weight"]
    assert not torch.equal(toy.first.weight[kept], plain.first.weight[kept])
    gram = calibration(plain, "gram")(0)[0]["first.weight"].arguments(frozenset({"gram"}))["gram"]
    pruner_of(plain, clock=Clock.regular(0, 0), final=0.5).before_step(0)
    original = make_toy().first.weight

    def lost(weight: Tensor) -> float:
        change = (weight - original).detach()  # [out, in]
        return float((change @ gram @ change.t()).trace())

    assert lost(toy.first.weight) < lost(plain.first.weight)


@pytest.mark.parametrize("name", ["magnitude", "sparsegpt"])
def test_several_processes_take_what_the_first_one_chose(
    make_toy: MakeToy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Masks, and the weights that a solver has repaired: of the first process, whatever this one made of them."""
    sent: list[Tensor] = []

    def take(tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            sent.append(tensor)
            if tensor.dtype == torch.bool:
                tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) % 2 == 0)

    monkeypatch.setattr("prunegpt.lm.ranks.share", take)
    toy = make_toy()
    statistics = calibration(toy, "gram") if name == "sparsegpt" else None
    run = Run(toy, name, clock=Clock.regular(0, 0, 1), final=0.5, statistics=statistics)
    run.steps(range(1))
    assert all(mask.flatten().tolist() == [True, False] * (mask.numel() // 2) for mask in run.masks.values())
    weights = [tensor for tensor in sent if tensor.dtype != torch.bool]
    assert [tensor.shape for tensor in weights] == ([torch.Size([8, 6]), torch.Size([8, 4])] if statistics else [])


def test_what_was_pruned_before_stays_pruned(make_toy: MakeToy) -> None:
    toy = make_toy()
    weakest = Unstructured().select(-toy.first.weight.detach().abs(), 0.5)
    run = Run(toy, clock=Clock.regular(0, 4, 2), final=0.75, masks={"first.weight": weakest})
    updates = run.steps(range(6))
    assert not bool((run.masks["first.weight"] & ~weakest).any())
    assert updates[0].by_tensor["first.weight"] == 0.5  # more than was asked for
    assert updates[-1].by_tensor["first.weight"] == 0.75


def test_an_update_that_was_passed_over_is_made_up_for_once(make_toy: MakeToy) -> None:
    pruner = Run(make_toy(), clock=Clock.regular(0, 10, 2), final=0.9).pruner
    due = [pruner.before_step(step) is not None for step in (7, 7, 8, 9, 9, 50, 51)]
    assert due == [True, False, True, False, False, True, False]
    assert pruner.done


def test_updates_may_come_from_another_grid(make_toy: MakeToy) -> None:
    grid = Clock.sparseml(1, 3, 0.3, 7)
    run = Run(make_toy(), clock=grid, final=0.8)
    updates = run.steps(range(25))
    assert [update.step for update in updates] == list(grid.updates)
    assert updates[-1].achieved == sum(round(size * 0.8) for size in (48, 32)) / 80


def test_moments_are_reset_at_an_update(make_toy: MakeToy) -> None:
    run = Run(make_toy(), clock=Clock.regular(4, 4), final=0.5)
    run.steps(range(4))
    run.pruner.before_step(4, run.optimizer)
    for name, view in run.toy.views().items():
        moment = run.optimizer.state[view.parameter]["exp_avg"]
        moment = moment.t() if view.transposed else moment
        assert torch.equal(moment != 0, run.masks[name])


def test_gradients_are_averaged_over_a_window_and_movement_over_the_run(make_toy: MakeToy) -> None:
    toy = make_toy()
    view = {"first.weight": toy.views()["first.weight"]}
    gathered = GatheredGradients(view, frozenset({"gradient", "movement", "squared_gradient"}))
    weight = toy.first.weight.detach()
    gradients = [torch.full((8, 6), float(value)) for value in (1, 3, 5)]
    for gradient in gradients[:2]:
        gathered.accumulate({"first.weight": gradient})
    gathered.close_window()
    for _ in range(2):  # a closed window answers until the next step
        found = gathered.of("first.weight")
        assert torch.equal(found["gradient"], torch.full((8, 6), 2.0))
        assert torch.equal(found["squared_gradient"], torch.full((8, 6), 5.0))
    gathered.accumulate({"first.weight": gradients[2]})
    found = gathered.of("first.weight")
    assert torch.equal(found["gradient"], gradients[2])
    assert torch.equal(found["squared_gradient"], torch.full((8, 6), 25.0))
    assert torch.allclose(found["movement"], -9.0 * weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "wanda"}, "wanda needs input_norm from calibration data, got none"),
        ({"method": "sparsegpt", "scope": "global", "statistics": dict}, "its own; the scope is 'global'"),
        ({"method": "sparsegpt", "statistics": dict, "options": {"dampng": 1}}, "Did you mean 'damping'"),
        ({"method": "magnitude", "options": {"damping": 1}}, "unknown option of magnitude 'damping'"),
        ({"method": "magnitude", "sparsities": {"first.weight": 0.5}}, r"second\.weight has none"),
        ({"method": "magnitude", "final": None}, "needs a sparsity between 0 and 1, got none"),
        ({"method": "magnitude", "final": 90}, r"between 0 and 1, got 90\. Did you mean 0\.9"),
        ({"method": "magnitude", "pattern": "2:4", "final": 0.9}, r"at most; 0\.9 was asked for"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(make_toy: MakeToy, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        pruner_of(make_toy(), **{"final": 0.5, "clock": Clock.regular(0, 4), **options})


def test_statistics_that_are_missing_are_named(make_toy: MakeToy) -> None:
    toy = make_toy()
    run = Run(toy, "taylor", clock=Clock.regular(0, 0), final=0.5)
    with pytest.raises(PruningError, match="squared_gradient must be gathered over at least one optimizer step"):
        run.pruner.before_step(0)
    with pytest.raises(PruningError, match=r"one of every pruned weight; first\.weight has none"):
        run.pruner.accumulate()
    run = Run(toy, "wanda", clock=Clock.regular(0, 0), final=0.5, statistics=lambda _: [])
    with pytest.raises(PruningError, match=r"must reach every pruned weight; it did not reach first\.weight"):
        run.pruner.before_step(0)


def test_a_state_of_another_run_is_refused(make_toy: MakeToy) -> None:
    magnitude, movement = (
        Run(make_toy(), name, clock=Clock.regular(0, 4), final=0.5).pruner for name in ("magnitude", "movement")
    )
    with pytest.raises(PruningError, match=r"'movement/first\.weight' is on one side only"):
        movement.load_state_dict(magnitude.state_dict())
