"""What can be wrong with a trial although every field of it is well formed. Messages only; no torch."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from prunegpt.errors import PruneGPTError
from prunegpt.planning.budget import DEFAULT_EPOCHS
from prunegpt.planning.facts import ModelFacts
from prunegpt.spec.names import block_index, select_names
from prunegpt.spec.schema import GradualSpec, PruneSpec

_BLOCK_MATRIX = re.compile(r"\.\d+\..*\.weight$")
_PREFIXES = {"gpt2": "transformer.", "opt": "model."}


def block_matrices(facts: ModelFacts) -> list[str] | None:
    """Names of the weight matrices in the decoder blocks, as the loaded model calls them; None where unknown."""
    if facts.tensors is None:
        return None
    names = [name for name, shape in facts.tensors.items() if len(shape) == 2 and _BLOCK_MATRIX.search(name)]
    prefix = _PREFIXES.get(str((facts.config or {}).get("model_type")), "model.")
    return [name if name.startswith((prefix, "transformer.", "model.")) else prefix + name for name in names]


def pruning_problem(prune: PruneSpec, facts: ModelFacts) -> str | None:
    """Why targets, layers or an explicit allocation do not fit the model, or None."""
    names = block_matrices(facts)
    if names is None:
        return None
    matrices = list(facts.tensors or {}) if prune.targets else names
    try:
        chosen = select_names(
            sorted({*matrices, *names}, key=lambda name: (block_index(name) or 0, name)),
            targets=prune.targets,
            layers=prune.layers,
            exclude=prune.exclude,
        )
        if isinstance(prune.allocation, Mapping):
            select_names(chosen, targets=tuple(prune.allocation))
    except PruneGPTError as error:
        return str(error)
    return None


def clock_problem(prune: GradualSpec, train: Mapping[str, Any]) -> str | None:
    """Why pruning would not be over when training is, where that can be told from the config alone, or None."""
    limits = {
        "epochs": None if train.get("max_steps", -1) > 0 else train.get("num_train_epochs", DEFAULT_EPOCHS),
        "steps": train.get("max_steps") if train.get("max_steps", -1) > 0 else None,
        "fraction": 1.0,
    }
    limit = limits[prune.unit]
    end = prune.start if prune.end is None else prune.end
    if limit is None or end < limit:
        return None
    return (
        f"pruning must end before training does, but it ends at {end:g} and training at {limit:g} {prune.unit}. "
        f"Set a smaller end, or train longer."
    )


def tokenizer_problem(facts: ModelFacts) -> str | None:
    """Why a model's tokeniser does not fit its embedding, or None."""
    tokens, rows = facts.vocabulary, facts.vocabulary_size
    if tokens and rows and max(tokens.values()) >= rows:
        token = max(tokens, key=tokens.__getitem__)
        return (
            f"a tokeniser may use ids below the {rows} rows of the model's embedding, but that of {facts.source} has "
            f"token {token!r} = {tokens[token]}. Use the model's own tokeniser."
        )
    return None


def teacher_problem(student: ModelFacts, teacher: ModelFacts) -> str | None:
    """Why a teacher's tokeniser does not fit the student's, naming the first difference, or None."""
    if student.fingerprint == teacher.fingerprint or student.vocabulary is None or teacher.vocabulary is None:
        return None
    return next(_differences(student, teacher), None)


def _differences(student: ModelFacts, teacher: ModelFacts) -> Iterator[str]:
    ours = {index: token for token, index in (student.vocabulary or {}).items()}
    theirs = {index: token for token, index in (teacher.vocabulary or {}).items()}
    for index in sorted({*ours, *theirs}):
        if ours.get(index) != theirs.get(index):
            yield (
                f"a teacher must use the student's tokeniser, but token {index} is {ours.get(index)!r} in "
                f"{student.source} and {theirs.get(index)!r} in {teacher.source}. Choose a teacher of the same family."
            )
