"""A plan as a W&B sweep config: what `wandb sweep` registers, so that agents run the plan's trials."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prunegpt.errors import Problem, SpecError, listed
from prunegpt.spec.metrics import MEASURED
from prunegpt.spec.only import Only, matches, refuse_unmatched
from prunegpt.spec.plan import SearchPlan, SweepPlan, TrialPlan
from prunegpt.spec.search import Dimension, EarlyStopSpec
from prunegpt.spec.wandb import STOP, TRIAL
from prunegpt.spec.wandb_parameters import canonical, parameters

SEED = "seeds"  # the parameter of trials that differ in their seed
_LISTED = 1000  # steps of a range that W&B has no distribution for
_RANDOM = ("random", "qmc")  # samplers that use no result


def config_of(plan: SweepPlan, command: Sequence[str], program: str, only: Only = None) -> dict[str, Any]:
    """The sweep config whose runs are a plan's trials, or one of its searches.

    Trials of one template become nested parameters; others are listed by name, as the parameter `trial`.

    Args:
        command: what an agent starts for each run.
        program: the spec's file, for people to read.
        only: globs; trials or a search whose name one matches.

    Raises:
        SpecError: nothing matches, or W&B has nothing like what is asked for.
    """
    trials = [one for one in plan.trials if one.sweep == plan.name and not one.implicit]
    refuse_unmatched(only, [*(one.name for one in trials), *(one.name for one in plan.searches)])
    trials = [one for one in trials if matches(one.name, only)]
    searches = [one for one in plan.searches if matches(one.name, only)]
    if searches and (trials or len(searches) > 1):
        names = [one.name for one in searches]
        raise _refused(
            f"a W&B sweep is one search, or trials without one; this spec has {len(trials)} trials and the searches "
            f"{listed(names)}. Choose with --only, such as --only '{names[0]}'."
        )
    config: dict[str, Any] = {
        "name": plan.name,
        "description": plan.title,
        "program": program,
        "command": list(command),
        **(_search(searches[0]) if searches else _grid(plan, trials)),
    }
    if plan.target:
        config["metric"] = _target(plan, config["metric"], bool(searches))
    if plan.early_stop:
        config["early_terminate"] = _stop(plan.early_stop)
        compared = {config["metric"]["name"], plan.early_stop.metric}
        if len(compared) > 1 and not compared <= MEASURED:
            raise _refused(
                f"W&B stops runs early by the search's metric, {config['metric']['name']}; early_stop.metric is "
                f"{plan.early_stop.metric}. Make them equal."
            )
    return config


def _target(plan: SweepPlan, metric: Mapping[str, Any], searched: bool) -> dict[str, Any]:
    """The metric with the target; a sweep that does not search may take the target's for its own."""
    assert plan.target is not None
    if searched and (plan.target.metric, plan.target.wanted) != (metric["name"], metric["goal"]):
        raise _refused(
            f"W&B has a target for the metric it searches by alone, {metric['goal']} {metric['name']}; target is to "
            f"{plan.target.wanted} {plan.target.metric}. Make them equal."
        )
    return {"name": plan.target.metric, "goal": plan.target.wanted, "target": plan.target.value}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths as nested parameters. What begins with a digit stays with the name before it: W&B wants a letter."""
    found: dict[str, Any] = {}
    for path, parameter in flat.items():
        *above, last = _names(path)
        node = found
        for name in above:
            node = node.setdefault(name, {"parameters": {}})["parameters"]
        node[last] = parameter
    return found


def _names(path: str) -> list[str]:
    names: list[str] = []
    for step in path.split("."):
        if names and not (step[:1].isalpha() or step[:1] == "_"):
            names[-1] += f".{step}"
        else:
            names.append(step)
    return names


def _grid(plan: SweepPlan, trials: Sequence[TrialPlan]) -> dict[str, Any]:
    flat = _product(trials) if len(plan.spec.get("trials", ())) == 1 else None
    if flat is not None and parameters(nested(flat))[1]:
        flat = None  # a name that W&B does not take
    listed = nested(flat) if flat is not None else {TRIAL: {"values": [trial.name for trial in trials]}}
    return {"method": "grid", "metric": {"name": "perplexity", "goal": "minimize"}, "parameters": listed}


def _product(trials: Sequence[TrialPlan]) -> dict[str, Any] | None:
    """Path -> parameter, where the trials are all points of a grid; None where they are not."""
    paths = list(trials[0].swept)
    if any(list(trial.swept) != paths for trial in trials) or SEED in paths:
        return None
    lists: dict[str, dict[str, Any]] = {path: {} for path in paths}
    for trial in trials:
        for path, value in trial.swept.items():
            lists[path].setdefault(canonical(value), value)
    seeds = sorted({trial.seed for trial in trials})
    if math.prod(map(len, lists.values())) * len(seeds) != len(trials):
        return None
    if any(path != other and f"{other}.".startswith(f"{path}.") for path in paths for other in paths):
        return None  # a path inside another one cannot be nested
    flat = {path: {"values": list(values.values())} for path, values in lists.items()}
    if len(seeds) > 1:
        flat[SEED] = {"values": seeds}
    return flat or None


def _search(search: SearchPlan) -> dict[str, Any]:
    spec = search.spec
    if len(spec.objectives) > 1 or spec.constraints:
        raise _refused("W&B searches by one metric without constraints. Remove the others, or use `sweep run`.")
    for path, dimension in spec.space.items():
        if dimension.when:
            raise _refused(f"W&B has no conditions; {path} is searched only for some values of another field.")
    objective = spec.objectives[0]
    config: dict[str, Any] = {
        "method": "random" if spec.sampler in _RANDOM else "bayes",
        "metric": {"name": objective.metric, "goal": objective.wanted},
        "parameters": nested({path: _parameter(path, dimension) for path, dimension in spec.space.items()}),
    }
    if spec.n_trials is not None:
        config["run_cap"] = spec.n_trials
    return config


def _parameter(path: str, dimension: Dimension) -> dict[str, Any]:
    if dimension.values is not None:
        return {"values": list(dimension.choices if dimension.names else dimension.values)}
    low, high, step = dimension.low, dimension.high, dimension.step
    assert low is not None
    assert high is not None
    bounds = {"min": low, "max": high}
    if low == high:
        return {"value": low}
    if dimension.quantum is not None:
        name = "q_log_uniform_values" if dimension.log else "q_uniform"
        return {"distribution": name, **bounds, "q": dimension.quantum}
    if dimension.log:
        whole = dimension.is_integer
        return {"distribution": "q_log_uniform_values" if whole else "log_uniform_values", **bounds, **_one(whole)}
    if step is None or (dimension.is_integer and step == 1):
        return {"distribution": "int_uniform" if dimension.is_integer else "uniform", **bounds}
    values = [low + index * step for index in range(math.floor((high - low) / step + 1e-9) + 1)]
    if len(values) > _LISTED:
        raise _refused(f"W&B has no steps from {low}, and the {len(values)} values of {path} are too many to list.")
    return {"values": values}


def _one(whole: bool) -> dict[str, Any]:
    return {"q": 1} if whole else {}


def _stop(stop: EarlyStopSpec) -> dict[str, Any]:
    options = dict(stop.options)
    if stop.method == STOP:
        return {"type": "hyperband", **options}
    if stop.method in ("hyperband", "successive_halving"):
        return {
            "type": "hyperband",
            "min_iter": options.get("min_resource", 1),
            "eta": options.get("reduction_factor", 3),
        }
    raise _refused(
        f"W&B stops runs early by hyperband only; early_stop is {stop.method}. Use {STOP}, which decides as W&B does, "
        "or remove it."
    )


def _refused(message: str) -> SpecError:
    return SpecError([Problem("", message)])
