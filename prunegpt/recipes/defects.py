"""Known defects of recipes and of the SparseML versions that ran them. Each function says where one of them applies."""

import re
from collections.abc import Iterator
from pathlib import PurePath

from prunegpt.recipes.matching import ALL, ALL_PRUNABLE
from prunegpt.recipes.notes import Defect
from prunegpt.recipes.pruning import Pruning


def pruning_defects(pruning: Pruning, epochs: float | None) -> Iterator[Defect]:
    """The defects of one pruning modifier.

    Args:
        pruning: the modifier.
        epochs: the training's, where the recipe says it.
    """
    line = pruning.line
    if ALL_PRUNABLE in pruning.entries and pruning.dialect == "legacy":
        yield Defect(
            "all-prunable-versions",
            line,
            "__ALL_PRUNABLE__ meant other tensors in each version of SparseML: 0.6 to 1.2 did not know GPT-2's Conv1D "
            "and matched its tied output layer alone, so that the embedding was pruned and nothing else; 1.3 to 1.8 "
            "matched the block matrices and the output layer; 1.9 the embeddings as well.",
            "Here it means the matrices inside decoder blocks. Name the tensors to say otherwise.",
        )
    if ALL in pruning.entries and pruning.dialect == "legacy":
        yield Defect(
            "all-parameters",
            line,
            "__ALL__ means every parameter, biases and layer norms too, which no language model survives.",
            "Here it means the matrices inside decoder blocks. Name the tensors to say otherwise.",
        )
    yield from _schedule_defects(pruning, epochs)
    yield from _pattern_defects(pruning)


def _schedule_defects(pruning: Pruning, epochs: float | None) -> Iterator[Defect]:
    line = pruning.line
    exponent = pruning.exponent
    if pruning.schedule == "polynomial_decay" and exponent % 2 == 0:
        yield Defect(
            "polynomial-decay-sign",
            line,
            f"polynomial_decay with an even exponent has a wrong sign: it computes (p - 1)^{exponent:g} + 1, which "
            f"asks for twice the final sparsity at the start ({2 * pruning.final - pruning.initial:g}).",
            "Write update_scheduler: cubic, or exponent: 3.",
        )
    if pruning.schedule == "inverse_cubic" and pruning.dialect == "legacy":
        yield Defect(
            "inverse-cubic-overshoot",
            line,
            "inverse_cubic takes the cube root of a negative number when a step falls after end_epoch, which ended "
            "SparseML with a TypeError.",
            "Here progress is kept between 0 and 1.",
        )
    if pruning.dialect == "session" and pruning.written_update:
        yield Defect(
            "update-ignored",
            line,
            "`update` is ignored for pruning: the mask is computed anew before every step.",
            f"Here masks are updated every {pruning.every:g} epochs, as written.",
        )
    if pruning.dialect == "legacy" and epochs is not None and pruning.end >= epochs:
        yield Defect(
            "last-update-missing",
            line,
            f"the last update falls on the first step at or after epoch {pruning.end:g}, but training ends before it, "
            f"so that the final sparsity is not reached.",
            "Set end_epoch below the last epoch, or end_epoch of EpochRangeModifier above it.",
        )
    if pruning.method == "magnitude" and pruning.schedule == "acdc":
        yield Defect(
            "acdc-moments",
            line,
            "AC/DC in SparseML resets the momentum of SGD when a phase changes, but not the moments of Adam.",
            "Here moments are zeroed wherever a mask closes.",
        )


def _pattern_defects(pruning: Pruning) -> Iterator[Defect]:
    line, pattern = pruning.line, pruning.pattern
    if pattern == "unstructured":
        return
    if ":" in pattern and pruning.dialect == "session":
        yield Defect(
            "n-of-m-meaning",
            line,
            "N of N:M counts the pruned weights of a group in this dialect, but the kept ones in the old one and here.",
            f"It is written {pattern} here.",
        )
    if pruning.dialect == "legacy":
        yield Defect(
            "group-axis",
            line,
            "groups run along the last axis of the stored weight, which is the output of GPT-2's Conv1D: no 2:4 kernel "
            "can use that.",
            "Here groups run along the input of every layer.",
        )
    block = re.fullmatch(r"\[(\d+), (\d+)\]", pattern)
    if block and min(int(block[1]), int(block[2])) > 1 and pruning.dialect == "legacy":
        yield Defect(
            "block-is-a-run",
            line,
            f"a block of {block[1]} by {block[2]} is a run of {int(block[1]) * int(block[2])} neighbours in memory in "
            f"SparseML, not a rectangle.",
            f"Here it is a rectangle. Write [1, {int(block[1]) * int(block[2])}] for the run.",
        )
    if block and pruning.dialect == "session":
        yield Defect(
            "block-mask-broken",
            line,
            "block masks of this dialect sum over the whole tensor and cannot work.",
            "Here they are rectangles.",
        )


def name_defects(source: str, prunings: tuple[Pruning, ...]) -> Iterator[Defect]:
    """A file whose name says another sparsity than the recipe."""
    match = re.search(
        r"(?<![\d.])(\d{2})[-_ ]?(?=spars|prune)|(?:spars\w*|prune)[-_ ]?(\d{2})(?!\d|\.\d)", PurePath(source).name
    )
    if match is None:
        return
    said = int(match[1] or match[2]) / 100
    finals = sorted({final for item in prunings for final in (item.finals.values() if item.finals else [item.final])})
    if finals and all(abs(final - said) > 0.005 for final in finals):
        found = ", ".join(f"{final:g}" for final in finals)
        yield Defect(
            "name-says-otherwise",
            prunings[0].line,
            f"the file's name says {said:g}, but the recipe prunes to {found}.",
            "Rename the file or correct final_sparsity; tables count zeros and follow neither.",
        )
