"""One problem of a spec hides no other: whatever field is malformed, all that is wrong elsewhere is told beside it."""

import copy
from pathlib import Path
from typing import Any

import pytest

from prunegpt.errors import SpecError
from prunegpt.planning.resolve import plan_data, plan_file
from prunegpt.spec.schema import Settings, Spec

NONSENSE = {"nonsense": [{"nonsense": 1}]}  # what no field takes

SPEC: dict[str, Any] = {
    "name": "all",
    "base": {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text", "block_size": 32}},
    "trials": [
        {"name": "text", "data": {"path": "/no/such/text"}},
        {"name": "model", "model": "/no/such/model"},
        {"name": "teacher", "stages": [{"distill": {"teacher": "nobody"}}]},
        {"name": "arguments", "stages": [{"finetune": {"train": {"load_best_model_at_end": True}}}]},
        {"name": "sound", "stages": [{"prune": {"method": "magnitude", "sparsity": 0.5}}]},
    ],
}
PLANTED = {  # section -> what is wrong there
    "data": "/no/such/text is not there",
    "model": "/no/such/model is not there",
    "stages": "there is no trial 'nobody'",
    "train": "load_best_model_at_end chooses among checkpoints",
}


def problems(spec: dict[str, Any]) -> list[str]:
    with pytest.raises(SpecError) as caught:
        plan_data(spec)
    return [str(problem) for problem in caught.value.problems]


def told(message: str, found: list[str]) -> bool:
    return any(message in problem for problem in found)


def test_the_spec_has_these_problems() -> None:
    found = problems(SPEC)
    assert len(found) == len(PLANTED)
    assert all(told(message, found) for message in PLANTED.values())


@pytest.mark.parametrize("where", ["base", "trial"])
@pytest.mark.parametrize("field", [*Settings.model_fields, "unknown_field"])
def test_a_malformed_setting_hides_nothing_elsewhere(field: str, where: str) -> None:
    spec = copy.deepcopy(SPEC)
    (spec["base"] if where == "base" else spec["trials"][4])[field] = NONSENSE
    found = problems(spec)
    place = "base" if where == "base" else "trials.4"
    assert told(f"{place}.{field}", found)
    hidden = {"data": {"data"}, "train": {"train"}}.get(field, set()) if where == "base" else set()
    for section, message in PLANTED.items():
        assert told(message, found) is (section not in hidden), section
    others = [one for one in found if f"{place}.{field}" not in one]
    assert len(others) == len(PLANTED) - len(hidden), "nothing that only follows from it"


@pytest.mark.parametrize("field", [name for name in Spec.model_fields if name not in ("base", "trials")])
def test_a_malformed_part_of_the_sweep_hides_nothing_elsewhere(field: str) -> None:
    found = problems({**copy.deepcopy(SPEC), field: NONSENSE})
    assert told(field, found)
    assert all(told(message, found) for message in PLANTED.values())


@pytest.mark.parametrize("inside", ["train.learning_rate", "train.nonsense", "data.block_size", "evaluate.nonsense"])
def test_a_malformed_value_within_a_section_hides_only_what_may_follow_from_it(inside: str) -> None:
    section, name = inside.split(".")
    spec = copy.deepcopy(SPEC)
    spec["base"].setdefault(section, {})[name] = "nonsense"
    found = problems(spec)
    assert told(f"base.{inside}", found)
    assert all(told(message, found) for other, message in PLANTED.items() if other != section)


def test_a_trial_with_a_malformed_field_is_looked_at_all_the_same() -> None:
    spec = copy.deepcopy(SPEC)
    spec["trials"][0]["device"] = "tpu"
    spec["trials"][2]["stages"].insert(0, {"prune": {"method": "nosuch", "sparsity": 0.5}})
    found = problems(spec)
    assert told("must be 'auto', 'cpu', 'cuda', 'mps' or 'xpu', got 'tpu'", found)
    assert told("unknown criterion or solver 'nosuch'", found)
    assert all(told(message, found) for message in PLANTED.values())


def test_what_only_follows_from_a_malformed_field_is_not_told() -> None:
    spec = copy.deepcopy(SPEC)
    spec["base"] = {"modle": "builtin:tiny-gpt2", "data": spec["base"]["data"]}
    assert not told("a trial needs a model", problems(spec))


def test_a_model_that_is_missing_does_not_hide_what_is_wrong_with_the_stages() -> None:
    spec = copy.deepcopy(SPEC)
    spec["trials"][3]["model"] = "/no/such/model"
    found = problems(spec)
    assert all(told(message, found) for message in PLANTED.values())


def test_what_is_no_trial_at_all_hides_nothing() -> None:
    spec = copy.deepcopy(SPEC)
    spec["base"]["stages"] = NONSENSE
    spec["trials"] += [None, 3, "text", []]
    found = problems(spec)
    assert told("base.stages: must be a list", found)
    assert all(told(f"trials.{index}", found) for index in range(5, 9))
    assert all(told(message, found) for message in PLANTED.values())


@pytest.mark.parametrize("base", [True, 3, "text", [1]])
def test_a_base_that_is_no_mapping_hides_nothing(base: Any) -> None:
    spec = {**copy.deepcopy(SPEC), "base": base}
    for trial in spec["trials"]:
        trial.setdefault("model", "builtin:tiny-gpt2")
        trial.setdefault("data", {"path": "builtin:text", "block_size": 32})
    assert told("base: must be a mapping", problems(spec))


@pytest.mark.parametrize("place", range(len(PLANTED)))
def test_what_several_trials_have_is_told_once(place: int) -> None:
    spec = copy.deepcopy(SPEC)
    trial = spec["trials"][place]
    spec["trials"] = [{**copy.deepcopy(trial), "name": f"{trial['name']}-{number}"} for number in range(6)]
    with pytest.raises(SpecError) as caught:
        plan_data(spec)
    message, text, name = [*PLANTED.values()][place], str(caught.value), trial["name"]
    assert text.count(message) == 1
    assert f" In 6 trials: {name}-0, {name}-1, {name}-2, {name}-3 and 2 more." in text
    assert text.startswith("the spec: 1 problem\n")
    assert len(caught.value.problems) == 6, "programs see each with its place"


@pytest.mark.parametrize("place", range(len(PLANTED)))
def test_what_does_not_come_from_a_varied_value_is_told_once_and_not_of_that_value(place: int) -> None:
    spec = copy.deepcopy(SPEC)
    spec["trials"] = [{**spec["trials"][place], "vary": {"train.learning_rate": [1e-4, 2e-4, 3e-4]}}]
    with pytest.raises(SpecError) as caught:
        plan_data(spec)
    message, name = [*PLANTED.values()][place], spec["trials"][0]["name"]
    (told_once,) = str(caught.value).splitlines()[1:]
    assert message in told_once
    assert "vary" not in told_once
    assert told_once.endswith(f" In 3 trials: {name}-learning_rate=0.0001, {name}-learning_rate=0.0002, "
                              f"{name}-learning_rate=0.0003.")  # fmt: skip


def test_a_problem_that_several_trials_have_names_the_lines_of_all_it_names(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    path.write_text(
        """\
name: many
base: {model: "builtin:tiny-gpt2", data: {path: "builtin:text", block_size: 32}}
trials:
  - name: one
    stages: [{prune: {method: magnitude, sparsity: 90}}, {prune: {method: magnitude, sparsity: 90}}]
  - name: two
    stages: [{prune: {method: magnitude, sparsity: 90}}]
"""
    )
    with pytest.raises(SpecError) as caught:
        plan_file(path)
    first, second = str(caught.value).splitlines()[1:]
    assert first.startswith("  line 5: trials.0.stages.0.prune.sparsity: ")
    assert first.endswith(" In 2 trials: one, two (line 7).")
    assert second.startswith("  line 5: trials.0.stages.1.prune.sparsity: "), "another field is another problem"
