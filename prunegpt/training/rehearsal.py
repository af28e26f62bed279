"""Whether the trainer takes training arguments, on this machine: two steps of a tiny model, by the code of a stage."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer

from prunegpt.errors import ModelError
from prunegpt.lm.blocks import Blocks
from prunegpt.lm.device import pick_device, pick_dtype
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.masks import masks_hash
from prunegpt.spec.training_arguments import precision_problem
from prunegpt.training.job import TrainingJob
from prunegpt.training.run import train, training_arguments

_STEPS = 2
_VOCABULARY = 16
_LENGTH = 8  # tokens of a block
_COMPILING = frozenset({"torch_compile", "torch_compile_backend", "torch_compile_mode"})
# What arguments raise that cannot be. Others, such as a GPU that is taken, are unrelated to the arguments.
_REFUSALS = (
    ValueError,
    TypeError,
    ImportError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    NotImplementedError,
)


def refusals(arguments: Mapping[str, Any], device: str, precision: str) -> list[tuple[str, str]]:
    """The arguments that the trainer refuses, or `precision`, each with its reason.

    Args:
        arguments: checked training arguments; of two incompatible ones, the first is reported.
        device: as a trial names it. Of one that this machine does not have, only what holds for any is checked.
        precision: as a trial names it.
    """
    given, found = dict(arguments), []
    try:
        picked = pick_device(device)
        if problem := precision_problem(picked.type, precision):
            found.append(("precision", problem))
            precision = "float32"
    except ModelError:
        picked, precision = torch.device("cpu"), "float32"
        given.pop("tf32", None)
    dtype = pick_dtype(precision, picked)
    reason = _raised(given, picked, dtype)
    while reason is not None and given:
        for name in given:  # the one without which there is no reason, or another one
            rest = {other: value for other, value in given.items() if other != name}
            without = _raised(rest, picked, dtype)
            if without != reason:
                break
        found.append((name, reason))
        given, reason = rest, without
    return found


def _raised(given: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> str | None:
    environment = dict(os.environ)
    with TemporaryDirectory(prefix="prunegpt-rehearsal-") as folder:
        try:
            _rehearse(given, Path(folder), device, dtype)
        except _REFUSALS as error:
            return " ".join(str(error).split()) or type(error).__name__
        except Exception as error:
            print(f"not a refusal: {error!r}", file=sys.stderr)
        finally:
            os.environ.clear()  # where accelerate reads compiler settings
            os.environ.update(environment)
    return None


def _rehearse(given: Mapping[str, Any], work: Path, device: torch.device, dtype: torch.dtype) -> None:
    model = GPT2LMHeadModel(
        GPT2Config(
            n_layer=1,
            n_head=1,
            n_embd=8,
            vocab_size=_VOCABULARY,
            n_positions=_LENGTH,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).to(device)
    if _COMPILING & set(given):  # takes minutes, and is put off to the first batch: names are checked all the same
        made = training_arguments(dict(given), work, seed=0, device=device, dtype=dtype)
        Trainer(model=model, args=made)
        try:
            torch.compile(torch.nn.Identity(), backend=made.torch_compile_backend or "", mode=made.torch_compile_mode)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
    short = {
        "max_steps": _STEPS,
        "warmup_steps": 0,  # a schedule is checked past its warm-up
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": min(given.get("gradient_accumulation_steps", 1), 2),
    }
    job = TrainingJob(
        key="rehearsal",
        steps=_STEPS,
        per_epoch=_STEPS,
        arguments={**{name: value for name, value in given.items() if name not in _COMPILING}, **short},
        held=masks_hash({}),
    )
    rows = np.zeros((2 * _STEPS, _LENGTH), dtype=np.int64)  # [blocks, block_size]
    train(
        model,
        Blocks(rows),
        job,
        work=work,
        device=device,
        dtype=dtype,
        emit=lambda *_: None,
        enforcer=Enforcer({}, {}),
        evaluate=lambda _: {"loss": 1.0, "perplexity": 2.7},
    )
