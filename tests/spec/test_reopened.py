"""A plan that another version wrote is read: what is unknown is passed over, what is missing takes its default."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, get_origin

import pytest

from prunegpt.planning.resolve import plan_data
from prunegpt.spec.plan import TrialPlan


@pytest.fixture(scope="module")
def plan() -> TrialPlan:
    gradual = {"method": "wanda", "sparsity": 0.9, "allocation": {"*.h.0.*": 0.5, "*.h.1.*": 0.9}}
    trial = {
        "name": "pruned",
        "stages": [
            {"finetune": {"prune": gradual, "train": {"max_steps": 3}}},
            {"prune": {"pattern": "2:4", "method": "sparsegpt"}},
            {"distill": {"teacher": "dense"}},
        ],
    }
    base = {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text", "block_size": 128}}
    found = plan_data({"name": "demo", "base": base, "trials": [{"name": "dense"}, trial]})
    return next(one for one in found.trials if one.name == "pruned")


def mappings(tree: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of a tree, the tree first."""
    if isinstance(tree, dict):
        yield tree
    for item in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from mappings(item)


def written(plan: TrialPlan) -> Any:
    return json.loads(plan.model_dump_json())


def test_what_this_version_wrote_comes_back(plan: TrialPlan) -> None:
    assert TrialPlan.reopened(plan.model_dump_json()) == plan


def test_unknown_keys_are_passed_over_wherever_they_stand(plan: TrialPlan) -> None:
    free_fields = [name for name, field in TrialPlan.model_fields.items() if get_origin(field.annotation) is Mapping]
    tree = {name: item for name, item in written(plan).items() if name not in free_fields}
    free = [stage[kind] for stage in tree["stages"] for kind in ("finetune", "distill") if stage[kind]]
    for found in [*mappings(tree)]:
        if found and not any(
            found is body["train"] or found is (body["prune"] or {}).get("allocation") for body in free
        ):
            found["of a later version"] = {"a": 1}
    kept = plan.model_copy(update={name: {} for name in free_fields})
    reopened = TrialPlan.reopened(json.dumps(tree))
    assert [stage.model_dump(exclude={"neutral"}) for stage in reopened.stages] == [
        stage.model_dump(exclude={"neutral"}) for stage in kept.stages
    ]
    assert reopened.model_copy(update={"stages": ()}) == kept.model_copy(update={"stages": ()})
    with pytest.raises(ValueError, match="of a later version"):
        TrialPlan.model_validate(tree)  # specs and what is run stay strict


@pytest.mark.parametrize("name", TrialPlan.model_fields)
def test_a_missing_field_takes_its_default_or_is_named(name: str, plan: TrialPlan) -> None:
    tree, field = written(plan), TrialPlan.model_fields[name]
    del tree[name]
    if field.is_required():
        with pytest.raises(ValueError, match=f"^{name} is missing$"):
            TrialPlan.reopened(json.dumps(tree))
    else:
        assert getattr(TrialPlan.reopened(json.dumps(tree)), name) == field.default


@pytest.mark.parametrize("name", ["method", "protocol", "loss", "schedule", "kind"])
def test_a_part_that_is_not_installed_here_is_no_reason_to_refuse(name: str, plan: TrialPlan) -> None:
    tree = written(plan)
    renamed = [found for found in mappings(tree) if name in found]
    assert renamed
    for found in renamed:
        found[name] = "of a plug-in"
    found = TrialPlan.reopened(json.dumps(tree))
    assert json.loads(found.model_dump_json(warnings=False)) == tree
    assert found.stages[0].model.source == "builtin:tiny-gpt2"


def test_a_rule_that_is_newer_than_the_plan_is_not_held_against_it(plan: TrialPlan) -> None:
    tree = written(plan)
    tree["stages"][1]["finetune"]["prune"] |= {"sparsity": None, "allocation": None}
    pruning = TrialPlan.reopened(json.dumps(tree)).stages[1].pruning
    assert pruning is not None
    assert pruning.sparsity is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "sweep is missing"),
        ("{", "EOF"),
        ("[]", "it is"),
        ('{"sweep": 1}', "name is missing"),
    ],
)
def test_what_cannot_be_read_is_told(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TrialPlan.reopened(text)


def test_a_value_of_another_shape_is_named(plan: TrialPlan) -> None:
    tree = written(plan)
    tree["stages"][2]["prune"] = ["magnitude"]
    with pytest.raises(ValueError, match=r"stages\.2\.prune is \"\['magnitude'\]\""):
        TrialPlan.reopened(json.dumps(tree))


def test_a_field_that_was_renamed_is_read_by_its_old_name(plan: TrialPlan) -> None:
    old = written(plan)
    old["divide"] = old.pop("micro_batch_divisor") * 4
    assert TrialPlan.model_validate(old) == plan.model_copy(update={"micro_batch_divisor": 4})
