"""Training stages: fine-tuning and distillation, with or without pruning on the way."""

from collections.abc import Mapping

from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.lm import ranks
from prunegpt.lm.blocks import Blocks
from prunegpt.lm.views import WeightView, select
from prunegpt.planning.budget import divided_note
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.gradual import GradualPruner
from prunegpt.pruning.patterns import parse_pattern
from prunegpt.recipes.learning_rate import LearningRateCurve
from prunegpt.registry import CRITERIA, SOLVERS
from prunegpt.spec.plan import StagePlan
from prunegpt.spec.schedules import clock_of
from prunegpt.spec.schema import FinetuneSpec, GradualSpec
from prunegpt.stages import text
from prunegpt.stages.base import Pruned, Result, Setting, State
from prunegpt.stages.budget import method_options, scope_of, sparsities_of
from prunegpt.stages.prune import merged, statistics_of
from prunegpt.stages.teach import objective_for
from prunegpt.training import train

_CALIBRATED = frozenset({"input_norm", "gram"})


def finetune(plan: StagePlan, state: State, setting: Setting) -> Result:
    """Trains on the text with the model's own cross-entropy."""
    assert plan.finetune is not None
    return _train(plan, plan.finetune, state, setting)


def distill(plan: StagePlan, state: State, setting: Setting) -> Result:
    """Trains on the text and on what the teacher makes of it."""
    assert plan.distill is not None
    return _train(plan, plan.distill, state, setting)


def _train(plan: StagePlan, config: FinetuneSpec, state: State, setting: Setting) -> Result:
    assert plan.data is not None
    data = plan.data
    with ranks.first_alone():
        blocks = Blocks(text.training_blocks(data, state.tokenizer, setting.root), data.max_train_blocks)
    held = state.pruned.masks if config.keep_masks else {}
    pruning = _Gradual(config.prune, plan, state, held) if config.prune else None
    fixed = {name: mask for name, mask in held.items() if pruning is None or name not in pruning.views}
    with ranks.first_alone():
        objective = objective_for(plan, state, setting, blocks) if plan.distill else None
    outcome = train(
        state.model,
        blocks,
        arguments=config.train,
        work=setting.root.work(plan.key),
        seed=plan.seed,
        device=setting.device,
        dtype=setting.dtype,
        emit=setting.emit,
        enforcer=Enforcer(select(state.model, targets=tuple(fixed)), fixed) if fixed else None,
        pruner=pruning.start if pruning else None,
        objective=objective,
        evaluate=lambda model: setting.measure(state.model, state.tokenizer),
        stop=setting.stop,
        learning_rate=LearningRateCurve(segments=config.learning_rate) if config.learning_rate else None,
        keep_checkpoints=config.keep_checkpoints,
        divide=setting.divide,
    )
    if pruning:
        state.pruned = merged(
            Pruned(held, state.pruned.method, state.pruned.pattern, state.pruned.target), pruning.masks, pruning.spec
        )
    elif not config.keep_masks:
        state.pruned = Pruned()
    return Result(
        train_tokens=outcome.tokens,
        steps=outcome.steps,
        seconds=outcome.seconds,
        notes=(
            *(pruning.notes if pruning else ()),
            *(objective.notes if objective else ()),
            *divided_note(config.train, setting.divide),
        ),
    )


class _Gradual:
    """A spec of pruning while training, made into a pruner once the number of steps is known."""

    def __init__(self, spec: GradualSpec, plan: StagePlan, state: State, held: Mapping[str, Tensor]) -> None:
        self.spec = spec
        self.seed = plan.seed
        self.state = state
        self.views: dict[str, WeightView] = select(
            state.model, targets=spec.targets, layers=spec.layers, exclude=spec.exclude
        )
        self.held = {name: mask for name, mask in held.items() if name in self.views}
        self.windows = text.calibration(spec.calibration, state.tokenizer) if spec.calibration.data else None
        self.pruner: GradualPruner | None = None
        self.notes: tuple[str, ...] = ()

    def start(self, steps: int, per_epoch: int) -> GradualPruner:
        """The pruner of a stage of so many optimizer steps, so many of them an epoch."""
        spec = self.spec
        method = SOLVERS.load(spec.method) if spec.method in SOLVERS else CRITERIA.load(spec.method)
        needs = method.needs & _CALIBRATED

        def statistics() -> dict[str, dict[str, Tensor]]:
            if self.windows is None:
                raise PruningError(f"{spec.method} looks at activations, but there is no calibration text.")
            return statistics_of(self.state, self.views, self.windows, gram="gram" in needs)

        self.pruner = GradualPruner(
            self.views,
            method,
            clock=clock_of(
                start=spec.start,
                end=spec.end,
                every=spec.every,
                unit=spec.unit,
                grid=spec.clock,
                steps=steps,
                per_epoch=per_epoch,
            ),
            final=spec.sparsity,
            schedule=spec.schedule,
            initial=spec.initial,
            pattern=parse_pattern(spec.pattern),
            scope=scope_of(spec),
            sparsities=sparsities_of(spec, self.state, self.views, self.windows),
            monotone=False if spec.regrow else None,
            masks=self.held,
            statistics=statistics if needs else None,
            seed=self.seed,
            options=method_options(spec),
        )
        return self.pruner

    @property
    def masks(self) -> dict[str, Tensor]:
        assert self.pruner is not None
        return self.pruner.masks
