"""Whatever a spec holds, it becomes a plan or a SpecError, and nothing else."""

import json
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from prunegpt.errors import SpecError
from prunegpt.planning.resolve import plan_data
from prunegpt.spec.plan import SweepPlan
from prunegpt.spec.schema import DataSpec, DistillSpec, EvaluateSpec, GradualSpec, ModelSpec, Spec, TrialSpec
from tests.support.specs import BASE

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        [
            "a",
            "b",
            "builtin:text",
            "builtin:tiny-gpt2",
            "finetune",
            "train",
            "validation",
            "uniform",
            "2:4",
            "re:(",
            "*",
        ]
    ),
)
KEYS = st.sampled_from(
    sorted(
        {
            name
            for part in (Spec, TrialSpec, DataSpec, EvaluateSpec, DistillSpec, GradualSpec, ModelSpec)
            for name in part.model_fields
        }
    )
) | st.text(max_size=8)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)

FRACTIONS = st.sampled_from([0, 0.5, 0.9, 90, -1])
PRUNE = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(["magnitude", "random", "wanda", "sparsegpt", "movement", "wnada"]),
        "sparsity": FRACTIONS,
        "pattern": st.sampled_from(["unstructured", "2:4", "[4, 4]", "4:2", "x"]),
        "allocation": st.sampled_from(["uniform", "global", "owl", "x", {"*attn*": 0.5}, {"zzz": 0.5}]),
        "targets": st.sampled_from([[], "*", "*mlp*", "re:(", "zzz"]),
        "layers": st.sampled_from([[], 0, [3], [4], -1]),
        "exclude": st.sampled_from([[], "*attn*", "*"]),
        "calibration": st.sampled_from([{}, {"length": 8}, {"length": 999}, {"split": "x"}]),
        "start": st.sampled_from([0, 1, 2]),
        "end": st.sampled_from([0, 1, 2, 9]),
        "unit": st.sampled_from(["epochs", "steps", "fraction"]),
    },
)
TRAIN = st.dictionaries(
    st.sampled_from(["max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "seed", "nope"]),
    st.sampled_from([1, 2, 0, -1, 0.5, "cosine", None, True]),
    max_size=2,
)
TEACHER = st.sampled_from(
    ["a", "b", "c-0.5", "x", "words/a", "other/a", "/", "a/b/c", {"model": "builtin:tiny-gpt2"}, {}]
)
STAGE = st.one_of(
    st.just("finetune"),
    st.fixed_dictionaries({"finetune": st.fixed_dictionaries({}, optional={"train": TRAIN, "prune": PRUNE})}),
    st.fixed_dictionaries({"prune": PRUNE}),
    st.fixed_dictionaries({"distill": st.fixed_dictionaries({"teacher": TEACHER}, optional={"prune": PRUNE})}),
)
VARY = st.dictionaries(
    st.sampled_from(
        ["stages.0.prune.sparsity", "stages.0.distill.teacher", "seeds", "data.block_size", "name", "x", ""]
    ),
    st.lists(st.sampled_from([0.5, 1, "a", [1], None]), max_size=3),
    max_size=2,
)
TRIAL = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b", "c-{sparsity}", "d"])},
    optional={
        "stages": st.lists(STAGE, max_size=3),
        "vary": VARY,
        "seeds": st.sampled_from([1, [1, 2], [], [1, 1], -1]),
        "train": TRAIN,
        "evaluate": st.sampled_from([{}, {"split": "test"}, {"protocol": "sliding", "stride": 999}, {"skip": True}]),
        "data": st.sampled_from([{"block_size": 64}, {"path": "./none"}, {"files": {}}, None]),
        "model": st.sampled_from(
            ["builtin:tiny-gpt2", "some/hub", "./none", "builtin:x", {"source": "~x/y"}, "a" * 999, "\0"]
        ),
    },
)
SPEC = st.fixed_dictionaries(
    {"name": st.just("words"), "base": st.just(dict(BASE)), "trials": st.lists(TRIAL, max_size=4)},
    optional={"tables": ANYTHING},
)


def plan(data: dict[str, Any]) -> SweepPlan | None:
    """The plan, or None where the spec has problems; any other exception is the test's failure."""
    try:
        found = plan_data(data)
    except SpecError as error:
        problems = error.problems
    else:
        event("a plan")
        return found
    assert problems
    assert all(problem.message.strip() for problem in problems)
    return None


def check(found: SweepPlan) -> None:
    keys = {stage.key for trial in found.trials for stage in trial.stages}
    names = [f"{trial.sweep}/{trial.name}" for trial in found.trials]
    assert len(set(names)) == len(names)
    for trial in found.trials:
        assert set(trial.needs) <= keys
        assert trial.stages[0].kind in ("load", "pretrain")
        assert [stage.parent for stage in trial.stages] == [None, *(stage.key for stage in trial.stages[:-1])]
        json.loads(trial.model_dump_json())
    assert SweepPlan.model_validate_json(found.model_dump_json()) == found


@given(data=st.dictionaries(KEYS, ANYTHING, max_size=4))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_arbitrary_data(data: dict[str, Any]) -> None:
    if found := plan(data):
        check(found)


@given(base=ANYTHING, trial=st.dictionaries(KEYS, ANYTHING, max_size=4))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_arbitrary_trials(base: Any, trial: dict[str, Any]) -> None:
    if found := plan({"name": "words", "base": base, "trials": [{"name": "a", **trial}]}):
        check(found)


@given(data=SPEC)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_specs_that_are_nearly_right(data: dict[str, Any]) -> None:
    if found := plan(data):
        check(found)
    assert data["base"] == BASE  # planning changes nothing it is given
