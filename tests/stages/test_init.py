"""`model: {weights: random}`: the same shape from scratch, an ordinary trial whose seed draws the weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel

from prunegpt.planning.resolve import plan_data
from prunegpt.spec.plan import TrialPlan
from tests.support.running import RunTrials


@pytest.fixture
def shape(model_folder: Path, tmp_path: Path) -> Path:
    """A model folder without weights."""
    unweighted = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(model_folder, tmp_path / "shape", ignore=unweighted))


def plans(model: dict[str, Any], *seeds: int, **base: Any) -> list[TrialPlan]:
    data = {"path": "builtin:text", "block_size": 32}
    trials = [{"name": "scratch", "seeds": list(seeds), "stages": ["finetune"]}]
    spec = {"name": "s", "base": {"model": model, "data": data, **base}, "trials": trials}
    return list(plan_data(spec).trials)


def test_weights_are_those_of_the_family_drawn_by_the_seed(run_trials: RunTrials, shape: Path, tmp_path: Path) -> None:
    model = {"source": str(shape), "weights": "random"}
    trained = {"name": "trained", "model": model, "stages": ["finetune"]}
    records = run_trials({"name": "scratch", "seeds": [1, 2], "model": model}, trained)
    assert all(record.state == "finished" for record in records.values()), records
    for seed in (1, 2):
        (stage,) = records[f"scratch@{seed}"].stages
        assert stage.kind == "init"
        assert any("random weights, drawn by seed" in note for note in stage.notes)
        torch.manual_seed(seed)
        expected = GPT2LMHeadModel(AutoConfig.from_pretrained(shape))
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "stages" / stage.key / "model")
        for name, weight in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name], weight), name
    first, last = records["trained"].stages
    assert first.evaluation and last.evaluation  # noqa: PT018
    assert last.evaluation.perplexity < first.evaluation.perplexity  # type: ignore[operator]
    assert last.train_tokens > 0


def test_the_seed_and_the_config_decide_and_the_stored_weights_do_not(model_folder: Path, shape: Path) -> None:
    random = {"source": str(model_folder), "weights": "random"}
    one, two = plans(random, 1, 2)
    assert one.stages[0].key != two.stages[0].key
    assert plans({**random, "source": str(shape)}, 1)[0].key == one.key
    assert not [name for name in one.inputs if name.endswith(".safetensors")]
    stored = plans({"source": str(model_folder)}, 1)[0]
    assert plans({"source": str(model_folder), "weights": "stored"}, 1)[0].key == stored.key != one.key
    assert one.comparison_key == stored.comparison_key  # a control is measured as what it is beside
    (shape / "config.json").write_text((shape / "config.json").read_text().replace('"n_layer": 2', '"n_layer": 1'))
    assert plans({**random, "source": str(shape)}, 1)[0].key != one.key


def test_tables_call_it_random(model_folder: Path) -> None:
    random = {"source": str(model_folder), "weights": "random"}
    assert plans(random, 1)[0].label == f"{model_folder.name}, random weights"
    assert plans({**random, "label": "control"}, 1)[0].label == "control"
    assert plans({"source": "builtin:tiny-gpt2", "weights": "random"}, 1)[0].label == "tiny-gpt2, random weights"


def test_the_built_in_shape_is_drawn_too(run_trials: RunTrials, tmp_path: Path) -> None:
    from prunegpt.builtin.model import build

    model = {"source": "builtin:tiny-gpt2", "weights": "random"}
    record = run_trials({"name": "scratch", "seeds": [5], "model": model})["scratch"]
    weights = load_file(tmp_path / "runs" / "stages" / record.stages[0].key / "model" / "model.safetensors")
    for name, weight in build(5).named_parameters():
        assert torch.equal(weights[name], weight), name


def test_the_random_state_of_the_process_stays(shape: Path) -> None:
    from prunegpt.lm.skeleton import build_random

    before = torch.random.get_rng_state()
    build_random(str(shape), 3)
    assert torch.equal(torch.random.get_rng_state(), before)
