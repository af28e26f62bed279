"""The next point of a hosted sweep: through the grid, at random, or by Optuna's TPE from the results so far."""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from prunegpt.spec.search import Dimension
from prunegpt.spec.wandb import problems_of
from prunegpt.spec.wandb_parameters import Parameter, parameters
from prunegpt.sweep.search.study import distribution_of
from prunegpt.tracking.endpoint.hosted import OPEN, Hosted, NewPoint

_EDGE = 1e-12


def next_point(hosted: Hosted) -> NewPoint | None:
    """The point of the run after the last one; None where a grid has no more."""
    found, _ = parameters(hosted.config.get("parameters"))
    free = [one for one in found if not one.constant]
    method, number = hosted.config.get("method"), len(hosted.runs)
    values: dict[str, Any] | None
    if method == "grid":
        values = _grid(free, number)
    elif method == "random":
        values = {one.path: one.draw(share) for one, share in zip(free, _shares(hosted, len(free)), strict=True)}
    else:
        values = _bayes(hosted, free)
    return None if values is None else NewPoint(args=_nested(found, values), values=values)


def _nested(found: Sequence[Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    args: dict[str, Any] = {}
    for one in found:
        *above, last = one.place[1::2]
        node = args
        for name in above:
            node = node.setdefault(name, {})
        node[last] = one.spec["value"] if one.constant else values[one.path]
    return args


def _grid(free: Sequence[Parameter], number: int) -> dict[str, Any] | None:
    points = itertools.product(*(one.listed() for one in free))
    point = next(itertools.islice(points, number, None), None)
    return None if point is None else dict(zip([one.path for one in free], point, strict=True))


def _shares(hosted: Hosted, count: int) -> list[float]:
    source = random.Random(f"{hosted.name}/{len(hosted.runs)}")
    return [source.uniform(_EDGE, 1 - _EDGE) for _ in range(count)]


def distribution(parameter: Parameter) -> BaseDistribution | None:
    """What Optuna draws a parameter from; None where it has nothing like it, such as a normal distribution."""
    dimension = {"values": [parameter.spec["value"]]} if parameter.constant else parameter.dimension()
    if dimension is None:
        return None
    if "values" in dimension:
        return CategoricalDistribution(dimension["values"])
    return distribution_of(Dimension.model_validate(dimension))


class _Axis(NamedTuple):
    """One parameter as Optuna searches it."""

    distribution: BaseDistribution
    drawn: Callable[[Any], Any]  # a value -> what it was drawn as
    value: Callable[[Any], Any]


def _axis(parameter: Parameter) -> _Axis:
    """What Optuna has no distribution for is searched by the share that a value is drawn at."""
    found, dimension = distribution(parameter), parameter.dimension()
    if found is None or dimension is None:
        return _Axis(FloatDistribution(_EDGE, 1 - _EDGE), partial(_share, parameter), parameter.draw)
    if "values" in dimension:
        return _Axis(found, lambda value: value, lambda drawn: drawn)
    searched = Dimension.model_validate(dimension)
    return _Axis(found, searched.within, searched.rounded)


def _bayes(hosted: Hosted, free: Sequence[Parameter]) -> dict[str, Any]:
    """Asks a study that is made again of all runs.

    Those that run count as bad, so that no two are alike; and those that came to nothing count as the worst, as W&B has
    it by default.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes = {one.path: _axis(one) for one in free}
    space = {path: axis.distribution for path, axis in axes.items()}
    sampler = optuna.samplers.TPESampler(seed=len(hosted.runs))
    study = optuna.create_study(direction=hosted.goal, sampler=sampler)
    metrics = [run.metric for run in hosted.runs if run.metric is not None and math.isfinite(run.metric)]
    worst = (min if hosted.goal == "maximize" else max)(metrics, default=None)
    for run in hosted.runs:
        value = run.metric if run.metric in metrics else None if run.state in OPEN else worst
        if value is None and run.state not in OPEN:
            continue
        params = {path: axes[path].drawn(item) for path, item in run.values.items()}
        state = optuna.trial.TrialState.RUNNING if value is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(optuna.create_trial(state=state, value=value, params=params, distributions=space))
    return {path: axes[path].value(drawn) for path, drawn in study.ask(space).params.items()}


def _share(parameter: Parameter, value: float) -> float:
    """The share that a value was drawn at, by bisection."""
    low, high = _EDGE, 1 - _EDGE
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if parameter.draw(middle) < value else (low, middle)
    return (low + high) / 2


def config_problems(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with a config that shall be hosted."""
    found, wrong = parameters(config.get("parameters"))
    told = [f"{'.'.join(map(str, place))}: {message}" for place, message in (*wrong, *problems_of(config))]
    if config.get("method") == "bayes":
        if not config.get("metric"):
            told.append("method bayes needs a metric: give metric: {name: ..., goal: minimize}.")
        told += [f"{one.path}: bayes takes no probabilities." for one in found if "probabilities" in one.spec]
    if not told:
        try:
            next_point(Hosted(name="", entity="", project="", config=dict(config)))
        except (ValueError, OverflowError, TypeError) as error:
            told.append(f"a first run must be drawn from the parameters: {error}.")
    return told
