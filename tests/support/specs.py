"""Specs, models and texts as small as planning can look at: no weight is ever loaded."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from prunegpt.errors import Problem, SpecError
from prunegpt.planning.resolve import plan_data, plan_file
from prunegpt.spec.plan import SweepPlan, TrialPlan

WORDS = ("<|endoftext|>", "a", "b", "c", "d", "e", "f", "g")

BASE: Mapping[str, Any] = {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text", "block_size": 128}}

HEADER = """\
name: words
base:
  model: builtin:tiny-gpt2
  data: {path: builtin:text, block_size: 128}
trials:
"""
FIRST_TRIAL = HEADER.count("\n") + 1  # its line


def model_folder(
    folder: Path,
    *,
    words: Sequence[str] = WORDS,
    rows: int | None = None,
    blocks: int = 2,
    positions: int = 64,
    fill: float = 0.0,
    prefix: str = "transformer.",
    **config: Any,
) -> Path:
    """A transformers folder of a GPT-2 with word-level tokeniser.

    Args:
        words: the tokeniser's tokens, by id.
        rows: of the embedding; one a word where not given.
        fill: the value of every weight.
        prefix: of tensor names; old files have none.
        config: further entries of config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = len(words) if rows is None else rows
    shapes = {"wte": (rows, 4), "wpe": (positions, 4), "ln_f": (4,)}
    for block in range(blocks):
        shapes |= {f"h.{block}.ln_1": (4,), f"h.{block}.attn.c_attn": (4, 12), f"h.{block}.attn.c_proj": (4, 4)}
        shapes |= {f"h.{block}.mlp.c_fc": (4, 16), f"h.{block}.mlp.c_proj": (16, 4)}
    tensors = {f"{prefix}{name}.weight": np.full(shape, fill, np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    known = {"model_type": "gpt2", "vocab_size": rows, "n_positions": positions, "n_layer": blocks}
    (folder / "config.json").write_text(json.dumps({**known, **config}))
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": vocabulary}}))
    return folder


def text_folder(folder: Path, **splits: str) -> Path:
    """A text folder; train.txt and validation.txt where no split is given."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in (splits or {"train": "a b c\n", "validation": "d e f\n"}).items():
        (folder / f"{split}.txt").write_text(text)
    return folder


def plan_of(*trials: Mapping[str, Any], base: Mapping[str, Any] = BASE, strict: bool = False, **top: Any) -> SweepPlan:
    """The plan of trials over a base, without a file."""
    return plan_data({"name": "words", "base": base, "trials": list(trials), **top}, strict=strict)


def trial_of(*stages: Any, base: Mapping[str, Any] = BASE, **fields: Any) -> TrialPlan:
    """The plan of a single trial."""
    return plan_of({"name": "one", "stages": list(stages), **fields}, base=base).trials[0]


def problems_of_text(text: str, folder: Path, overrides: Sequence[str] = ()) -> tuple[Problem, ...]:
    """The problems of a spec file; empty where it has none."""
    path = folder / "words.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        plan_file(path, overrides)
    except SpecError as error:
        return error.problems
    return ()


def problems_of(*trials: Mapping[str, Any], **options: Any) -> tuple[Problem, ...]:
    """The problems of trials over a base."""
    try:
        plan_of(*trials, **options)
    except SpecError as error:
        return error.problems
    return ()


def only(problems: Sequence[Problem]) -> Problem:
    """The one problem there is."""
    assert len(problems) == 1, "\n".join(map(str, problems))
    return problems[0]
