"""Statistics on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.lm.views import block_matrices
from prunegpt.pruning.statistics import StatisticsStore, block_statistics, collect_statistics, statistics_key

Make = Callable[[str], Any]


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_what_is_read_is_what_was_collected(make_model: Make, windows: Tensor, tmp_path: Path, family: str) -> None:
    model = make_model(family)
    store = collect_statistics(model, windows, tmp_path)
    assert store.names == tuple(block_matrices(model))
    assert (store.windows, store.length, store.key) == (5, 12, statistics_key(model, windows))
    for part in block_statistics(model, block_matrices(model), windows, gram=True, propagate=False):
        for name, expected in part.items():
            found = store.layer(name)
            assert torch.equal(found.gram, expected.gram)
            assert torch.equal(found.input_norm, expected.input_norm)
            assert torch.equal(found.input_mean, expected.input_mean)
            assert found.tokens == expected.tokens == windows.numel()


def test_the_model_is_not_run_again(make_model: Make, windows: Tensor, tmp_path: Path) -> None:
    model = make_model("llama")
    calls = []
    model.model.layers[0].register_forward_pre_hook(lambda module, args: calls.append(1))
    first = collect_statistics(model, windows, tmp_path)
    assert calls
    calls.clear()
    assert collect_statistics(model, windows, tmp_path).folder == first.folder
    assert not calls
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "block-0000.safetensors",
        "block-0001.safetensors",
        "files.json",
        "statistics.json",
    ]


def test_other_weights_or_other_text_are_another_key(make_model: Make, windows: Tensor, tmp_path: Path) -> None:
    model = make_model("gpt2")
    keys = [statistics_key(model, windows), statistics_key(model, windows[:4]), statistics_key(model, windows + 1)]
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] += 1e-3
    keys.append(statistics_key(model, windows))
    assert len(set(keys)) == 4
    assert keys[3] == statistics_key(model, windows)


def test_a_half_precision_model_has_a_key_too(make_model: Make, windows: Tensor) -> None:
    assert len(statistics_key(make_model("gpt2").bfloat16(), windows)) == 32


def test_layers_are_grouped_by_block_and_share_what_they_shared(
    make_model: Make, windows: Tensor, tmp_path: Path
) -> None:
    model = make_model("llama")
    store = collect_statistics(model, windows, tmp_path)
    parts = list(store.blocks(store.names))
    assert [len(part) for part in parts] == [7, 7]
    for part in parts:
        kinds = {name.split(".")[-2]: statistics for name, statistics in part.items()}
        assert kinds["q_proj"] is kinds["k_proj"] is kinds["v_proj"]
        assert kinds["gate_proj"] is kinds["up_proj"]
        assert kinds["q_proj"] is not kinds["o_proj"]


def test_a_failure_leaves_nothing_behind(make_model: Make, windows: Tensor, tmp_path: Path) -> None:
    model = make_model("gpt2")

    def fail(module: Any, args: Any) -> None:
        raise RuntimeError("power cut")

    model.transformer.h[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="power cut"):
        collect_statistics(model, windows, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_store_is_said_to_be_none(make_model: Make, windows: Tensor, tmp_path: Path) -> None:
    with pytest.raises(PruningError, match=r"must hold a readable statistics.json; .* Remove the folder"):
        StatisticsStore(tmp_path / "nothing")
    store = collect_statistics(make_model("gpt2"), windows, tmp_path)
    with pytest.raises(PruningError, match=r"are of 8 layers inside the decoder layers; lm_head.weight is not"):
        store.layer("lm_head.weight")
    with pytest.raises(PruningError, match=r"lm_head.weight is not among them"):
        list(store.blocks(["lm_head.weight"]))
    index = json.loads((store.folder / "statistics.json").read_text())
    (store.folder / "statistics.json").write_text(json.dumps(index | {"format": 99}))
    with pytest.raises(PruningError, match=r"must be of format 3; those in .* are of 99"):
        StatisticsStore(store.folder)
    (store.folder / "statistics.json").write_text("[" * 200_000)
    with pytest.raises(PruningError, match=r"must hold a readable statistics.json; .* nested too deep"):
        StatisticsStore(store.folder)
