"""The tensors of a model that is not loaded: from the names in its files, or built from its config elsewhere."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Any

from prunegpt.errors import ShrinkError
from prunegpt.planning.asked import answer
from prunegpt.planning.facts import ModelFacts
from prunegpt.spec.names import Matrix, block_index, select_names
from prunegpt.spec.outline import Coverage, Outline
from prunegpt.spec.plan import TrialPlan
from prunegpt.spec.shapes import depth_of
from prunegpt.spec.shrink import ShrinkSpec
from prunegpt.spec.shrinking import planned_config

_MODELS = 64  # cached at a time: every trial of a grid asks for those of its model
_IN_BLOCK = re.compile(r"(^|\.)\d+\.")
_BLOCK_MATRIX = re.compile(_IN_BLOCK.pattern + r".*\.weight$")
# Families whose tensors are called in memory as in the file, but for this prefix, which old files lack.
_PREFIXES = {
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "gpt_bigcode", "bloom", "falcon", "codegen"), "transformer."),
    **dict.fromkeys(("opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3"), "model."),
    **dict.fromkeys(("stablelm", "olmo", "olmo2", "starcoder2", "granite", "smollm3"), "model."),
    "gpt_neox": "gpt_neox.",
}
_HEAD, _OLD_HEADS = "lm_head.weight", frozenset({"embed_out.weight"})
_TRANSPOSED = frozenset({"gpt2"})  # families whose decoder weight matrices are stored [in, out]
_WORDS = frozenset({"wte", "embed_tokens", "embed_in", "word_embeddings"})
_EMBEDDINGS = _WORDS | {"wpe", "embed_positions"}


@lru_cache(_MODELS)
def stored_matrices(facts: ModelFacts) -> list[Matrix] | None:
    """The weight matrices that a model's files hold, called and turned as in the loaded model.

    None where they are not known: the files are not at hand, or the family is not one whose names are stored as they
    are used.
    """
    config = facts.config or {}
    family = str(config.get("model_type"))
    prefix = _PREFIXES.get(family)
    if facts.tensors is None or prefix is None:
        return None
    found: dict[str, Matrix] = {}
    for stored, shape in facts.tensors.items():
        name = _HEAD if stored in _OLD_HEADS else stored if stored.startswith((prefix, _HEAD)) else prefix + stored
        if len(shape) != 2 or not name.endswith(".weight"):
            continue
        inside = bool(_BLOCK_MATRIX.search(name))
        out, inputs = reversed(shape) if inside and family in _TRANSPOSED else shape
        embedding = not inside and name.split(".")[-2] in _EMBEDDINGS
        found[name] = Matrix(name, block_index(name) if inside else None, (out, inputs), (), embedding)
    words = next((matrix for matrix in found.values() if is_words(matrix)), None)
    if words is not None and (config.get("tie_word_embeddings") is True or _HEAD not in found):
        found.pop(_HEAD, None)
        found[words.name] = words._replace(others=(_HEAD,))
    return sorted(found.values(), key=lambda matrix: (-1 if matrix.block is None else matrix.block, matrix.name))


def is_words(matrix: Matrix) -> bool:
    """Whether a matrix is the embedding of tokens."""
    return matrix.name.split(".")[-2] in _WORDS


@lru_cache(_MODELS)
def outline_of(facts: ModelFacts) -> Outline | None:
    """What a model consists of; None where it is not known; `unbuilt` gives the reason.

    Families whose files have the names that the loaded model has are read from those. Of others the model is built from
    its config on the meta device, which takes another process some seconds.
    """
    if (stored := stored_matrices(facts)) is not None:
        inside = [matrix for matrix in stored if matrix.block is not None]
        return Outline(stored, {matrix.name: matrix.shape[0] * matrix.shape[1] for matrix in inside})
    found = _built(facts)
    if not found or "error" in found:
        return None
    matrices = [
        Matrix(name, block, (rows, columns), tuple(others), embedding, default)
        for name, block, (rows, columns), others, embedding, default in found["matrices"]
    ]
    return Outline(matrices, found["weights"])


def before_each(facts: ModelFacts, shrinks: Sequence[ShrinkSpec | None]) -> list[ModelFacts]:
    """What is known of a chain's model before each of its stages, and after the last; None: one that keeps the shape.

    Its files are still those that the chain starts from. Where a shape is decided while the stage runs, or does not
    fit, it is not known from there on.
    """
    found = [facts]
    for spec in shrinks:
        found.append(_shrunk(found[-1], spec.model_dump_json(exclude={"calibration"})) if spec else found[-1])
    return found


@lru_cache(_MODELS)
def _shrunk(facts: ModelFacts, written: str) -> ModelFacts:
    spec = ShrinkSpec.model_validate_json(written)
    if facts.config is None:
        return facts
    try:
        sizes = layer_sizes(facts)
        config: Mapping[str, Any] | None = planned_config(spec, facts.config, *(sizes or ()))
    except ShrinkError:  # which `shrink_problems` reports
        return replace(facts, config=None, tensors=None)
    if spec.budget and (spec.budget.measured or (spec.budget.by == "layers" and sizes is None)):
        config = None
    if config is not None and spec.narrows:
        return replace(facts, config=(narrowed(facts, spec) or {}).get("config"), tensors=None)
    layers = (depth_of(config) if config else None) or 0
    tensors = {name: shape for name, shape in (facts.tensors or {}).items() if (_layer(name) or 0) < layers}
    return replace(facts, config=config, tensors=tensors or None)


def narrowed(facts: ModelFacts, spec: ShrinkSpec) -> dict[str, Any] | None:
    """What comes of the sizes of a shrink: {"config": …}, {"refused": reason} or {"error": …}; None: unknown.

    Raises:
        ShrinkError: the layers that are to go do not fit the model.
    """
    if facts.config is None or facts.model.trust_remote_code or not spec.narrows:
        return None
    asked = {
        "config": planned_config(spec, facts.config, *(layer_sizes(facts) or ())),
        "sizes": spec.widths,
        "multiple_of": spec.multiple_of,
        "before": dict(facts.config),
    }
    if spec.budget and spec.budget.by == "ffn":
        asked["budget"] = spec.budget.model_dump(exclude_none=True)
    found: dict[str, Any] | None = answer(json.dumps(asked))
    return found


def layer_sizes(facts: ModelFacts) -> tuple[list[int], int] | None:
    """The weights of each decoder layer, and those outside; None where they are not known."""
    if stored_matrices(facts) is None:
        return None
    found = dict.fromkeys(range(facts.blocks or 0), 0)
    rest = 0
    for name, shape in (facts.tensors or {}).items():
        block = _layer(name)
        if block in found:
            found[block] += prod(shape)
        else:
            rest += prod(shape)
    return [found[layer] for layer in sorted(found)], rest


def _layer(name: str) -> int | None:
    """The decoder layer of a stored tensor, vectors included."""
    return block_index(name) if _IN_BLOCK.search(name) else None


def coverage_of(trial: TrialPlan, facts: ModelFacts) -> Coverage | None:
    """How much of its model a trial prunes, all its stages together; None where nothing is, or it is not known."""
    prunings = [stage.pruning for stage in trial.stages if stage.pruning]
    known = outline_of(before_each(facts, [stage.shrink for stage in trial.stages])[-1]) if prunings else None
    if known is None:
        return None
    chosen: set[str] = set()
    for pruning in prunings:
        names, _ = select_names(known.matrices, targets=pruning.targets, layers=pruning.layers, exclude=pruning.exclude)
        chosen.update(names)
    return known.coverage(chosen)


def unbuilt(facts: ModelFacts) -> str | None:
    """Why the tensors of a model are not known, where that could be asked."""
    if stored_matrices(facts) is not None:
        return None
    found = _built(facts)
    return f"the tensors of {facts.source}: {found['error']}" if found and "error" in found else None


def _built(facts: ModelFacts) -> dict[str, Any] | None:
    if facts.config is None or facts.model.trust_remote_code:
        return None
    answered: dict[str, Any] | None = answer(json.dumps({"config": dict(facts.config)}))
    return answered
