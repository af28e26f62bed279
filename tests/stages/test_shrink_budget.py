"""Budgets of a shrink: each limit, by layers and by feed-forward sizes, finds the largest shape within it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from prunegpt.errors import ShrinkError, SpecError
from prunegpt.lm.models import save_model
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.planning import stages as planned_stages
from prunegpt.planning.inputs import Inputs
from prunegpt.records import Timed
from prunegpt.root import Root
from prunegpt.shrinking import budget as budgets
from prunegpt.shrinking.budget import measured_within, weights_of
from prunegpt.spec.schema import ModelSpec
from prunegpt.spec.shrink import COUNTED, LIMITS, MEASURED, BudgetSpec, ShrinkSpec
from prunegpt.spec.shrinking import drops_of
from prunegpt.stages import cache
from prunegpt.stages import shrink as stage
from tests.support.families import tiny
from tests.support.specs import plan_of

RunTrials = Callable[..., Mapping[str, Any]]
CALIBRATION = {"windows": 4, "length": 16}
BY = get_args(BudgetSpec.model_fields["by"].annotation)
SHAPE = {"vocab_size": 1024, "num_hidden_layers": 4, "moe_intermediate_size": 64}
GATE = {("parameters", "ffn"), ("latency", "layers")}
TIMING = {"prompt": 8, "generate": 4, "repeats": 6}


def model_after(root: Path, record: Any) -> Any:
    key, cpu = record.stages[-1].key, torch.device("cpu")
    return cache.load(Root(root / "runs"), key, ModelSpec(source="unused"), Inputs(None), device=cpu).model


@pytest.mark.parametrize(
    ("budget", "layers"), [({"parameters": 0.99}, 1), ({"memory": 1.0}, 2), ({"active_parameters": 60_000}, 1)]
)
def test_a_budget_decides_how_many_layers_stay(
    run_trials: RunTrials, tmp_path: Path, budget: dict[str, Any], layers: int
) -> None:
    shrink = {"budget": budget, "calibration": CALIBRATION}
    record = run_trials({"name": "small", "stages": [{"shrink": shrink}]})["small"]
    assert record.state == "finished", record.trace
    assert model_after(tmp_path, record).config.n_layer == layers


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine on which time goes by the number of parameters; the list has those of every model that is measured."""
    measured: list[int] = []

    def measure(model: Any, reference: Any, *_: Any, **__: Any) -> Any:
        size, whole = (sum(weight.numel() for weight in one.parameters()) for one in (model, reference))
        assert all(torch.isfinite(weight).all() for weight in model.parameters())
        measured.append(size)
        faster = Timed(value=whole / size, low=whole / size - 0.01, high=whole / size + 0.01)
        return SimpleNamespace(
            speed=SimpleNamespace(speedup=faster, speedup_prefill=faster), protocol="by parameters"
        ), {}

    monkeypatch.setattr(budgets, "measure_speed", measure)
    return measured


@pytest.fixture
def mixture(tmp_path: Path) -> str:
    save_model(tiny("qwen3_moe", **SHAPE), load_tokenizer("builtin:tiny-gpt2"), tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize(
    ("limit", "by"),
    [pytest.param(limit, by, marks=() if (limit, by) in GATE else pytest.mark.slow) for limit in LIMITS for by in BY],
)
def test_the_largest_shape_within_a_budget_is_taken(
    run_trials: RunTrials, tmp_path: Path, mixture: str, clock: list[int], limit: str, by: str
) -> None:
    budget: dict[str, Any] = {limit: 0.8, "by": by, **({"speed": TIMING} if limit in MEASURED else {})}
    shrink = {"budget": budget, "multiple_of": 4, "calibration": CALIBRATION}
    record = run_trials({"name": "small", "stages": [{"shrink": shrink}]}, model=mixture)["small"]
    assert record.state == "finished", record.trace
    spec = BudgetSpec.model_validate(budget)
    whole, found = tiny("qwen3_moe", **SHAPE), model_after(tmp_path, record)

    def count(model: Any) -> int:
        layers, rest = weights_of(model, spec)
        return rest + sum(layers)

    sizes = found.config.num_hidden_layers, found.config.moe_intermediate_size
    before = whole.config.num_hidden_layers, whole.config.moe_intermediate_size
    assert sizes[BY.index(by)] < before[BY.index(by)]
    assert sizes[1 - BY.index(by)] == before[1 - BY.index(by)]
    assert count(found) <= 0.8 * count(whole)
    more = {"num_hidden_layers": sizes[0] + 1} if by == "layers" else {"moe_intermediate_size": sizes[1] + 4}
    assert count(tiny("qwen3_moe", **{**SHAPE, **more})) > 0.8 * count(whole)
    stage = record.stages[-1]
    taken = [row for row in stage.layers if row.get("taken")]
    assert len(taken) == len(clock[:1]) == (limit in MEASURED)
    if taken:
        assert taken[0]["low"] < taken[0][limit] < taken[0]["high"]
        assert any(f"{limit} of at most 0.8: {taken[0]['shape']}, measured at" in note for note in stage.notes)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("limit", [*COUNTED, *MEASURED])
def test_a_budget_that_no_shape_is_within_is_refused(clock: list[int], limit: str, by: str) -> None:
    shrink = {"budget": {limit: 0.01, "by": by}, "multiple_of": 32}
    if limit in COUNTED:
        with pytest.raises(SpecError, match="a budget must leave room for one"):
            plan_of({"name": "small", "stages": [{"shrink": shrink}]})
        return
    model = tiny("llama")
    with pytest.raises(ShrinkError, match=rf"{limit} is limited to 0.01; the least shape, .* comes to 0\.\d"):
        measured(model, shrink)


def measured(model: Any, shrink: Mapping[str, Any], **options: Any) -> Any:
    spec = ShrinkSpec.model_validate(shrink)
    assert spec.budget
    given: dict[str, Any] = {"dtype": torch.float32, "tried": lambda *_: None, "folder": None, **options}
    return measured_within(model, model.config.to_dict(), spec.budget, spec.widths, spec.multiple_of, **given)


@pytest.mark.parametrize("by", BY)
def test_what_an_earlier_attempt_has_measured_is_not_measured_again(clock: list[int], tmp_path: Path, by: str) -> None:
    model = tiny("llama", num_hidden_layers=9)
    shrink = {"budget": {"latency": 0.6, "by": by}, "multiple_of": 4}

    class Stopped(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        measured(model, shrink, tried=stop, folder=tmp_path)
    assert len(clock) == 2
    again = measured(model, shrink, folder=tmp_path)
    tried = len(clock)
    clock.clear()
    assert again == measured(model, shrink)
    assert len(clock) == tried <= 4


@pytest.mark.parametrize("limit", LIMITS)
def test_the_machine_is_in_the_key_where_it_is_measured_on(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    budget: dict[str, Any] = {limit: 0.9, **({"speed": TIMING} if limit in MEASURED else {})}
    keys, plans = set(), []
    for name in ("one", "another"):
        monkeypatch.setattr(planned_stages, "machine", lambda name=name: name)
        plans.append(plan_of({"name": "small", "stages": [{"shrink": {"budget": budget}}]}).trials[0].stages[-1])
        keys.add(plans[-1].key)
    assert (len(keys) == 2) is (limit in MEASURED)
    assert [plan.measured_on for plan in plans] == (["one", "another"] if limit in MEASURED else ["", ""])


def test_another_machine_than_the_planned_one_measures_nothing(
    run_trials: RunTrials, monkeypatch: pytest.MonkeyPatch, clock: list[int]
) -> None:
    monkeypatch.setattr(stage, "machine", lambda: "another")
    shrink = {"budget": {"latency": 0.9, "speed": TIMING}, "calibration": CALIBRATION}
    record = run_trials({"name": "small", "stages": [{"shrink": shrink}]})["small"]
    assert record.state == "failed"
    assert "a time must be measured on the machine that the plan names" in str(record.trace)
    assert not clock


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ({"latency": 0.9}, "prompt and generated tokens must fit the 128 positions"),
        ({"latency": 1.0}, "less than 1"),
        ({"parameters": 0.9, "speed": {}}, "speed is for latency and first_token"),
        ({"first_token": 0.9, "speed": {**TIMING, "against": "dense"}}, "against is set. Remove it"),
        ({"parameters": 0.9, "by": "heads"}, "'layers' or 'ffn'"),
    ],
)
def test_what_is_wrong_with_a_budget_is_said_before_anything_runs(budget: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        plan_of({"name": "small", "stages": [{"shrink": {"budget": budget}}]})


def test_times_are_not_planned_for_machines_elsewhere() -> None:
    shrink = {"budget": {"latency": 0.9, "speed": TIMING}}
    with pytest.raises(SpecError, match="launcher slurm runs trials elsewhere"):
        plan_of({"name": "small", "stages": [{"shrink": shrink}]}, launcher={"kind": "slurm"})


def test_a_time_is_really_measured(run_trials: RunTrials, tmp_path: Path) -> None:
    shrink = {"budget": {"latency": 0.99, "speed": TIMING}, "calibration": CALIBRATION}
    record = run_trials({"name": "small", "stages": [{"shrink": shrink}]})["small"]
    assert record.state == "finished", record.trace
    assert model_after(tmp_path, record).config.n_layer == 1
    assert any("against the model before" in note for note in record.stages[-1].notes)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_of_experts_a_budget_of_active_parameters_counts_those_that_work_on_a_token(family: str) -> None:
    whole = tiny(family, num_hidden_layers=4)
    config = whole.config.to_dict()
    layer = whole.model.layers[0]
    experts = sum(weight.numel() for name, weight in layer.named_parameters() if ".experts." in name)
    every = sum(weight.numel() for weight in whole.parameters())
    active = every - 4 * experts // 2  # two of four work on a token
    each = sum(weight.numel() for weight in layer.parameters()) - experts // 2
    for gone in range(3):
        spec = ShrinkSpec.model_validate({"budget": {"active_parameters": active - gone * each}})
        chosen = drops_of(spec, config, *weights_of(whole, spec.budget)).chosen
        assert (chosen[0][1] if chosen else 0) == gone
