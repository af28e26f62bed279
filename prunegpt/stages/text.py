"""From a spec's dataset to training sequences, evaluation windows and calibration windows."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunegpt.lm import protocols
from prunegpt.lm.calibration import calibration_windows
from prunegpt.lm.chat import rendered, responses
from prunegpt.lm.data import Packed, Split, pack_training_blocks, read_conversations, read_documents, read_rows
from prunegpt.lm.windows import Prepared, Windows
from prunegpt.planning.inputs import Inputs, text_files
from prunegpt.root import Root
from prunegpt.spec.data import CalibrationPart
from prunegpt.spec.schema import CalibrationSpec, DataSpec, EvaluateSpec
from prunegpt.stages.generate import DOCUMENTS, folder_of

_ANYWHERE = frozenset({"random", "first", "shuffled", "joined"})  # modes that draw from any text with enough tokens
_AMPLE = 16  # characters for each token that are enough text for certain


def _source(data: DataSpec, *names: str) -> dict[str, Any]:
    return data.model_dump(include={"path", "name", "files", "revision", *names})


def _rows(read: Callable[..., Sequence[str]], data: DataSpec, split: str, root: Root) -> Sequence[str]:
    """The rows or documents of plain or generated text."""
    if data.generate is None:
        return read(split=split, **_source(data, "text_column"))
    rows = read(files={split: [folder_of(root, data.generate) / DOCUMENTS]}, split=split, text_column="text")
    prompts = data.generate.prompts
    return rows if prompts is None or prompts.messages is None else Prepared(rows, between="")


def _conversations(data: DataSpec, split: str, tokenizer: PreTrainedTokenizerBase) -> tuple[Sequence[Any], Prepared]:
    """The chat messages of a split, and the text that they are."""
    assert data.messages is not None
    conversations = read_conversations(split=split, messages=data.messages, **_source(data))
    return conversations, rendered(conversations, tokenizer)


def training_blocks(
    data: DataSpec, tokenizer: PreTrainedTokenizerBase, root: Root, inputs: Inputs, loss_on: str = "all"
) -> Packed:
    """Token blocks, memory-mapped from the root's cache, and which of their tokens the loss counts.

    Raises:
        InputError: a file is not what was planned; so say the other functions here.
    """
    with inputs.reading(text_files(data, data.train_split)):
        spans = None
        rows: Sequence[str]
        if data.messages is None:
            rows = _rows(read_rows, data, data.train_split, root)
        else:
            conversations, rows = _conversations(data, data.train_split, tokenizer)
            if loss_on == "responses":
                spans = responses(conversations, rows, tokenizer)
        return pack_training_blocks(rows, tokenizer, data.block_size, folder=root.data, spans=spans)


def evaluation_windows(evaluate: EvaluateSpec, tokenizer: PreTrainedTokenizerBase, inputs: Inputs) -> Windows:
    """What a spec measures on; `data` and `block_size` are filled in by the plan."""
    assert evaluate.data is not None
    assert evaluate.block_size is not None
    cut = {name: getattr(evaluate, name) for name in ("block_size", "stride", "max_windows", "bos")}
    with inputs.reading(text_files(evaluate.data, evaluate.split)):
        if evaluate.data.messages is not None:
            _, rows = _conversations(evaluate.data, evaluate.split, tokenizer)
            return protocols.windows_of(Split(rows, evaluate.data.messages), evaluate.protocol, tokenizer, **cut)
        source = _source(evaluate.data, "text_column")
        return protocols.evaluation_windows(evaluate.protocol, tokenizer, split=evaluate.split, **cut, **source)


def calibration(spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase, inputs: Inputs, root: Root) -> Tensor:
    """Calibration windows of one source after another, int64 [windows, length]; the plan has filled in all fields."""
    found = [_drawn(spec, part, tokenizer, inputs, root) for part in spec.parts]
    return torch.from_numpy(np.concatenate([part for part in found if part is not None]))  # [windows, length]


def check_calibration(spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase, inputs: Inputs, root: Root) -> None:
    """Draws calibration windows where that may fail: not where any part of a long text will do.

    Raises:
        DataError: there is not enough text for them.
    """
    for part in spec.parts:
        _drawn(spec, part, tokenizer, inputs, root, certain=False)


def _drawn(
    spec: CalibrationSpec,
    part: CalibrationPart,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    root: Root,
    *,
    certain: bool = True,
) -> NDArray[np.int64] | None:
    """The calibration windows of one source, [windows, length].

    Args:
        certain: whether they are wanted where they are certain to be there; None otherwise.
    """
    assert spec.length is not None
    assert spec.seed != "trial"
    with inputs.reading(text_files(part.data, part.split)):
        documents: Sequence[str]
        if part.data.messages is None:
            documents = _rows(read_documents, part.data, part.split, root)
        else:
            _, documents = _conversations(part.data, part.split, tokenizer)
        if spec.bos:
            documents = protocols.with_bos(documents, tokenizer)
        enough = _AMPLE * (part.windows + 1) * spec.length
        if not certain and part.mode in _ANYWHERE and any(size >= enough for size in accumulate(map(len, documents))):
            return None
        return calibration_windows(
            documents, tokenizer, windows=part.windows, length=spec.length, seed=spec.seed, mode=part.mode
        )


def mix_notes(spec: CalibrationSpec) -> tuple[str, ...]:
    """What a record should say of a mix of calibration data."""
    if not spec.sources:
        return ()
    return ("calibrated on " + ", ".join(f"{part.windows} windows of {_called(part)}" for part in spec.parts),)


def _called(part: CalibrationPart) -> str:
    data = part.data
    files = ", ".join(Path(name).name for name in (data.files or {}).get(part.split, ()))
    return "its own text" if data.generate else files or f"{data.path} {data.name or ''}".strip()
