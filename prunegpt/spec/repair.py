"""What a spec may say of the reconstruction of pruned decoder layers."""

from typing import Literal

from pydantic import Field

from prunegpt.spec.part import Part

_MIXERS = ("attn", "attention", "mixer", "mamba", "rnn", "conv", "temporal")  # in names of what mixes tokens


class RepairSpec(Part):
    """Block reconstruction: kept weights are trained until a layer gives what the dense one gave.

    A plain string means `{scope: STRING}`.
    """

    BARE = "scope"

    scope: Literal["block", "attention", "mlp", "sublayers"] = Field(
        "block",
        description="whose output is compared: the layer's (block), its attention's, its MLP's, or both (sublayers)",
    )
    epochs: int = Field(3, ge=1, description="passes over the calibration windows")
    learning_rate: float = Field(3e-3, gt=0, le=1, description="of Adam; warmed up, then decays to 0 along a cosine")
    batch_size: int = Field(1, ge=1, description="calibration windows of a step")


def mixes_tokens(name: str) -> bool:
    """Whether a part of a decoder layer, by its name, belongs to the scope `attention`; else it is of `mlp`."""
    return any(word in name.lower() for word in _MIXERS)
