"""What a method uses besides the weights: activations block by block, gradients of the model as it comes."""

import shutil
from collections.abc import Callable, Container, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from prunegpt.lm.views import WeightView
from prunegpt.pruning.statistics.activations import WalkError
from prunegpt.pruning.statistics.collect import block_statistics, unstreamable
from prunegpt.pruning.statistics.gradients import GradientStatistics, gradient_statistics
from prunegpt.pruning.statistics.inputs import LayerStatistics
from prunegpt.pruning.statistics.layerwise import layer_gradients
from prunegpt.pruning.statistics.store import collect_statistics
from prunegpt.registry import ACTIVATIONS, GRADIENTS

SINGLE_ONES = "gradients"  # of all windows: as many times a matrix, which a device need not hold


@dataclass(frozen=True, eq=False)
class Evidence:
    """What there is to know about one layer."""

    view: WeightView
    needs: frozenset[str]
    generator: torch.Generator
    activations: LayerStatistics | None
    gradients: GradientStatistics | None

    @property
    def gram(self) -> Tensor | None:
        """XᵀX, [in, in], where it is known; the same tensor for layers with the same input."""
        return None if self.activations is None else self.activations.gram

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of an expert: that few of the calibration tokens were routed to it, or none."""
        if self.view.expert is None:
            return ()
        if self.unseen:
            return ("no calibration token was routed to this expert: its weights are chosen by magnitude",)
        width = self.view.matrix.shape[1]
        if self.activations is not None and self.activations.tokens < width:
            return (f"{self.activations.tokens} calibration tokens reached this expert, fewer than its {width} inputs",)
        return ()

    @property
    def unseen(self) -> bool:
        """Whether it is an expert that no calibration token was routed to: magnitude decides, whatever the method."""
        if self.view.expert is None:
            return False
        if self.activations is not None:
            return self.activations.tokens == 0
        return self.gradients is not None and not bool(self.gradients.squared_gradient[self.view.name].any())

    def arguments(self, needs: frozenset[str]) -> dict[str, Any]:
        """Those of the keyword arguments that are known, on the device of the layer; single gradients on the host."""
        found: dict[str, Any] = {"generator": self.generator, "gram": self.gram}
        if self.activations is not None:
            found["input_norm"] = self.activations.input_norm
            found["input_mean"] = self.activations.input_mean
            found["input_variance"] = self.activations.input_variance
            found["regional_gradient"] = self.activations.regional_gradient
        if self.gradients is not None:
            found["gradient"] = self.gradients.gradient[self.view.name]
            found["squared_gradient"] = self.gradients.squared_gradient[self.view.name]
            if SINGLE_ONES in self.needs:
                found[SINGLE_ONES] = self.gradients.samples(self.view.name)
        device = self.view.parameter.device
        return {
            need: found[need].to(device) if isinstance(found[need], Tensor) and need != SINGLE_ONES else found[need]
            for need in sorted(self.needs & needs)
        }


def evidence(
    model: nn.Module,
    views: Mapping[str, WeightView],
    windows: Tensor | None,
    *,
    needs: frozenset[str],
    propagate: bool,
    seed: int,
    statistics: Path | None = None,
    micro_batch: int | None = None,
    offload: bool | None = None,
    solved: Container[str] = (),
    calibrated: Callable[[int, int], None] = lambda *_: None,
    kept: Path | None = None,
    scratch: Path | None = None,
    place: torch.device | None = None,
    in_order: bool = False,
) -> Generator[dict[str, Evidence], None, None]:
    """What a method needs, of the layers of one block after the other; of all at once where blocks do not matter.

    The caller may prune the layers of an item before it asks for the next one. Arguments are those of
    :func:`~prunegpt.pruning.oneshot.pipeline.prune_oneshot`, `solved` is that of
    :func:`~prunegpt.pruning.statistics.collect.block_statistics`, as `place`.
    `kept` is a folder for what of gradients an attempt that is stopped leaves to the next one. `scratch` is one for
    what is not kept of them, emptied before and removed after; None = one for temporary files. Blocks come from the
    first to the last where activations are needed or with `in_order`; single gradients otherwise from the last to the
    first, so that those of one block are there at a time.
    """
    generator = torch.Generator().manual_seed(seed)
    in_order = in_order or bool(needs & ACTIVATIONS)
    with _emptied(scratch) if needs & GRADIENTS else nullcontext(Path()) as room:
        gradients: dict[str, GradientStatistics | None] = {}
        if needs & GRADIENTS:
            assert windows is not None
            found = _gradients(
                model,
                views,
                windows,
                room,
                single=SINGLE_ONES in needs,
                in_order=in_order,
                kept=kept,
                place=place,
                solved=solved,
                calibrated=calibrated,
            )
            if SINGLE_ONES in needs and not in_order:
                for part in found:
                    yield {name: Evidence(views[name], needs, generator, None, known) for name, known in part.items()}
                return
            gradients = {name: known for part in found for name, known in part.items()}
        groups: Iterator[Mapping[str, LayerStatistics | None]] = iter([dict.fromkeys(views)])
        if needs & ACTIVATIONS:
            assert windows is not None
            if statistics is not None and not propagate and place is None:
                store = collect_statistics(
                    model,
                    windows,
                    statistics,
                    regional="regional_gradient" in needs,
                    micro_batch=micro_batch,
                    offload=offload,
                    calibrated=calibrated,
                )
                groups = store.blocks(views, next(model.parameters()).device)
            else:
                groups = block_statistics(
                    model,
                    views,
                    windows,
                    gram="gram" in needs,
                    regional="regional_gradient" in needs,
                    propagate=propagate,
                    micro_batch=micro_batch,
                    offload=offload,
                    solved=solved,
                    place=place,
                )
        for group in groups:
            yield {
                name: Evidence(views[name], needs, generator, seen, gradients.get(name)) for name, seen in group.items()
            }


def _gradients(
    model: nn.Module,
    views: Mapping[str, WeightView],
    windows: Tensor,
    room: Path,
    *,
    single: bool,
    in_order: bool,
    kept: Path | None,
    place: torch.device | None,
    solved: Container[str],
    calibrated: Callable[[int, int], None],
) -> Iterator[Mapping[str, GradientStatistics | None]]:
    """The gradients, of one decoder layer after the other where that saves more than the second pass forward costs."""
    samples = room / "single" if single else None
    if place or (single and not in_order):
        try:
            return layer_gradients(
                model,
                views,
                windows,
                kept or room / "layers",
                samples=samples,
                kept=kept is not None,
                place=place,
                solved=solved,
                calibrated=calibrated,
            )
        except WalkError:
            if place:
                raise unstreamable(model) from None
    known = gradient_statistics(model, views, windows, samples=samples, calibrated=calibrated, kept=kept)
    return iter([dict.fromkeys(views, known)])


@contextmanager
def _emptied(folder: Path | None) -> Iterator[Path]:
    """An empty folder while the context lasts, without what an attempt that was killed has left there."""
    if folder is None:
        with TemporaryDirectory(prefix="prunegpt-gradients-") as found:
            yield Path(found)
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
