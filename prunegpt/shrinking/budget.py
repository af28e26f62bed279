"""The largest shape within a budget: of parameters, which shapes show, or of a time, which is measured."""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from prunegpt.errors import ShrinkError, counted
from prunegpt.lm.speed import measure_speed
from prunegpt.lm.views import decoder_lists
from prunegpt.root import read_json, write_text
from prunegpt.shrinking.cut import build
from prunegpt.shrinking.depth import OnTry
from prunegpt.spec.shapes import depth_of, shrunk_config, text_part
from prunegpt.spec.shrink import BudgetSpec
from prunegpt.spec.shrinking import allowed
from prunegpt.spec.widths import active_share, ffn_shares

_EXPERT = re.compile(r"(^|\.)experts\.")  # in the names of what not every token uses


class SmallerShape(NamedTuple):
    """One size that a budget may come to: a number of layers, or a share of the feed-forward neurons."""

    size: int | float
    called: str
    config: Mapping[str, Any]


class Timing(NamedTuple):
    """The time of a shape as a share of that before the cut, the ends of its interval, and how it was measured."""

    value: float
    low: float
    high: float
    protocol: str


def weights_of(model: PreTrainedModel, budget: BudgetSpec | None) -> tuple[list[int], int]:
    """The parameters of each decoder layer, and those outside; of experts the active share where a budget limits it."""
    active = budget is not None and budget.limit[0] == "active_parameters"
    share = active_share(text_part(model.config.to_dict())) if active else 1.0
    lists = decoder_lists(model)

    def count(weights: Any) -> int:
        return sum(round(one.numel() * share) if _EXPERT.search(name) else one.numel() for name, one in weights)

    depth = len(next(iter(lists.values())))
    sizes = [sum(count(blocks[layer].named_parameters()) for blocks in lists.values()) for layer in range(depth)]
    return sizes, count(model.named_parameters()) - sum(sizes)


def shapes(
    config: Mapping[str, Any], budget: BudgetSpec, sizes: Mapping[str, float], multiple_of: int
) -> list[SmallerShape]:
    """The shapes that a budget chooses from, the largest first; that of all layers or neurons is one of them.

    Args:
        config: of the model; where feed-forward sizes are decided, layers have gone already.
        sizes: the other widths, by what they are of.
        multiple_of: the step of feed-forward sizes.
    """
    options: dict[str, Any] = {**sizes, "multiple_of": multiple_of}
    if budget.by == "layers":
        counts = range(depth_of(config) or 0, 0, -1)
        return [
            SmallerShape(count, counted(count, "layer"), shrunk_config(config, layers=range(count), **options))
            for count in counts
        ]
    return [
        SmallerShape(share, f"ffn {size:,}", shrunk_config(config, ffn=share, **options))
        for share, size in ffn_shares(text_part(config), multiple_of)
    ]


def within(
    budget: BudgetSpec, tried: Sequence[SmallerShape], value: Callable[[SmallerShape], float], limit: float
) -> SmallerShape:
    """The largest shape whose value is at most the limit, by bisection: smaller shapes have smaller values.

    Raises:
        ShrinkError: there is none.
    """
    place = bisect_left(tried, True, key=lambda shape: value(shape) <= limit)
    if place < len(tried):
        return tried[place]
    least = f"; the least shape, {tried[-1].called}, comes to {value(tried[-1]):,.4g}" if tried else ""
    raise ShrinkError(
        f"a budget must leave room for one shape; {budget.limit[0]} is limited to {limit:,.4g}{least}. Allow more, or "
        "cut another size too."
    )


def ffn_within(
    model: PreTrainedModel, budget: BudgetSpec, sizes: Mapping[str, float], multiple_of: int, whole: int
) -> SmallerShape:
    """The largest feed-forward size with which a budget of parameters holds.

    Args:
        model: its layers have gone already; it may be on the meta device.
        sizes: the other widths, which are cut too.
        whole: the parameters before the cut.

    Raises:
        ShrinkError: there is none, or transformers does not take the config.
    """

    def count(shape: SmallerShape) -> int:
        layers, rest = weights_of(build(model, shape.config, "meta"), budget)
        return rest + sum(layers)

    found = shapes(model.config.to_dict(), budget, sizes, multiple_of)
    return within(budget, found, count, allowed(budget, whole))


def measured_within(
    model: PreTrainedModel,
    config: Mapping[str, Any],
    budget: BudgetSpec,
    sizes: Mapping[str, float],
    multiple_of: int,
    *,
    dtype: torch.dtype,
    tried: OnTry,
    folder: Path | None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[SmallerShape, list[dict[str, Any]], str]:
    """The largest shape whose measured time is within a budget.

    Models of these shapes with drawn weights take turns with the model before the cut, see `lm.speed.measure_speed`;
    which layers or neurons stay makes no difference to how long they take. Nothing is measured twice.

    Args:
        model: before the cut.
        config: after those cuts that are done before sizes are decided.
        tried: called with what is measured so far, and how much there is at most; it may raise to stop.
        folder: where measurements are kept for the next attempt; None: nowhere.

    Returns:
        The shape, a row of each that was measured, and how.

    Raises:
        ShrinkError: none is, or transformers does not take the config.
        ModelError: the model cannot generate with a cache, or has too few positions.
    """
    file = folder / "times.json" if folder else None
    known: dict[str, Timing] = {}
    if file is not None and file.exists():
        known = {name: Timing(*times) for name, times in read_json(file).items()}
    found = shapes(config, budget, sizes, multiple_of)[1:]
    total = len(found).bit_length()

    def share(shape: SmallerShape) -> float:
        if shape.called not in known:
            tried(len(known), total)
            known[shape.called] = _timing(build(model, shape.config, drawn=True), model, budget, dtype, say)
            if file is not None:
                write_text(file, json.dumps(known))
        return known[shape.called].value

    chosen = within(budget, found, share, budget.limit[1])
    tried(total, total)
    rows = [
        {
            "shape": shape.called,
            budget.limit[0]: time.value,
            "low": time.low,
            "high": time.high,
            "taken": shape == chosen,
        }
        for shape in found
        if (time := known.get(shape.called))
    ]
    return chosen, rows, known[chosen.called].protocol


def _timing(
    smaller: PreTrainedModel,
    model: PreTrainedModel,
    budget: BudgetSpec,
    dtype: torch.dtype,
    say: Callable[[str], None],
) -> Timing:
    evaluation, _ = measure_speed(smaller, model, budget.timing, dtype=dtype, called="the model before", say=say)
    assert evaluation.speed is not None
    faster = evaluation.speed.speedup if budget.limit[0] == "latency" else evaluation.speed.speedup_prefill
    return Timing(1 / faster.value, 1 / faster.high, 1 / faster.low, evaluation.protocol)
