"""What a stage `shrink` may say: how much of each part of a model stays, and how what stays is chosen."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from prunegpt.errors import listed
from prunegpt.registry import EXPERT_CHOICES, IMPORTANCES, LAYER_CHOICES
from prunegpt.spec.data import CalibrationSpec, known, many
from prunegpt.spec.evaluate import SpeedSpec
from prunegpt.spec.part import Part


def _size(value: int | float) -> int | float:
    if value <= 0:
        raise ValueError(f"a size must be a share above 0 up to 1, or a number from 1 on, got {value}.")
    if isinstance(value, float) and value > 1:
        if not value.is_integer():
            raise ValueError(
                f"a size must be a share above 0 up to 1, or a whole number, got {value:g}. Write 0.75 for three "
                "quarters."
            )
        return int(value)
    return value


Size = Annotated[int | float, AfterValidator(_size)]
Less = Annotated[float, Field(gt=0, lt=1)]
DEPTHS = ("layers", "attention", "mlp")  # fields that count layers
COUNTED = ("parameters", "active_parameters", "memory")  # limits of a budget that shapes show
MEASURED = ("latency", "first_token")  # those that a machine shows
LIMITS = (*COUNTED, *MEASURED)
WIDTHS = ("experts", "ffn", "heads", "hidden")  # fields that make layers narrower, in the order in which they do
SIZES = (*DEPTHS, *WIDTHS)  # fields that are a size


class BudgetSpec(Part):
    """What the smaller model may have at most; the largest shape within it is taken."""

    parameters: Size | None = Field(
        None, description="parameters, embeddings included: a share of those before, or a number"
    )
    active_parameters: Size | None = Field(
        None, description="parameters that a token uses: of the experts those that it is routed to"
    )
    memory: Size | None = Field(None, description="bytes of the weights in bfloat16: a share, or a number")
    latency: Less | None = Field(
        None, description="time per generated token, measured beside the model before the cut: a share of its time"
    )
    first_token: Less | None = Field(
        None, description="time to the first token, measured beside the model before the cut: a share of its time"
    )
    by: Literal["layers", "ffn"] = Field(
        "layers", description="what is made smaller until the budget holds: whole layers, or their feed-forward sizes"
    )
    speed: SpeedSpec | None = Field(None, description="how latency and first_token are measured (default: {})")

    @property
    def measured(self) -> bool:
        """Whether it limits a time, which a plan does not know."""
        return self.limit[0] in MEASURED

    @property
    def timing(self) -> SpeedSpec:
        """How a time is measured."""
        return self.speed or SpeedSpec()

    @property
    def limit(self) -> tuple[str, int | float]:
        """What is limited, and to how much."""
        return next((name, value) for name in LIMITS if (value := getattr(self, name)) is not None)

    @model_validator(mode="after")
    def _one(self) -> "BudgetSpec":
        given = [name for name in LIMITS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a budget must be exactly one of {', '.join(LIMITS)}; it has {listed(given)}.")
        if self.speed and (not self.measured or self.speed.against is not None):
            raise ValueError(
                "speed is for latency and first_token, measured beside the model before the cut; "
                f"{'against is set' if self.measured else given[0] + ' is counted'}. Remove it."
            )
        return self


class ShrinkSpec(Part):
    """A smaller shape: an ordinary model with fewer layers, neurons, heads, channels or experts.

    A size is a share of what there is (0.75) or a number (24). What is left out stays whole. A plain number means
    `{layers: NUMBER}`.
    """

    BARE = "layers"

    layers: Size | None = Field(None, description="decoder layers that stay: a share or a number")
    drop: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(many)] = Field(
        (), description="decoder layers that go, by index from 0, instead of layers and choice"
    )
    attention: Size | None = Field(
        None, description="attention layers that stay, in families whose layers are attention or MLP alone"
    )
    mlp: Size | None = Field(
        None, description="MLP layers that stay, in families whose layers are attention or MLP alone"
    )
    ffn: Size | None = Field(
        None, description="feed-forward neurons that stay in each layer, and in each expert: a share or a number"
    )
    heads: Size | None = Field(
        None,
        description="groups of heads that stay, each with its keys and values: a share or a number; with the same "
        "share of hidden at once where the size of a head follows it (GPT-2, OPT)",
    )
    hidden: Size | None = Field(None, description="channels of the hidden states that stay: a share or a number")
    experts: Size | None = Field(None, description="experts that stay in each layer of a mixture: a share or a number")
    budget: BudgetSpec | None = Field(None, description="a limit that decides a size, in place of layers or ffn")
    choice: Annotated[str, known(LAYER_CHOICES)] = Field("influence", description="how the layers that stay are chosen")
    importance: Annotated[str, known(IMPORTANCES)] = Field(
        "activation", description="how the neurons, heads and channels that stay are chosen"
    )
    expert_choice: Annotated[str, known(EXPERT_CHOICES)] = Field(
        "reap", description="how the experts that stay are chosen"
    )
    multiple_of: int = Field(32, ge=1, description="what shares of neurons and channels are rounded to")
    calibration: CalibrationSpec = Field(CalibrationSpec(), description="calibration data that the choices are made on")

    def decides(self, name: str) -> bool:
        """Whether a field has a part in the result of this shrink."""
        by = self.budget.by if self.budget else ""
        if name == "choice":
            return by == "layers" or any(getattr(self, one) is not None for one in DEPTHS)
        if name == "importance":
            return by == "ffn" or bool(self.widths.keys() - {"experts"})
        if name == "multiple_of":
            return by == "ffn" or isinstance(self.ffn, float) or isinstance(self.hidden, float)
        if name == "expert_choice":
            return self.experts is not None
        return getattr(self, name) not in (None, ())

    @property
    def widths(self) -> dict[str, int | float]:
        """How much narrower layers become: field -> size, in the order in which it is done."""
        return {name: size for name in WIDTHS if (size := getattr(self, name)) is not None}

    @property
    def narrows(self) -> bool:
        """Whether layers become narrower."""
        return bool(self.widths) or (self.budget is not None and self.budget.by == "ffn")

    @property
    def reads_text(self) -> bool:
        """Whether something is chosen by what calibration data show."""
        return self.budget is not None or any(getattr(self, name) is not None for name in SIZES)

    @model_validator(mode="after")
    def _consistent(self) -> "ShrinkSpec":
        if not self.drop and not self.reads_text:
            raise ValueError(
                f"a shrink must say what gets smaller; it names none of {', '.join(SIZES)}, drop and budget. Write "
                "layers: 0.8 for four fifths of the layers."
            )
        depth = [name for name in DEPTHS if getattr(self, name) is not None]
        if self.drop and depth:
            raise ValueError(f"drop names the layers that go; {depth[0]} asks for a choice. Remove one.")
        if self.layers is not None and len(depth) > 1:
            raise ValueError(
                f"layers counts all layers, attention and mlp those of one kind; {listed(depth)} are given. Remove "
                "layers."
            )
        if self.budget and (
            getattr(self, self.budget.by) is not None or (self.budget.by == "layers" and (depth or self.drop))
        ):
            raise ValueError(f"a budget decides {self.budget.by}; that is given too. Remove one, or set budget.by.")
        return self
