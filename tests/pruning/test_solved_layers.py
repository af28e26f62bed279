"""One-shot pruning that is stopped and resumed: the same bits as without the stop, whatever the method."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunegpt.errors import Interrupted
from prunegpt.lm.views import block_matrices, select
from prunegpt.pruning.oneshot import OneShotResult, SolvedLayers, prune_oneshot
from prunegpt.pruning.statistics import collect
from prunegpt.registry import CRITERIA, SOLVERS
from tests.support.stopped import same, stopping

METHODS = [
    name
    for registry in (CRITERIA, SOLVERS)
    for name in registry.names()
    if "movement" not in registry.entry(name).needs  # of a training, see its checkpoints
]


@pytest.fixture
def windows() -> Tensor:
    return torch.randint(0, 128, (4, 16), generator=torch.Generator().manual_seed(0))  # [windows, length]


def pruned(model: Any, windows: Tensor, **given: Any) -> tuple[Any, OneShotResult]:
    twin = copy.deepcopy(model)
    views = given.pop("views", block_matrices)(twin)
    return twin, prune_oneshot(twin, views, calibration=windows, **{"sparsity": 0.5, "seed": 3, **given})


def _noting(seen: list[tuple[int, int, str]]) -> Callable[[int, int, str], None]:
    return lambda *event: seen.append(event)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", ["propagate", "dense", "stored", "whole model"])
def test_a_stop_after_any_layer_changes_no_bit(
    tiny_llama: Any, windows: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, way: str
) -> None:
    if way == "whole model":  # as of families whose blocks hand on more than hidden states

        def capture(*_: Any, **__: Any) -> Any:
            raise collect.WalkError("blocks cannot be run by themselves")

        monkeypatch.setattr(collect, "capture", capture)
    given = {"method": method, "propagate": way in ("propagate", "whole model")}
    if way == "stored":
        given["statistics"] = tmp_path / "statistics"
    expected = pruned(tiny_llama, windows, **given)
    layers = len(expected[1].rows)
    assert layers >= 10
    for after in (1, layers // 2, layers // 2 + 1, layers - 1):  # in the middle of a block, and at its end
        folder = tmp_path / f"work-{after}"
        with pytest.raises(Interrupted, match=f"stopped after {after} of {layers} matrices; those are kept"):
            pruned(tiny_llama, windows, **given, solved=SolvedLayers(folder), stop=stopping(after))
        seen: list[tuple[int, int, str]] = []
        progress = _noting(seen)
        assert same(expected, pruned(tiny_llama, windows, **given, solved=SolvedLayers(folder), progress=progress))
        assert [done for done, *_ in seen] == list(range(after, layers + 1))


def test_a_layer_outside_the_blocks_and_masks_of_before(tiny_opt: Any, windows: Tensor, tmp_path: Path) -> None:
    def views(model: Any) -> Any:
        return select(model, targets=["*fc1*", "*project_out*"])

    for propagate in (True, False):
        masks = pruned(tiny_opt, windows, method="magnitude", sparsity=0.2, views=views)[1].masks
        given = {"method": "sparsegpt", "propagate": propagate, "masks": masks, "views": views}
        expected = pruned(tiny_opt, windows, **given)
        for after in range(1, len(expected[1].rows) + 1):
            folder = tmp_path / f"{propagate}-{after}"
            with pytest.raises(Interrupted):
                pruned(tiny_opt, windows, **given, solved=SolvedLayers(folder), stop=stopping(after))
            assert same(expected, pruned(tiny_opt, windows, **given, solved=SolvedLayers(folder)))


def test_many_stops(tiny_gpt2: Any, windows: Tensor, tmp_path: Path) -> None:
    expected = pruned(tiny_gpt2, windows, method="random")
    for _ in range(len(expected[1].rows) - 1):
        with pytest.raises(Interrupted):
            pruned(tiny_gpt2, windows, method="random", solved=SolvedLayers(tmp_path), stop=lambda: True)
    assert same(expected, pruned(tiny_gpt2, windows, method="random", solved=SolvedLayers(tmp_path)))


@pytest.mark.parametrize("damage", ["cut", "changed", "unsealed", "temporary"])
def test_a_checkpoint_that_is_not_whole_is_not_used(
    tiny_gpt2: Any, windows: Tensor, tmp_path: Path, damage: str
) -> None:
    expected = pruned(tiny_gpt2, windows, method="sparsegpt")
    with pytest.raises(Interrupted):
        pruned(tiny_gpt2, windows, method="sparsegpt", solved=SolvedLayers(tmp_path, every=0), stop=stopping(3))
    parts = sorted(tmp_path.iterdir())
    assert [part.name for part in parts] == ["solved-000000", "solved-000001", "solved-000002"]
    tensors = parts[1] / "tensors.safetensors"
    content = tensors.read_bytes()
    if damage == "cut":
        tensors.write_bytes(content[:-1])
    elif damage == "changed":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "unsealed":
        (parts[1] / "files.json").unlink()
    else:
        parts[1].rename(tmp_path / f".{parts[1].name}.tmp")
    solved = SolvedLayers(tmp_path, every=0)
    assert len(solved) == 1
    assert same(expected, pruned(tiny_gpt2, windows, method="sparsegpt", solved=solved))
    assert len(SolvedLayers(tmp_path)) == len(expected[1].rows)  # those after the damaged one were set aside


def test_checkpoints_are_as_far_apart_as_asked(tiny_gpt2: Any, windows: Tensor, tmp_path: Path) -> None:
    clock = iter(range(1000))
    pruned(tiny_gpt2, windows, method="magnitude", solved=SolvedLayers(tmp_path, every=3, clock=lambda: next(clock)))
    assert len(list(tmp_path.iterdir())) < len(block_matrices(tiny_gpt2)) / 2


def test_a_selection_over_all_layers_has_nothing_to_resume(tiny_gpt2: Any, windows: Tensor, tmp_path: Path) -> None:
    given = {"method": "wanda", "allocation": "global", "sparsity": 0.6}
    expected = pruned(tiny_gpt2, windows, **given)
    with pytest.raises(Interrupted, match="matrices; none is kept, as all are pruned at once"):
        pruned(tiny_gpt2, windows, **given, solved=SolvedLayers(tmp_path, every=0), stop=stopping(3))
    assert not list(tmp_path.iterdir())
    assert same(expected, pruned(tiny_gpt2, windows, **given, solved=SolvedLayers(tmp_path)))
