import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from prunegpt.errors import MaskDriftError, PruningError
from prunegpt.lm.views import WeightView, block_matrices, select
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.masks import (
    achieved_sparsity,
    agreement,
    check,
    fingerprint,
    fingerprints,
    load_masks,
    masks_hash,
    measure_sparsity,
    save_masks,
)
from prunegpt.pruning.patterns import NOfM
from tests.support.toys import Toy, wrapped


def some_masks() -> dict[str, Mask]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": Mask(torch.rand(3, 13, generator=generator) > 0.5),
        "b": Mask(torch.rand(5, 8, generator=generator) > 0.2),
    }


@given(st.integers(1, 4), st.integers(1, 20), st.integers(0, 99))
@settings(deadline=None)
def test_bits_are_little_endian_and_rows_are_whole_bytes(rows: int, columns: int, seed: int) -> None:
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) > 0.5
    packed = Mask(mask).packed
    assert packed.shape == (rows, -(-columns // 8))
    for row in range(rows):
        for column in range(columns):
            assert (int(packed[row, column // 8]) >> (column % 8)) & 1 == int(mask[row, column])
    assert torch.equal(Mask.unpacked(packed, columns).kept, mask)
    transposed = Mask(mask.t().contiguous().t()).packed
    assert torch.equal(transposed, packed)
    assert transposed.is_contiguous()  # as safetensors needs it


def test_a_file_gives_back_masks_and_what_was_said_of_them(tmp_path: Path) -> None:
    path = tmp_path / "new" / "masks.safetensors"
    digest = save_masks(some_masks(), path, method="wanda", pattern="unstructured", target=0.4, step=17)
    read = load_masks(path)
    assert list(read.masks) == list(some_masks())
    assert all(mask.same(some_masks()[name]) for name, mask in read.masks.items())
    assert (read.method, read.pattern, read.target, read.step) == ("wanda", "unstructured", 0.4, 17)
    pruned = sum(int((~mask.kept).sum()) for mask in some_masks().values())
    assert read.achieved == achieved_sparsity(some_masks()) == pruned / 79
    assert read.sha256 == digest == masks_hash(some_masks())
    assert [file.name for file in path.parent.iterdir()] == ["masks.safetensors"]


def test_the_same_masks_are_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    save_masks(some_masks(), tmp_path / "one", method="m")
    save_masks(dict(reversed(some_masks().items())), tmp_path / "two", method="m")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    other = some_masks()
    flipped = other["a"].kept
    flipped[0, 0] ^= True
    other["a"] = Mask(flipped)
    assert masks_hash(other) != masks_hash(some_masks())


def test_a_changed_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    save_masks(some_masks(), path, method="m")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["a"][0, 0] ^= 1
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(MaskDriftError, match=r"must have the hash they were saved with, .* The file is damaged"):
        load_masks(path)


def test_a_file_that_is_cut_or_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    with pytest.raises(PruningError, match=r"mask file .*masks\.safetensors does not exist"):
        load_masks(path)
    save_masks(some_masks(), path, method="m")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(PruningError, match="cannot be read as safetensors with packed masks"):
        load_masks(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(PruningError, match="cannot be read as safetensors with packed masks"):
        load_masks(path)
    save_file({"a": torch.ones(2)}, path, metadata={"prunegpt_masks": json.dumps({"names": ["b"]})})
    with pytest.raises(PruningError, match="cannot be read as safetensors with packed masks"):
        load_masks(path)


def test_agreement_is_the_share_of_equal_bits() -> None:
    one, other = ({"a": torch.rand(4, 8) > 0.5, "b": torch.rand(2, 6) > 0.5} for _ in range(2))
    shares, overall = agreement(*({name: Mask(kept) for name, kept in each.items()} for each in (one, other)))
    same = {name: (one[name] == other[name]).flatten().tolist() for name in one}
    assert shares == {name: sum(bits) / len(bits) for name, bits in same.items()}
    assert overall == sum(map(sum, same.values())) / 44
    with pytest.raises(PruningError, match="masks to compare must be of the same tensors; b is of one alone"):
        agreement({"a": Mask(one["a"])}, {name: Mask(kept) for name, kept in other.items()})
    with pytest.raises(PruningError, match="of the same tensors; there are none"):
        agreement({}, {})


def test_sparsity_is_counted_from_the_weights(toy: Toy) -> None:
    views = toy.views()
    views["first.weight"].matrix[:4] = 0.0  # 24 of 48
    views["second.weight"].matrix[:, 0] = 0.0  # 4 of 32
    toy.head.bias.data[0] = 0.0  # a zero that pruning did not make
    total = sum(parameter.numel() for parameter in toy.parameters())
    found = measure_sparsity(views, dict(toy.named_parameters()))
    assert (found.zeros, found.weights, found.pruned) == (28, 80, 28 / 80)
    assert (found.model_zeros, found.model_weights, found.model) == (29, total, 29 / total)
    assert found.by_tensor == {"first.weight": 0.5, "second.weight": 0.125}
    assert found.by_block == {0: 0.5, 1: 0.125}


def test_tied_weights_count_once(tiny_gpt2: Any) -> None:
    views = select(tiny_gpt2, targets=["lm_head", "transformer.wte"])
    parameters = {**dict(tiny_gpt2.named_parameters()), "lm_head.weight": tiny_gpt2.lm_head.weight}
    found = measure_sparsity(views, parameters)
    assert found.weights == 128 * 32
    assert found.model_weights == sum(parameter.numel() for parameter in tiny_gpt2.parameters())
    view = next(iter(views.values()))
    twice = {view.name: view, "alias": WeightView("alias", view.parameter, view.module, False, None)}
    assert measure_sparsity(twice, parameters).weights == 128 * 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_comes_back_is_named_and_counted(toy: Toy, dtype: torch.dtype) -> None:
    toy.to(dtype)
    views = toy.views()
    masks = {name: view.matrix > 0 for name, view in views.items()}
    for name, view in views.items():
        view.matrix.mul_(masks[name])  # leaves -0.0 where a weight was negative, which is zero too
    check(views, wrapped(masks))
    views["second.weight"].matrix[~masks["second.weight"]] = 0.5
    count = int((~masks["second.weight"]).sum())
    with pytest.raises(MaskDriftError, match=rf"second\.weight has {count} nonzero weights under its mask"):
        check(views, wrapped(masks))
    views["second.weight"].matrix[~masks["second.weight"]] = float("nan")
    with pytest.raises(MaskDriftError, match=rf"second\.weight has {count} nonzero weights under its mask"):
        check(views, wrapped(masks))


def test_nan_that_is_kept_is_no_drift_of_the_mask(toy: Toy) -> None:
    views = toy.views()
    views["first.weight"].matrix[0, 0] = float("nan")
    check(views, wrapped({"first.weight": torch.ones(8, 6, dtype=torch.bool)}))


def test_a_broken_pattern_is_named(toy: Toy) -> None:
    views = toy.views()
    pattern = NOfM(2, 4)
    masks = {"second.weight": pattern.select(views["second.weight"].matrix.abs())}
    views["second.weight"].matrix.mul_(masks["second.weight"])
    check(views, wrapped(masks), pattern=pattern)
    masks["second.weight"][3, 4:] = True
    with pytest.raises(
        MaskDriftError, match=r"second\.weight: 2:4 keeps at most 2 of 4 .* row 3, inputs 4 to 7, with 4"
    ):
        check(views, wrapped(masks), pattern=pattern)


def test_masks_of_another_model_are_refused(toy: Toy) -> None:
    with pytest.raises(MaskDriftError, match=r"there is none called 'third\.weight'"):
        check(toy.views(), wrapped({"third.weight": torch.ones(2, 2, dtype=torch.bool)}))
    with pytest.raises(MaskDriftError, match=r"second\.weight is \[4, 8\] and its mask \[8, 4\]"):
        check(toy.views(), wrapped({"second.weight": torch.ones(8, 4, dtype=torch.bool)}))


def test_a_tensor_that_should_be_untouched_is_named(toy: Toy) -> None:
    views, parameters = toy.views(), dict(toy.named_parameters())
    untouched = fingerprints(parameters, views)
    assert set(untouched) == set(parameters) - set(views)
    views["first.weight"].matrix.zero_()
    check(views, {}, untouched=untouched, parameters=parameters)
    toy.head.weight.data[0, 0] = torch.nextafter(toy.head.weight.data[0, 0], torch.tensor(9.0))
    with pytest.raises(MaskDriftError, match=r"head\.weight has changed"):
        check(views, {}, untouched=untouched, parameters=parameters)
    del parameters["head.weight"]
    with pytest.raises(MaskDriftError, match=r"head\.weight is gone"):
        check(views, {}, untouched=untouched, parameters=parameters)


def test_an_alias_of_a_pruned_tensor_is_not_untouched(tiny_gpt2: Any) -> None:
    views = select(tiny_gpt2, targets=["transformer.wte"])
    parameters = {**dict(tiny_gpt2.named_parameters()), "lm_head.weight": tiny_gpt2.lm_head.weight}
    assert not {"lm_head.weight", "transformer.wte.weight"} & set(fingerprints(parameters, views))
    assert "transformer.wpe.weight" in fingerprints(parameters, views)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_fingerprints_see_type_shape_and_every_bit(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).to(dtype)
    assert fingerprint(tensor) == fingerprint(tensor.clone()) == fingerprint(nn.Parameter(tensor, requires_grad=False))
    other = tensor.clone()
    other[5] += 1
    different = {fingerprint(t) for t in (tensor, other, tensor.reshape(2, 3), tensor.double(), tensor[0])}
    assert len(different) == 5


@pytest.mark.parametrize("family", ["tiny_gpt2", "tiny_llama", "tiny_opt"])
def test_the_ledger_of_a_whole_model(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = request.getfixturevalue(family)
    views = block_matrices(model)
    masks = {name: NOfM(2, 4).select(view.matrix.abs()) for name, view in views.items()}
    untouched = fingerprints(dict(model.named_parameters()), views)
    for name, view in views.items():
        view.matrix.mul_(masks[name])
    save_masks(wrapped(masks), tmp_path / "masks.safetensors", method="magnitude", pattern="2:4", target=0.5)
    read = load_masks(tmp_path / "masks.safetensors")
    check(views, read.masks, pattern=NOfM(2, 4), untouched=untouched, parameters=dict(model.named_parameters()))
    found = measure_sparsity(views, dict(model.named_parameters()))
    assert found.pruned == read.achieved == 0.5
    assert set(found.by_block) == {0, 1}
    assert numpy.allclose(list(found.by_tensor.values()), 0.5)
    assert all(torch.equal(mask, views[name].matrix != 0) for name, mask in masks.items())
