"""What the loss thinks of the weights: mean, mean square and single gradients over calibration windows."""

import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prunegpt.errors import Interrupted, PruningError
from prunegpt.lm.views import WeightView
from prunegpt.pruning.statistics.collect import evaluating
from prunegpt.root import publishing, read_json, seal, whole, write_json

KEEP_SECONDS = 30.0  # between two writings of the sums of a pass
_SUMS, _WINDOWS = "sums.safetensors", "windows.json"


@dataclass(frozen=True, eq=False)
class GradientStatistics:
    """Gradients of the mean next-token cross-entropy of a window, over the calibration windows.

    Attributes:
        gradient: layer name -> their mean, float32 [out, in].
        squared_gradient: layer name -> the mean of their squares, float32 [out, in].
        single: layer name -> one per window, [windows, out, in], on the host, in files; None: they were not kept.
        windows: how many there are.
        tokens: of all windows.
    """

    gradient: Mapping[str, Tensor]
    squared_gradient: Mapping[str, Tensor]
    single: Mapping[str, Tensor] | None
    windows: int
    tokens: int

    def samples(self, name: str) -> Tensor:
        """The gradients of one layer, one per window: [windows, out, in], in the type that they are kept in.

        Raises:
            PruningError: single gradients were not kept.
        """
        if self.single is None:
            raise PruningError(
                f"the single gradients of {name} were not kept. Give gradient_statistics a folder for them."
            )
        return self.single[name]


def gradient_statistics(
    model: nn.Module,
    views: Mapping[str, WeightView],
    windows: Tensor,
    *,
    samples: Path | None = None,
    sample_dtype: torch.dtype = torch.bfloat16,
    calibrated: Callable[[int, int], None] = lambda *_: None,
    kept: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> GradientStatistics:
    """Runs the model forward and backward on each window. Its weights, gradients and mode are left as they were.

    Args:
        model: a causal language model.
        views: the layers whose gradients are wanted.
        windows: token ids, int64 [windows, length], length at least 2.
        samples: a folder for the gradients of each window, one file per layer; None = they are not kept.
        sample_dtype: their type there.
        calibrated: called with the windows that are done, and their number.
        kept: where the sums so far are kept from time to time, and from where a pass resumes, to the same bits: of this
            model, these layers and windows alone. Not where single gradients are.
        clock: seconds that only grow.

    Raises:
        PruningError: a loss is not finite.
        Interrupted: `calibrated` said so; the sums are kept.
    """
    device = next(model.parameters()).device
    found = Gathered(views, windows, samples, sample_dtype)
    sums = _Sums(None if samples else kept, found.total, found.squares, clock)
    with evaluating(model), wanting(model, found.parameters), torch.enable_grad():
        for number, window in list(enumerate(windows.to(device)))[sums.windows :]:
            loss = loss_of(model, window, number)
            found.add(number, torch.autograd.grad(loss, found.parameters, materialize_grads=True))
            del loss
            sums.save(number + 1, now=number + 1 == windows.shape[0] and sums.windows > 0)  # of a long pass
            try:
                calibrated(number + 1, windows.shape[0])
            except Interrupted:
                sums.save(number + 1, now=True)
                raise
    return found.statistics()


@contextmanager
def wanting(model: nn.Module, parameters: Collection[Tensor]) -> Iterator[None]:
    """These parameters of the model alone require gradients while the context lasts."""
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])


def loss_of(model: nn.Module, window: Tensor, number: int) -> Tensor:
    """The mean next-token cross-entropy of a window, []; `window` is int64 [length].

    Raises:
        PruningError: it is not finite.
    """
    passed = model(input_ids=window[None], use_cache=False)
    loss = torch.nn.functional.cross_entropy(passed.logits[0, :-1].float(), window[1:])  # of [length - 1, vocabulary]
    if not bool(torch.isfinite(loss)):
        raise PruningError(
            f"the loss of every calibration window must be finite; that of window {number} is {loss.item()}. Run the "
            "model in float32 or bfloat16."
        )
    return loss


class Gathered:
    """Sums of the gradients of some layers, and single ones in files.

    Args:
        views: the layers.
        windows: [windows, length].
        samples: a folder for single gradients; None = they are not kept.
        dtype: their type there.
    """

    def __init__(
        self,
        views: Mapping[str, WeightView],
        windows: Tensor,
        samples: Path | None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self._views, self._windows = views, windows
        by_identity = {id(view.parameter): view.parameter for view in views.values()}  # experts share theirs
        self.parameters = [*by_identity.values()]
        self._places = {known: place for place, known in enumerate(by_identity)}
        self.total = {name: torch.zeros(view.matrix.shape, device=view.matrix.device) for name, view in views.items()}
        self.squares = {name: torch.zeros_like(tensor) for name, tensor in self.total.items()}
        self._single: dict[str, Tensor] | None = None
        if samples:
            samples.mkdir(parents=True, exist_ok=True)
            self._single = {
                name: mapped(samples / f"{place:05d}", (windows.shape[0], *view.matrix.shape), dtype, new=True)
                for place, (name, view) in enumerate(views.items())
            }

    def add(self, window: int, gradients: Sequence[Tensor]) -> None:
        """Adds the gradients of a window, in the order of `parameters`, each of its parameter's shape."""
        for name, view in self._views.items():
            matrix = view.oriented(gradients[self._places[id(view.parameter)]])  # [out, in]
            self.total[name].add_(matrix)
            self.squares[name].addcmul_(matrix.float(), matrix.float())
            if self._single:
                self._single[name][window].copy_(matrix)

    def statistics(self) -> GradientStatistics:
        """What they come to; sums become means in place."""
        count = self._windows.shape[0]
        for sums in (self.total, self.squares):
            for matrix in sums.values():
                matrix /= count
        return GradientStatistics(self.total, self.squares, self._single, count, self._windows.numel())


def mapped(file: Path, shape: Sequence[int], dtype: torch.dtype, *, new: bool) -> Tensor:
    """A tensor on the host that is the content of a file.

    Args:
        new: whether the file is made, with zeros; else it is there.

    Raises:
        OSError: there is no room for it.
        PruningError: the file is not there, or not as it was written.
    """
    size = math.prod(shape)
    if new:
        file.unlink(missing_ok=True)  # who has it mapped still reads what it was
        with file.open("xb") as opened:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and not a signal at some later write
                os.posix_fallocate(opened.fileno(), 0, size * dtype.itemsize)
    elif (there := file.stat().st_size if file.is_file() else None) != size * dtype.itemsize:
        raise PruningError(
            f"{file} must stay as it was written while a pass of gradients runs: {size * dtype.itemsize} bytes, got "
            f"{'no file' if there is None else there}. Leave the work folder alone, and run the same again."
        )
    return torch.from_file(str(file), shared=True, size=size, dtype=dtype).view(*shape)


class _Sums:
    """The sums of a gradient pass on the disk; a sealed folder that appears whole.

    Args:
        folder: None = nothing is kept.
        total, squares: layer name -> sum, [out, in]; filled with what an earlier pass has kept.
    """

    def __init__(
        self,
        folder: Path | None,
        total: Mapping[str, Tensor],
        squares: Mapping[str, Tensor],
        clock: Callable[[], float],
    ) -> None:
        self._folder, self._clock, self._saved = folder, clock, clock()
        self._sums = {f"{kind}.{name}": sum for kind, of in (("g", total), ("g2", squares)) for name, sum in of.items()}
        self.windows = 0  # that are in the sums
        if folder is not None and whole(folder, deep=True):
            self.windows = int(read_json(folder / _WINDOWS)["windows"])
            with safe_open(folder / _SUMS, framework="pt") as tensors:
                for name, sum in self._sums.items():
                    sum.copy_(tensors.get_tensor(name))

    def save(self, windows: int, *, now: bool = False) -> None:
        """Writes them if that is due or wanted now."""
        if self._folder is None or windows == self.windows:
            return
        if now or self._clock() - self._saved >= KEEP_SECONDS:
            with publishing(self._folder, replace=True) as folder:
                save_file({name: sum.cpu().contiguous() for name, sum in self._sums.items()}, folder / _SUMS)
                write_json(folder / _WINDOWS, {"windows": windows})
                seal(folder)
            self.windows, self._saved = windows, self._clock()
