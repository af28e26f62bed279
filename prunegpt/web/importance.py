"""What a result depends on: Optuna's PED-ANOVA over the trials of the store.

Watanabe, Bansal & Hutter 2023, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces".
It needs no model of the objective, and takes categories as well as numbers.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from prunegpt.errors import ReportError
from prunegpt.report.format import is_number

_ONE_AT_A_TIME = threading.Lock()  # Optuna imports its parts when first used: threads must not do that together


def importances(settings: Sequence[Mapping[str, Any]], values: Sequence[float]) -> dict[str, float]:
    """The share of each setting in what makes the best trials, the greatest first; together 1.

    Args:
        settings: path -> value, of each trial; all have the same paths, and each path several values.
        values: what is to be low, of each trial.

    Raises:
        ReportError: Optuna cannot tell from these.
    """
    with _ONE_AT_A_TIME:
        try:
            return _told(settings, values)
        except Exception as error:  # of whatever kind: a figure is missing then, and the page says why
            reason = str(error) or type(error).__name__
            raise ReportError(f"importance cannot be told from these trials: {reason}") from error


def _told(settings: Sequence[Mapping[str, Any]], values: Sequence[float]) -> dict[str, float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {path: _distribution([one[path] for one in settings]) for path in settings[0]}
    study = optuna.create_study()
    for one, value in zip(settings, values, strict=True):
        parameters = {
            path: float(one[path]) if isinstance(kind, optuna.distributions.FloatDistribution) else _text(one[path])
            for path, kind in distributions.items()
        }
        study.add_trial(optuna.trial.create_trial(params=parameters, distributions=distributions, value=value))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _distribution(values: Sequence[Any]) -> Any:
    """A range of numbers, logarithmic where they span two decades; else a choice."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(is_number(value) for value in values):
        low, high = float(min(values)), float(max(values))
        return FloatDistribution(low, high, log=low > 0 and high / low >= 100)
    return CategoricalDistribution(sorted({_text(value) for value in values}))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
