"""What the loss thinks of the weights: mean, mean square and single gradients over calibration windows."""

import time
from collections.abc import Callable, Mapping
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
        folder: where the single gradients are; None where they were not kept.
        windows: how many there are.
        tokens: of all windows.
    """

    gradient: Mapping[str, Tensor]
    squared_gradient: Mapping[str, Tensor]
    folder: Path | None
    windows: int
    tokens: int

    def samples(self, name: str) -> Tensor:
        """The gradients of one layer, one per window: [windows, out, in], in the type that they were kept in.

        Raises:
            PruningError: single gradients were not kept.
        """
        if self.folder is None:
            raise PruningError(
                f"the single gradients of {name} were not kept. Give gradient_statistics a folder for them."
            )
        found: Tensor | None = None  # [windows, out, in]
        for window in range(self.windows):
            with safe_open(self.folder / _file(window), framework="pt") as tensors:
                one = tensors.get_tensor(name)  # [out, in]
            found = one.new_empty(self.windows, *one.shape) if found is None else found
            found[window] = one
        assert found is not None
        return found


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
        samples: an empty folder for the gradient of each window, one file per window; None = they are not kept.
        sample_dtype: their type there.
        calibrated: called with the windows that are done, and their number.
        kept: where the sums so far are kept from time to time, and from where a pass resumes, to the same bits: of this
            model, these layers and windows alone. Not where single gradients are.
        clock: seconds that only grow.

    Raises:
        PruningError: a loss is not finite.
        Interrupted: `calibrated` said so; the sums are kept.
    """
    parameters = {id(view.parameter): view.parameter for view in views.values()}  # experts share theirs
    device = next(model.parameters()).device
    total = {name: torch.zeros(view.matrix.shape, device=view.matrix.device) for name, view in views.items()}
    squares = {name: torch.zeros_like(tensor) for name, tensor in total.items()}
    sums = _Sums(None if samples else kept, total, squares, clock)
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with evaluating(model), torch.enable_grad():
        try:
            model.requires_grad_(False)
            for parameter in parameters.values():
                parameter.requires_grad_(True)
            for number, window in list(enumerate(windows.to(device)))[sums.windows :]:
                found = samples and samples / _file(number)
                _add(views, _of_window(model, parameters, window, number), total, squares, found, sample_dtype)
                sums.save(number + 1, now=number + 1 == windows.shape[0] and sums.windows > 0)  # of a long pass
                try:
                    calibrated(number + 1, windows.shape[0])
                except Interrupted:
                    sums.save(number + 1, now=True)
                    raise
        finally:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(wanted[name])
    for name in views:
        total[name] /= windows.shape[0]
        squares[name] /= windows.shape[0]
    return GradientStatistics(total, squares, samples, windows.shape[0], windows.numel())


def _of_window(model: nn.Module, parameters: Mapping[int, Tensor], window: Tensor, number: int) -> dict[int, Tensor]:
    """The gradients of one window, by the identity of their parameter; nothing else of its pass stays."""
    passed = model(input_ids=window[None], use_cache=False)
    loss = torch.nn.functional.cross_entropy(passed.logits[0, :-1].float(), window[1:])  # of [length - 1, vocabulary]
    del passed
    if not bool(torch.isfinite(loss)):
        raise PruningError(
            f"the loss of every calibration window must be finite; that of window {number} is {loss.item()}. Run the "
            "model in float32 or bfloat16."
        )
    gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, gradients, strict=True))


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


def _add(
    views: Mapping[str, WeightView],
    gradients: Mapping[int, Tensor],  # by the identity of the parameter
    total: Mapping[str, Tensor],
    squares: Mapping[str, Tensor],
    file: Path | None,
    dtype: torch.dtype,
) -> None:
    kept = {}
    for name, view in views.items():
        matrix = view.oriented(gradients[id(view.parameter)])  # [out, in]
        total[name].add_(matrix)
        squares[name].addcmul_(matrix.float(), matrix.float())
        if file is not None:
            kept[name] = matrix.to("cpu", dtype).contiguous()
    if file is not None:
        save_file(kept, file)


def _file(window: int) -> str:
    return f"window-{window:05d}.safetensors"
