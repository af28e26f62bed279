"""What every part of a spec is made of."""

from pydantic import BaseModel, ConfigDict

NAME = r"^[A-Za-z0-9][A-Za-z0-9._=+,@-]*$"
TEMPLATE = r"^[A-Za-z0-9{][A-Za-z0-9._=+,@{}-]*$"

Scalar = bool | int | float | str


class Part(BaseModel):
    """Frozen; an unknown key is an error, and so is a number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
