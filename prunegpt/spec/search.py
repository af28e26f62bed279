"""The adaptive part of a spec: what a search may try, who suggests, and when a trial is given up."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from prunegpt.registry import EARLY_STOPS, SAMPLERS
from prunegpt.spec.part import Part, Scalar


class Dimension(Part):
    """One searched field: a range (`low`, `high`) or a choice (`values`). A plain list means `values`.

    A range is of integers where `low`, `high` and `step` are written as integers.
    """

    low: int | float | None = Field(None, description="smallest value")
    high: int | float | None = Field(None, description="largest value, included")
    step: int | float | None = Field(None, description="distance between values")
    log: bool = Field(False, description="draw uniformly on a logarithmic scale")
    values: tuple[Any, ...] | None = Field(None, description="the values to choose from")
    when: Mapping[str, Any] = Field(
        {}, description="searched only where other searched fields have these values: PATH -> value or list of them"
    )

    @model_validator(mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return {"values": value} if isinstance(value, (list, tuple)) else value

    @model_validator(mode="after")
    def _consistent(self) -> "Dimension":
        if self.values is not None:
            if (self.low, self.high, self.step, self.log) != (None, None, None, False):
                raise ValueError("a searched field must have either values or low and high, but has both. Remove one.")
            if not self.values:
                raise ValueError("values must name at least one, but is empty.")
            return self
        if self.low is None or self.high is None:
            raise ValueError("a searched field needs low and high, or values.")
        if self.low > self.high:
            raise ValueError(f"low must be at most high, but low is {self.low} and high {self.high}.")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step must be above 0, but is {self.step}.")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must begin above 0, but low is {self.low}.")
        if self.log and self.step is not None and not (self.is_integer and self.step == 1):
            raise ValueError("a range takes either log or step, but has both. Remove one.")
        return self

    @property
    def is_integer(self) -> bool:
        """Whether a range is one of integers."""
        bounds = (self.low, self.high, 1 if self.step is None else self.step)
        return all(isinstance(bound, int) for bound in bounds)


class ObjectiveSpec(Part):
    """What a search looks for. A plain string means its metric, in that metric's own direction."""

    metric: str = Field(description="perplexity, loss, sparsity, sparsity_all, seconds, tokens, bits_per_byte, size")
    direction: Literal["minimize", "maximize"] | None = Field(
        None, description="maximize for sparsity and sparsity_all, minimize for the others where not given"
    )


def _objectives(value: Any) -> Any:
    listed = value if isinstance(value, (list, tuple)) else [value]
    return [{"metric": item} if isinstance(item, str) else item for item in listed]


class SearchSpec(Part):
    """Trials that are chosen one by one, each from what those before it came to."""

    space: Mapping[str, Dimension] = Field(description="path -> what may be tried, paths as in `vary`", min_length=1)
    sampler: str = Field("tpe", description="tpe, gp, nsga2, nsga3, qmc, random, cmaes, or a plug-in's name")
    sampler_options: Mapping[str, Scalar] = Field({}, description="further arguments of the sampler")
    seed: int = Field(0, ge=0, lt=2**32, description="of the sampler")
    objectives: Annotated[tuple[ObjectiveSpec, ...], BeforeValidator(_objectives)] = Field(
        (ObjectiveSpec(metric="perplexity", direction=None),), description="one or more", min_length=1
    )
    constraints: tuple[str, ...] = Field(
        (), description='what a good trial fulfils, such as "sparsity >= 0.89"; METRIC, <= or >=, and a number'
    )
    n_trials: int | None = Field(None, ge=1, description="so many different trials")
    max_seconds: float | None = Field(None, gt=0, description="no new trial after so many seconds of all its trials")
    max_tokens: int | None = Field(None, ge=1, description="no new trial after so many tokens trained on")

    @model_validator(mode="after")
    def _ends(self) -> "SearchSpec":
        SAMPLERS.check(self.sampler)
        if self.n_trials is None and self.max_seconds is None and self.max_tokens is None:
            raise ValueError("a search must end: give n_trials, max_seconds or max_tokens.")
        return self


class EarlyStopSpec(Part):
    """When a trial is given up before its end. A plain string means `{method: STRING}`."""

    method: str = Field("median", description="median, percentile, successive_halving, hyperband, or a plug-in's name")
    metric: str = Field("perplexity", description="name of a curve, lower is better")
    every: int | None = Field(
        None, ge=1, description="tokens between comparisons; a twentieth of the trial's training where not given"
    )
    options: Mapping[str, Scalar] = Field({}, description="further arguments of the method")

    @model_validator(mode="before")
    @classmethod
    def _string(cls, value: Any) -> Any:
        return {"method": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> "EarlyStopSpec":
        EARLY_STOPS.check(self.method)
        return self
