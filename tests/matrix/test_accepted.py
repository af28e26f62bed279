"""What the check of a spec accepts finishes, and with the sparsity that was asked for.

Trials are drawn over the whole schema. The plan refuses some of them; of the others none may fail.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from prunegpt.errors import SpecError
from prunegpt.planning.budget import job_problems
from prunegpt.planning.resolve import plan_data
from prunegpt.pruning.masks import load_masks
from prunegpt.records import StageRecord
from prunegpt.root import Root
from prunegpt.spec.patterns import fixed_sparsity
from prunegpt.spec.plan import StagePlan
from prunegpt.spec.schema import PruneSpec
from tests.matrix.runs import job_of, run
from tests.support import drawn_trials
from tests.support.small import make_model

torch.set_num_threads(1)

BLOCKS = 8
ROUNDING = 0.035  # a row of 16 weights, or a tile of 4 × 4 of a matrix of 16 × 16


@pytest.fixture(scope="session")
def four_layers(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of four layers of width 16; all that a trial imports is imported, see `prepared`."""
    return make_model(tmp_path_factory.mktemp("accepted") / "model", layers=4, width=16, positions=32)


def finishes(trial: dict[str, Any], model: Path, texts: dict[str, str], folder: Path) -> None:
    """Nothing, where the plan refuses the trial; else it must finish with what was asked."""
    base = {
        "model": str(model),
        "data": {"files": texts, "block_size": 16, "max_train_blocks": BLOCKS},
        "evaluate": {"max_windows": 2},
    }
    spec = {"name": "drawn", "base": base, "trials": [{"name": "teacher"}, trial]}
    folder.mkdir()
    root = Root(folder)
    try:
        plans = plan_data(spec, root=root).trials
    except SpecError as error:
        note(f"refused: {error.problems[0]}")
        return
    (plan,) = (plan for plan in plans if plan.name == "drawn")
    if problems := [problem for stage in plan.stages for problem in job_problems(stage, BLOCKS)]:
        note(f"refused when counted: {problems[0]}")
        return
    record = run(sorted(plans, key=lambda plan: len(plan.needs)), root, "undisturbed", 0).record
    assert record.trial == "drawn"
    assert record.state == "finished", record.trace
    before = False  # whether an earlier stage pruned
    for planned, stage in zip(plan.stages, record.stages, strict=True):
        if prune := planned.prune or (planned.training and planned.training.prune):
            is_what_was_asked(planned, stage, root, prune, before=before)
            before = True


def is_what_was_asked(planned: StagePlan, stage: StageRecord, root: Root, prune: PruneSpec, *, before: bool) -> None:
    """The masks of a stage prune the share that its spec names; more, where an earlier stage had pruned more."""
    masks = load_masks(root.stage(stage.key) / "masks.safetensors").masks
    rows = [row["name"] for row in stage.layers] or list(job_of(root, planned.key)["prune"]["sparsities"])
    asked = fixed_sparsity(prune.pattern) if prune.sparsity is None else prune.sparsity
    if asked is None or isinstance(prune.allocation, Mapping):
        return  # each tensor its own, which other tests compare
    share = sum(masks[name].pruned for name in rows) / sum(masks[name].weights for name in rows)
    assert share >= asked - ROUNDING
    assert before or share <= asked + ROUNDING


EXAMPLES = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@given(st.data())
@settings(EXAMPLES, max_examples=25)
def test_what_the_check_accepts_finishes(
    four_layers: Path, text_files: dict[str, str], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    trial = data.draw(drawn_trials.trials())
    finishes(trial, four_layers, text_files, tmp_path_factory.mktemp("drawn") / "root")


@pytest.mark.slow
@given(st.data())
@settings(EXAMPLES, max_examples=200, derandomize=False)
def test_what_the_check_accepts_finishes_of_many(
    four_layers: Path, text_files: dict[str, str], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    trial = data.draw(drawn_trials.trials())
    finishes(trial, four_layers, text_files, tmp_path_factory.mktemp("drawn") / "root")
