"""Layers that are solved, on disk: one-shot pruning that was stopped resumes after them, to the same bits."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunegpt.pruning.choose import Groups
from prunegpt.pruning.evidence import Evidence
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.oneshot.result import LayerRow
from prunegpt.root import publishing, read_json, seal, whole, write_json

CHECKPOINT_SECONDS = 30.0
_TENSORS, _ROWS = "tensors.safetensors", "rows.json"


class SolvedLayers:
    """The weights and masks of the layers that are solved so far, in the order in which they were.

    They are written some at a time, each time as a sealed folder that appears whole: what a crash or a full disk cut
    is not there, and what was changed since counts as not there, with all that followed it.

    Args:
        folder: holds the checkpoints of this pruning alone; None = none are written.
        every: seconds between two of them; 0 = after each layer.
    """

    def __init__(
        self, folder: Path | None, *, every: float = CHECKPOINT_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._every, self._clock = folder, every, clock
        self._saved = clock()
        self._generator: torch.Generator | None = None  # of the method
        self._new: list[tuple[LayerRow, Tensor, Tensor]] = []  # since the last checkpoint
        self._places: dict[str, tuple[Path, int, LayerRow]] = {}  # by layer: checkpoint, place in it, row
        while folder is not None and whole(part := self._part(folder), deep=True):
            rows = read_json(part / _ROWS)
            self._places |= {row["name"]: (part, place, _row(row)) for place, row in enumerate(rows)}

    def _part(self, folder: Path) -> Path:
        """The checkpoint that follows those that are known; named by how many layers came before it."""
        return folder / f"solved-{len(self._places):06d}"

    def beside(self, name: str) -> Path | None:
        """A folder for what else this pruning keeps; None where nothing is kept."""
        return None if self._folder is None else self._folder / name

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def add(self, row: LayerRow, matrix: Tensor, mask: Tensor) -> None:
        """Takes note of a layer that was solved.

        Args:
            matrix: its weights, [out, in], which nobody changes any more.
            mask: bool [out, in], True = kept.
        """
        if self._folder is not None:
            self._new.append((row, matrix, mask))

    def save(self, *, now: bool = False) -> None:
        """Writes what is new, if a checkpoint is due or wanted now."""
        due = now or self._clock() - self._saved >= self._every
        if self._folder is None or self._generator is None or not self._new or not due:
            return
        tensors = {"generator": self._generator.get_state()}
        for place, (_, weight, kept) in enumerate(self._new):
            tensors[f"{place}.weight"] = weight.detach().cpu().contiguous()  # [out, in]
            tensors[f"{place}.mask"] = Mask(kept).packed
        with publishing(part := self._part(self._folder), replace=True) as folder:
            save_file(tensors, folder / _TENSORS)
            write_json(folder / _ROWS, [asdict(one) for one, _, _ in self._new])
            seal(folder)
        self._places |= {one.name: (part, place, one) for place, (one, _, _) in enumerate(self._new)}
        self._new.clear()
        self._saved = self._clock()

    def unsolved(
        self, groups: Groups, restored: Callable[[LayerRow, Tensor], None]
    ) -> Iterator[Mapping[str, Evidence]]:
        """The layers that are still to be solved, group after group.

        Those that an earlier attempt has solved get their weights when their group comes, not before: until then it
        may have been run as it was. `restored` is given their rows, and their masks, bool [out, in].
        """
        known = dict(self._places)
        for group in groups:
            for name, found in group.items():
                self._generator = found.generator
                if name in known:
                    restored(*_restore(*known[name], found))
            yield {name: found for name, found in group.items() if name not in known}


def _restore(folder: Path, place: int, row: LayerRow, found: Evidence) -> tuple[LayerRow, Tensor]:
    matrix = found.view.matrix  # [out, in]
    with safe_open(folder / _TENSORS, framework="pt") as tensors:
        matrix.copy_(tensors.get_tensor(f"{place}.weight"))
        mask = Mask.unpacked(tensors.get_tensor(f"{place}.mask"), matrix.shape[1]).kept  # [out, in]
        found.generator.set_state(tensors.get_tensor("generator"))  # of its checkpoint; that of the last one counts
    return row, mask


def _row(found: Mapping[str, Any]) -> LayerRow:
    lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}  # JSON has no tuples
    return LayerRow(**{**found, **lists})
