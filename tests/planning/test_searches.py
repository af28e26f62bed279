"""Searches are checked before anything runs, and their suggestions are resolved as if the spec said them."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from prunegpt.errors import Problem, SpecError
from prunegpt.planning.resolve import Planner, plan_data
from prunegpt.spec.plan import SearchPlan
from tests.support.specs import BASE, FIRST_TRIAL, HEADER, only, problems_of_text

GRADUAL = {"finetune": {"prune": {"sparsity": 0.9, "end": 0.5, "unit": "fraction"}}}
SPACE = {
    "stages": {
        "values": {"gradual": [GRADUAL], "distilled": [{"distill": {"teacher": "dense", "prune": {"sparsity": 0.9}}}]}
    },
    "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "stages.0.distill.teacher": {"values": ["dense", "zero-shot"], "when": {"stages": "distilled"}},
    "stages.0.finetune.prune.end": {"low": 0.2, "high": 0.6, "when": {"stages": "gradual"}},
}
TRIALS: list[dict[str, Any]] = [
    {"name": "zero-shot"},
    {"name": "s", "search": {"space": SPACE, "n_trials": 3}},
    {"name": "dense", "stages": ["finetune"]},
]


def planner(*trials: dict[str, Any], **top: Any) -> Planner:
    return Planner({"name": "words", "base": BASE, "trials": list(trials or TRIALS), **top})


def search_of(*trials: dict[str, Any], **top: Any) -> tuple[Planner, SearchPlan]:
    found = planner(*trials, **top)
    return found, found.plan.searches[0]


def test_a_search_is_no_trial_but_has_a_place_among_them() -> None:
    plan = planner().plan
    assert [(trial.name, trial.order) for trial in plan.trials] == [("zero-shot", 0), ("dense", 2)]
    (search,) = plan.searches
    assert (search.name, search.index, search.order) == ("s", 1, 1)
    assert set(search.needs) == {trial.key for trial in plan.trials}


def test_a_suggestion_is_the_trial_that_the_spec_could_have_said() -> None:
    found, search = search_of()
    values = {"stages": "distilled", "train.learning_rate": 0.003, "stages.0.distill.teacher": "zero-shot"}
    trial = found.suggested(search, values, 7)
    assert (trial.name, trial.search, trial.number, trial.order, trial.swept) == ("s-007", "s", 7, 1, values)
    said = plan_data(
        {
            "name": "words",
            "base": {**BASE, "train": {"learning_rate": 0.003}},
            "trials": [
                {"name": "zero-shot"},
                {"name": "x", "stages": [{"distill": {"teacher": "zero-shot", "prune": {"sparsity": 0.9}}}]},
            ],
        }
    ).trials[1]
    assert trial.key == said.key
    assert trial.evaluation_key == said.evaluation_key
    assert trial.needs == said.needs
    assert trial.teachers == said.teachers
    chain = SPACE["stages"]["values"]["distilled"]  # type: ignore[index]
    assert found.suggested(search, {**values, "stages": chain}, 7) == trial  # a value means the choice it has


def test_names_are_numbered() -> None:
    found, search = search_of({**TRIALS[1], "name": "try-{number}-of-it"}, TRIALS[0], TRIALS[2])
    name = found.suggested(
        search, {"stages": "gradual", "train.learning_rate": 1e-3, "stages.0.finetune.prune.end": 0.4}, 12
    ).name
    assert name == "try-012-of-it"


def test_a_suggestion_that_makes_no_trial_says_with_what() -> None:
    found, search = search_of()
    with pytest.raises(SpecError, match=r"must be one of what is searched, got 0\.9"):
        found.suggested(search, {"stages.0.finetune.prune.end": 0.9}, 1)
    with pytest.raises(SpecError, match=r"no stage .*|with stages='gradual', stages\.0\.distill"):
        found.suggested(search, {"stages": "gradual", "stages.0.distill.teacher": "dense"}, 1)


def test_two_fields_that_do_not_go_together_are_told_when_they_are_suggested() -> None:
    """Each value alone is in some valid trial."""
    space = {
        "stages.0.finetune.prune.start": {"low": 0.0, "high": 0.5},
        "stages.0.finetune.prune.end": {"low": 0.1, "high": 0.9},
    }
    found, search = search_of({"name": "s", "stages": [GRADUAL], "search": {"space": space, "n_trials": 2}})
    with pytest.raises(SpecError, match=r"end must not come before start.* \(with .*start=0\.5, .*end=0\.1\)"):
        found.suggested(search, {"stages.0.finetune.prune.start": 0.5, "stages.0.finetune.prune.end": 0.1}, 1)
    assert found.suggested(search, {"stages.0.finetune.prune.start": 0.0, "stages.0.finetune.prune.end": 0.1}, 1)
    assert not found.opened.problems


def test_teachers_that_a_suggestion_may_have_are_in_the_plan(tmp_path: Path) -> None:
    (tmp_path / "others.yaml").write_text(HEADER.replace("words", "others") + "  - {name: big, stages: [finetune]}\n")
    spec = tmp_path / "words.yaml"
    spec.write_text(
        HEADER
        + """\
  - name: s
    stages: [{distill: {hardness: 0.5}}]
    search:
      n_trials: 2
      space:
        stages.0.distill.teacher: [others/big, {model: "builtin:tiny-gpt2"}]
"""
    )
    found = Planner(spec)
    assert [(trial.sweep, trial.name, trial.implicit) for trial in found.plan.trials] == [
        ("words", "teacher-tiny-gpt2", True),
        ("others", "big", False),
    ]
    keys = {trial.key for trial in found.plan.trials}
    assert set(found.plan.searches[0].needs) == keys
    for choice in found.plan.searches[0].spec.space["stages.0.distill.teacher"].choices:
        trial = found.suggested(found.plan.searches[0], {"stages.0.distill.teacher": choice}, 1)
        assert set(trial.needs) < keys


# Flow text of a search's fields -> place, message.
WRONG = {
    "a path that leads nowhere": (
        "space: {train.learning_rat: {low: 0.1, high: 0.2}}",
        "search.space.train.learning_rat",
        "Did you mean 'learning_rate'",
    ),
    "a path into a stage that is not there": (
        "space: {stages.3.prune.sparsity: [0.5]}",
        "search.space.stages.3.prune.sparsity",
        "has 1 elements, counted from 0; 3",
    ),
    "a value that is wrong": (
        "space: {stages.0.prune.sparsity: [0.5, 90]}",
        "search.space.stages.0.prune.sparsity",
        r"with 90: sparsity must be at least 0 and below 1, got 90\. Did you mean 0\.9",
    ),
    "an end of a range that is wrong": (
        "space: {stages.0.prune.sparsity: {low: 0.5, high: 1.0}}",
        "search.space.stages.0.prune.sparsity",
        r"with 1\.0: sparsity must be .* below 1",
    ),
    "a value that does not fit the model": (
        "space: {stages.0.prune.layers: [[0], [9]]}",
        "search.space.stages.0.prune.layers",
        r"with '\[9\]': layers must be indices of decoder layers \(0 to 3\), got 9",
    ),
    "a teacher that is none": (
        "space: {stages: {values: {a: [{distill: {teacher: nobody}}], b: [finetune]}}}",
        "search.space.stages",
        "with 'a': .*there is no trial 'nobody'",
    ),
    "an option that the sampler does not take": (
        "space: {stages.0.prune.sparsity: [0.5]}, sampler_options: {startup: 3}",
        "search.sampler_options",
        "sampler tpe does not take the options .*startup.*n_startup_trials",
    ),
    "several objectives for cmaes": (
        "space: {stages.0.prune.sparsity: [0.5]}, sampler: cmaes, objectives: [loss, size]",
        "search.sampler",
        "cmaes",
    ),
    "a condition on nothing": (
        "space: {stages.0.prune.sparsity: {values: [0.5], when: {stages: a}}}",
        "search.space.stages.0.prune.sparsity.when",
        "must be on another searched field",
    ),
    "an unknown metric": (
        "space: {stages.0.prune.sparsity: [0.5]}, objectives: [speed]",
        "search.objectives.0.metric",
        "unknown metric 'speed'",
    ),
    "a range upside down": (
        "space: {stages.0.prune.sparsity: {low: 0.5, high: 0.4}}",
        "search.space.stages.0.prune.sparsity",
        "low must be at most high",
    ),
    "no space": ("space: {}", "search", "space must name at least one"),
    "conditions that exclude one another": (
        "space: {a: [1]}".replace(
            "a: [1]",
            "stages.0.prune.propagate: [true, false], "
            "device: {values: [cpu], when: {stages.0.prune.propagate: false}}, "
            "stages.0.prune.sparsity: {values: [0.5], when: {device: cpu, stages.0.prune.propagate: true}}",
        ),
        "search.space.stages.0.prune.sparsity",
        "conditions exclude one another",
    ),
}
assert WRONG


@pytest.mark.parametrize(("fields", "place", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_with_a_search_is_told_with_its_line(
    fields: str, place: str, message: str, tmp_path: Path
) -> None:
    text = (
        HEADER
        + f"""\
  - name: s
    stages: [{{prune: {{sparsity: 0.5}}}}]
    search:
      n_trials: 2
      {fields.replace(", sampler", chr(10) + "      sampler").replace(", objectives", chr(10) + "      objectives")}
"""
    )
    problem = only(problems_of_text(text, tmp_path))
    assert problem.where == f"trials.0.{place}"
    assert re.search(message, problem.message), problem.message
    assert problem.line is not None
    assert FIRST_TRIAL + 2 <= problem.line <= FIRST_TRIAL + 6


OTHER = {
    "vary beside it": ("vary: {stages.0.prune.sparsity: [0.5]}", "search", "either vary or search"),
    "several seeds": ("seeds: [1, 2]", "seeds", r"takes one seed; it has 2: \[1, 2\]"),
}


@pytest.mark.parametrize(("fields", "place", "message"), OTHER.values(), ids=OTHER.keys())
def test_what_a_search_does_not_go_with(fields: str, place: str, message: str, tmp_path: Path) -> None:
    text = (
        HEADER
        + f"""\
  - name: s
    stages: [{{prune: {{sparsity: 0.5}}}}]
    {fields}
    search: {{n_trials: 2, space: {{stages.0.prune.sparsity: [0.5, 0.6]}}}}
"""
    )
    problem = only(problems_of_text(text, tmp_path))
    assert problem.where == f"trials.0.{place}"
    assert re.search(message, problem.message)


def problems(*trials: dict[str, Any], **top: Any) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as raised:
        assert planner(*trials, **top).plan
    return raised.value.problems


def test_what_every_choice_has_is_told_once() -> None:
    space = {"train.learning_rate": {"low": 1e-4, "high": 1e-2}, "train.warmup_steps": [0, 10, 20]}
    stage = {"prune": {"sparsity": 0.5, "targets": "nothing"}}
    problem = only(problems({"name": "s", "stages": [stage], "search": {"space": space, "n_trials": 2}}))
    assert problem.where == "trials.0.stages.0.prune"
    assert "every pattern must match a tensor" in problem.message


def test_names_of_searched_trials_are_their_own() -> None:
    search = {"space": {"stages.0.prune.sparsity": [0.5]}, "n_trials": 2}
    trial = {"name": "s", "stages": [{"prune": {"sparsity": 0.5}}], "search": search}
    assert (
        "names of searched trials are like 's-001'; 's-017' is one" in only(problems(trial, {"name": "s-017"})).message
    )
    assert "names of searched trials" in only(problems(trial, {**trial, "name": "s-{number}"})).message
    assert "may hold {number} and no other key" in only(problems({**trial, "name": "s-{sparsity}"})).message
    assert planner(trial, {"name": "s-17"}).plan.searches


def test_a_measured_objective_needs_a_measurement() -> None:
    search = {"space": {"stages.0.prune.sparsity": [0.5]}, "n_trials": 2, "constraints": ["loss <= 3"]}
    trial = {"name": "s", "stages": [{"prune": {"sparsity": 0.5}}], "search": search, "evaluate": {"skip": True}}
    found = problems(trial)
    assert [problem.where for problem in found] == ["trials.0.search.objectives.0", "trials.0.search.constraints.0"]
    assert "perplexity must be measured; evaluate.skip is true" in found[0].message


def test_a_table_may_have_rows_of_a_search() -> None:
    def table(row: str) -> dict[str, Any]:
        return {"title": "T", "rows": [row], "columns": ["trial"]}

    assert planner(tables=[table("s-*"), table("s-003")]).plan.tables
    assert "a row must match a trial; 's-004' matches none" in only(problems(tables=[table("s-004")])).message


def test_an_early_stop_is_made_before_anything_runs() -> None:
    found = only(problems({"name": "a"}, early_stop="percentile"))
    assert found.where == "early_stop"
    assert "percentile does not take the options" in found.message
    assert "missing 1 required positional argument: 'percentile'" in found.message


def test_a_sampler_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    search = {"space": {"stages.0.prune.sparsity": [0.5]}, "n_trials": 2, "sampler": "cmaes"}
    found = only(problems({"name": "s", "stages": [{"prune": {"sparsity": 0.5}}], "search": search}))
    assert "Run: pip install cmaes" in found.message


@pytest.mark.parametrize(
    ("space", "fixed"),
    [
        ({"precision": ["float32", "bfloat16"]}, {"precision": "float32"}),
        ({"data.block_size": [64, 128]}, {"block_size": 64}),
        ({"evaluate.max_windows": [2, 3]}, None),
        ({"evaluate.split": ["train", "validation"]}, None),
    ],
)
def test_trials_of_a_search_are_measured_alike(space: dict[str, Any], fixed: dict[str, Any] | None) -> None:
    data = {"path": "builtin:text", "block_size": 64}
    trial = {"name": "s", "data": data, "search": {"space": space, "n_trials": 2}}
    problem = only(problems(trial))
    assert problem.where == "trials.0.search.space"
    assert "so they must be measured alike" in problem.message
    sparsity = {"space": space, "n_trials": 2, "objectives": ["sparsity"]}
    assert planner({**trial, "search": sparsity}).plan.searches
    if fixed:
        assert planner({**trial, "evaluate": fixed}).plan.searches
