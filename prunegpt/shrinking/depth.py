"""Which decoder layers stay: by what they change, by what the loss is without them, or by its gradient.

Each choice is a function of a model, calibration windows and the number of layers that go.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from prunegpt.errors import ShrinkError
from prunegpt.lm.device import in_double
from prunegpt.lm.perplexity import evaluate
from prunegpt.lm.views import decoder_blocks
from prunegpt.lm.windows import Windows
from prunegpt.pruning.statistics.activations import micro_batch_of
from prunegpt.pruning.statistics.collect import evaluating
from prunegpt.root import read_json, write_text
from prunegpt.shrinking.cut import bypassed

OnTry = Callable[[int, int], None]  # windows or layers tried, and their total; it may raise to stop


@dataclass(frozen=True)
class LayerScores:
    """What a choice found: the layers that go, and why.

    Attributes:
        dropped: in the order in which they were chosen.
        scores: layer -> how much it matters, of each that could go; see `meaning`.
        meaning: of a score, in words.
    """

    dropped: tuple[int, ...]
    scores: Mapping[int, float]
    meaning: str


def influence(
    model: PreTrainedModel, windows: Tensor, *, drop: int, among: Collection[int], tried: OnTry, folder: Path | None
) -> LayerScores:
    """Drops the layers that change the hidden state least: ShortGPT's block influence.

    BI_i = 1 - E_t[x_t · y_t / (|x_t| |y_t|)], x and y the input and output of layer i at token t (Men et al. 2024,
    arXiv:2403.03853, equation 1). One pass over the windows.
    """
    blocks = decoder_blocks(model)[1]
    sums = torch.zeros(len(blocks), dtype=torch.float64)  # [layers]

    def saw(layer: int, before: Tensor, after: Tensor) -> None:
        alike = F.cosine_similarity(in_double(before), in_double(after), dim=-1)  # [windows, length]
        sums[layer] += alike.sum().cpu()

    with torch.no_grad(), evaluating(model), _watching(blocks, saw):
        _passes(model, windows, tried)
    found = 1 - sums / windows.numel()
    return _least({layer: found[layer].item() for layer in sorted(among)}, drop, "1 - cos of input and output")


def taylor(
    model: PreTrainedModel, windows: Tensor, *, drop: int, among: Collection[int], tried: OnTry, folder: Path | None
) -> LayerScores:
    """Drops the layers without which the loss changes least, to first order.

    With a factor a on what layer i adds, y = x + a · (y_1 - x), the loss changes by dL/da = Σ dL/dy · (y - x) where a
    goes from 1 to 0, and the score is its size over all tokens of the windows, L the mean loss of a token. (Molchanov
    et al. 2019, arXiv:1906.10771, with a gate on a layer; of layers that add a product with a weight it is |Σ g · w| of
    that weight.) One forward and backward pass over the windows; no gradient of a weight is held.
    """
    blocks = decoder_blocks(model)[1]
    sums = torch.zeros(len(blocks), dtype=torch.float64)  # [layers]
    added: list[tuple[int, Tensor, Tensor]] = []

    def saw(layer: int, before: Tensor, after: Tensor) -> None:
        after.retain_grad()
        added.append((layer, (after - before).detach(), after))

    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    predicted = windows.shape[0] * (windows.shape[1] - 1)
    try:
        model.requires_grad_(False)
        model.get_input_embeddings().requires_grad_(True)  # so that there is something to differentiate
        with torch.enable_grad(), evaluating(model), _watching(blocks, saw):

            def backward(logits: Tensor, tokens: Tensor) -> None:
                loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="sum")
                if not torch.isfinite(loss):
                    raise ShrinkError(
                        "layers are scored by a loss that is a number; that of a calibration window is not. Check the "
                        "model, or use choice influence."
                    )
                torch.autograd.backward(loss / predicted)
                for layer, change, after in added:
                    if after.grad is not None:
                        sums[layer] += (in_double(after.grad) * in_double(change)).sum().cpu()
                added.clear()
                model.get_input_embeddings().zero_grad()

            _passes(model, windows, tried, backward, tokens_at_a_time=windows.shape[1])
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])
    found = {layer: abs(sums[layer].item()) for layer in sorted(among)}
    return _least(found, drop, "first-order change of the loss in nats without the layer")


def perplexity(
    model: PreTrainedModel, windows: Tensor, *, drop: int, among: Collection[int], tried: OnTry, folder: Path | None
) -> LayerScores:
    """Drops one layer after the other, each time the one without which the loss on the windows is least.

    SLEB (Song et al. 2024, arXiv:2402.09025, algorithm 1): of the layers that are left each is passed over in turn.
    That takes about drop · layers passes over the windows.

    Args:
        folder: where the losses found so far are kept for the next attempt; None: nowhere.
    """
    known: dict[str, float] = {}  # "gone,…,tried" -> loss
    file = folder / "losses.json" if folder else None
    if file is not None and file.exists():
        known = read_json(file)
    left, gone, text = sorted(among), list[int](), as_windows(windows)
    total, done = sum(len(left) - step for step in range(drop)), 0
    scores: dict[int, float] = {}
    for _ in range(drop):
        losses: dict[int, float] = {}
        for layer in left:
            name = ",".join(map(str, [*gone, layer]))
            if name not in known:
                tried(done, total)
                with _without(model, {*gone, layer}, windows[:1]):
                    known[name] = evaluate(model, text)[0].loss or float("inf")
                if file is not None:
                    write_text(file, json.dumps(known))
            losses[layer] = known[name]
            done += 1
        tried(done, total)
        least = min(losses, key=lambda layer: (losses[layer], layer))
        scores |= losses
        left.remove(least)
        gone.append(least)
    return LayerScores(tuple(gone), dict(sorted(scores.items())), "loss in nats without it and those that went before")


def as_windows(windows: Tensor) -> Windows:
    """Calibration windows as text that perplexity is measured on; all tokens but the first of a window count."""
    count, length = windows.shape
    nothing = np.zeros(count, dtype=np.int64)  # [windows]
    return Windows(
        tokens=windows.cpu().numpy().astype(np.int64).ravel(),
        starts=np.arange(count, dtype=np.int64) * length,
        lengths=nothing + length,
        first_scored=nothing + 1,
        scored_bytes=nothing,
        scored_words=nothing,
        protocol="calibration",
    )


def _least(scores: Mapping[int, float], drop: int, meaning: str) -> LayerScores:
    order = sorted(scores, key=lambda layer: (scores[layer], layer))
    return LayerScores(tuple(order[:drop]), scores, meaning)


def _passes(
    model: PreTrainedModel,
    windows: Tensor,
    tried: OnTry,
    after: Callable[[Tensor, Tensor], None] = lambda *_: None,
    *,
    tokens_at_a_time: int | None = None,
) -> None:
    """Runs the model on all windows; `after` is given the logits and the tokens of each batch."""
    size = micro_batch_of(windows, model.device, None)
    if tokens_at_a_time is not None:
        size = max(1, tokens_at_a_time // windows.shape[1])
    done = 0
    for part in torch.split(windows, size):
        tokens = part.to(model.device)  # [batch, length]
        after(model(input_ids=tokens, use_cache=False).logits, tokens)
        done += len(part)
        tried(done, len(windows))


@contextmanager
def _watching(blocks: nn.ModuleList, saw: Callable[[int, Tensor, Tensor], None]) -> Iterator[None]:
    """`saw` is given each layer's number, input and output while the context lasts."""

    def hook_of(layer: int) -> Any:
        def hook(_module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
            before = given[0] if given else named["hidden_states"]
            saw(layer, before, output if isinstance(output, Tensor) else output[0])

        return hook

    with ExitStack() as hooks:
        for layer, block in enumerate(blocks):
            hooks.enter_context(block.register_forward_hook(hook_of(layer), with_kwargs=True))
        yield


@contextmanager
def _without(model: PreTrainedModel, layers: set[int], window: Tensor) -> Iterator[None]:
    """The model passes over layers, which are not computed where what they return is known to be one tensor."""
    blocks = decoder_blocks(model)[1]
    returned: dict[int, Any] = {}
    with torch.no_grad(), ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(blocks[layer].register_forward_hook(_noting(returned, layer)))
        hooks.enter_context(bypassed(model, layers))
        model(input_ids=window[:, :2].to(model.device), use_cache=False)
    simple = {layer for layer in layers if isinstance(returned[layer], Tensor)}

    def skip(*given: Any, **named: Any) -> Any:
        return given[0] if given else named["hidden_states"]

    with bypassed(model, layers - simple):
        for layer in simple:
            blocks[layer].forward = skip
        try:
            yield
        finally:
            for layer in simple:
                del blocks[layer].forward


def _noting(returned: dict[int, Any], layer: int) -> Any:
    def hook(_module: nn.Module, _given: Any, output: Any) -> None:
        returned[layer] = output

    return hook
