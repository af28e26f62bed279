"""From a spec's dataset to training sequences, evaluation windows and calibration windows."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunegpt.lm import protocols
from prunegpt.lm.calibration import calibration_windows
from prunegpt.lm.data import pack_training_blocks, read_documents, read_rows
from prunegpt.lm.windows import Windows
from prunegpt.planning.inputs import Inputs, text_files
from prunegpt.root import Root
from prunegpt.spec.schema import CalibrationSpec, DataSpec, EvaluateSpec


def _source(data: DataSpec) -> dict[str, Any]:
    return data.model_dump(include={"path", "name", "files", "text_column", "revision"})


def training_blocks(
    data: DataSpec, tokenizer: PreTrainedTokenizerBase, root: Root, inputs: Inputs
) -> np.ndarray[Any, Any]:
    """Token blocks [blocks, block_size], memory-mapped from the root's cache.

    Raises:
        InputError: a file is not what was planned; so say the other functions here.
    """
    with inputs.reading(text_files(data, data.train_split)):
        rows = read_rows(split=data.train_split, **_source(data))
        return pack_training_blocks(rows, tokenizer, data.block_size, folder=root.data)


def evaluation_windows(evaluate: EvaluateSpec, tokenizer: PreTrainedTokenizerBase, inputs: Inputs) -> Windows:
    """What a spec measures on; `data` and `block_size` are filled in by the plan."""
    assert evaluate.data is not None
    assert evaluate.block_size is not None
    with inputs.reading(text_files(evaluate.data, evaluate.split)):
        return protocols.evaluation_windows(
            evaluate.protocol,
            tokenizer,
            split=evaluate.split,
            block_size=evaluate.block_size,
            stride=evaluate.stride,
            max_windows=evaluate.max_windows,
            bos=evaluate.bos,
            **_source(evaluate.data),
        )


def calibration(spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase, inputs: Inputs) -> Tensor:
    """Calibration windows, int64 [windows, length]; all fields are filled in by the plan."""
    assert spec.data is not None
    assert spec.split is not None
    assert spec.length is not None
    with inputs.reading(text_files(spec.data, spec.split)):
        documents = read_documents(split=spec.split, **_source(spec.data))
        if spec.bos:
            documents = protocols.with_bos(documents, tokenizer)
        windows = calibration_windows(
            documents, tokenizer, windows=spec.windows, length=spec.length, seed=spec.seed, mode=spec.mode
        )
    return torch.from_numpy(windows)  # [windows, length]
