"""On a CPU, the same spec, seed, versions and number of threads give the same bits."""

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prunegpt.planning.resolve import plan_data
from prunegpt.records import StageRecord
from prunegpt.root import Root
from tests.support.running import run_attempt
from tests.support.small import Run, write_spec


@pytest.fixture
def study(spec: dict[str, Any]) -> dict[str, Any]:
    """All kinds of stages, and the solvers that end in another number of threads with other bits."""
    calibration = {"windows": 8}
    methods = [
        {"name": method, "stages": [{"prune": {"sparsity": 0.6, "method": method, "calibration": calibration}}]}
        for method in ("wanda", "sparsegpt", "admm")
    ]
    return {**spec, "trials": [*spec["trials"], *methods], "tables": []}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_here(study: dict[str, Any], root: Root) -> None:
    """All trials in this process, in spec order, without a coordinator."""
    for trial in plan_data(copy.deepcopy(study), root=root).trials:
        record = run_attempt(root, trial)
        assert record.state == "finished", record.error


def bits(root: Root) -> dict[str, str]:
    """Hashes of all weights, masks and per-window losses, by stage key and file."""
    files = [path for path in root.stages.rglob("*") if path.suffix in (".safetensors", ".npy")]
    return {str(path.relative_to(root.stages)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def threads(root: Root) -> set[int]:
    return {StageRecord.read(path).threads for path in root.stages.glob("*/stage.json")}


def test_twice_in_one_process(study: dict[str, Any], tmp_path: Path) -> None:
    roots = [Root(tmp_path / name) for name in ("first", "second")]
    for seed, root in enumerate(roots):
        torch.manual_seed(seed)  # what ran before must not matter
        run_here(study, root)
    first, second = map(bits, roots)
    assert len({name for name in first if name.endswith("model.safetensors")}) >= 6
    assert len(set(first.values())) > 12
    assert first == second
    assert threads(roots[0]) == {1}


def test_what_is_recorded_is_the_number_that_was_used(study: dict[str, Any], tmp_path: Path) -> None:
    torch.set_num_threads(2)
    run_here({**study, "trials": study["trials"][:1]}, Root(tmp_path / "runs"))
    assert threads(Root(tmp_path / "runs")) == {2}


@pytest.mark.slow
def test_one_slot_and_two_slots(run_program: Run, study: dict[str, Any], tmp_path: Path) -> None:
    study["launcher"] = {"kind": "local", "options": {"threads": 1}}
    path = write_spec(tmp_path / "small.yaml", study)
    roots = [Root(tmp_path / f"slots-{slots}") for slots in (1, 2)]
    for slots, root in enumerate(roots, start=1):
        run_program("sweep", "run", path, "--slots", str(slots), "--root", str(root.path))
        assert threads(root) == {1}
    assert bits(roots[0]) == bits(roots[1])
    here = Root(tmp_path / "here")
    run_here(json.loads(Path(path).read_text()), here)
    assert bits(here) == bits(roots[0])
