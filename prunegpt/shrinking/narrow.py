"""Narrower layers: one size after the other, for a model and for its shape alone."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from prunegpt.errors import ShrinkError
from prunegpt.lm.skeleton import skeleton
from prunegpt.registry import EXPERT_CHOICES, IMPORTANCES
from prunegpt.shrinking.budget import ffn_within, weights_of
from prunegpt.shrinking.cut import Cut, build
from prunegpt.shrinking.experts import cut_experts, homes_between
from prunegpt.shrinking.pieces import pieces
from prunegpt.shrinking.width import BOTH, WIDTHS, axes_between, cut_width
from prunegpt.spec.shapes import share_of, shrunk_config, text_part
from prunegpt.spec.shrink import WIDTHS as ORDER
from prunegpt.spec.shrink import BudgetSpec
from prunegpt.spec.widths import hidden_of, queries_of


class Narrowed(NamedTuple):
    """A narrower model, a row of each of its layers, and a note."""

    cut: Cut
    rows: list[dict[str, Any]]
    note: str


def steps(model: PreTrainedModel, sizes: Mapping[str, float], multiple_of: int) -> list[dict[str, float]]:
    """The sizes as they are cut, one after the other.

    Where the size of a head is that of the hidden states divided by the number of heads, both are cut at once: whole
    heads go, and as many channels, so that the size of a head stays.

    Args:
        model: it may be on the meta device.
        sizes: shares or numbers, by what they are of.
        multiple_of: what shares of neurons and channels are rounded to.

    Raises:
        ShrinkError: heads and hidden size do not go together.
    """
    ordered = {what: sizes[what] for what in ORDER if what in sizes}
    together = {what: size for what, size in ordered.items() if what in BOTH}
    text = text_part(model.config.to_dict())
    hidden, whole = hidden_of(text), queries_of(text)
    fewer = _config(model, {"heads": sizes["heads"]}, multiple_of) if len(together) == len(BOTH) else None
    if not (fewer and hidden and whole) or _can_build_other(model, fewer):
        return [{what: size} for what, size in ordered.items()]
    heads, each = queries_of(text_part(fewer)) or 1, hidden // whole
    asked = share_of(sizes["hidden"], hidden)
    if abs(asked - heads * each) >= (1 if isinstance(sizes["hidden"], int) else each):
        raise ShrinkError(
            f"a head of {type(model).__name__} has as many channels as the hidden states divided by the heads, {each}; "
            f"{heads} heads need a hidden size of {heads * each}, got {asked}. Cut both by the same share."
        )
    alone = [{what: size} for what, size in ordered.items() if what not in BOTH]
    return [*alone, {"heads": sizes["heads"], "hidden": heads * each}]


def _can_build_other(model: PreTrainedModel, config: Mapping[str, Any]) -> bool:
    """Whether a model of that config has weights of other sizes."""
    try:
        other = build(model, config, "meta")
    except ShrinkError:
        return False
    mine, theirs = ([weight.shape for weight in one.parameters()] for one in (model, other))
    return mine != theirs


def narrower(
    model: PreTrainedModel,
    sizes: Mapping[str, float],
    windows: Tensor,
    *,
    chosen_by: str,
    multiple_of: int,
    calibrated: Callable[[int, int], None],
) -> Narrowed | None:
    """A model of fewer neurons, heads, channels or experts; None where the size is the one that it has.

    Args:
        sizes: one of :func:`steps`: a share or a number of `ffn`, `heads`, `hidden` or `experts`.
        windows: calibration data, token ids, int64 [windows, length].
        chosen_by: name of an importance, or of an expert choice.
        multiple_of: what shares of neurons and channels are rounded to.
        calibrated: called with what is done of the calibration, and the whole.

    Raises:
        ShrinkError: the request does not fit the model, or its family cannot express it.
    """
    config = _config(model, sizes, multiple_of)
    if config is None:
        return None
    if "experts" in sizes:
        choice = EXPERT_CHOICES.load(chosen_by)
        cut, rows = cut_experts(model, config, windows, choice=choice, calibrated=calibrated)
    else:
        score = partial(IMPORTANCES.load(chosen_by), windows=windows, calibrated=calibrated)
        cut, rows = cut_width(model, config, tuple(sizes), score)
    least = min(rows, key=lambda row: float(row["importance_kept"]))
    mean = sum(row["importance_kept"] for row in rows) / len(rows)
    kept = ", ".join(dict.fromkeys(f"{row['of']:,} → {row['kept']:,}" for row in rows))
    lowest = f" (least {least['importance_kept']:.1%}, in {least['part']})" if len(rows) > 1 else ""
    name = " and ".join(WIDTHS.get(what, "experts of a layer") for what in sizes)
    note = f"{name} {kept} by {chosen_by}, which keeps {mean:.1%} of the importance{lowest}"
    return Narrowed(cut, rows, f"{note}{_rounded(sizes, rows)}")


def _rounded(sizes: Mapping[str, float], rows: list[dict[str, Any]]) -> str:
    """The end of a note: what a share came to before it was rounded, where that is another number."""
    share, *others = sizes.values()
    off = [row for row in rows if abs(share * row["of"] - row["kept"]) >= 1]
    if others or isinstance(share, int) or not off:
        return ""
    asked = f"{share:g} of {off[0]['of']:,} is {share * off[0]['of']:,.0f}"
    return f"; {asked}, rounded by multiple_of (a number is taken as it is)"


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
    for step in steps(model, sizes, multiple_of):
        smaller_config = _config(model, step, multiple_of)
        if smaller_config is not None:
            smaller = build(model, smaller_config)
            old, new = pieces(model), pieces(smaller)
            if "experts" in step:
                homes_between(model, old, smaller, new)
            else:
                axes_between(model, old, new, tuple(step))
            model = smaller
    found: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return found


def _config(model: PreTrainedModel, sizes: Mapping[str, float], multiple_of: int) -> dict[str, Any] | None:
    """The config with other sizes; None where they are no others."""
    config = model.config.to_dict()
    whole, smaller = (_resized(config, one, multiple_of) for one in (dict.fromkeys(sizes, 1.0), sizes))
    return None if whole == smaller else smaller


def _resized(config: Mapping[str, Any], sizes: Mapping[str, float], multiple_of: int) -> dict[str, Any]:
    options: dict[str, Any] = {**sizes, "multiple_of": multiple_of}
    return shrunk_config(config, **options)
