"""Packed weights: every bit comes back, without PruneGPT too, and a damaged file is refused with what is wrong."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prunegpt.errors import ModelError
from prunegpt.exporting.base import Export
from prunegpt.exporting.packed import PACKED_FOLDER, pack
from prunegpt.exporting.run import run
from prunegpt.lm import unpack
from prunegpt.lm.models import load_model
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.planning.sources import PACKED, tensor_shapes, weight_files
from prunegpt.pruning.mask import Mask
from prunegpt.stages.base import ModelState, Pruned
from tests.support.small import make_model

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weights(dtype: torch.dtype, sparsity: float, *shape: int) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(0)
    value = torch.randn(shape, generator=drawn).to(dtype)
    return value.masked_fill(torch.rand(shape, generator=drawn) < sparsity, 0)  # a product would give -0


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.02, 0.5, 0.99, 1.0])
def test_every_bit_comes_back(dtype: torch.dtype, sparsity: float, tmp_path: Path) -> None:
    odd = weights(dtype, sparsity, 3, 5, 7)
    odd[0, 0, :4] = torch.tensor([float("nan"), float("-inf"), -0.0, torch.finfo(dtype).tiny / 2]).to(dtype)
    tensors = {"matrix": weights(dtype, sparsity, 64, 96), "odd": odd, "one": weights(dtype, sparsity, 1)}
    tensors |= {"turned": weights(dtype, sparsity, 16, 24).T, "none": torch.empty(0, 4, dtype=dtype)}
    pack(tensors, tmp_path / PACKED)
    found = unpack.load(tmp_path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(bits(found[name]), bits(tensor)), name
    assert tensor_shapes(tmp_path, [tmp_path / PACKED]) == {name: tuple(one.shape) for name, one in tensors.items()}


def test_zeros_take_a_bit_and_exponents_less_than_a_byte(tmp_path: Path) -> None:
    """60% of bfloat16: one bit per weight, and of each value its lower byte and about three bits of the upper one."""
    pack({"matrix": weights(torch.bfloat16, 0.6, 512, 512)}, tmp_path / PACKED)
    per_weight = 8 * (tmp_path / PACKED).stat().st_size / 512**2
    assert 1 + 0.4 * 10 < per_weight < 1 + 0.4 * 12


def test_a_file_that_is_larger_than_the_dense_weights_is_said_to_gain_nothing(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "small", layers=1, width=8)  # few weights, and none is zero
    state = ModelState(load_model(folder, device="cpu", dtype="float32"), load_tokenizer(folder), Pruned())
    found = run(PACKED_FOLDER, Export(state, "float16", card="# A card\n"), tmp_path / "packed", replace=False)
    (size,) = (check for check in found.checks if check.what == "size")
    assert float(size.detail.partition("%")[0]) >= 100
    assert "nothing is gained" in size.detail


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_packed_model_is_read_with_and_without_prunegpt(dtype: str, model_folder: Path, tmp_path: Path) -> None:
    model = load_model(model_folder, device="cpu", dtype="float32")
    name = "transformer.h.0.mlp.c_fc.weight"
    weight = model.get_parameter(name).data.T  # [out, in]
    mask = Mask(torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.6, like=weight)
    weight *= mask.kept  # which leaves -0
    state = ModelState(model, load_tokenizer(model_folder), Pruned({name: mask}, "magnitude", "unstructured", 0.6))
    found = run(PACKED_FOLDER, Export(state, dtype, card="# A card\n"), tmp_path / "packed", replace=False)
    assert [check.what for check in found.checks] == ["weights", "logits", "tokenizer", "masks", "size"]
    assert all(check.equal for check in found.checks[:4])
    assert "nothing is gained" not in found.checks[4].detail
    assert [file.name for file in weight_files(tmp_path / "packed")] == [PACKED]
    packed_weight = unpack.read(tmp_path / "packed" / PACKED)[0]["tensors"][name]
    assert packed_weight["count"] == mask.weights - mask.pruned
    expected = {name: value.to(getattr(torch, dtype)) for name, value in model.state_dict().items()}
    read = load_model(tmp_path / "packed", device="cpu", dtype=dtype).state_dict()
    assert all(torch.equal(read[name], value) for name, value in expected.items())

    command = [sys.executable, "-I", "unpack.py", ".", str(tmp_path / "dense")]
    done = subprocess.run(command, cwd=tmp_path / "packed", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    plain = load_file(tmp_path / "dense" / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in plain.items())
    assert "prunegpt" not in {line.split()[1].partition(".")[0] for line in _imports(tmp_path / "packed" / "unpack.py")}


def _imports(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text().splitlines() if line.strip().startswith(("import ", "from "))]


# -- damage ----------------------------------------------------------------------------------------------------------

Header = dict[str, Any]
Change = Callable[[Header, dict[str, Any], bytearray], None]


def changed(path: Path, change: Change) -> None:
    """Rewrites a packed file after a change of its header, of what is listed of its tensors, or of its data."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    about = json.loads(header["__metadata__"]["prunegpt_packed"])
    change(header, about, data)
    if "prunegpt_packed" in header.get("__metadata__", {}):
        header["__metadata__"]["prunegpt_packed"] = json.dumps(about)
    written = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(written)) + written + data)


def entry(**fields: Any) -> Change:
    return lambda header, about, data: about["tensors"]["matrix"].update(fields)


def part(name: str, **fields: Any) -> Change:
    return lambda header, about, data: header[name].update(fields)


def flip(name: str) -> Change:
    """One bit of a part."""

    def change(header: Header, about: dict[str, Any], data: bytearray) -> None:
        data[header[name]["data_offsets"][0]] ^= 1

    return change


def overlap(header: Header, about: dict[str, Any], data: bytearray) -> None:
    begin, end = header["matrix:low"]["data_offsets"]
    header["matrix:low"] = {"dtype": "U8", "shape": [end - begin + 1], "data_offsets": [begin - 1, end]}


DAMAGED: dict[str, tuple[Change | Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "begin with the length of its header; it has 0 bytes"),
    "seven bytes": (lambda content: content[:7], "it has 7 bytes"),
    "cut in the header": (lambda content: content[:40], "its header must be within the file"),
    "cut in the data": (lambda content: content[:-5], "must be within the file, got"),
    "a header of 8 EiB": (lambda content: struct.pack("<Q", 2**63) + content[8:], "its header must be within the file"),
    "bytes behind the end": (lambda content: content + b"\0" * 9, "end with its last part; 9 bytes follow"),
    "not JSON": (lambda content: content[:8] + b"\xff" + content[9:], "its header must be that of a packed model"),
    "another safetensors file": (lambda header, about, data: header["__metadata__"].clear(), "KeyError"),
    "another version": (lambda header, about, data: about.update(version=2), "its version must be 1, got 2"),
    "no list of tensors": (lambda header, about, data: about.update(tensors=[]), "must be listed by name"),
    "overlapping parts": (overlap, "its parts must follow each other"),
    "a part beyond the file": (part("matrix:low", data_offsets=[0, 2**40]), "must be within the file"),
    "a part of negative size": (part("matrix:low", data_offsets=[9, 3]), "must be within the file, got 9 to 3"),
    "a part of another dtype": (part("matrix:low", dtype="F16"), r"must be bytes \(U8\), got F16"),
    "a part of another shape": (part("matrix:low", shape=[7, 7]), r"the shape of its bytes, got \[7, 7\]"),
    "a part too few": (lambda header, about, data: about["tensors"].pop("dense"), "no others; dense:"),
    "an unknown dtype": (entry(dtype="float8"), "the dtype of matrix must be one of float32, .*, got 'float8'"),
    "the wrong dtype": (entry(dtype="float32"), "the values of matrix must have .* bytes, got"),
    "a huge shape": (entry(shape=[2**40, 2**40]), "the bitmask of matrix must have a bit for each"),
    "a negative shape": (entry(shape=[-64, 96]), "the shape of matrix must be a list of counts"),
    "more values than weights": (entry(count=10**6), "the count of matrix must be that of its 6,144 weights at most"),
    "a count that is none": (entry(count=2.5), "the count of matrix .* got 2.5"),
    "fewer values": (entry(count=7), "the values of matrix must have 7 bytes"),
    "a bit of the mask": (flip("matrix:bitmask"), "the SHA-256 they were written with"),
    "a bit of a value": (flip("matrix:low"), "the SHA-256 they were written with"),
    "a bit of what is deflated": (flip("matrix:high"), "the SHA-256 they were written with"),
}
assert len(DAMAGED) >= 20


def packed(folder: Path) -> Path:
    pack({"matrix": weights(torch.bfloat16, 0.5, 64, 96), "dense": weights(torch.bfloat16, 0, 8)}, folder / PACKED)
    return folder / PACKED


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused(damage: Any, message: str, tmp_path: Path) -> None:
    path = packed(tmp_path)
    if damage.__code__.co_argcount == 1:
        path.write_bytes(damage(path.read_bytes()))
    else:
        changed(path, damage)
    with pytest.raises(unpack.PackedError, match=message) as raised:
        unpack.load(tmp_path)
    assert str(raised.value).endswith("Copy or download the file again.")


def test_what_lies_about_its_hash_still_writes_no_more_than_it_has(tmp_path: Path) -> None:
    """A mask with other bits, and deflated bytes of another number, under a SHA-256 that fits them."""
    import hashlib
    import zlib

    bomb = zlib.compress(b"\0" * 10**6)

    def again(header: Header, about: dict[str, Any], data: bytearray) -> None:
        names = sorted(name for name in header if name != "__metadata__")
        digest = hashlib.sha256()
        for name in names:
            begin, end = header[name]["data_offsets"]
            digest.update(name.encode() + data[begin:end])
        about["sha256"] = digest.hexdigest()

    def swollen(header: Header, about: dict[str, Any], data: bytearray) -> None:
        begin, end = header["matrix:high"]["data_offsets"]
        data[begin:end] = bomb
        grown = len(bomb) - (end - begin)
        for item in header.values():
            if "data_offsets" in item and item["data_offsets"][0] >= end:
                item["data_offsets"] = [at + grown for at in item["data_offsets"]]
        header["matrix:high"] = {"dtype": "U8", "shape": [len(bomb)], "data_offsets": [begin, begin + len(bomb)]}

    for fault, message in ((flip("matrix:bitmask"), "bits that are set"), (swollen, "upper bytes of matrix must be")):
        path = packed(tmp_path)
        changed(path, fault)
        changed(path, again)
        with pytest.raises(unpack.PackedError, match=message):
            unpack.load(tmp_path)


def test_a_damaged_export_is_a_model_error(model_folder: Path, tmp_path: Path) -> None:
    state = ModelState(load_model(model_folder, device="cpu"), load_tokenizer(model_folder), Pruned())
    run(PACKED_FOLDER, Export(state, "float32"), tmp_path / "packed", replace=False)
    content = (tmp_path / "packed" / PACKED).read_bytes()
    (tmp_path / "packed" / PACKED).write_bytes(content[:-9])
    with pytest.raises(ModelError, match=r"packed weights .* cannot be read: .*must be within the file"):
        load_model(tmp_path / "packed", device="cpu")
