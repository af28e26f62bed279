"""The adaptive part of a spec: what a search may try, who suggests, and when a trial is stopped early."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from prunegpt.errors import listed, nearest
from prunegpt.registry import EARLY_STOPS, SAMPLERS
from prunegpt.spec.metrics import METRICS, NAMED, Direction, check_metric, direction_of, is_measured
from prunegpt.spec.part import Part, Scalar

_CONSTRAINT = re.compile(r"\s*([^\s<>]+)\s*(<=|>=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


class Dimension(Part):
    """One searched field: a range (`low`, `high`) or a choice (`values`). A plain list means `values`.

    A range is of integers where `low`, `high` and `step` are written as integers. Values may be given as a mapping from
    short names to them: whole chains of stages, say. `when` and the trials then speak of the names.
    """

    low: int | float | None = Field(None, description="smallest value")
    high: int | float | None = Field(None, description="largest value, included")
    step: int | float | None = Field(None, description="distance between values")
    log: bool = Field(False, description="draw uniformly on a logarithmic scale")
    quantum: int | float | None = Field(
        None, gt=0, description="round what is drawn to a multiple of this: integers where it is one"
    )
    values: tuple[Any, ...] | None = Field(None, description="the values to choose from, or NAME -> value")
    names: tuple[str, ...] | None = Field(None, description="a name for each of the values")
    when: Mapping[str, Any] = Field(
        {}, description="searched only where other searched fields have these values: PATH -> value or list of them"
    )

    @property
    def described(self) -> str:
        """Its choices or its range, in words."""
        if self.values is not None:
            return ", ".join(self.names or map(_text, self.values))
        kind = "" if self.step is None else f" in steps of {self.step:g}"
        kind += "" if self.quantum is None else f" in multiples of {self.quantum:g}"
        return f"{self.low:g} to {self.high:g}{kind}{', logarithmic' if self.log else ''}"

    @model_validator(mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return {"values": value}
        if isinstance(value, Mapping) and isinstance(value.get("values"), Mapping):
            named = value["values"]
            return {**value, "values": tuple(named.values()), "names": tuple(map(str, named))}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Dimension":
        if self.values is not None:
            if (self.low, self.high, self.step, self.log, self.quantum) != (None, None, None, False, None):
                raise ValueError("a searched field must have either values or low and high; it has both. Remove one.")
            if not self.values:
                raise ValueError("values must name at least one; it is empty.")
            if self.names is not None and len(self.names) != len(self.values):
                raise ValueError(f"names must match values; there are {len(self.names)} for {len(self.values)} values.")
            if repeated := _repeated(self.names or tuple(map(_text, self.values))):
                raise ValueError(f"values must differ; {repeated} is there twice. Remove one.")
            return self
        if self.names is not None:
            raise ValueError("names belong to values; there are none.")
        if self.low is None or self.high is None:
            raise ValueError("a searched field needs low and high, or values.")
        if self.low > self.high:
            raise ValueError(f"low must be at most high; low is {self.low} and high {self.high}.")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step must be above 0, got {self.step}.")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must begin above 0; low is {self.low}.")
        if self.log and self.step is not None and not (self.is_integer and self.step == 1):
            raise ValueError("a range takes either log or step; it has both. Remove one.")
        if self.quantum is not None and self.step is not None:
            raise ValueError("a range takes either step or quantum; it has both. Remove one.")
        return self

    @property
    def is_integer(self) -> bool:
        """Whether a range is drawn from integers."""
        if self.quantum is not None:
            return False
        bounds = (self.low, self.high, 1 if self.step is None else self.step)
        return all(isinstance(bound, int) for bound in bounds)

    @property
    def highest(self) -> int | float:
        """The largest value a range gives: `high`, or the last step below it."""
        assert self.low is not None
        assert self.high is not None
        if self.step is None:
            return self.high
        return self.low + math.floor((self.high - self.low) / self.step + 1e-9) * self.step

    @property
    def choices(self) -> tuple[Any, ...]:
        """What stands for each of the values: its name, itself where it is plain, or its JSON."""
        if self.names is not None or self.values is None:
            return self.names or ()
        choices = tuple(value if _is_plain(value) else _text(value) for value in self.values)
        return choices if len(set(choices)) == len(choices) else tuple(map(_text, self.values))  # 1 and true are equal

    @property
    def corners(self) -> tuple[Any, ...]:
        """All choices, or both ends of a range."""
        if self.values is not None:
            return self.choices
        return tuple(dict.fromkeys(self.rounded(end) for end in (self.low, self.highest)))

    def rounded(self, drawn: Any) -> Any:
        """What is drawn as a choice: the nearest multiple of `quantum`, half to even as NumPy rounds."""
        if self.quantum is None:
            return drawn
        return round(drawn / self.quantum) * self.quantum

    def within(self, choice: Any) -> Any:
        """A choice as a value that could have been drawn: rounding may have left the range."""
        if self.quantum is None or self.low is None or self.high is None:
            return choice
        return min(max(float(choice), float(self.low)), float(self.high))

    def value_of(self, choice: Any) -> Any:
        """The value that a choice stands for."""
        if self.values is None:
            return choice
        kinds = [(type(known), known) for known in self.choices]
        return self.values[kinds.index((type(choice), choice))]

    def holds(self, choice: Any) -> bool:
        """Whether it is a choice of this field."""
        if self.values is not None:
            return any(type(choice) is type(known) and choice == known for known in self.choices)
        if isinstance(choice, bool) or not isinstance(choice, (int, float)) or self.low is None or self.high is None:
            return False
        if (self.is_integer or isinstance(self.quantum, int)) and not isinstance(choice, int):
            return False
        if self.quantum is not None:
            return bool(choice == self.rounded(choice) == self.rounded(self.within(choice)))
        steps = 0.0 if self.step is None else (choice - self.low) / self.step
        return self.low <= choice <= self.high and abs(steps - round(steps)) < 1e-6

    def meant(self, given: Any) -> tuple[Any, ...]:
        """The choices that a condition on this field names: a choice, its value, or a list; none where it cannot be."""
        one = self._choice(given)
        if one or not isinstance(given, (list, tuple)):
            return one
        found = [self._choice(item) for item in given]
        return tuple(choice for choices in found for choice in choices) if all(found) else ()

    def _choice(self, given: Any) -> tuple[Any, ...]:
        """The one choice that is named by itself or by its value; none where there is no such."""
        if self.holds(given):
            return (given,)
        texts = [_text(value) for value in self.values or ()]
        return (self.choices[texts.index(_text(given))],) if _text(given) in texts else ()


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _repeated(texts: tuple[str, ...]) -> str | None:
    return next((text for text in texts if texts.count(text) > 1), None)


class DirectedMetric(Part):
    """A metric, and whether less or more of it is better."""

    metric: Annotated[str, AfterValidator(check_metric)] = Field(description=", ".join([*METRICS, *NAMED]))
    direction: Direction | None = Field(
        None, description="default: maximize for sparsity, sparsity_all and tasks, minimize for the others"
    )

    @property
    def wanted(self) -> Direction:
        """The direction; default: the metric's own."""
        return self.direction or direction_of(self.metric)


class ObjectiveSpec(DirectedMetric):
    """What a search looks for. A plain string means its metric, in that metric's own direction."""

    BARE = "metric"


class TargetSpec(DirectedMetric):
    """When a sweep is good enough: once a trial has reached it, nothing more is started; what runs is let end."""

    value: float = Field(allow_inf_nan=False, description="that is good enough")

    def reached(self, metrics: Mapping[str, float | None]) -> bool:
        """Whether a trial that came to these is good enough."""
        found = metrics.get(self.metric)
        if found is None:
            return False
        return found <= self.value if self.wanted == "minimize" else found >= self.value


class Constraint(NamedTuple):
    """What a good trial fulfils."""

    metric: str
    relation: str  # <= or >=
    bound: float


def constraint_of(text: str) -> Constraint:
    """A constraint as written.

    Raises:
        ValueError: it is not METRIC <= NUMBER or METRIC >= NUMBER, or the metric is unknown.
    """
    found = _CONSTRAINT.fullmatch(text)
    if not found:
        raise ValueError(
            f'a constraint must be METRIC, <= or >=, and a number, such as "sparsity >= 0.89", got {text!r}.'
        )
    return Constraint(check_metric(found[1]), found[2], float(found[3]))


def violations(constraints: Iterable[str], metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Constraint as written -> by how much it is broken, as Optuna takes it: fulfilled where it is zero or less.

    Infinite where the metric is not known.
    """
    found = {}
    for text in constraints:
        wanted = constraint_of(text)
        value = metrics.get(wanted.metric)
        if value is None:
            found[text] = math.inf
        else:
            found[text] = value - wanted.bound if wanted.relation == "<=" else wanted.bound - value
    return found


def broken(constraints: Iterable[str], metrics: Mapping[str, float | None]) -> list[str]:
    """The constraints that are not fulfilled."""
    return [text for text, by in violations(constraints, metrics).items() if by > 0]


def _constraint(text: str) -> str:
    constraint_of(text)
    return text


def _several(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else (value,)


def _searched(space: Mapping[str, Dimension]) -> Mapping[str, Dimension]:
    """The space, where every condition refers to another searched field and a choice of it, and none in a circle."""
    wrong = []
    for path, dimension in space.items():
        for condition, given in dimension.when.items():
            if message := _condition_problem(space, path, condition, given):
                error = {"error": ValueError(message)}
                wrong.append(InitErrorDetails(type="value_error", loc=(path, "when"), input=given, ctx=error))
    if wrong:
        raise ValidationError.from_exception_data("space", wrong)
    return space


def _condition_problem(space: Mapping[str, Dimension], path: str, condition: str, given: Any) -> str | None:
    if condition not in space:
        others = listed(nearest(condition, [other for other in space if other != path]), 8)
        return f"a condition must be on another searched field; {condition!r} is none. Searched: {others}."
    if _leads_to(space, condition, path, set()):
        return f"conditions must not form a circle; {condition!r} is searched only where {path!r} is."
    if space[condition].meant(given):
        return None
    wrong = (
        next((item for item in given if not space[condition].meant(item)), given)
        if isinstance(given, (list, tuple))
        else given
    )
    choices = space[condition].choices or (f"{space[condition].low} to {space[condition].high}",)
    named = listed((str(choice)[:40] for choice in choices), 8)
    return f"a condition must name values that are searched; {wrong!r} is none of {condition!r}: {named}."


def _leads_to(space: Mapping[str, Dimension], path: str, goal: str, seen: set[str]) -> bool:
    """Whether the conditions of a path, and theirs, refer to the goal."""
    if path == goal:
        return True
    if path in seen or path not in space:
        return False
    seen.add(path)
    return any(_leads_to(space, condition, goal, seen) for condition in space[path].when)


class SearchSpec(Part):
    """Trials that are chosen one by one, each from what those before it came to."""

    space: Annotated[Mapping[str, Dimension], AfterValidator(_searched)] = Field(
        description="path -> what may be tried, paths as in `vary`"
    )
    sampler: str = Field("tpe", description="tpe, gp, nsga2, nsga3, qmc, random, cmaes, or a plug-in's name")
    sampler_options: Mapping[str, Scalar] = Field({}, description="further arguments of the sampler")
    seed: int = Field(0, ge=0, lt=2**32, description="of the sampler")
    objectives: Annotated[tuple[ObjectiveSpec, ...], BeforeValidator(_several)] = Field(
        (ObjectiveSpec(metric="perplexity", direction=None),), description="one or more"
    )
    constraints: tuple[Annotated[str, AfterValidator(_constraint)], ...] = Field(
        (), description='what a good trial fulfils, such as "sparsity >= 0.89"; METRIC, <= or >=, and a number'
    )
    n_trials: int | None = Field(None, ge=1, description="number of distinct trials")
    max_seconds: float | None = Field(
        None, gt=0, description="start no new trial after this many seconds of trial time"
    )
    max_tokens: int | None = Field(None, ge=1, description="start no new trial after this many training tokens")

    @model_validator(mode="after")
    def _ends(self) -> "SearchSpec":
        SAMPLERS.check(self.sampler)
        if not self.space or not self.objectives:
            empty = "objectives" if self.space else "space"
            raise ValueError(f"{empty} must name at least one; it is empty.")
        if repeated := _repeated(tuple(objective.metric for objective in self.objectives)):
            raise ValueError(f"objectives must differ; {repeated} is there twice. Remove one.")
        if self.n_trials is None and self.max_seconds is None and self.max_tokens is None:
            raise ValueError("a search must end: give n_trials, max_seconds or max_tokens.")
        return self

    @property
    def metrics(self) -> dict[str, tuple[str, int]]:
        """Every metric that it uses, with the field that names it."""
        found = {one.metric: ("objectives", place) for place, one in enumerate(self.objectives)}
        for place, text in enumerate(self.constraints):
            found.setdefault(constraint_of(text).metric, ("constraints", place))
        return found

    @property
    def measured(self) -> tuple[str, ...]:
        """The metrics that evaluations give: its trials must be evaluated alike."""
        return tuple(metric for metric in self.metrics if is_measured(metric))


def searches_of(spec: Mapping[str, Any]) -> dict[str, SearchSpec]:
    """The searches that a sweep's stored spec writes, by name; one that this version cannot read is left out."""
    found = {}
    for written in spec.get("trials") or ():
        if isinstance(written, dict) and written.get("search"):
            try:
                found[str(written.get("name", ""))] = SearchSpec.model_validate(written["search"])
            except ValidationError:
                continue
    return found


class EarlyStopSpec(Part):
    """Early stopping of trials. A plain string means `{method: STRING}`."""

    BARE = "method"

    method: str = Field("median", description=f"{', '.join(EARLY_STOPS.builtin_names())}, or a plug-in's name")
    metric: str = Field("perplexity", description="name of a curve, lower is better")
    every: int | None = Field(
        None, ge=1, description="tokens between comparisons (default: a twentieth of the first trial's training)"
    )
    options: Mapping[str, Scalar] = Field({}, description="further arguments of the method")

    @model_validator(mode="after")
    def _known(self) -> "EarlyStopSpec":
        EARLY_STOPS.check(self.method)
        return self
