"""Parameters of a W&B sweep: what each may be, as a list, as a draw, as an Optuna-like range."""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from prunegpt.errors import listed, unknown

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_BOUNDS, _STEP, _SHAPE, _TWO = ("min", "max"), ("q",), ("mu", "sigma"), ("a", "b")
KEYS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # distribution -> keys it must have, and may have
    "constant": (("value",), ()),
    "categorical": (("values",), ()),
    "categorical_w_probabilities": (("values", "probabilities"), ()),
    "int_uniform": (_BOUNDS, ()),
    "uniform": (_BOUNDS, ()),
    "q_uniform": (_BOUNDS, _STEP),
    "log_uniform_values": (_BOUNDS, ()),
    "q_log_uniform_values": (_BOUNDS, _STEP),
    "inv_log_uniform_values": (_BOUNDS, ()),
    "normal": ((), _SHAPE),
    "q_normal": ((), (*_SHAPE, *_STEP)),
    "log_normal": ((), _SHAPE),
    "q_log_normal": ((), (*_SHAPE, *_STEP)),
    "beta": ((), _TWO),
    "q_beta": ((), (*_TWO, *_STEP)),
}
_EXPONENTS = ("log_uniform", "q_log_uniform", "inv_log_uniform")  # of old: bounds are exponents
_LOGARITHMIC = ("log_uniform_values", "q_log_uniform_values", "inv_log_uniform_values")
_LISTED = ("categorical", "int_uniform", "q_uniform")  # what a grid can go through
MAX_VALUES = 10_000  # of one parameter in a grid


class ParameterError(ValueError):
    """A parameter that is not one, or not of a kind that is wanted here."""


@dataclass(frozen=True)
class Parameter:
    """One leaf of `parameters`.

    Args:
        path: names from the top, joined by dots: a path as in `vary`.
        place: the keys that lead to it in the sweep config.
        distribution: a key of KEYS.
        spec: its keys but `distribution`.
    """

    path: str
    place: tuple[str, ...]
    distribution: str
    spec: Mapping[str, Any]

    @property
    def constant(self) -> bool:
        return self.distribution == "constant"

    def listed(self) -> list[Any]:
        """Its values in a grid, as W&B goes through them: equal ones once, 1 and 1.0 being equal.

        Raises:
            ParameterError: there is no end to them, or their probabilities are given.
        """
        spec = self.spec
        if self.constant:
            return [spec["value"]]
        if self.distribution not in _LISTED:
            raise ParameterError(
                f"a grid needs values, or whole numbers from min to max, or q_uniform; {self.path} is "
                f"{self.distribution}. List its values, or use method random."
            )
        if self.distribution == "categorical":
            return merged(spec["values"])
        step = spec.get("q", 1.0) if self.distribution == "q_uniform" else 1
        high = spec["max"] + (self.distribution == "int_uniform")
        count = max(math.ceil((high - spec["min"]) / step), 0)
        if count > MAX_VALUES:
            raise ParameterError(
                f"a parameter of a grid may have {MAX_VALUES} values; {self.path} has {count}. Use a larger q."
            )
        import numpy as np  # here, because specs are read by commands that have to be quick

        return merged(np.arange(spec["min"], high, step).tolist())  # without max, and rounded, as W&B does

    def draw(self, share: float) -> Any:
        """The value below which a share of the probability is, 0 < share < 1."""
        spec = self.spec
        match self.distribution.removeprefix("q_"):
            case "constant":
                return spec["value"]
            case "categorical":
                return spec["values"][_index(share, len(spec["values"]))]
            case "categorical_w_probabilities":
                sums = list(itertools.accumulate(spec["probabilities"]))
                return spec["values"][next((index for index, upto in enumerate(sums) if share < upto), 0)]
            case "int_uniform":
                return spec["min"] + _index(share, spec["max"] - spec["min"] + 1)
            case "normal":
                value = _normal(share, spec)
            case "log_normal":
                value = math.exp(_normal(share, spec))
            case "beta":
                from scipy.special import betaincinv  # here, because specs are read by commands that have to be quick

                value = float(betaincinv(spec.get("a", 1), spec.get("b", 1), share))
            case "uniform":
                value = _between(share, spec["min"], spec["max"])
            case "log_uniform_values":
                value = math.exp(_between(share, math.log(spec["min"]), math.log(spec["max"])))
            case _:  # the reciprocal of a value that is even on a logarithmic scale between 1/max and 1/min
                value = math.exp(-_between(1 - share, -math.log(spec["max"]), -math.log(spec["min"])))
        return _quantized(value, spec.get("q", 1.0)) if self.distribution.startswith("q_") else value

    def dimension(self) -> dict[str, Any] | None:
        """The same as a searched field (`spec.search.Dimension`); None where there is no such range."""
        spec = self.spec
        match self.distribution:
            case "categorical":
                return {"values": merged(spec["values"])}
            case "int_uniform":
                return {"low": spec["min"], "high": spec["max"]}
            case "uniform":
                return {"low": float(spec["min"]), "high": float(spec["max"])}
            case "log_uniform_values":
                return {"low": float(spec["min"]), "high": float(spec["max"]), "log": True}
            case "q_uniform":
                step = spec.get("q", 1)
                if not all((spec[key] / step).is_integer() for key in _BOUNDS):  # W&B rounds to multiples of q
                    return {"low": float(spec["min"]), "high": float(spec["max"]), "quantum": step}
                cast = int if isinstance(step, int) else float
                return {"low": cast(spec["min"]), "high": cast(spec["max"]), "step": cast(step)}
            case "q_log_uniform_values":
                if spec.get("q", 1) == 1 and spec["min"] >= 1:
                    return {"low": int(spec["min"]), "high": int(spec["max"]), "log": True}
                range_ = {"low": float(spec["min"]), "high": float(spec["max"]), "log": True}
                return {**range_, "quantum": spec.get("q", 1)}
        return None


def _between(share: float, low: float, high: float) -> float:
    return low + share * (high - low)


def _index(share: float, count: int) -> int:
    """An index from 0, uniformly distributed."""
    return min(count - 1, max(math.ceil(share * count) - 1, 0))


def _normal(share: float, spec: Mapping[str, Any]) -> float:
    bounded = min(max(share, 1e-300), 1 - 1e-16)
    return float(spec.get("mu", 0.0) + spec.get("sigma", 1.0) * NormalDist().inv_cdf(bounded))


def _quantized(value: float, step: float) -> float:
    """The nearest multiple of a step, whole where the step is."""
    multiple = float(round(value / step)) * step  # half to even, as numpy rounds
    return int(multiple) if isinstance(step, int) else multiple


def merged(values: Sequence[Any]) -> list[Any]:
    """Each value once, in the place of its first and as its last was written, as W&B merges them."""
    found: dict[str, Any] = {}
    for value in values:
        found[canonical(value)] = value
    return list(found.values())


def canonical(value: Any) -> str:
    """A text that is equal for equal values: 1 and 1.0 are, true and 1 are not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)


def parameters(block: Any) -> tuple[list[Parameter], list[tuple[tuple[str, ...], str]]]:
    """The leaves of a `parameters` block, names in alphabetical order at every level, and what is wrong in it."""
    problems: list[tuple[tuple[str, ...], str]] = []
    found = list(_leaves(block, ("parameters",), "", problems))
    paths = [one.path for one in found]
    twice = [one for one in found if paths.count(one.path) > 1]
    problems += [(one.place, f"a parameter may be given once; {one.path} is given twice.") for one in twice]
    return found, problems


def _leaves(
    block: Any, place: tuple[str, ...], prefix: str, problems: list[tuple[tuple[str, ...], str]]
) -> Iterator[Parameter]:
    if not isinstance(block, Mapping) or not block:
        problems.append((place, "parameters must be a mapping of names to what each may be, and not empty."))
        return
    for name in sorted(block):
        here, spec = (*place, name), block[name]
        if not _NAME.fullmatch(name):
            problems.append(
                (
                    here,
                    f"a parameter's name begins with a letter and holds letters, digits and _.-, got {name!r}. Join "
                    "what begins with a digit to the name before it, such as stages.0.",
                )
            )
        elif isinstance(spec, Mapping) and set(spec) == {"parameters"}:
            yield from _leaves(spec["parameters"], (*here, "parameters"), f"{prefix}{name}.", problems)
        else:
            try:
                distribution, rest = _read(spec)
            except ParameterError as error:
                problems.append((here, str(error)))
            else:
                yield Parameter(prefix + name, here, distribution, rest)


def _read(spec: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(spec, Mapping):
        raise ParameterError(
            "a parameter must be a mapping such as {value: 1}, {values: [1, 2]} or {min: 0.1, max: 0.9}, got "
            f"{spec!r}."
        )
    name = spec["distribution"] if "distribution" in spec else _inferred(spec)
    if name in _EXPONENTS:
        raise ParameterError(
            f"{name} takes exponents as its bounds, which W&B has removed. Write {name}_values, with bounds as values."
        )
    if name not in KEYS:
        raise ParameterError(unknown("distribution", str(name), list(KEYS)))
    needed, more = KEYS[name]
    rest = {key: value for key, value in spec.items() if key != "distribution"}
    for key in needed:
        if key not in rest:
            raise ParameterError(f"{name} needs {key}. It takes {listed((*needed, *more))}.")
    for key in rest:
        if key not in (*needed, *more):
            raise ParameterError(unknown(f"key of {name}", key, [*needed, *more]))
    _check(name, rest)
    return name, rest


def _inferred(spec: Mapping[str, Any]) -> str:
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if "min" in spec and "max" in spec:
        return "int_uniform" if all(type(spec[key]) is int for key in _BOUNDS) else "uniform"
    raise ParameterError("a parameter needs value, values, min and max, distribution, or parameters inside it.")


def _check(name: str, spec: Mapping[str, Any]) -> None:
    for key in ("min", "max", "q", "mu", "sigma", "a", "b"):
        value = spec.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ParameterError(f"{key} must be a number, got {value!r}. Without an exponent's dot, 1e-4 is text.")
    if "min" in spec and not spec["min"] < spec["max"]:
        raise ParameterError(f"min must be less than max, got {spec['min']} and {spec['max']}.")
    if name == "int_uniform" and not all(float(spec[key]).is_integer() for key in _BOUNDS):
        raise ParameterError("int_uniform takes whole numbers as min and max. Use uniform for others.")
    if name in _LOGARITHMIC and spec["min"] <= 0:
        raise ParameterError(f"{name} must begin above 0; min is {spec['min']}.")
    for key in ("q", "a", "b"):
        if key in spec and spec[key] <= 0:
            raise ParameterError(f"{key} must be above 0, got {spec[key]}.")
    if spec.get("sigma", 1) < 0:
        raise ParameterError(f"sigma must be at least 0, got {spec['sigma']}.")
    if "values" in spec and (not isinstance(spec["values"], (list, tuple)) or not spec["values"]):
        raise ParameterError("values must be a list with at least one value.")
    if "probabilities" in spec:
        _check_probabilities(spec["values"], spec["probabilities"])


def _check_probabilities(values: Sequence[Any], probabilities: Any) -> None:
    valid = isinstance(probabilities, (list, tuple)) and all(
        isinstance(one, (int, float)) and one >= 0 for one in probabilities
    )
    if not valid or len(probabilities) != len(values) or not math.isclose(sum(probabilities), 1, abs_tol=1e-8):
        raise ParameterError("probabilities must be one number per value, non-negative, and add up to 1.")
