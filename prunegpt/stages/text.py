"""From a spec's dataset to training sequences, evaluation windows and calibration windows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunegpt.lm import protocols
from prunegpt.lm.calibration import calibration_windows
from prunegpt.lm.chat import rendered, responses
from prunegpt.lm.data import Packed, Split, pack_training_blocks, read_conversations, read_documents, read_rows
from prunegpt.lm.windows import Prepared, Windows
from prunegpt.planning.inputs import Inputs, text_files
from prunegpt.root import Root
from prunegpt.spec.schema import CalibrationSpec, DataSpec, EvaluateSpec


def _source(data: DataSpec, *names: str) -> dict[str, Any]:
    return data.model_dump(include={"path", "name", "files", "revision", *names})


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
            rows = read_rows(split=data.train_split, **_source(data, "text_column"))
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


def calibration(spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase, inputs: Inputs) -> Tensor:
    """Calibration windows, int64 [windows, length]; all fields are filled in by the plan."""
    assert spec.data is not None
    assert spec.split is not None
    assert spec.length is not None
    with inputs.reading(text_files(spec.data, spec.split)):
        documents: Sequence[str]
        if spec.data.messages is None:
            documents = read_documents(split=spec.split, **_source(spec.data, "text_column"))
        else:
            _, documents = _conversations(spec.data, spec.split, tokenizer)
        if spec.bos:
            documents = protocols.with_bos(documents, tokenizer)
        windows = calibration_windows(
            documents, tokenizer, windows=spec.windows, length=spec.length, seed=spec.seed, mode=spec.mode
        )
    return torch.from_numpy(windows)  # [windows, length]
