"""The block size that nobody gave is the usual one, or all positions of a model with fewer, and stands in the plan."""

from pathlib import Path

import pytest

from tests.support.specs import model_folder, only, problems_of, text_folder, trial_of


@pytest.mark.parametrize(("positions", "expected"), [(64, 64), (1024, 1024), (4096, 1024)])
def test_the_smaller_of_the_two(positions: int, expected: int, tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model", positions=positions)
    base = {"model": str(model), "data": {"path": str(text_folder(tmp_path / "text"))}}
    found = trial_of("finetune", {"prune": {"method": "wanda", "sparsity": 0.5}}, base=base)
    assert found.data.block_size == found.evaluate.block_size == expected
    assert found.stages[1].data is not None
    assert found.stages[1].data.block_size == expected
    assert found.stages[2].prune is not None
    assert found.stages[2].prune.calibration.length == expected
    written = trial_of(
        "finetune",
        {"prune": {"method": "wanda", "sparsity": 0.5}},
        base={**base, "data": {**base["data"], "block_size": expected}},  # type: ignore[dict-item]
    )
    assert [stage.key for stage in written.stages] == [stage.key for stage in found.stages]


def test_a_text_of_a_stage_takes_the_trials(tmp_path: Path) -> None:
    own = {"finetune": {"data": {"path": str(text_folder(tmp_path / "text"))}}}
    found = trial_of(own, base={"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text"}})
    assert found.stages[1].data is not None
    assert found.stages[1].data.block_size == 128


def test_a_size_that_is_given_is_not_made_smaller() -> None:
    base = {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text", "block_size": 1024}}
    assert "must fit the 128 positions" in only(problems_of({"name": "a"}, base=base)).message
