"""Small plans for tests of the store and the coordinator: keys are plain words, and nothing is ever computed."""

from collections.abc import Iterable, Mapping
from typing import Any

from prunegpt.spec.plan import StagePlan, SweepPlan, TrialPlan
from prunegpt.spec.schema import DataSpec, EvaluateSpec, FinetuneSpec, ModelSpec, TableSpec

_MODEL = ModelSpec(source="builtin:none")
_DATA = DataSpec(path="builtin:none", block_size=8)


def make_trial(
    name: str,
    chain: str = "load",
    *,
    needs: str = "",
    sweep: str = "words",
    evaluation_key: str = "measured",
    order: int = 0,
    seed: int = 42,
    skip: bool = False,
    implicit: bool = False,
    train: Mapping[str, Any] | None = None,
    **fake: Any,
) -> TrialPlan:
    """A trial.

    Args:
        chain: stage keys with blanks between them.
        needs: likewise, the stage keys of its teachers.
        train: training arguments of all stages but the first.
        fake: what the fake worker shall do, see `tests/support/fake_worker.py`.
    """
    keys = chain.split()
    stages = [
        StagePlan(
            key=key,
            kind="finetune" if index else "load",
            parent=keys[index - 1] if index else None,
            model=_MODEL,
            finetune=FinetuneSpec(train=train or {}) if index else None,
            data=_DATA if index else None,
        )
        for index, key in enumerate(keys)
    ]
    return TrialPlan(
        sweep=sweep,
        name=name,
        group=name.partition("@")[0],
        seed=seed,
        label="none",
        order=order,
        implicit=implicit,
        model=_MODEL,
        data=_DATA,
        evaluate=EvaluateSpec(skip=skip, data=_DATA, block_size=8),
        evaluation_key=evaluation_key,
        stages=tuple(stages),
        needs=tuple(needs.split()),
        swept={"stages.0": name},
        config={"fake": fake, "name": name},
    )


def make_plan(*trials: TrialPlan, name: str = "words", tables: Iterable[TableSpec] = ()) -> SweepPlan:
    """A sweep of these trials, in this order."""
    ordered = [trial.model_copy(update={"order": index}) for index, trial in enumerate(trials)]
    return SweepPlan(
        name=name, title=name.title(), trials=tuple(ordered), tables=tuple(tables), spec={"name": name, "trials": []}
    )
