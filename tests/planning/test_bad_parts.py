"""What does not go together is told before anything runs: for every part that is registered, not for some."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from annotated_types import Ge, Gt, Le, Lt

from prunegpt.registry import (
    ALLOCATION_NEEDS,
    ALLOCATIONS,
    CRITERIA,
    DISTILLATION_LOSSES,
    MASK_MODES,
    REFINEMENTS,
    SCHEDULES,
    SOLVERS,
    Registry,
)
from prunegpt.spec.problems import option_problems
from tests.support.plug_in import PlugIn, steep
from tests.support.specs import only, problems_of, problems_of_text

BAD = """\
name: bad
base:
  model: builtin:tiny-gpt2
  data: {path: "builtin:text", block_size: 128}
  train: {max_steps: 20}
trials:
  - name: t
  - name: unknown-option
    stages: [finetune, {prune: {method: sparsegpt, sparsity: 0.5, options: {dampning: 0.1}}}]
  - name: row-solver
    stages: [finetune, {prune: {method: sparsegpt, sparsity: 0.5, allocation: row}}]
  - name: block-solver
    stages: [finetune, {prune: {method: sparsegpt, sparsity: 0.5, pattern: "[4, 4]"}}]
  - name: indivisible
    stages: [finetune, {prune: {method: magnitude, pattern: "3:7"}}]
  - name: owl-option
    stages: [finetune, {prune: {method: wanda, sparsity: 0.5, allocation: owl, options: {limit: wide}}}]
  - name: cache-hidden
    stages: [finetune, {distill: {teacher: t, cache: {k: 8}, hidden_gain: 1.0}}]
  - name: layer-map
    stages: [finetune, {distill: {teacher: t, hidden_gain: 1.0, layer_map: {0: 99}}}]
  - name: loss-option
    stages: [finetune, {distill: {teacher: t, loss: forward_kl, options: {k: 3}}}]
  - name: js-weight
    stages: [finetune, {distill: {teacher: t, loss: jensen_shannon, options: {weight: 1.5}}}]
  - name: topk-k
    stages: [finetune, {distill: {teacher: t, cache: {k: 5000}}}]
  - name: gradual-solver-row
    stages: [{finetune: {prune: {method: sparsegpt, sparsity: 0.5, allocation: row, end: 10, unit: steps, every: 2}}}]
  - name: sparseml-steps
    stages: [{finetune: {prune: {sparsity: 0.5, clock: sparseml, start: 0, end: 10, unit: steps, every: 2}}}]
  - name: sparseml-no-end
    stages: [{finetune: {prune: {sparsity: 0.5, clock: sparseml}}}]
  - name: best
    stages: [{finetune: {train: {load_best_model_at_end: true, eval_strategy: steps, eval_steps: 5,
      save_strategy: steps, save_steps: 5}, prune: {sparsity: 0.9, start: 5, end: 15, unit: steps, every: 1}}}]
  - name: movement-start0
    stages: [{finetune: {prune: {method: movement, sparsity: 0.5, initial: 0.2, end: 10, unit: steps, every: 2}}}]
  - name: coded-moments
    stages: [{finetune: {train: {optim: adamw_bnb_8bit},
      prune: {sparsity: 0.5, end: 10, unit: steps, every: 2}}}]
  - name: half-cpu
    device: cpu
    precision: float16
    stages: [finetune]
"""  # fmt: skip
# Trial -> the field, what is said, and the line below the trial's own.
TOLD = {
    "unknown-option": ("stages.1.prune.options.dampning", "Did you mean 'damping'", 1),
    "row-solver": ("stages.1.prune.allocation", "cannot compare by row", 1),
    "block-solver": ("stages.1.prune.pattern", r"unstructured and N:M patterns, got \[4, 4\]", 1),
    "indivisible": ("stages.1.prune.pattern", "needs an input axis divisible by 7", 1),
    "owl-option": ("stages.1.prune.options.limit", "must be a number, got 'wide'", 1),
    "cache-hidden": ("stages.1.distill.cache", "a cache holds the teacher's logits alone", 1),
    "layer-map": ("stages.1.distill.layer_map", "blocks are numbered 0 to 3; layer_map has 0 -> 99", 1),
    "loss-option": ("stages.1.distill.options.k", "unknown option of the loss forward_kl 'k'", 1),
    "js-weight": ("stages.1.distill.options.weight", "must be less than 1, got 1.5", 1),
    "topk-k": ("stages.1.distill.cache.k", "k must be 1 to 1023, below the vocabulary, got 5000", 1),
    "gradual-solver-row": ("stages.0.finetune.prune.allocation", "cannot compare by row", 1),
    "sparseml-steps": ("stages.0.finetune.prune", "counts in epochs; unit is steps", 1),
    "sparseml-no-end": ("stages.0.finetune.prune", "there is no end", 1),
    "best": ("stages.0.finetune.train.load_best_model_at_end", "has another sparsity", 1),
    "movement-start0": ("stages.0.finetune.prune.start", "must see at least one optimizer step", 1),
    "coded-moments": ("stages.0.finetune.train.optim", "must keep moments that can be set to zero .* adafactor", 1),
    "half-cpu": ("precision", "float16 cannot be trained in on a CPU", 2),
}
assert TOLD


def test_all_unsound_trials_are_named_in_one_run_each_at_its_line(tmp_path: Path) -> None:
    found = problems_of_text(BAD, tmp_path)
    names = [line.split(": ")[1] for line in BAD.splitlines() if line.startswith("  - name: ")]
    first = {name: BAD.splitlines().index(f"  - name: {name}") + 1 for name in names}
    assert [item.where.partition(".")[2].partition(".")[0] for item in found] == [
        str(index) for index, name in enumerate(names) if name != "t"
    ]
    for problem, (name, (field, message, below)) in zip(found, TOLD.items(), strict=True):
        assert problem.where == f"trials.{names.index(name)}.{field}"
        assert problem.line == first[name] + below
        assert re.search(message, problem.message), problem.message


# -- options ---------------------------------------------------------------------------------------------------------

FUNCTIONS = [
    (registry, name)
    for registry in (CRITERIA, SOLVERS, ALLOCATIONS, DISTILLATION_LOSSES, MASK_MODES, REFINEMENTS)
    for name in registry.names()
]
OPTIONS = [(registry, name, option) for registry, name in FUNCTIONS for option in registry.entry(name).valid_options]
assert len(OPTIONS) > 8


def label(value: Any) -> str | None:
    return value.kind if isinstance(value, Registry) else None


@pytest.mark.parametrize(("registry", "name"), FUNCTIONS, ids=label)
def test_a_part_declares_the_arguments_that_its_function_takes(registry: Registry, name: str) -> None:
    """A plug-in is read from its object, so that what is declared and what is read must be one for built-in parts."""
    declared, read = registry.entry(name), registry.read(registry.load(name))
    assert set(declared.options) == set(read.options)
    optional = {"blocks"} if name == "sensitivity" else set()
    assert declared.needs - optional == read.needs - optional
    assert declared.solver == read.solver
    for option in declared.options:
        kind = declared.options[option]
        assert (get_args(kind)[0] if get_args(kind) else kind) == read.options[option], option


def stage_with(registry: Registry, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A trial whose one stage uses a part with these options."""
    if registry is DISTILLATION_LOSSES:
        stages: list[Any] = [{"distill": {"teacher": "t", "loss": name, "options": options}}]
    elif registry is ALLOCATIONS:
        stages = [{"prune": {"method": "magnitude", "sparsity": 0.5, "allocation": name, "options": options}}]
    elif registry is REFINEMENTS:
        stages = [{"prune": {"method": "magnitude", "sparsity": 0.5, "refine": name, "options": options}}]
    elif registry is MASK_MODES:
        stages = [{"finetune": {"prune": {"method": "magnitude", "sparsity": 0.5, "mode": name, "options": options}}}]
    elif registry.entry(name).only_in_training:
        stages = [{"finetune": {"prune": {"method": name, "sparsity": 0.5, "options": options}}}]
    else:
        stages = [{"prune": {"method": name, "sparsity": 0.5, "options": options}}]
    return {"name": "one", "stages": stages}


def told(trial: Mapping[str, Any]) -> list[str]:
    """What is said of the options of a trial."""
    found = problems_of({"name": "t"}, trial)
    return [problem.message for problem in found if ".options" in problem.where]


@pytest.mark.parametrize(("registry", "name"), FUNCTIONS, ids=label)
def test_an_option_that_a_part_does_not_have_is_refused(registry: Registry, name: str) -> None:
    assert any("unknown option of" in message for message in told(stage_with(registry, name, {"nonsense": 1}))) or (
        name == "explicit"  # refused by its name alone
    )


def wrong_values(kind: Any) -> list[Any]:
    """Values beside the type and the range of an option; no number is without an end on either side."""
    plain, *limits = get_args(kind) or (kind,)
    if plain is str:
        return [1.5, True]
    wrong: list[Any] = ["wide", True, False, math.nan, math.inf, -math.inf, -1e300, 1e300]
    wrong += [1.5, -(2**62), 2**62] if plain is int else []
    for limit in limits:
        wrong += [limit.ge - 1] if isinstance(limit, Ge) else [limit.gt] if isinstance(limit, Gt) else []
        wrong += [limit.le + 1] if isinstance(limit, Le) else [limit.lt] if isinstance(limit, Lt) else []
    return wrong


@pytest.mark.parametrize(("registry", "name", "option"), OPTIONS, ids=label)
def test_an_option_of_another_type_or_out_of_its_range_is_refused(registry: Registry, name: str, option: str) -> None:
    kind = registry.entry(name).valid_options[option]
    for value in wrong_values(kind):
        messages = [message for _, message in option_problems(name, {option: value}, {option: kind})]
        assert any(f"option {option} of" in message and "must be" in message for message in messages), value
    messages = told(stage_with(registry, name, {option: wrong_values(kind)[1]}))
    assert any(f"option {option} of" in message and "must be" in message for message in messages), messages


@pytest.mark.parametrize("mode", MASK_MODES.names())
@pytest.mark.parametrize("method", [*CRITERIA.names(), *SOLVERS.names()])
def test_modes_that_go_on_learning_take_no_solvers(mode: str, method: str) -> None:
    prune = {"method": method, "mode": mode, "sparsity": 0.5, "start": 0.1, "calibration": {"windows": 2, "length": 16}}
    found = problems_of({"name": "a", "stages": [{"finetune": {"prune": prune}}]})
    assert bool(found) is (mode != "projected" and method in SOLVERS), found
    assert all(f"{method} is a solver" in problem.message for problem in found)


@pytest.mark.parametrize("mode", MASK_MODES.names())
def test_what_has_no_effect_in_a_mode_is_refused(mode: str) -> None:
    prune = {"mode": mode, "sparsity": 0.5, "start": 0.1}
    found = problems_of({"name": "a", "stages": [{"finetune": {"prune": {**prune, "regrow": True}}}]})
    assert [problem.where.rpartition(".")[2] for problem in found] == ["regrow"] * (mode != "projected")
    found = problems_of({"name": "a", "stages": [{"finetune": {"prune": prune, "train": {"optim": "sgd"}}}]})
    assert [problem.where.rpartition(".")[2] for problem in found] == ["optim"] * (mode == "elsa")


def test_a_hint_names_the_field_that_says_how_long_calibration_windows_are() -> None:
    for fields, field in (({"length": 1000}, "calibration.length"), ({}, "block_size")):
        prune = {"method": "wanda", "sparsity": 0.5, "calibration": fields}
        found = problems_of(
            {"name": "a", "data": {"path": "builtin:text", "block_size": 500}, "stages": [{"prune": prune}]}
        )
        assert any(
            f"Set {field} to 128 or less." in problem.message for problem in found if "calibration" in problem.where
        )


def test_an_adapter_of_nothing_names_the_ways_to_have_one() -> None:
    message = only(problems_of({"name": "a", "stages": [{"finetune": {"adapter": {"exclude": "*"}}}]})).message
    assert "must leave a tensor to adapt" in message
    assert "set rank: 0 to train `also` alone" in message


# -- plug-ins --------------------------------------------------------------------------------------------------------


def test_an_allocation_of_a_plug_in_is_checked_like_a_built_in_one(plug_in: PlugIn) -> None:
    plug_in("allocation", "steep", steep)
    assert ALLOCATIONS.entry("steep").needs <= set(ALLOCATION_NEEDS)
    good = {"name": "a", "stages": [{"prune": {"sparsity": 0.3, "allocation": "steep", "options": {"slope": 0.2}}}]}
    assert not problems_of(good)
    bad = {"name": "a", "stages": [{"prune": {"sparsity": 0.3, "allocation": "steep", "options": {"slope": "far"}}}]}
    assert "option slope of magnitude and steep must be a number" in only(problems_of(bad)).message


def test_a_plug_in_that_does_not_load_is_named_at_its_trial(plug_in: PlugIn) -> None:
    from tests.support.plug_in import GIVEN

    plug_in("criterion", "gone", None)
    del GIVEN["gone"]
    found = only(problems_of({"name": "a", "stages": [{"prune": {"method": "gone", "sparsity": 0.5}}]}))
    assert "the criterion plug-in 'gone'" in found.message
    GIVEN["gone"] = None  # for the fixture to take back


def test_every_schedule_grows_where_masks_do_not_change_before_the_first_step() -> None:
    """So that `start: 0, initial: 0` is sound for methods that have to see a step first, but for `constant`."""
    for name in SCHEDULES.names():
        trial = {
            "name": "a",
            "stages": [{"finetune": {"prune": {"method": "movement", "sparsity": 0.5, "schedule": name}}}],
        }
        assert bool(problems_of(trial)) is (name == "constant"), name


def said(stage: Mapping[str, Any]) -> list[str]:
    """All that is said of a stage, each after its field."""
    return [f"{problem.where}: {problem.message}" for problem in problems_of({"name": "one", "stages": [stage]})]


@pytest.mark.parametrize("pattern", ["[8, 8]", "[1000, 2]", "[2, 1000]"])
def test_a_block_that_is_larger_than_a_matrix_is_refused(pattern: str) -> None:
    prune = {"sparsity": 0.5, "pattern": pattern}
    for stage in ({"prune": prune}, {"finetune": {"prune": prune}}):
        found = said(stage)
        assert (found == []) is (pattern == "[8, 8]"), found
        assert not found or "must fit into every matrix" in found[0]


def test_a_segment_of_a_curve_that_is_none_is_refused() -> None:
    good = {"shape": "linear", "start": 0.0, "end": 1.0, "first": 0.001, "last": 0.0}
    assert said({"finetune": {"learning_rate": [good]}}) == []
    for bad in ({**good, "shape": "wavy"}, {**good, "end": 0.0}, {"start": 0, "end": 1, "init_lr": 0.001}):
        (found,) = said({"finetune": {"learning_rate": [good, bad]}})
        assert "learning_rate.1: a segment of a curve must be one of a recipe" in found


@pytest.mark.parametrize("name", ["save_only_model", "ignore_data_skip", "accelerator_config"])
def test_what_would_break_going_on_is_refused(name: str) -> None:
    (found,) = said({"finetune": {"train": {name: True}}})
    assert f"{name} is not taken" in found


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "eval_strategy is no"),
        ({"lr_scheduler_type": "greedy"}, "eval_strategy is no"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "needs min_lr or min_lr_rate in lr_scheduler_kwargs"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "needs num_decay_steps in lr_scheduler_kwargs"),
        ({"train_sampling_strategy": "group_by_length"}, "unknown train_sampling_strategy"),
        ({"adam_beta1": 1.5}, "adam_beta1 must be at least 0 and below 1"),
        ({"adam_epsilon": -1}, "adam_epsilon must not be negative"),
    ],
)
def test_what_transformers_would_refuse_when_training_begins_is_refused_before(train: Any, told: str) -> None:
    (found,) = said({"finetune": {"train": train}})
    assert told in found
