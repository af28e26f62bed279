"""What the check of a spec accepts, the parts that run it accept too: over trials drawn from the whole schema.

No training: the functions that a stage calls are called on the real built-in model, with steps counted from a number of
blocks. That trials also finish with what was asked is shown where they are run.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from transformers import TrainingArguments

from prunegpt.distill.objective import DistillationObjective
from prunegpt.distill.on_policy import OnPolicy
from prunegpt.distill.teachers import Teacher
from prunegpt.errors import SpecError
from prunegpt.lm.views import select
from prunegpt.planning.budget import job_problems
from prunegpt.planning.inputs import Inputs
from prunegpt.pruning.enforce import Enforcer
from prunegpt.registry import ALLOCATIONS, CRITERIA, DISTILLATION_LOSSES, MASK_MODES, REFINEMENTS, SCHEDULES, SOLVERS
from prunegpt.root import Root
from prunegpt.spec.plan import StagePlan, TrialPlan
from prunegpt.spec.schema import DistillSpec, FinetuneSpec
from prunegpt.stages import prune as pruning
from prunegpt.stages import train as training
from prunegpt.stages.base import ModelState, Pruned
from prunegpt.stages.measure import check_ledger
from prunegpt.training.adapter import Adapter
from tests.support.drawn_trials import METHODS, trials
from tests.support.small import make_model, small_gpt2
from tests.support.specs import plan_of

BLOCKS = 24  # of the training text
DATA: Mapping[str, Any] = {"path": "builtin:text", "block_size": 32, "tokens": BLOCKS * 32}
SHAPE: Mapping[str, int] = {"layers": 4, "width": 16, "positions": 32}


def accepted(trial: Mapping[str, Any], model: Path) -> TrialPlan | None:
    """The plan of a drawn trial; None where the check refuses it."""
    try:
        base = {"model": str(model), "data": DATA, "evaluate": {"max_windows": 2}}
        plan = plan_of(trial, {"name": "teacher"}, base=base)
    except SpecError:
        return None
    found = plan.trials[0]
    problems = [problem for stage in found.stages for problem in job_problems(stage, BLOCKS)]
    return None if problems else found


@cache
def models() -> tuple[Any, Any]:
    """Student and teacher; to be copied before they are changed."""
    return small_gpt2(**SHAPE).eval(), small_gpt2(**SHAPE, seed=1).eval()


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root with a model beside it, and a calibration text without a tokeniser."""
    tokens = torch.randint(0, 1024, (2, 16), generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunegpt.stages.text.calibration", lambda *_: tokens)
        patch.setattr("torch.cuda.is_available", lambda: False)
        folder = tmp_path_factory.mktemp("root")
        make_model(folder / "model", **SHAPE)
        yield folder


def fresh() -> ModelState:
    return ModelState(deepcopy(models()[0]), None, Pruned())  # type: ignore[arg-type]


def prunes(stage: StagePlan, state: ModelState) -> None:
    """Resolves the job of a training stage and makes every update of its masks, with made-up gradients between."""
    config = stage.training
    assert config is not None
    before = state.pruned if config.keep_masks else Pruned()
    windows = training.calibration_of(config.prune, state, Inputs(None), Root(Path()))
    job = training.resolve(stage, config, state, BLOCKS, before.masks, windows)
    if job.prune is None or config.prune is None:
        return
    names = tuple(dict.fromkeys([*before.masks, *job.prune.sparsities]))
    enforcer = Enforcer(select(state.model, targets=names), before.masks)
    pruner = training.pruner_of(job.prune, enforcer, state, windows)
    generator = torch.Generator().manual_seed(0)
    for step in range(job.steps):
        pruner.before_step(step)
        drawn = {name: torch.randn(view.matrix.shape, generator=generator) for name, view in enforcer.views.items()}
        pruner.accumulate(drawn)
    assert pruner.done
    masks = {name: enforcer.mask(name) for name in job.prune.sparsities}
    job.prune.verify(masks, before.masks)
    state.pruned = pruning.merged(before, masks, config.prune)
    check_ledger(state)
    event(f"ran gradual {job.prune.method}")


def distils(config: DistillSpec) -> None:
    student, teacher = models()
    given = {"input_ids": torch.arange(8)[None], "labels": torch.arange(8)[None]}
    loss = DISTILLATION_LOSSES.load(config.loss).bind(**config.options)
    if config.cache:
        assert 1 <= config.cache.k < student.config.vocab_size
    ours, theirs = deepcopy(student), deepcopy(teacher)
    if config.attention_gain:
        ours.set_attn_implementation("eager")
        theirs.set_attn_implementation("eager")
    objective = DistillationObjective(
        Teacher(theirs),
        loss,
        hardness=config.hardness,
        temperature=config.temperature,
        hidden_gain=config.hidden_gain,
        attention_gain=config.attention_gain,
        layer_map=config.layer_map,
    )
    if config.on_policy:
        writer = OnPolicy(**config.on_policy.model_dump(), seed=0, ends=(0,), vocabulary=student.config.vocab_size)
        given = writer.write(ours, {**given, "block": torch.zeros(1, dtype=torch.long)}, step=0)
    found, _ = objective(ours.train(), given)
    assert torch.isfinite(found)


def adapts(config: FinetuneSpec, state: ModelState) -> None:
    """An adapter takes the masks as they are and leaves them so."""
    assert config.adapter is not None
    state.pruned = state.pruned if config.keep_masks else Pruned()
    Adapter(state.model, config.adapter, state.pruned.masks, seed=0).merge()
    check_ledger(state)
    event("ran an adapter")


def arguments_hold(train: Mapping[str, Any], folder: Path) -> None:
    TrainingArguments(**{"save_strategy": "no", **train}, output_dir=str(folder), use_cpu=True, report_to=[])


def runs(stage: StagePlan, state: ModelState, folder: Path) -> None:
    """What can fail of a stage before, and instead of, training."""
    if stage.prune:
        pruning.apply(stage.prune, state, Inputs(None), seed=stage.seed, root=Root(folder), progress=lambda *_: None)
        check_ledger(state)
        event(f"ran {stage.prune.method}")
    if stage.training:
        arguments_hold(stage.training.train, folder)
        if stage.training.adapter:
            adapts(stage.training, state)
    if stage.distill:
        distils(stage.distill)
        event(f"ran {stage.distill.loss}")
    if stage.training:
        prunes(stage, state)


@given(trial=trials())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_what_the_check_accepts_the_parts_accept(trial: dict[str, Any], where: Path) -> None:
    plan = accepted(trial, where / "model")
    event("accepted" if plan else "refused")
    if plan is None:
        return
    state = fresh()
    for stage in plan.stages[1:]:
        runs(stage, state, where)


def test_every_registered_part_is_drawn() -> None:
    """The strategy takes its names from the registry; this holds it to that."""
    assert set(METHODS) == {*CRITERIA.names(), *SOLVERS.names()}
    drawn: set[str] = set()

    @given(trial=trials())
    @settings(max_examples=400, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def collect(trial: dict[str, Any]) -> None:
        for stage in trial["stages"]:
            config = next(iter(stage.values()))
            prune = stage.get("prune") or config.get("prune") or {}
            drawn.update(str(config.get("loss")) and [str(config.get("loss"))])
            drawn.update(str(prune.get(field)) for field in ("method", "schedule", "pattern", "mode", "refine"))
            spread = prune.get("allocation")
            drawn.add("explicit" if isinstance(spread, dict) else str(spread))

    collect()
    kinds = (ALLOCATIONS, SCHEDULES, DISTILLATION_LOSSES, MASK_MODES, REFINEMENTS)
    names = [*METHODS, *(name for kind in kinds for name in kind.names())]
    assert not {name for name in names if name != "sensitivity"} - drawn
