"""What was measured on what, and how a budget was spread, is recorded as it was: over every field and every method."""

from pathlib import Path
from typing import Any

from prunegpt.pruning.masks import load_masks
from prunegpt.registry import CRITERIA, SOLVERS
from prunegpt.report.config import planned_allocation
from prunegpt.root import Root
from prunegpt.spec.methods import method_entry
from prunegpt.spec.plan import TrialPlan
from prunegpt.spec.schema import EvaluateSpec
from prunegpt.stages.cache import MASKS
from prunegpt.stages.measure import allocation_of
from tests.support.running import RunTrials

OTHERWISE: dict[str, Any] = {
    "split": "train",
    "protocol": "stream",
    "block_size": 16,
    "stride": 8,
    "max_windows": 3,
    "precision": "bfloat16",
    "bos": True,
}
ALIKE: dict[str, Any] = {"batch_size": 1, "precision": "float32", "name": "n", "after": "each"}  # auto is float32 here
OTHER_KINDS = ("tasks", "num_fewshot", "limit", "include_path", "speed")  # of evaluations


def test_every_field_that_changes_what_is_measured_makes_figures_incomparable(
    run_trials: RunTrials, text_files: dict[str, str], tmp_path: Path
) -> None:
    assert {*OTHERWISE, *ALIKE, *OTHER_KINDS, "data", "skip"} == {*EvaluateSpec.model_fields}
    sliding = {"protocol": "sliding"}  # has a stride
    other = tmp_path / "other.txt"
    other.write_text(Path(text_files["train"]).read_text()[1000:])
    same_split = {"data": {"files": {"validation": str(other)}, "block_size": 32}}
    asked = {
        "as-most": {},
        "sliding": sliding,
        "data": same_split,
        **{name: {name: value, **(sliding if name == "stride" else {})} for name, value in OTHERWISE.items()},
        **{f"alike-{name}": {name: value} for name, value in ALIKE.items()},
    }
    trials = [{"name": name.replace("_", "-"), "evaluate": {"max_windows": 4, **how}} for name, how in asked.items()]
    records = run_trials(*trials)
    found = {name: record.stages[-1].evaluation for name, record in records.items()}
    keys = {name: one.comparison_key for name, one in found.items() if one is not None}
    assert len(keys) == len(trials)
    assert {keys[f"alike-{name.replace('_', '-')}"] for name in ALIKE} == {keys["as-most"]}
    different = [key for name, key in keys.items() if not name.startswith("alike-")]
    assert len(set(different)) == len(different)
    assert keys["data"][1:] == keys["as-most"][1:]  # all but the text itself


def methods() -> list[str]:
    return [name for name in (*CRITERIA.names(), *SOLVERS.names()) if not method_entry(name).only_in_training]


def test_the_allocation_that_ran_is_recorded_and_is_what_tables_say_without_a_record(
    run_trials: RunTrials, tmp_path: Path
) -> None:
    calibration = {"windows": 4, "length": 32}
    said = [None, "uniform", "row"]
    trials = [
        {
            "name": f"{method}-{allocation}",
            "stages": [
                {"prune": {"method": method, "sparsity": 0.5, "allocation": allocation, "calibration": calibration}}
            ],
        }
        for method in methods()
        for allocation in said
        if not (allocation == "row" and method in SOLVERS)  # they do not compare scores
    ]
    trials += [
        {
            "name": f"gradual-{method}",
            "stages": [{"finetune": {"prune": {"method": method, "sparsity": 0.5, "calibration": calibration}}}],
        }
        for method in CRITERIA.names()
    ]
    records = run_trials(*trials, evaluate={"skip": True})
    root = Root(tmp_path / "runs")
    for name, record in records.items():
        assert record.state == "finished", record.trace
        stage = record.stages[-1]
        folder = root.attempt("small", name, 1)
        plan = TrialPlan.model_validate_json((folder / "trial.json").read_text()).stages[-1]
        assert stage.allocation == allocation_of(plan) == planned_allocation(plan), name
        masks = load_masks(root.stage(stage.key) / MASKS).masks
        assert masks
        kept = [mask.kept.sum(dim=-1) for mask in masks.values()]  # [rows] each
        by_row = all(bool((rows == rows[0]).all()) for rows in kept)
        assert by_row == (stage.allocation == "row"), name
    assert records["wanda-None"].stages[-1].allocation == "row"
    assert records["magnitude-None"].stages[-1].allocation == "uniform"
