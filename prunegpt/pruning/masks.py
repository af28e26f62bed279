"""The ledger: masks on disk, sparsity counted from the weights, and the checks that nothing drifted.

On disk masks are packed, eight weights per byte, each row padded to whole bytes, in a safetensors file whose metadata
say what the masks are and carry their hash. Tensors that share storage have one mask.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from prunegpt.errors import MaskDriftError, PruningError
from prunegpt.lm.views import WeightView
from prunegpt.pruning.mask import Mask, Masks
from prunegpt.pruning.patterns import Pattern

_METADATA = "prunegpt_masks"


@dataclass(frozen=True)
class MaskFile:
    """Masks as they were saved, and their metadata."""

    masks: Masks
    method: str  # the criterion or solver that chose them
    pattern: str
    target: float | None  # the sparsity asked for; None where the pattern or the weights decided
    achieved: float  # the share of pruned weights in the masks
    step: int | None  # the optimizer step of the last change; None for one-shot pruning
    sha256: str


@dataclass(frozen=True)
class CountedSparsity:
    """Zeros counted from the weights."""

    pruned: float  # share of zeros in the tensors that are pruned
    model: float  # share of zeros in all parameters
    zeros: int  # in the tensors that are pruned
    weights: int
    model_zeros: int
    model_weights: int
    by_tensor: Mapping[str, float]
    by_block: Mapping[int, float]  # decoder layer index -> share of zeros in its pruned tensors


def masks_hash(masks: Mapping[str, Mask]) -> str:
    """The sha256 of names, shapes and bits; the order of the names does not count."""
    return _hash({name: m.packed for name, m in masks.items()}, {name: list(m.shape) for name, m in masks.items()})


def achieved_sparsity(masks: Mapping[str, Mask]) -> float:
    """The share of weights that masks prune; 0 where there are none."""
    return sum(mask.pruned for mask in masks.values()) / max(sum(mask.weights for mask in masks.values()), 1)


def masks_from_zeros(views: Mapping[str, WeightView]) -> dict[str, Mask]:
    """Masks that keep every zero of a model: of the matrices that have any, by parameter name."""
    found = {name: view.matrix != 0 for name, view in views.items()}  # [out, in]
    return {name: Mask(kept) for name, kept in found.items() if not bool(kept.all())}


def save_masks(
    masks: Mapping[str, Mask],
    path: Path,
    *,
    method: str,
    pattern: str = "unstructured",
    target: float | None = None,
    step: int | None = None,
) -> str:
    """Writes masks whole: under a temporary name, synced, renamed.

    Args:
        masks: by parameter name.
        path: the file, usually masks.safetensors.
        method: the criterion or solver that chose them.
        pattern: name of their pattern.
        target: the sparsity asked for.
        step: the optimizer step of the last change.

    Returns:
        The sha256 of the masks, :func:`masks_hash`.
    """
    packed = {name: mask.packed for name, mask in masks.items()}
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    digest = _hash(packed, shapes)
    metadata = {
        "names": sorted(shapes),
        "shapes": shapes,
        "sha256": digest,
        "method": method,
        "pattern": pattern,
        "target": target,
        "achieved": achieved_sparsity(masks),
        "step": step,
    }
    content = save(packed, metadata={_METADATA: json.dumps(metadata, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return digest


def load_masks(path: Path) -> MaskFile:
    """Reads masks and verifies their hash.

    Raises:
        PruningError: there is no such file, or it is not one of masks.
        MaskDriftError: the masks are not those that were saved.
    """
    if not path.exists():
        raise PruningError(f"mask file {path} does not exist. Prune the model, or name its folder.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[_METADATA])
            packed = {name: file.get_tensor(name) for name in metadata["names"]}
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise PruningError(
            f"mask file {path} cannot be read as safetensors with packed masks: {error!r}. It is damaged or something "
            "else: prune again, or restore the file."
        ) from error
    shapes = metadata["shapes"]
    digest = _hash(packed, shapes)
    if digest != metadata["sha256"]:
        raise MaskDriftError(
            f"masks must have the hash they were saved with, {metadata['sha256']}; those in {path} have {digest}. The "
            "file is damaged: prune again, or restore the file."
        )
    return MaskFile(
        masks={name: Mask.unpacked(bits, shapes[name][1]) for name, bits in packed.items()},
        method=metadata["method"],
        pattern=metadata["pattern"],
        target=metadata["target"],
        achieved=metadata["achieved"],
        step=metadata["step"],
        sha256=digest,
    )


def agreement(one: Masks, other: Masks) -> tuple[dict[str, float], float]:
    """The share of weights that two models' masks both keep or both prune: by tensor, and of all.

    Raises:
        PruningError: they are not of the same tensors, or of other shapes.
    """
    wrong = sorted(one.keys() ^ other.keys()) or [name for name in one if one[name].shape != other[name].shape]
    if wrong or not one:
        what = f"{wrong[0]} is of one alone, or of two shapes" if wrong else "there are none"
        raise PruningError(
            f"masks to compare must be of the same tensors; {what}. Compare models that were pruned alike."
        )
    same = {name: int((mask.kept == other[name].kept).sum()) for name, mask in one.items()}
    weights = {name: mask.weights for name, mask in one.items()}
    return {name: count / weights[name] for name, count in same.items()}, sum(same.values()) / sum(weights.values())


def one_per_storage(views: Mapping[str, WeightView]) -> dict[str, WeightView]:
    """The views without those that share storage with an earlier one, so that tied weights are one tensor."""
    seen: set[int] = set()
    unique = {}
    for name, view in views.items():
        pointer = view.matrix.data_ptr()
        if pointer not in seen:
            seen.add(pointer)
            unique[name] = view
    return unique


def measure_sparsity(views: Mapping[str, WeightView], parameters: Mapping[str, Tensor]) -> CountedSparsity:
    """Counts the zeros of a model.

    Args:
        views: the tensors that are pruned.
        parameters: all parameters of the model, `dict(model.named_parameters())`. Storage counts once, whatever its
            names.
    """
    counts: dict[str, tuple[int, int]] = {}  # name -> zeros, weights
    blocks: dict[int, tuple[int, int]] = {}
    inside: dict[int, tuple[int, int]] = {}  # storage of a parameter -> the same, of the views of it
    for name, view in one_per_storage(views).items():
        counts[name] = zeros, weights = _zeros(view.matrix), view.matrix.numel()
        before = inside.get(view.parameter.data_ptr(), (0, 0))
        inside[view.parameter.data_ptr()] = before[0] + zeros, before[1] + weights
        if view.block is not None:
            before = blocks.get(view.block, (0, 0))
            blocks[view.block] = before[0] + zeros, before[1] + weights
    zeros, weights = (sum(column) for column in zip((0, 0), *counts.values(), strict=True))
    model_zeros = model_weights = 0
    for pointer, tensor in {tensor.data_ptr(): tensor.detach() for tensor in parameters.values()}.items():
        counted = inside.get(pointer, (0, 0))  # less than all where some experts of it are pruned
        model_zeros += counted[0] if counted[1] == tensor.numel() else _zeros(tensor)
        model_weights += tensor.numel()
    return CountedSparsity(
        pruned=zeros / max(weights, 1),
        model=model_zeros / max(model_weights, 1),
        zeros=zeros,
        weights=weights,
        model_zeros=model_zeros,
        model_weights=model_weights,
        by_tensor={name: count / max(of, 1) for name, (count, of) in counts.items()},
        by_block={block: count / max(of, 1) for block, (count, of) in sorted(blocks.items())},
    )


def fingerprint(tensor: Tensor) -> str:
    """The sha256 of a tensor's type, shape and bits."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(raw.data)
    return digest.hexdigest()


def fingerprints(parameters: Mapping[str, Tensor], views: Mapping[str, WeightView]) -> dict[str, str]:
    """Fingerprints of all parameters but those that are pruned, under whatever name they share their storage.

    Args:
        parameters: `dict(model.named_parameters())`.
        views: the tensors that are pruned.
    """
    pruned = {view.parameter.data_ptr() for view in views.values()}
    return {name: fingerprint(tensor) for name, tensor in parameters.items() if tensor.data_ptr() not in pruned}


def check(
    views: Mapping[str, WeightView],
    masks: Mapping[str, Mask],
    *,
    pattern: Pattern | None = None,
    untouched: Mapping[str, str] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> None:
    """Verifies that a model is what its masks say.

    Args:
        views: the tensors that are pruned.
        masks: by parameter name; each must have its view.
        pattern: the masks must be of it; None = not checked, as while a sparsity still grows towards N:M.
        untouched: name -> :func:`fingerprint` of tensors that must not have changed. One-shot pruning leaves every
            other tensor alone; training does not, and passes none.
        parameters: where the untouched tensors are looked up, `dict(model.named_parameters())`.

    Raises:
        MaskDriftError: names the tensor, and how many weights are nonzero under its mask, where its pattern is broken,
            or that it changed.
    """
    for name, mask in masks.items():
        if name not in views:
            raise MaskDriftError(
                f"every mask must belong to a weight of the model; there is none called {name!r}. The masks are of "
                "another model, or of other targets."
            )
        matrix = views[name].matrix.detach()  # [out, in]
        if matrix.shape != mask.shape:
            raise MaskDriftError(
                f"a mask must have the shape of its weight; {name} is {list(matrix.shape)} and its mask "
                f"{list(mask.shape)} ([out, in]). The masks are of another model."
            )
        if alive := mask.alive(matrix):
            raise MaskDriftError(
                f"pruned weights must be zero; {name} has {alive} nonzero weights under its mask. Something wrote to "
                "the weights after they were masked."
            )
        if pattern is not None:
            try:
                pattern.check(mask.kept)
            except PruningError as error:
                raise MaskDriftError(f"{name}: {error}") from error
    for name, expected in (untouched or {}).items():
        tensor = (parameters or {}).get(name)
        if tensor is None or fingerprint(tensor) != expected:
            what = "is gone" if tensor is None else "has changed"
            raise MaskDriftError(
                f"a tensor that is not pruned must stay as it was; {name} {what}. Add it to the targets if it was "
                "meant to be pruned."
            )


def _zeros(tensor: Tensor) -> int:
    return tensor.numel() - int(torch.count_nonzero(tensor))


def _hash(packed: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(packed):
        digest.update(f"{name} {shapes[name]}\n".encode())
        digest.update(packed[name].contiguous().numpy().data)
    return digest.hexdigest()
