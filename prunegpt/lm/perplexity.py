"""Perplexity. Nothing else computes it.

Next-token cross-entropy in nats, shifted, every scored token weighing the same, in evaluation mode, without teacher or
blended term, summed in float64.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel

from prunegpt.errors import ModelError
from prunegpt.lm.modes import evaluation_mode
from prunegpt.lm.windows import Windows
from prunegpt.records import Evaluation, finite

HEAD_ELEMENTS = {"cpu": 2**23, "cuda": 2**26}  # logits that exist at a time, tokens × vocabulary
_CPU_TOKENS = 4096  # tokens a batch on the CPU, where a larger batch is no faster
_MOST_TOKENS = 2**16  # tokens a batch anywhere
PROBE = 16  # tokens on which it is checked that logits are the head of the hidden states


def evaluate(
    model: PreTrainedModel,
    windows: Windows,
    *,
    key: str = "",
    split: str = "",
    batch_size: int | str = "auto",
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Evaluation, NDArray[np.float64]]:
    """Measures a causal language model on windows of text.

    The head is applied to a few tokens at a time, so that no array of tokens × vocabulary exists. A model whose logits
    are more than its head of its hidden states (soft-capped or scaled ones) is run whole, window by window. Training
    mode, gradients and random state are left as they were. The precision is the model's, or that of an autocast around
    the call; losses are float32 of its logits.

    Args:
        model: the model; it is not moved.
        windows: the text, cut by a protocol.
        key: evaluation key of the plan that asks for it.
        split: of the text.
        batch_size: windows at a time, or auto for what the device takes. The result does not depend on it beyond
            rounding.
        device: where the model is, if not where its parameters say.
        progress: called after each batch with the windows done and their total.

    Returns:
        The evaluation, and what is needed to test a difference: [windows, 2], summed nats and scored tokens of each.

    Raises:
        ModelError: a window is longer than the model's positions, or a token is not in its vocabulary.
    """
    started = time.monotonic()
    place = device if device is not None else model.device
    _check_fit(model, windows)
    losses = np.zeros(len(windows), dtype=np.float64)  # [windows]
    longest = int(windows.lengths.max()) + (windows.bos is not None)
    size = _auto_batch_size(model, longest, place) if batch_size == "auto" else int(batch_size)
    with _measuring(model, place):
        head = _separable_head(model, windows, place)
        done = 0
        while done < len(windows):
            batch = _next_batch(windows, done, size)
            try:
                losses[batch] = _window_losses(model, head, windows, batch, place)
            except torch.OutOfMemoryError:
                if batch_size != "auto" or len(batch) == 1:
                    raise
                torch.cuda.empty_cache()
                size = max(1, len(batch) // 2)
                continue
            done = int(batch[-1]) + 1
            if progress is not None:
                progress(done, len(windows))
    total, tokens = float(losses.sum()), int(windows.scored_tokens.sum())
    text_bytes, words = int(windows.scored_bytes.sum()), int(windows.scored_words.sum())
    perplexity = _exp(total / tokens)
    evaluation = Evaluation(
        key=key,
        text=_fingerprint(windows),
        protocol=windows.protocol + _precision(model, place),
        split=split,
        perplexity=finite(perplexity),
        loss=finite(total / tokens),
        bits_per_byte=finite(total / math.log(2) / text_bytes) if text_bytes else None,
        word_perplexity=finite(_exp(total / words)) if words else None,
        tokens=tokens,
        windows=len(windows),
        finite=math.isfinite(perplexity),
        seconds=time.monotonic() - started,
    )
    return evaluation, np.stack([losses, windows.scored_tokens], axis=1)  # [windows, 2]


def _fingerprint(windows: Windows) -> str:
    """What stands for the tokens that are measured on: twelve bytes of a digest of all windows, in hexadecimal."""
    found = hashlib.blake2b(digest_size=12)
    for array in (windows.starts, windows.lengths, windows.first_scored):
        found.update(array.tobytes())
    if windows.bos is not None:
        found.update(f"bos {windows.bos}".encode())
    last = int((windows.starts + windows.lengths).max())
    found.update(np.ascontiguousarray(windows.tokens[:last]).data)
    return found.hexdigest()


def _precision(model: PreTrainedModel, device: torch.device) -> str:
    """What a protocol says of the arithmetic: nothing where it is float32."""
    mixed = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if mixed else model.dtype
    return "" if dtype == torch.float32 else f" {str(dtype).removeprefix('torch.')}"


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _check_fit(model: PreTrainedModel, windows: Windows) -> None:
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    longest = int(windows.lengths.max()) + (windows.bos is not None)
    if isinstance(positions, int) and 0 < positions < longest:
        raise ModelError(
            f"a window must fit the model's {positions} positions; it has {longest} tokens. Set block_size to "
            f"{positions} or less."
        )
    highest = int(windows.tokens.max())
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if highest >= vocabulary:
        raise ModelError(
            f"every token must be in the model's vocabulary of {vocabulary}; the dataset has token {highest}. Use the "
            "tokeniser that the model was trained with."
        )


@contextmanager
def _measuring(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode, no gradients; modes and random state come back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices), evaluation_mode(model):
        yield


def _separable_head(model: PreTrainedModel, windows: Windows, device: torch.device) -> nn.Module | None:
    """The head, where the model's logits are exactly that of its last hidden states; None where they are more."""
    head = model.get_output_embeddings()
    body = model.base_model
    if head is None or body is model:
        return None
    start = int(windows.starts[0])
    tokens = torch.from_numpy(np.array(windows.tokens[start : start + min(PROBE, int(windows.lengths[0]))]))
    ids = tokens.to(device)[None]  # [1, tokens]
    whole = model(input_ids=ids, use_cache=False).logits  # [1, tokens, vocab]
    try:
        parts = head(body(input_ids=ids, use_cache=False).last_hidden_state)  # [1, tokens, vocab]
    except (AttributeError, RuntimeError, TypeError):  # another kind of body; the whole model works
        return None
    return head if torch.equal(torch.nan_to_num(whole), torch.nan_to_num(parts)) else None


def _next_batch(windows: Windows, start: int, size: int) -> NDArray[np.int64]:
    """Indices of the next windows of one length, at most `size`."""
    stop = start + 1
    while stop < min(start + size, len(windows)) and windows.lengths[stop] == windows.lengths[start]:
        stop += 1
    return np.arange(start, stop)


def _window_losses(
    model: PreTrainedModel, head: nn.Module | None, windows: Windows, batch: NDArray[np.int64], device: torch.device
) -> NDArray[np.float64]:
    """Summed nats of the scored tokens of each window of a batch, [batch]."""
    length = int(windows.lengths[batch[0]])
    at = windows.starts[batch][:, None] + np.arange(length)  # [batch, length]
    ids = torch.from_numpy(np.ascontiguousarray(windows.tokens[at])).to(device)  # [batch, length]
    scored = np.arange(length) >= windows.first_scored[batch][:, None]  # [batch, length]
    if windows.bos is not None:
        ids = pad(ids, (1, 0), value=windows.bos)  # [batch, 1 + length]
        scored = np.pad(scored, ((0, 0), (1, 0)))  # [batch, 1 + length]
    rows, positions = (torch.from_numpy(index).to(device) for index in np.nonzero(scored))  # [scored] each
    labels = ids[rows, positions]  # [scored]
    vocabulary = model.config.get_text_config().vocab_size
    if head is not None:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # [batch, length, width]
        nats = _chunked_nats(hidden[rows, positions - 1], labels, head, vocabulary)  # [scored]
    else:
        found = []
        for row in range(len(batch)):
            logits = model(input_ids=ids[row : row + 1], use_cache=False).logits[0]  # [length, vocab]
            here = rows == row  # [scored]
            found.append(_chunked_nats(logits[positions[here] - 1], labels[here], None, vocabulary))
        nats = torch.cat(found)  # [scored]
    sums: NDArray[np.float64] = np.zeros(len(batch), dtype=np.float64)  # [batch]
    np.add.at(sums, rows.cpu().numpy(), nats.cpu().double().numpy())
    return sums


def _chunked_nats(states: Tensor, labels: Tensor, head: nn.Module | None, vocabulary: int) -> Tensor:
    """Cross-entropy of each token in nats, [tokens], float32, some tokens at a time.

    Args:
        states: hidden states [tokens, width] to which `head` is applied, or logits [tokens, vocab] without one.
        labels: [tokens].
        head: hidden states to logits.
        vocabulary: logits a token.
    """
    elements = HEAD_ELEMENTS.get(states.device.type, HEAD_ELEMENTS["cpu"])
    step = max(1, elements // vocabulary)
    nats = []
    for start in range(0, len(labels), step):
        part = states[start : start + step]
        logits = part if head is None else head(part)  # [step, vocab]
        nats.append(cross_entropy(logits.float(), labels[start : start + step], reduction="none"))  # [step]
    return torch.cat(nats)  # [tokens]


def _auto_batch_size(model: PreTrainedModel, length: int, device: torch.device) -> int:
    """Windows that fit: by the free memory of a CUDA device, by what keeps a CPU busy elsewhere."""
    tokens = _CPU_TOKENS
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        width = model.config.get_text_config().hidden_size
        per_token = 64 * width * model.dtype.itemsize  # one block's activations, generously
        tokens = min(_MOST_TOKENS, free // 4 // per_token)
    return max(1, int(tokens) // length)
