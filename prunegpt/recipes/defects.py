"""Known defects of recipes and of the SparseML versions that ran them. Each function says where one of them applies."""

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from prunegpt.recipes.fields import Defect, as_number
from prunegpt.recipes.matching import ALL, ALL_PRUNABLE
from prunegpt.recipes.pruning import Pruning
from prunegpt.spec.patterns import fixed_sparsity

Found = Iterator[tuple[str, str, str]]  # code, what goes wrong, what to write or what is done here

_NAMED = "Here it means the matrices inside decoder layers. Name the tensors to say otherwise."


def pruning_defects(pruning: Pruning, epochs: float | None) -> Iterator[Defect]:
    """The defects of one pruning modifier.

    Args:
        pruning: the modifier.
        epochs: the training's, where the recipe says it.
    """
    found = _legacy(pruning, epochs) if pruning.dialect == "legacy" else _session(pruning)
    for code, text, fix in found:
        yield Defect(code, pruning.modifier.line, text, fix)


def _legacy(pruning: Pruning, epochs: float | None) -> Found:
    spec = pruning.spec
    if ALL_PRUNABLE in pruning.entries:
        yield (
            "all-prunable-versions",
            "__ALL_PRUNABLE__ meant other tensors in each version of SparseML: 0.6 to 1.2 did not know GPT-2's Conv1D "
            "and matched its tied output layer alone, so that the embedding was pruned and nothing else; 1.3 to 1.8 "
            "matched the weight matrices of the decoder layers and the output layer; 1.9 the embeddings as well.",
            _NAMED,
        )
    if ALL in pruning.entries:
        yield (
            "all-parameters",
            "__ALL__ means every parameter, biases and layer norms too, which no language model survives.",
            _NAMED,
        )
    if spec["schedule"] == "inverse_cubic":
        yield (
            "inverse-cubic-overshoot",
            "inverse_cubic takes the cube root of a negative number when a step falls after end_epoch, which ended "
            "SparseML with a TypeError.",
            "Here progress is kept between 0 and 1.",
        )
    if epochs is not None and spec["end"] >= epochs:
        yield (
            "last-update-missing",
            f"the last update falls on the first step at or after epoch {spec['end']:g}, but training ends before it, "
            f"so that the final sparsity is not reached.",
            "Set end_epoch below the last epoch, or end_epoch of EpochRangeModifier above it.",
        )
    if spec["method"] == "magnitude" and spec["schedule"] == "acdc":
        yield (
            "acdc-moments",
            "AC/DC in SparseML resets the momentum of SGD when a phase changes, but not the moments of Adam.",
            "Here moments are zeroed wherever a mask closes.",
        )
    if "pattern" in spec:
        yield (
            "group-axis",
            "groups run along the last axis of the stored weight, which is the output of GPT-2's Conv1D: no 2:4 kernel "
            "can use that.",
            "Here groups run along the input of every layer.",
        )
    block = re.fullmatch(r"\[(\d+), (\d+)\]", spec.get("pattern", ""))
    if block and min(int(block[1]), int(block[2])) > 1:
        run = int(block[1]) * int(block[2])
        yield (
            "block-is-a-run",
            f"a block of {block[1]} by {block[2]} is a run of {run} neighbours in memory in SparseML, not a rectangle.",
            f"Here it is a rectangle. Write [1, {run}] for the run.",
        )


def _session(pruning: Pruning) -> Found:
    spec, fields = pruning.spec, pruning.modifier.fields
    arguments = fields.get("scheduler_args")
    exponent = as_number(arguments.get("exponent", 2)) if isinstance(arguments, dict) else 2.0
    if fields.get("update_scheduler") == "polynomial_decay" and exponent is not None and exponent % 2 == 0:
        start = 2 * spec.get("sparsity", 0.0) - spec.get("initial", 0.0)
        yield (
            "polynomial-decay-sign",
            f"polynomial_decay with an even exponent has a wrong sign: it computes (p - 1)^{exponent:g} + 1, which "
            f"asks for twice the final sparsity at the start ({start:g}).",
            "Write update_scheduler: cubic, or exponent: 3.",
        )
    if fields.get("update") is not None and not pruning.one_shot:
        yield (
            "update-ignored",
            "`update` is ignored for pruning: the mask is recomputed before every step.",
            f"Here masks are updated every {spec['every']:g} epochs, as written.",
        )
    pattern = spec.get("pattern", "")
    if ":" in pattern:
        yield (
            "n-of-m-meaning",
            "N of N:M counts the pruned weights of a group in this dialect, but the kept ones in the old one and here.",
            f"It is written {pattern} here.",
        )
    if pattern.startswith("["):
        yield (
            "block-mask-broken",
            "block masks of this dialect sum over the whole tensor and cannot work.",
            "Here they are rectangles.",
        )


def name_defects(source: str, prunings: Sequence[Pruning]) -> Iterator[Defect]:
    """A file whose name says another sparsity than the recipe."""
    match = re.search(
        r"(?<![\d.])(\d{2})[-_ ]?(?=spars|prune)|(?:spars\w*|prune)[-_ ]?(\d{2})(?!\d|\.\d)", PurePath(source).name
    )
    if match is None:
        return
    said = int(match[1] or match[2]) / 100
    each = (
        item.finals.values() or [item.spec.get("sparsity", fixed_sparsity(item.spec.get("pattern", "unstructured")))]
        for item in prunings
    )
    finals = sorted({final for several in each for final in several if final is not None})
    if finals and all(abs(final - said) > 0.005 for final in finals):
        yield Defect(
            "name-says-otherwise",
            prunings[0].modifier.line,
            f"the file's name says {said:g}, but the recipe prunes to {', '.join(f'{final:g}' for final in finals)}.",
            "Rename the file or correct final_sparsity; tables count zeros and follow neither.",
        )
