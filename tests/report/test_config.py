from prunegpt.report.config import MISSING, find, flatten, paths, resolved, value_at
from tests.support.results import make_trial


def test_the_plan_fills_in_what_the_spec_leaves_out() -> None:
    stages = [{"kind": "distill", "distill": {"hardness": 0.5, "temperature": 2.0}}]
    trial = make_trial("a", stages=stages, config={"stages": [{"distill": {"hardness": 0.7}}], "train": {"lr": 1}})
    assert value_at(trial, "stages.0.distill.hardness") == 0.7
    assert value_at(trial, "stages.0.distill.temperature") == 2.0
    assert value_at(trial, "train.lr") == 1
    assert value_at(trial, "seed") == 42


def test_the_stage_that_loads_is_not_counted() -> None:
    trial = make_trial("a", stages=[{"kind": "prune", "prune": {"method": "wanda"}}])
    (stage,) = resolved(trial)["stages"]
    assert list(stage) == ["prune"]
    assert stage["prune"]["method"] == "wanda"


def test_criterion_is_another_name_of_method() -> None:
    stages = [{"kind": "prune", "prune": {"method": "wanda"}}]
    trial = make_trial("a", stages=stages, config={"stages": [{"prune": {"criterion": "wanda"}}]})
    assert dict(flatten(resolved(trial)))["stages.0.prune.method"] == "wanda"
    assert "stages.0.prune.criterion" not in paths(resolved(trial))
    assert value_at(trial, "stages.0.prune.criterion") == "wanda"


def test_a_model_in_short_is_shown_as_planned() -> None:
    trial = make_trial("a", config={"model": "gpt2"}, plan={"model": {"source": "gpt2", "revision": "abc"}})
    assert value_at(trial, "model.revision") == "abc"


def test_text_shared_by_all_parts_is_said_once() -> None:
    text = {"path": "builtin:text"}
    stages = [{"kind": "finetune", "finetune": {"data": text}}]
    trial = make_trial("a", stages=stages, plan={"data": text, "evaluate": {"data": text, "split": "validation"}})
    assert [path for path, value in flatten(resolved(trial)) if value == "builtin:text"] == ["data.path"]


def test_keys_with_dots_and_lists_are_found() -> None:
    tree = {"allocation": {"h.*.attn": 0.5}, "seeds": [1, {"x": None}], "data": {"a.b": {"c": 2}}}
    assert find(tree, "allocation.h.*.attn") == 0.5
    assert find(tree, "data.a.b.c") == 2
    assert find(tree, "seeds.1.x") is None
    for path in ("seeds.2", "seeds.x", "allocation.h", "seeds.0.x", "nothing"):
        assert find(tree, path) is MISSING


def test_every_flattened_path_is_found() -> None:
    tree = {"a": {"b": [1, {"c": 2}], "d": {}}, "e": ()}
    leaves = dict(flatten(tree))
    assert leaves == {"a.b.0": 1, "a.b.1.c": 2, "a.d": {}, "e": ()}
    assert all(find(tree, path) == value for path, value in leaves.items())
    assert all(find(tree, path) is not MISSING for path in paths(tree))
