"""Calibration statistics on disk: one folder a model and calibration, read a layer at a time."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prunegpt.errors import PruningError
from prunegpt.lm.views import block_matrices
from prunegpt.pruning.statistics.collect import block_statistics, evaluating
from prunegpt.pruning.statistics.inputs import LayerStatistics
from prunegpt.root import publishing, read_json, seal, whole, write_json

_FORMAT = 3
_INDEX = "statistics.json"


class StatisticsStore:
    """The statistics of a dense model's layers, in a folder.

    Args:
        folder: what :func:`collect_statistics` wrote.

    Raises:
        PruningError: the folder holds no statistics, or such of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            index = read_json(folder / _INDEX)
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise PruningError(
                f"a folder of calibration statistics must hold a readable {_INDEX}; {folder} does not: {error}. Remove "
                "the folder; it is made again."
            ) from error
        if index.get("format") != _FORMAT:
            raise PruningError(
                f"calibration statistics must be of format {_FORMAT}; those in {folder} are of {index.get('format')}. "
                "Remove the folder; it is made again."
            )
        self.key: str = index["key"]
        self.regional: bool = index.get("regional", False)
        self.windows: int = index["windows"]
        self.length: int = index["length"]
        self._layers: dict[str, tuple[str, str]] = {name: (file, group) for name, file, group in index["layers"]}
        self._last: dict[tuple[str, str], LayerStatistics] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The layers, in the order of the model."""
        return tuple(self._layers)

    def layer(self, name: str, device: torch.device | str = "cpu") -> LayerStatistics:
        """The statistics of one layer. Layers with the same input get the same object when read one after the other.

        Raises:
            PruningError: the store does not hold this layer.
        """
        if name not in self._layers:
            raise PruningError(
                f"the statistics in {self.folder} are of {len(self._layers)} layers inside the decoder layers; {name} "
                "is not among them. Prune it with propagate, or leave it out."
            )
        place = self._layers[name]
        found = self._last.get(place)
        if found is None or found.input_norm.device != torch.device(device):
            file, group = place
            with safe_open(self.folder / file, framework="pt") as tensors:
                found = LayerStatistics(
                    input_norm=tensors.get_tensor(f"{group}.input_norm").to(device),
                    input_mean=tensors.get_tensor(f"{group}.input_mean").to(device),
                    gram=tensors.get_tensor(f"{group}.gram").to(device),
                    tokens=int(tensors.get_tensor(f"{group}.tokens")),
                )
            if next(iter(self._last), place)[0] != file:
                self._last.clear()  # one block at a time is held
            self._last[place] = found
        if not self.regional:
            return found
        with safe_open(self.folder / place[0], framework="pt") as tensors:
            return replace(found, regional_gradient=tensors.get_tensor(_regional(name)).to(device))

    def blocks(self, names: Iterable[str], device: torch.device | str = "cpu") -> Iterator[dict[str, LayerStatistics]]:
        """As :func:`~prunegpt.pruning.statistics.collect.block_statistics`: the layers, those of one block together."""
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self._layers.get(name, ("", ""))[0], []).append(name)
        for group in by_file.values():
            yield {name: self.layer(name, device) for name in group}


def statistics_key(model: nn.Module, windows: Tensor, *, regional: bool = False) -> str:
    """A hash of all weights and all calibration tokens: what the statistics depend on.

    Args:
        regional: whether regional gradients are among them.
    """
    kind = " regional" if regional else ""
    digest = hashlib.sha256(f"{_FORMAT} {type(model).__name__} {list(windows.shape)}{kind}".encode())
    digest.update(windows.cpu().contiguous().numpy().tobytes())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()[:32]


def collect_statistics(
    model: nn.Module,
    windows: Tensor,
    folder: Path,
    *,
    regional: bool = False,
    micro_batch: int | None = None,
    offload: bool | None = None,
    calibrated: Callable[[int, int], None] = lambda *_: None,
) -> StatisticsStore:
    """The statistics of all decoder weight matrices of a model: read from a folder, or made there if it has none.

    Args:
        model: a causal language model.
        windows: token ids, int64 [windows, length].
        folder: holds one folder for each model and calibration, named by :func:`statistics_key`.
        regional: whether regional gradients are among them.
        micro_batch: windows at a time; None = by the number of tokens.
        offload: whether hidden states are held on the CPU; None = where the model is on an accelerator.
        calibrated: called with the layers whose statistics are known, and their number.
    """
    key = statistics_key(model, windows, regional=regional)
    if not whole(folder / key, deep=True):
        views = block_matrices(model)
        with publishing(folder / key) as temporary, evaluating(model):
            layers: dict[str, tuple[str, str]] = {}
            parts = block_statistics(
                model,
                views,
                windows,
                gram=True,
                propagate=False,
                regional=regional,
                micro_batch=micro_batch,
                offload=offload,
            )
            for number, part in enumerate(parts):
                layers |= _write_block(part, temporary, f"block-{number:04d}.safetensors")
                calibrated(len(layers), len(views))
            index = {"format": _FORMAT, "key": key, "windows": windows.shape[0], "length": windows.shape[1]}
            index |= {"regional": regional, "layers": [[name, *layers[name]] for name in views]}
            write_json(temporary / _INDEX, index)
            seal(temporary)
    return StatisticsStore(folder / key)


def _write_block(part: Mapping[str, LayerStatistics | None], folder: Path, file: str) -> dict[str, tuple[str, str]]:
    """Writes the statistics of one block, each shared input once; returns the file and group of each layer."""
    groups: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    places = {}
    for name, statistics in part.items():
        assert statistics
        assert statistics.gram is not None
        if statistics.regional_gradient is not None:
            tensors[_regional(name)] = statistics.regional_gradient.cpu().contiguous()
        if id(statistics.gram) not in groups:
            group = groups[id(statistics.gram)] = str(len(groups))
            tensors[f"{group}.gram"] = statistics.gram.cpu()
            tensors[f"{group}.input_norm"] = statistics.input_norm.cpu()
            tensors[f"{group}.input_mean"] = statistics.input_mean.cpu()
            tensors[f"{group}.tokens"] = torch.tensor(statistics.tokens)
        places[name] = (file, groups[id(statistics.gram)])
    save_file(tensors, folder / file)
    return places


def _regional(name: str) -> str:
    """What a file calls the regional gradient of a layer."""
    return f"regional.{name}"
