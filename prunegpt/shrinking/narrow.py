"""Narrower layers: one size after the other, for a model and for its shape alone."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from prunegpt.lm.skeleton import skeleton
from prunegpt.registry import EXPERT_CHOICES, IMPORTANCES
from prunegpt.shrinking.budget import ffn_within, weights_of
from prunegpt.shrinking.cut import Cut, build
from prunegpt.shrinking.experts import cut_experts, homes_between
from prunegpt.shrinking.pieces import pieces
from prunegpt.shrinking.width import WIDTHS, axes_between, cut_width
from prunegpt.spec.shapes import shrunk_config
from prunegpt.spec.shrink import WIDTHS as ORDER
from prunegpt.spec.shrink import BudgetSpec


class Narrowed(NamedTuple):
    """A narrower model, a row of each of its layers, and a note."""

    cut: Cut
    rows: list[dict[str, Any]]
    note: str


def narrower(
    model: PreTrainedModel,
    what: str,
    size: float,
    windows: Tensor,
    *,
    chosen_by: str,
    multiple_of: int,
    calibrated: Callable[[int, int], None],
) -> Narrowed | None:
    """A model of fewer neurons, heads, channels or experts; None where the size is the one that it has.

    Args:
        what: `ffn`, `heads`, `hidden` or `experts`.
        size: a share or a number.
        windows: calibration data, token ids, int64 [windows, length].
        chosen_by: name of an importance, or of an expert choice.
        multiple_of: what shares of neurons and channels are rounded to.
        calibrated: called with what is done of the calibration, and the whole.

    Raises:
        ShrinkError: the request does not fit the model, or its family cannot express it.
    """
    config = _config(model, what, size, multiple_of)
    if config is None:
        return None
    if what == "experts":
        choice = EXPERT_CHOICES.load(chosen_by)
        cut, rows = cut_experts(model, config, windows, choice=choice, calibrated=calibrated)
    else:
        score = partial(IMPORTANCES.load(chosen_by), windows=windows, calibrated=calibrated)
        cut, rows = cut_width(model, config, what, score)
    least = min(rows, key=lambda row: float(row["importance_kept"]))
    mean = sum(row["importance_kept"] for row in rows) / len(rows)
    sizes = ", ".join(dict.fromkeys(f"{row['of']:,} → {row['kept']:,}" for row in rows))
    lowest = f" (least {least['importance_kept']:.1%}, in {least['part']})" if len(rows) > 1 else ""
    name = WIDTHS.get(what, "experts of a layer")
    return Narrowed(cut, rows, f"{name} {sizes} by {chosen_by}, which keeps {mean:.1%} of the importance{lowest}")


def narrower_config(
    config: Mapping[str, Any],
    sizes: Mapping[str, float],
    multiple_of: int,
    before: Mapping[str, Any],
    budget: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The config after several sizes have changed, as far as shapes show whether they can.

    Args:
        config: what config.json holds, without the layers that go.
        sizes: by what they are of.
        multiple_of: what shares of neurons and channels are rounded to.
        before: the config with all layers.
        budget: the fields of one that decides the feed-forward sizes; of a time any are tried.

    Raises:
        ShrinkError: the request does not fit the model, or its family cannot express it.
        Exception: whatever transformers raises where the config is none.
    """
    model = skeleton(config)
    if budget is not None:
        spec = BudgetSpec.model_validate(budget)
        layers, rest = weights_of(skeleton(before), spec)
        ffn = 0.5 if spec.measured else ffn_within(model, spec, sizes, multiple_of, rest + sum(layers)).size
        sizes = {**sizes, "ffn": ffn}
    for what in (one for one in ORDER if one in sizes):
        smaller_config = _config(model, what, sizes[what], multiple_of)
        if smaller_config is not None:
            smaller = build(model, smaller_config)
            old, new = pieces(model), pieces(smaller)
            if what == "experts":
                homes_between(model, old, smaller, new)
            else:
                axes_between(model, old, new, what)
            model = smaller
    found: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return found


def _config(model: PreTrainedModel, what: str, size: float, multiple_of: int) -> dict[str, Any] | None:
    """The config with one other size; None where it is no other."""
    config = model.config.to_dict()
    whole, smaller = (_resized(config, what, one, multiple_of) for one in (1.0, size))
    return None if whole == smaller else smaller


def _resized(config: Mapping[str, Any], what: str, size: float, multiple_of: int) -> dict[str, Any]:
    sizes: dict[str, Any] = {what: size, "multiple_of": multiple_of}
    return shrunk_config(config, **sizes)
