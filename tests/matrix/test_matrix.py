"""Every way to prune while training, run undisturbed, and stopped or killed and resumed.

Bits are equal, every tensor has the sparsity that the job says, the ledger is whole, and the evaluation key is that of
the plan. A covering subset runs in the gate, in which every value occurs with every other and is stopped and killed,
and every learning-rate scheduler once; every combination of method, schedule, allocation and pattern, both stopped and
killed, is slow.
"""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from prunegpt.pruning.masks import load_masks
from prunegpt.registry import ALLOCATIONS, CRITERIA, DISTILLATION_LOSSES, MASK_MODES, SCHEDULES, SOLVERS
from prunegpt.root import Root
from prunegpt.spec.methods import method_entry, scope_of
from prunegpt.spec.plan import TrialPlan
from tests.matrix.cases import (
    AXES,
    BATCH,
    BLOCKS,
    CHOSEN_MASKS,
    GATE,
    SCHEDULERS,
    STEPS,
    Case,
    plans_of,
    schedulers,
    whole,
)
from tests.matrix.runs import Result, Way, job_of, run

torch.set_num_threads(1)

assert GATE


def name_of(case: Case) -> str:
    return " ".join(case.values())


def check(case: Case, plan: TrialPlan, result: Result, root: Root) -> None:
    """What a trial came to is what its job says, whatever the case."""
    assert result.record.state == "finished", result.record.trace
    assert [stage.key for stage in result.record.stages] == [stage.key for stage in plan.stages]
    assert {found["key"] for found in result.evaluations} == {plan.evaluation_key}
    index = next(index for index, stage in enumerate(plan.stages) if stage.training and stage.training.prune)
    stage, job = result.record.stages[index], job_of(root, plan.stages[index].key)
    assert (stage.steps, job["steps"]) == (STEPS, STEPS)
    if case["kind"] == "distill-on-policy":  # in five of the eight steps what is written counts alone
        assert 3 * BATCH * 16 < stage.train_tokens <= BATCH * (3 * 16 + 5 * 5)
    else:
        assert stage.train_tokens == STEPS * BATCH * 16
    assert stage.sparsity is not None
    assert set(stage.sparsity.by_tensor) == set(job["prune"]["sparsities"])
    masks = load_masks(root.stage(stage.key) / "masks.safetensors").masks
    pruned = {tensor: masks[tensor].pruned / masks[tensor].weights for tensor in job["prune"]["sparsities"]}
    for tensor, share in pruned.items():  # a weight that may grow again can be zero still
        assert stage.sparsity.by_tensor[tensor] >= share
    for tensor, share in pruned.items():
        asked = job["prune"]["sparsities"][tensor]
        if case["pattern"] == "2:4":
            assert asked == 0.5
            assert 0.5 <= share <= (0.5 if case["before"] == "dense" else 0.65), tensor  # 30 % before, then 2:4
        elif case["allocation"] != "global":
            by_row = scope_of(method_entry(case["method"]), case["allocation"]) == "row"
            slack = 1e-9 + (0.5 / 16 if by_row else 0.5 / 256) * (8 if case["pattern"] == "[2, 4]" else 1)
            assert share >= asked - slack, tensor
            assert case["before"] == "pruned" or share <= asked + slack, tensor
    if case["allocation"] == "global":
        weights = sum(masks[tensor].weights for tensor in pruned)
        share = sum(masks[tensor].pruned for tensor in pruned) / weights
        assert share == pytest.approx(0.5, abs=4 / weights) or (case["before"] == "pruned" and share > 0.5)
    last = result.record.stages[-1]
    assert last.sparsity is not None
    for tensor, found in stage.sparsity.by_tensor.items():  # what a later stage trains stays pruned
        assert last.sparsity.by_tensor[tensor] >= found


def undisturbed_and(
    ways: Sequence[Way], case: Case, model: Path, texts: dict[str, str], prepared: Path, folder: Path
) -> None:
    """A case comes to the same whatever happened to it on the way."""
    steps = STEPS + (BLOCKS // BATCH if case["after"] != "nothing" else 0)
    step = random.Random(name_of(case)).randrange(1, steps + 1)
    results = {}
    for way in ("undisturbed", *ways):
        shutil.copytree(prepared, folder / way)
        root = Root(folder / way)
        plans = plans_of(case, model, texts, root)
        results[way] = run(plans, root, way, step)
        check(case, plans[-1], results[way], root)
    for way in ways:
        assert results[way].files == results["undisturbed"].files, (way, step)
        assert results[way].evaluations == results["undisturbed"].evaluations, (way, step)
        assert results[way].stages == results["undisturbed"].stages, (way, step)


@pytest.mark.parametrize("case", GATE, ids=name_of)
def test_pairs(case: Case, small_model: Path, text_files: dict[str, str], prepared: Path, tmp_path: Path) -> None:
    undisturbed_and([case["way"]], case, small_model, text_files, prepared, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stopped", "killed"])
@pytest.mark.parametrize("case", schedulers(), ids=lambda case: case["scheduler"])
def test_learning_rate_schedulers(
    case: Case, way: Way, small_model: Path, text_files: dict[str, str], prepared: Path, tmp_path: Path
) -> None:
    undisturbed_and([way], case, small_model, text_files, prepared, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", whole(), ids=name_of)
def test_the_whole(case: Case, small_model: Path, text_files: dict[str, str], prepared: Path, tmp_path: Path) -> None:
    undisturbed_and(("stopped", "killed"), case, small_model, text_files, prepared, tmp_path)


@pytest.mark.parametrize("cases", [GATE, whole()], ids=["pairs", "whole"])
def test_every_registered_part_is_in_a_case(cases: list[Case]) -> None:
    """A part that is registered and in no case would be a promise that nothing keeps."""
    for axis, names in AXES.items():
        assert {case[axis] for case in cases} == set(names), axis
    if cases is GATE:
        assert {case.get("scheduler") for case in cases} == {None, *SCHEDULERS}
    assert set(AXES["method"]) == {*CRITERIA.names(), *SOLVERS.names()}
    assert set(AXES["schedule"]) == set(SCHEDULES.names())
    assert set(AXES["allocation"]) == set(ALLOCATIONS.names())
    assert {f"distill-{loss}" for loss in DISTILLATION_LOSSES.names()} <= set(AXES["kind"])
    assert set(MASK_MODES.names()) - {"projected"} <= set(AXES["masks"])
    assert set(CHOSEN_MASKS) <= set(AXES)
