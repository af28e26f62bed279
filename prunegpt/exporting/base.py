"""What every export format is given, and what its check reports."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunegpt.errors import PruneGPTError, listed
from prunegpt.lm.modes import evaluation_mode
from prunegpt.stages.base import ModelState

README = "README.md"
_WINDOW = 48  # tokens of a row that logits are compared on, or the model's positions where it has fewer
_PLACES = ("token_id", "token_index")  # how fields of a config end that name special tokens
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "q8_0": 34 / 32}


class ExportError(PruneGPTError):
    """A model that a format cannot hold, or a file that is not what was to be written."""


@dataclass
class Export:
    """One model that is written in a format. The model is in float32 on the CPU; writing may round it to `dtype`."""

    state: ModelState
    dtype: str  # of what is written
    card: str = ""  # README.md
    about: Mapping[str, Any] = field(default_factory=dict)  # export.json
    max_shard_size: str = "50GB"
    code: str | None = None  # hub id or folder of the code that the model brings, where it is trusted
    progress: Callable[[int, int, str], None] = lambda done, total, what: None

    @property
    def model(self) -> PreTrainedModel:
        return self.state.model


@dataclass(frozen=True)
class ExportCheck:
    """One comparison of what was written with the model it was written from."""

    what: str  # weights, logits, tokenizer, ...
    equal: bool  # bit for bit, or token for token
    difference: float | None = None  # the largest, where they are numbers
    detail: str = ""
    share: float = 0.0  # of logits: the root mean square of the difference, of that of the logits around their mean

    def __str__(self) -> str:
        found = "equal" if self.equal else "" if self.difference is None else f"differ by at most {self.difference:.3g}"
        return f"{self.what}: {', '.join(part for part in (found, self.detail) if part)}"


@dataclass(frozen=True)
class ExportFormat:
    """A format that models are exported to.

    Attributes:
        dtypes: of the weights in it; the first is the default. `auto` is the narrowest one that holds every weight.
        suffix: what the name of its file ends with; empty: a folder.
        holds: raises ExportError where it cannot hold a model.
        write: writes the file, or into the folder.
        check: loads what was written and compares; raises ExportError where it is not the model.
    """

    name: str
    dtypes: tuple[str, ...]
    suffix: str
    holds: Callable[[Export], None]
    write: Callable[[Export, Path], None]
    check: Callable[[Export, Path], list[ExportCheck]]


def expected_bytes(model: PreTrainedModel, dtype: str) -> int:
    """About how much a model takes on disk."""
    return int(sum(one.numel() for one in model.parameters()) * _BYTES[dtype])


def narrowest(model: PreTrainedModel) -> str:
    """The narrowest dtype that holds every weight of a model bit for bit."""
    for name in ("bfloat16", "float16"):
        kind = getattr(torch, name)
        if all(torch.equal(one.to(kind).to(one.dtype), one) for one in model.parameters()):
            return name
    return "float32"


def sample_tokens(model: PreTrainedModel, longest: int | None = None) -> Tensor:
    """Tokens that logits are compared on: the same for equal shapes, [2, window]."""
    config = model.config.get_text_config()
    window = min(_WINDOW, getattr(config, "max_position_embeddings", None) or _WINDOW, longest or _WINDOW)
    drawn = torch.Generator().manual_seed(0)
    tokens = torch.randint(int(config.vocab_size), (2, window), generator=drawn)
    fields = {
        **config.to_dict(),
        **model.config.to_dict(),
    }  # of one that sees or hears, some tokens are places of images
    special = [value for name, value in fields.items() if name.endswith(_PLACES) and isinstance(value, int)]
    plain = next(token for token in range(1, int(config.vocab_size)) if token not in special)
    return torch.where(torch.isin(tokens, torch.tensor(special, dtype=tokens.dtype)), plain, tokens)


def compare_logits(model: PreTrainedModel, other: PreTrainedModel, longest: int | None = None) -> ExportCheck:
    """The logits of two models, both in float32, on the same tokens; at most `longest` in a row."""
    tokens = sample_tokens(model, longest)
    with torch.no_grad(), evaluation_mode(model), evaluation_mode(other):
        first, second = (one(input_ids=tokens, use_cache=False).logits.float() for one in (model, other))
    if first.shape != second.shape:
        raise ExportError(
            f"the exported model must have the logits of the model; it gives {list(second.shape)} and the model "
            f"{list(first.shape)}. This is a defect of the exporter: report it."
        )
    difference = (first - second).abs()
    share = float(difference.square().mean().sqrt() / first.std())
    equal = torch.equal(first, second)
    return ExportCheck("logits", equal, float(difference.max()), "" if equal else f"{share:.2g} of their spread", share)


def compare_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> ExportCheck:
    """Tensors by name, bit for bit.

    Raises:
        ExportError: one is missing or differs; the first few are named.
    """
    wrong = [
        name
        for name, tensor in expected.items()
        if name not in found or not torch.equal(_bits(found[name]), _bits(tensor))
    ]
    if wrong:
        raise ExportError(
            f"an export must hold the weights of its model; {listed(wrong, 3)} differ. The disk or memory "
            "may be damaged: export it again."
        )
    return ExportCheck("weights", True, 0.0, f"{len(expected)} tensors")


def _bits(tensor: Tensor) -> Tensor:
    """A tensor as integers, so that NaN equals NaN and 0 is not -0."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(kinds[tensor.element_size()])
