"""The sizes of a config after a cut of its width or its experts. No torch.

Which parameters follow a size is the family's own business: the model that is built of the new config shows it.
"""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, TypeGuard

from prunegpt.errors import ShrinkError

FFN = (
    *("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "dff", "dim_ff", "decoder_ffn_dim"),
    *("feed_forward_size", "dense_intermediate_size", "moe_intermediate_size", "expert_ffn_hidden_size"),
    *("shared_intermediate_size", "shared_expert_intermediate_size", "shared_experts_intermediate_size"),
    "moe_shared_expert_intermediate_size",
)
QUERIES = (
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
    *("swa_num_attention_heads", "num_swa_attention_heads"),
)
GROUPS = (
    *("num_key_value_heads", "num_kv_heads", "attn_num_key_value_heads", "kv_n_heads"),
    *("swa_num_key_value_heads", "num_global_key_value_heads"),
)
HIDDEN = ("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim")
EXPERTS = (
    *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts", "n_experts"),
)
_CHOSEN = (  # experts that work on a token
    *("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts"),
    "num_selected_experts",
)
_ROUTED_IN = "n_group"  # groups of equally many experts, some of which a token may go to
_PARTS = 8  # of the hidden size: it is rounded to no more than one of them
_TIMES = 4  # what a feed-forward size that is not written is of the hidden size


def share_of(size: float, whole: int, multiple_of: int = 1) -> int:
    """How many of `whole` a size means: a share below or equal to 1.0, or a number, which is taken as it is.

    A share is rounded to the nearest multiple, and is at least one of it, or all; 1.0 is all.
    """
    if isinstance(size, int):
        return size
    return whole if size == 1.0 else min(whole, multiple_of * max(1, math.floor(size * whole / multiple_of + 0.5)))


def groups_of(config: Mapping[str, Any]) -> int | None:
    """How many groups of query heads share keys and values; None where the config has no heads."""
    return _written(config, GROUPS) or _written(config, QUERIES)


def queries_of(config: Mapping[str, Any]) -> int | None:
    """How many query heads there are; None where the config has no heads."""
    return _written(config, QUERIES)


def hidden_of(config: Mapping[str, Any]) -> int | None:
    """The width of the hidden states."""
    return _written(config, HIDDEN)


def experts_of(config: Mapping[str, Any]) -> int | None:
    """How many experts a layer chooses from; None where there are none."""
    return next(
        (count for part in (config, *_parts(config).values()) if (count := _written(part, EXPERTS)) and count > 1),
        None,
    )


def active_share(config: Mapping[str, Any]) -> float:
    """Which share of the experts of a layer works on a token; 1 where there are none."""
    chosen = [count for part in (config, *_parts(config).values()) if (count := _written(part, _CHOSEN))]
    return min(1.0, max(chosen) / experts) if chosen and (experts := experts_of(config)) else 1.0


def expert_groups_of(config: Mapping[str, Any]) -> int:
    """Among how many groups of equal size the experts are divided."""
    return _written(config, (_ROUTED_IN,)) or 1


def resized(
    config: Mapping[str, Any],
    *,
    ffn: float | None = None,
    heads: float | None = None,
    hidden: float | None = None,
    experts: float | None = None,
    multiple_of: int = 1,
) -> dict[str, Any]:
    """The config with other sizes.

    Args:
        config: what config.json holds of the part that reads text.
        ffn: share of all feed-forward sizes (those of experts and shared experts too), or their number where all are
            alike.
        heads: share or number of key-value groups; query heads follow. The size of a head stays.
        hidden: share or number of channels of the hidden states; the size and the number of heads stay.
        experts: share or number of the experts of a layer.
        multiple_of: what shares of neurons and channels are rounded to, channels to a multiple of the heads too.

    Raises:
        ShrinkError: the config has no such size, or the request does not fit it.
    """
    found = dict(config)
    if ffn is not None:
        found = _narrower(found, ffn, multiple_of)
    if heads is not None:
        found = _fewer_heads(_with_head_size(found), heads)
    if hidden is not None:
        found = _thinner(_with_head_size(found), hidden, multiple_of)
    if experts is not None:
        found = _fewer_experts(found, experts)
    return found


def _narrower(config: Mapping[str, Any], size: float, multiple_of: int) -> dict[str, Any]:
    sizes = _sizes(config)
    if not sizes:
        raise ShrinkError(
            f"the feed-forward size must be written in the config, as {FFN[0]} or the like; that of "
            f"{config.get('model_type')} has none. Cut its depth."
        )
    if isinstance(size, int) and len(sizes) > 1:
        raise ShrinkError(
            f"ffn must be a share where feed-forward sizes differ; the config has {sorted(sizes)}, got {size}. Give a "
            f"share, such as {Fraction(size, max(sizes)).limit_denominator(100).__float__():.2f}."
        )
    known = {whole: _smaller("ffn", size, whole, multiple_of) for whole in sizes}

    def change(value: int) -> int:
        return known[value]

    return _changed(_with_ffn_size(config), FFN, change)


def ffn_shares(config: Mapping[str, Any], multiple_of: int) -> list[tuple[float, int]]:
    """The shares of the feed-forward sizes that differ by a step of the largest, and that one, all of it first."""
    whole = max(_sizes(config), default=0)
    steps = range((whole - 1) // multiple_of, 0, -1)
    return [(1.0, whole), *((step * multiple_of / whole, step * multiple_of) for step in steps)]


def _sizes(config: Mapping[str, Any]) -> set[int]:
    """All feed-forward sizes of a config and of its parts."""
    values = [_with_ffn_size(config).get(name) for name in FFN]
    values += [part.get(name) for part in _parts(config).values() for name in FFN]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return {item for item in flat if _is_count(item)}


def _with_ffn_size(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the feed-forward size that it leaves to its hidden size."""
    hidden = hidden_of(config)
    unsaid = [name for name in FFN if name in config and config[name] is None]
    written = [name for name in FFN if _is_count(config.get(name))]
    return {**config, **(dict.fromkeys(unsaid, _TIMES * hidden) if hidden and not written else {})}


def _with_head_size(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the size of a head that it leaves to its hidden size, where it may be written."""
    hidden, heads = hidden_of(config), _written(config, QUERIES[:1])
    latent = "qk_nope_head_dim" in config or "v_head_dim" in config
    if config.get("head_dim") is not None or latent or not hidden or not heads or hidden % heads:
        return dict(config)
    return {**config, "head_dim": hidden // heads}


def _fewer_heads(config: Mapping[str, Any], size: float) -> dict[str, Any]:
    whole = groups_of(config)
    if whole is None:
        raise ShrinkError(
            f"heads must be counted in the config, as {QUERIES[0]} or the like; that of {config.get('model_type')} has "
            "none. Cut its depth or its feed-forward size."
        )
    if whole == 1:
        raise ShrinkError(
            "heads are cut in whole groups that share keys and values; all heads of this model share one. Cut its "
            "depth or its feed-forward size."
        )
    share = Fraction(_smaller("heads", size, whole), whole)

    def change(value: int) -> int:
        if (value * share).denominator != 1:
            raise ShrinkError(
                f"all kinds of heads must be cut by the same share; {value} heads times {share} is no whole number. "
                f"Choose another number of the {whole} groups."
            )
        return int(value * share)

    return _changed(config, (*QUERIES, *GROUPS), change)


def _thinner(config: Mapping[str, Any], size: float, multiple_of: int) -> dict[str, Any]:
    whole = hidden_of(config)
    if whole is None:
        raise ShrinkError(
            f"the hidden size must be written in the config, as {HIDDEN[0]} or the like; that of "
            f"{config.get('model_type')} has none. Cut its depth."
        )
    small = _smaller("hidden", size, whole, _step(multiple_of, _written(config, QUERIES) or 1, whole))
    return _changed(_with_ffn_size(config), HIDDEN, lambda value: small if value == whole else value)


def _step(multiple_of: int, heads: int, whole: int) -> int:
    """What a share of the hidden size is rounded to: many configs want it to be a multiple of the number of heads too.

    Where both together are more than an eighth of the size (9 heads and 32, of 576), half of the multiple will do.
    """
    while math.lcm(multiple_of, heads) > whole // _PARTS and multiple_of % 2 == 0:
        multiple_of //= 2
    return math.lcm(multiple_of, heads)


def _fewer_experts(config: Mapping[str, Any], size: float) -> dict[str, Any]:
    whole = experts_of(config)
    if whole is None:
        raise ShrinkError(
            f"only a mixture of experts has experts to cut; the config of {config.get('model_type')} counts none. Cut "
            "its depth or its width."
        )
    small = _smaller("experts", size, whole)
    chosen = max(_written(part, _CHOSEN) or 1 for part in (config, *_parts(config).values()))
    if small < chosen:
        raise ShrinkError(
            f"at least as many experts must stay as work on a token, {chosen}; {small} of {whole} would. Keep more."
        )
    groups = expert_groups_of(config)
    if small % groups:
        raise ShrinkError(
            f"the experts that stay must divide into the {groups} groups that tokens are routed in; {small} do not. "
            f"Keep a multiple of {groups}."
        )
    return _changed(config, EXPERTS, lambda value: small if value == whole else value)


def _smaller(what: str, size: float, whole: int, multiple_of: int = 1) -> int:
    small = share_of(size, whole, multiple_of)
    if not 0 < small <= whole:
        raise ShrinkError(f"{what} must be above 0 and at most the {whole} that there are, got {size}.")
    return small


def _changed(config: Mapping[str, Any], names: tuple[str, ...], change: Callable[[int], int]) -> dict[str, Any]:
    """The config with some sizes changed where they are numbers, or lists of one per layer, in its parts too."""
    found: dict[str, Any] = {name: _changed(part, names, change) for name, part in _parts(config).items()}
    for name in names:
        value = config.get(name)
        if _is_count(value):
            found[name] = change(value)
        elif isinstance(value, list) and value and all(_is_count(item) for item in value):
            found[name] = [change(item) for item in value]
    return {**config, **found}


def _parts(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The parts of a config that keep sizes of their own (dbrx's ffn_config)."""
    return {name: config[name] for name in ("ffn_config", "attn_config") if isinstance(config.get(name), Mapping)}


def _written(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((config[name] for name in names if _is_count(config.get(name))), None)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
