"""PruneGPT from Python gives what the command line gives."""

from pathlib import Path
from typing import Any

import pytest

import prunegpt
from prunegpt import Sweep, run, table
from prunegpt.errors import SpecError, StoreError
from prunegpt.records import TrialResult


def spec(**changes: Any) -> dict[str, Any]:
    """Two trials that need no training but that of the tiny model, which has a few steps."""
    return {
        "name": "notebook",
        "base": {
            "model": "builtin:tiny-gpt2",
            "data": {"path": "builtin:text", "block_size": 128},
            "evaluate": {"max_windows": 4},
        },
        "trials": [
            {"name": "dense"},
            {
                "name": "pruned-{sparsity}",
                "stages": [{"prune": {"sparsity": 0.5}}],
                "vary": {"stages.0.prune.sparsity": [0.5, 0.9]},
            },
        ],
        "tables": [{"title": "T", "rows": ["*"], "columns": ["trial", "sparsity", "perplexity"]}],
        **changes,
    }


def test_the_public_names() -> None:
    assert set(prunegpt.__all__) == {"Sweep", "run", "table", "__version__"}
    assert all(getattr(prunegpt, name) for name in prunegpt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = prunegpt.runn


def test_a_plan_needs_nothing_to_have_run(tmp_path: Path) -> None:
    sweep = Sweep(spec(), root=tmp_path)
    assert [trial.name for trial in sweep.plan.trials] == ["dense", "pruned-0.5", "pruned-0.9"]
    assert sweep.results() == []
    assert sweep.frame().empty
    with pytest.raises(StoreError, match="nothing has run"):
        table("notebook", root=tmp_path)


def test_problems_are_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="unknown key 'modle'"):
        run(spec(base={"modle": "builtin:tiny-gpt2"}), root=tmp_path)
    assert not (tmp_path / "trials").exists()


@pytest.mark.slow
def test_a_sweep_from_a_notebook(tmp_path: Path) -> None:
    heard: list[str] = []
    sweep = run(spec(), root=tmp_path, on_event=lambda event: heard.append(type(event).__name__))
    assert {"SweepStarted", "TrialFinished"} <= set(heard)
    frame = sweep.frame()
    assert list(frame["state"]) == ["finished"] * 3
    assert list(frame["sparsity"].round(3)) == [0.0, 0.5, 0.9]
    assert frame["perplexity"][2] > frame["perplexity"][0]
    stored: TrialResult = sweep.results()[2]
    assert stored.evaluation is not None
    assert frame["perplexity"][2] == stored.evaluation.perplexity
    assert "pruned-0.9" in sweep.table()
    assert sweep.table("csv") == table("notebook", format="csv", root=tmp_path)
    assert sweep.run().unchanged == ("notebook/dense", "notebook/pruned-0.5", "notebook/pruned-0.9")
    assert set(sweep.curves("dense")["name"]) >= {"loss"}
