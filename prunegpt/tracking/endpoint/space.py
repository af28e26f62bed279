"""W&B parameters as Optuna distributions."""

from typing import Any

import optuna.distributions as optuna

from prunegpt.spec.wandb_parameters import Parameter


def distribution(parameter: Parameter) -> optuna.BaseDistribution | None:
    """What Optuna draws a parameter from; None where it has nothing like it, such as a normal distribution."""
    if parameter.constant:
        return optuna.CategoricalDistribution([parameter.spec["value"]])
    dimension = parameter.dimension()
    if dimension is None:
        return None
    if "values" in dimension:
        return optuna.CategoricalDistribution(dimension["values"])
    given: dict[str, Any] = {"low": dimension["low"], "high": dimension["high"], "log": dimension.get("log", False)}
    if isinstance(dimension["low"], int) and isinstance(dimension["high"], int):
        return optuna.IntDistribution(**given, step=dimension.get("step", 1))
    return optuna.FloatDistribution(**given, step=dimension.get("step"))
