import pytest
import torch

from prunegpt.errors import PruningError
from prunegpt.pruning.patterns import Block, NOfM, Unstructured
from prunegpt.pruning.selection import select_masks
from tests.pruning.reference import keep_by_sorting

SCORES = {
    name: torch.randn(8, 12, generator=torch.Generator().manual_seed(i)) * (i + 1) for i, name in enumerate("abc")
}
HALF = dict.fromkeys(SCORES, 0.5)


def zeros(mask: torch.Tensor) -> int:
    return int((~mask).sum())


def test_tensor_scope_gives_each_its_own_sparsity() -> None:
    masks = select_masks(SCORES, {"a": 0.25, "b": 0.5, "c": 0.0}, pattern=Unstructured())
    assert [zeros(masks[name]) for name in "abc"] == [24, 48, 0]


def test_row_scope_prunes_rows_alike() -> None:
    masks = select_masks(SCORES, HALF, pattern=Unstructured(), scope="row")
    assert all((~mask).sum(dim=1).tolist() == [6] * 8 for mask in masks.values())


def test_global_scope_prunes_more_where_scores_are_lower() -> None:
    masks = select_masks({name: s.abs() for name, s in SCORES.items()}, HALF, pattern=Unstructured(), scope="global")
    counts = [zeros(masks[name]) for name in "abc"]
    assert sum(counts) == 144
    assert counts == sorted(counts, reverse=True)


def test_global_scope_takes_the_mean_of_an_allocation() -> None:
    masks = select_masks(SCORES, {"a": 0.9, "b": 0.3, "c": 0.3}, pattern=Unstructured(), scope="global")
    assert sum(zeros(mask) for mask in masks.values()) == 144


def test_global_scope_compares_blocks_over_tensors() -> None:
    masks = select_masks(SCORES, HALF, pattern=Block(4, 3), scope="global")
    means = torch.cat([SCORES[name].reshape(2, 4, 4, 3).mean(dim=(1, 3)).flatten() for name in "abc"])
    kept = torch.cat([masks[name].reshape(2, 4, 4, 3).float().mean(dim=(1, 3)).flatten() for name in "abc"])
    assert torch.equal(kept.bool(), keep_by_sorting(means, 12))
    assert set(kept.tolist()) == {0.0, 1.0}


def test_global_scope_grows_into_n_of_m() -> None:
    masks: dict[str, torch.Tensor] = {}
    for sparsity in (0.2, 0.4, 0.5):
        grown = select_masks(SCORES, dict.fromkeys(SCORES, sparsity), pattern=NOfM(2, 4), scope="global", masks=masks)
        assert sum(zeros(mask) for mask in grown.values()) == round(288 * sparsity)
        assert not any(bool((grown[name] & ~masks[name]).any()) for name in masks)
        masks = grown
    for name, mask in masks.items():
        assert torch.equal(mask, NOfM(2, 4).select(SCORES[name]))


@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
def test_masks_may_be_missing_and_are_kept_where_they_are_not(scope: str) -> None:
    held = {"b": torch.rand(8, 12, generator=torch.Generator().manual_seed(5)) > 0.2}
    masks = select_masks(SCORES, HALF, pattern=Unstructured(), scope=scope, masks=held)  # type: ignore[arg-type]
    assert not bool((masks["b"] & ~held["b"]).any())


def test_nothing_to_select_from_is_an_error() -> None:
    with pytest.raises(PruningError, match="needs at least one weight, got none"):
        select_masks({}, {}, pattern=Unstructured(), scope="global")
