"""An in-memory Optuna study of one search, independent of our trials."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunegpt.planning.samplers import quiet, sampler_of
from prunegpt.spec.search import Dimension, SearchSpec
from prunegpt.spec.space import is_active, ordered
from prunegpt.sweep.search.objectives import TrialReport

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState


@dataclass(frozen=True)
class Suggestion:
    """One suggestion."""

    number: int  # Optuna's, from 0
    chosen: Mapping[str, Any]  # path -> choice


class SearchStudy:
    """A study.

    Args:
        spec: the search.
        study: counts its studies from 0, see sampler_of.
    """

    def __init__(self, spec: SearchSpec, study: int = 0) -> None:
        import optuna

        self.spec = spec
        self._order = ordered(spec.space)
        with quiet():
            self._study = optuna.create_study(
                directions=[objective.wanted for objective in spec.objectives],
                sampler=sampler_of(spec, study),
                pruner=optuna.pruners.NopPruner(),
            )
        self._open: dict[int, Trial] = {}

    def ask(self) -> Suggestion:
        """A suggestion whose result is pending."""
        chosen: dict[str, Any] = {}
        with quiet():
            trial = self._study.ask()
            for path in self._order:
                if is_active(self.spec.space, path, chosen):
                    chosen[path] = self.spec.space[path].rounded(_suggest(trial, path, self.spec.space[path]))
        self._open[trial.number] = trial
        return Suggestion(trial.number, chosen)

    def note(self, number: int, **attributes: str) -> None:
        """User attributes of a pending suggestion."""
        for key, value in attributes.items():
            self._open[number].set_user_attr(key, value)

    def tell(self, number: int, outcome: TrialReport) -> None:
        """What a suggestion came to."""
        trial = self._open.pop(number)
        with quiet():
            for key, value in outcome.constraints.items():
                trial.set_constraint(key, value)
            for step, value in outcome.curve.items():
                trial.report(value, step)
            self._study.tell(trial, list(outcome.values) or None, state=_state(outcome))

    def add(self, chosen: Mapping[str, Any], outcome: TrialReport, **attributes: str) -> int:
        """A trial that was not asked for here; gives Optuna's number of it."""
        with quiet():
            self._study.add_trial(frozen(self.spec, chosen, outcome, **attributes))
        return len(self._study.get_trials(deepcopy=False)) - 1

    @property
    def trials(self) -> "list[FrozenTrial]":
        """All of it, by number. Not to be changed."""
        return self._study.get_trials(deepcopy=False)


def frozen(
    spec: SearchSpec, chosen: Mapping[str, Any], outcome: TrialReport | None, **attributes: Any
) -> "FrozenTrial":
    """A trial as Optuna keeps it.

    Args:
        spec: the search.
        chosen: path -> choice; they fit its space.
        outcome: what the trial came to; None while it runs.
        attributes: for people.
    """
    from optuna.trial import TrialState, create_trial

    return create_trial(
        state=_state(outcome) if outcome else TrialState.RUNNING,
        values=list(outcome.values) or None if outcome else None,
        params={path: spec.space[path].within(choice) for path, choice in chosen.items()},
        distributions={path: distribution_of(spec.space[path]) for path in chosen},
        user_attrs=attributes,
        intermediate_values=dict(outcome.curve) if outcome else None,
        constraints=dict(outcome.constraints) if outcome else None,
    )


def distribution_of(dimension: Dimension) -> "BaseDistribution":
    """Optuna's distribution of a searched field."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.values is not None:
        return CategoricalDistribution(dimension.choices)
    low, high, step = dimension.low, dimension.highest, dimension.step
    assert low is not None
    if dimension.is_integer:
        return IntDistribution(int(low), int(high), log=dimension.log, step=1 if step is None else int(step))
    return FloatDistribution(low, high, log=dimension.log, step=step)


def _suggest(trial: "Trial", path: str, dimension: Dimension) -> Any:
    if dimension.values is not None:
        return trial.suggest_categorical(path, dimension.choices)
    low, high, step = dimension.low, dimension.highest, dimension.step
    assert low is not None
    if dimension.is_integer:
        return trial.suggest_int(path, int(low), int(high), log=dimension.log, step=1 if step is None else int(step))
    return trial.suggest_float(path, low, high, log=dimension.log, step=step)


def _state(outcome: TrialReport) -> "TrialState":
    from optuna.trial import TrialState

    return {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "fail": TrialState.FAIL}[outcome.state]
