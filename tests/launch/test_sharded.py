"""Several processes that each hold a part of a model come to what one process comes to that holds all of it."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prunegpt.launch.distributed import environment, free_port, run_together
from prunegpt.planning.resolve import plan_data
from prunegpt.registry import CRITERIA, MASK_MODES, SCHEDULES
from prunegpt.root import Root
from prunegpt.spec.sharding import OPTIMIZERS
from prunegpt.trial import run_trial
from tests.support.running import write_attempt
from tests.support.together import check_alike
from tests.support.trained import llama

PATIENCE = 500.0
METHODS = [name for name in CRITERIA.names() if not CRITERIA.entry(name).reads_text(training=True)]
PATTERNS = (("unstructured", "row"), ("unstructured", "global"), ("2:4", "tensor"), ("[4, 2]", "tensor"))  # and scopes
MODES = [name for name in MASK_MODES.names() if MASK_MODES.entry(name).shards]
FEW = [(mode, "magnitude", "unstructured", "tensor", "cubic") for mode in MODES]
ALL = [
    *((mode, method, *pattern, "linear") for mode, method, pattern in product(MODES, METHODS, PATTERNS)),
    *(("projected", "magnitude", "unstructured", "tensor", schedule) for schedule in SCHEDULES.names()),
]
assert FEW
assert METHODS


@pytest.mark.parametrize(
    ("processes", "cases"),
    [(2, FEW), pytest.param(4, ALL, marks=pytest.mark.slow)],
    ids=["two", "four"],
)
def test_masks_of_parts_are_those_of_the_whole(processes: int, cases: list[tuple[str, ...]], tmp_path: Path) -> None:
    """Masks, weights, moments, states and records of updates, and pruned weights are zero in every part."""
    words = [sys.executable, "-m", "tests.support.sharded", str(tmp_path), json.dumps(cases)]
    port = free_port()
    started = [subprocess.Popen(words, env=environment(rank, processes, port)) for rank in range(processes)]
    assert [process.wait(PATIENCE) for process in started] == [0] * processes
    for rank in range(processes):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(found) > len(cases)
        assert {case: wrong for case, wrong in found.items() if wrong} == {}


SGD = {"optim": "sgd", "learning_rate": 0.05}  # Adam divides by what rounding leaves of small gradients
GRADUAL = {"method": "magnitude", "updates": [1, 3, 4]}
TRAININGS: dict[str, dict[str, Any]] = {
    "gradual": {**GRADUAL, "family": "gpt2", "arguments": SGD},
    "distilled": {"teach": True, "fixed": True, "arguments": SGD},
}
MORE: dict[str, dict[str, Any]] = {
    "plain": {"arguments": SGD},
    "tied": {"tied": True, "fixed": True, "arguments": SGD},
    "clipped": {"arguments": {**SGD, "max_grad_norm": 0.1}},
    "checkpointed": {"fixed": True, "arguments": {**SGD, "gradient_checkpointing": True}},
    "kept": {"fixed": True, "arguments": {**SGD, "fsdp_config": {"reshard_after_forward": False}}},
    "chunked": {"chunked": True, "arguments": SGD},
    "bfloat16": {"precision": "bfloat16", "fixed": True, "arguments": SGD},
    "inner terms": {"teach": True, "gains": {"hidden_gain": 1.0, "attention_gain": 1.0}, "arguments": SGD},
    "distilled and pruned": {**GRADUAL, "teach": True, "arguments": SGD},
    "resumed": {**GRADUAL, "stop": 3, "arguments": SGD},
    **{f"mode {mode}": {**GRADUAL, "mode": mode, "arguments": SGD} for mode in MODES},
    **{f"optimizer {name}": {**GRADUAL, "arguments": {"optim": name, "learning_rate": 0.001}} for name in OPTIMIZERS},
}
# Inner terms are relative to the teacher's states in a micro-batch, which four processes divide, with fsdp or without.
DIVISIBLE = {name: case for name, case in {**TRAININGS, **MORE}.items() if "gains" not in case}
LOOSE = {"bfloat16": 1e-3, **{f"optimizer {name}": 2e-3 for name in OPTIMIZERS if name != "sgd"}}  # of weights


def run(folder: Path, processes: int, cases: dict[str, dict[str, Any]]) -> None:
    """Trains all cases, each with `fsdp`; in one process it has no effect."""
    folder.mkdir()
    given = {name: {**case, "arguments": {**case["arguments"], "fsdp": True}} for name, case in cases.items()}
    words, port = [sys.executable, "-m", "tests.support.sharded_fit", str(folder), json.dumps(given)], free_port()
    variables = [environment(rank, processes, port) for rank in range(processes)]
    started = [subprocess.Popen(words, env=one) for one in variables]
    assert [process.wait(PATIENCE) for process in started] == [0] * processes


@pytest.mark.parametrize(
    ("processes", "cases"),
    [
        (2, TRAININGS),
        pytest.param(2, MORE, marks=pytest.mark.slow),
        pytest.param(4, DIVISIBLE, marks=pytest.mark.slow),
    ],
    ids=["two", "more", "four"],
)
def test_a_training_in_parts_is_that_of_a_whole_model(
    processes: int, cases: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Weights, zeros and curves, gradient norms among them."""
    one, several = tmp_path / "one", tmp_path / "several"
    run(one, 1, cases)
    run(several, processes, cases)
    for name in cases:
        weights, parts = (load_file(folder / f"{name}.safetensors") for folder in (one, several))
        assert weights.keys() == parts.keys()
        for tensor, weight in weights.items():
            assert torch.equal(parts[tensor] == 0, weight == 0), (name, tensor)
            close = {"rtol": 0.0, "atol": LOOSE[name]} if name in LOOSE else {"rtol": 1e-4, "atol": 1e-6}
            assert torch.allclose(parts[tensor], weight, **close), (name, tensor)
        found, other = (json.loads((folder / f"{name}.json").read_text()) for folder in (one, several))
        note = f"fsdp: each of {processes} processes held a part of weights, gradients and moments"
        assert (note in found["notes"], note in other["notes"]) == (False, True)
        assert [point[:2] for point in found["points"]] == [point[:2] for point in other["points"]]
        bound = 1e-2 if name in LOOSE else 1e-3
        for mine, theirs in zip(found["points"], other["points"], strict=True):
            assert theirs[2] == pytest.approx(mine[2], rel=bound, abs=1e-6), (name, mine)


@pytest.mark.slow
def test_one_process_resumes_what_two_have_begun(tmp_path: Path) -> None:
    case = {**GRADUAL, "family": "gpt2", "arguments": {"optim": "adamw_torch", "learning_rate": 0.001}}
    folders = {name: tmp_path / name for name in ("undisturbed", "begun", "resumed")}
    run(folders["undisturbed"], 1, {"one": case})
    run(folders["begun"], 2, {"one": {**case, "stop": 3}})
    work = folders["begun"] / "one-work"
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-3"]
    run(folders["resumed"], 1, {"one": {**case, "work": str(work)}})
    weights, resumed = (load_file(folders[name] / "one.safetensors") for name in ("undisturbed", "resumed"))
    steps = [point[0] for point in json.loads((folders["resumed"] / "one.json").read_text())["points"]]
    assert min(steps) == 3  # at which it begins
    for name, weight in weights.items():
        assert torch.equal(resumed[name] == 0, weight == 0), name
        assert torch.allclose(resumed[name], weight, rtol=0.0, atol=2e-3), name


MOVING = {"sparsity": 0.75, "unit": "steps", "start": 1, "end": 6, "every": 1}
CHAIN: list[Any] = [
    "finetune",
    {"prune": {"sparsity": 0.4, "method": "magnitude"}},
    {"finetune": {"prune": MOVING}},
]
TRIALS: list[dict[str, Any]] = [
    {"name": "teacher", "stages": CHAIN},
    {"name": "student", "stages": [{"distill": {"teacher": "teacher", "prune": {**MOVING, "sparsity": 0.5}}}]},
    {"name": "held", "stages": [{"prune": {"sparsity": 0.5}}, "finetune"]},
]


def prepare(root: Root, model: Path, text_files: dict[str, str], **train: Any) -> dict[str, Path]:
    """The attempt folders of all trials under a root."""
    arguments = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.003,
        "logging_steps": 1,
        "optim": "sgd",
        "fsdp": True,
        **train,
    }
    base = {
        "model": str(model),
        "data": {"files": text_files, "block_size": 32, "max_train_blocks": 67},
        "evaluate": {"max_windows": 4},
        "train": arguments,
        "device": "cpu",
    }
    plan = plan_data({"name": "small", "base": base, "trials": TRIALS}, root=root)
    return {trial.name: write_attempt(root, trial) for trial in plan.trials}


@pytest.fixture(params=[False, True], ids=["apart", "tied"])
def model_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    from prunegpt.lm.models import save_model
    from prunegpt.lm.tokenizers import load_tokenizer

    folder = tmp_path / "model"
    save_model(llama(2, 36, heads=2, groups=1, tied=request.param), load_tokenizer("builtin:tiny-gpt2"), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_a_trial_in_parts_comes_to_what_a_whole_one_comes_to(
    processes: int, model_folder: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    """Plain, pruned before and while it is trained, and distilled; 36 rows are no multiple of the processes' shares."""
    one = prepare(Root(tmp_path / "one"), model_folder, text_files)
    several = prepare(Root(tmp_path / "several"), model_folder, text_files)
    for name in one:
        alone, together = run_trial(one[name]), run_together(several[name], processes)
        assert (alone.state, together.state) == ("finished", "finished"), together.trace
        for first, second in zip(alone.stages, together.stages, strict=True):
            assert (first.key, first.steps, first.train_tokens) == (second.key, second.steps, second.train_tokens)
            assert first.sparsity == second.sparsity
        check_alike((one[name], alone), (several[name], together))
