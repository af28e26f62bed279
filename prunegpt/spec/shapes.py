"""The config of a model after a shrink: one function for the plan and for the model that is made. No torch.

A config is what `config.json` holds. What transformers derives from it by position (such as every sixth layer having
full attention) is cut where it is written down; where it is not, the model that is built shows it, and the shrink is
refused there.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prunegpt.errors import ShrinkError
from prunegpt.spec.widths import resized
from prunegpt.spec.widths import share_of as share_of

TEXT_PARTS = ("text_config", "thinker_config")  # of config.json, of a model that sees or hears too
DEPTH = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers", "num_blocks")
_BY_LAYER = re.compile("layer|block|pattern|types|intermediate_size")  # in the names of lists with an item per layer
_INDICES = frozenset(  # lists of the numbers of layers
    {
        *("mlp_only_layers", "moe_layers", "cross_attention_layers", "full_attn_idxs", "hybrid_layer_ids"),
        *("local_layer_ids", "attn_layer_indices", "ple_layer_ids"),
    }
)
_BELOW = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "max_window_layers")  # layers before it
_LAST = ("num_kv_shared_layers",)  # a number of layers at the end
_EXTRA = re.compile("^num_(nextn_predict|mtp)_layers$")  # heads for several tokens, which transformers does not load
_KINDS = "layers_block_type"  # whose length is the depth of a family that writes no number
_BY_NUMBER = "per_layer_config"  # {"05": what differs there}


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that reads text: a model that sees or hears too keeps it below."""
    while part := next((config[name] for name in TEXT_PARTS if isinstance(config.get(name), Mapping)), None):
        config = part
    return config


def depth_of(config: Mapping[str, Any]) -> int | None:
    """How many decoder layers a model of this config has."""
    text = text_part(config)
    written = next((text[name] for name in DEPTH if isinstance(text.get(name), int)), None)
    return len(text[_KINDS]) if written is None and text.get(_KINDS) else written


def shrunk_config(
    config: Mapping[str, Any],
    *,
    layers: Sequence[int] | None = None,
    ffn: float | None = None,
    heads: float | None = None,
    hidden: float | None = None,
    experts: float | None = None,
    multiple_of: int = 1,
) -> dict[str, Any]:
    """The config of the smaller shape.

    Args:
        config: what config.json holds.
        layers: the decoder layers that stay, ascending.
        ffn, heads, hidden, experts, multiple_of: as :func:`prunegpt.spec.widths.resized` takes them.

    Raises:
        ShrinkError: the config holds no number of layers, or the request does not fit it.
    """
    sizes = {"ffn": ffn, "heads": heads, "hidden": hidden, "experts": experts}
    part = next((name for name in TEXT_PARTS if isinstance(config.get(name), Mapping)), None)
    if part is not None:
        return {**config, part: shrunk_config(config[part], layers=layers, multiple_of=multiple_of, **sizes)}
    narrower = resized(config, multiple_of=multiple_of, **sizes)
    return narrower if layers is None else _shallower(narrower, layers)


def _shallower(config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    depth = depth_of(config)
    if depth is None:
        raise ShrinkError(
            f"a config must hold the number of its layers, as one of {', '.join(DEPTH)}; this one has none of them."
        )
    place = {layer: index for index, layer in enumerate(layers)}
    found: dict[str, Any] = {}
    for name, value in config.items():
        if name in DEPTH and value == depth:
            value = len(layers)
        elif name in _INDICES and isinstance(value, list):
            value = [place[layer] for layer in value if layer in place]
        elif isinstance(value, list) and len(value) == depth and _BY_LAYER.search(name):
            value = [value[layer] for layer in layers]
        elif name in _BELOW and isinstance(value, int):
            value = sum(layer < value for layer in layers) + max(0, value - depth)
        elif name in _LAST and isinstance(value, int):
            value = sum(layer >= depth - value for layer in layers)
        elif _EXTRA.match(name) and value:
            value = 0
        elif name == "scale_depth" and isinstance(value, (int, float)):
            value = value * math.sqrt(len(layers) / depth)  # MiniCPM divides it by the root of the depth
        elif name == _BY_NUMBER and isinstance(value, Mapping):
            own = {place[int(layer)]: changes for layer, changes in value.items() if int(layer) in place}
            value = {f"{layer:02d}": changes for layer, changes in own.items()}
        found[name] = value
    return found
