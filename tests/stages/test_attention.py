"""Every model of a chain computes attention as its spec says."""

from pathlib import Path
from typing import Any

import pytest

from prunegpt.lm.models import load_model
from prunegpt.stages import cache
from tests.support.running import RunTrials


def test_every_model_of_a_chain_computes_attention_as_asked(
    run_trials: RunTrials, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def loaded(*given: Any, **options: Any) -> Any:
        asked.append(options["attn_implementation"])
        return load_model(*given, **options)

    monkeypatch.setattr(cache, "load_model", loaded)
    chain = {"name": "pruned", "stages": [{"prune": {"method": "magnitude", "sparsity": 0.5}}]}
    losses = []
    for attention in (None, "sdpa", "eager"):
        model = {"source": str(model_folder), **({"attention": attention} if attention else {})}
        record = run_trials(chain, model=model, attempt=len(losses) + 1)["pruned"]
        assert record.state == "finished", record.trace
        assert set(asked) == {attention}
        asked.clear()
        losses.append([stage.evaluation.loss for stage in record.stages if stage.evaluation])
    usual, sdpa, eager = losses
    assert usual == sdpa
    assert eager == pytest.approx(sdpa, rel=1e-5)
