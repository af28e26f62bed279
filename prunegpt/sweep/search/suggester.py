"""A search as the coordinator sees it: it suggests trials, and gets their results.

All it knows is in the store. Each suggested trial lists the results reported since the one before it, so that a
later process repeats the same questions and answers with the same sampler and comes to the same state, whatever
instant the last one died at. Where the answers are not the same, because the space, the sampler or a trial's end has
changed, a new study takes over what still fits.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from prunegpt.errors import SpecError
from prunegpt.records import ComparisonKey, TrialResult
from prunegpt.spec.metrics import evaluation_of
from prunegpt.spec.plan import SearchPlan, TrialPlan
from prunegpt.spec.space import fits
from prunegpt.sweep.search.objectives import FAILED, TrialReport, outcome_of
from prunegpt.sweep.search.study import SearchStudy, Suggestion

TRIES = 100  # suggestions in a row that are no new trial, before a search is called exhausted
REPEAT_SECONDS = 120.0  # spent on repeating a history; a longer one is taken over into a new study
IN_VAIN = 0  # recorded in a plan for a suggestion that gave no new trial

_ENDED = ("finished", "failed", "diverged", "stopped")
_logger = logging.getLogger(__name__)

Suggested = Callable[[SearchPlan, Mapping[str, Any], int], TrialPlan]  # see planning.resolve.Planner.suggested
CurveOf = Callable[[TrialResult], Mapping[int, float]]  # tokens -> objective of a trial that was stopped early


@dataclass
class _Trial:
    """A suggested trial."""

    plan: TrialPlan
    asked: list[int] = field(
        default_factory=list
    )  # Optuna's numbers: the suggestion, and those like it; none: taken over
    outcome: TrialReport | None = None  # once reported
    result: TrialResult | None = None  # once ended


class Search:
    """One search of a sweep.

    Args:
        plan: the search.
        results: the trials it suggested earlier, as the store has them.
        suggested: resolves a suggestion.
        curve: of trials that were stopped early.
        tokens: that a trial was trained on, where it has not come through all stages.
    """

    def __init__(
        self,
        plan: SearchPlan,
        results: Sequence[TrialResult],
        suggested: Suggested,
        *,
        curve: CurveOf = lambda _: {},
        tokens: Callable[[TrialResult], int] = lambda _: 0,
    ) -> None:
        self.plan = plan
        self.exhausted = ""  # why there will be no more trials, though the budget is not spent
        self._suggested = suggested
        self._curve = curve
        self._tokens = tokens
        self._trials: dict[int, _Trial] = {}
        self._keys: dict[tuple[str, str], int] = {}  # of configurations
        self._since: list[int] = []  # reported since the last suggestion
        self._vain = False  # the last suggestion gave nothing, and nothing was reported since
        self._last = max((result.plan.number for result in results), default=0)
        self._measured: dict[str, ComparisonKey] = {}  # of the first reported trial, by evaluation
        self._restore(results)

    @property
    def running(self) -> int:
        """Suggested trials that have not ended."""
        return sum(1 for trial in self._trials.values() if trial.outcome is None)

    @property
    def kept(self) -> frozenset[int]:
        """Numbers of the trials that belong to the search as it is now."""
        return frozenset(self._trials)

    # -- ask and report ----------------------------------------------------------------------------------------

    def suggest(self) -> TrialPlan | None:
        """A new trial; None where the budget is spent, or Optuna suggests only what there is already."""
        if self._vain or self.exhausted or self._is_spent():
            return None
        number = self._last + 1
        found = self._ask(number)
        if found is None:
            self._since.append(IN_VAIN)
            self._vain = True
            if not self.running:
                self.exhausted = f"{TRIES} suggestions in a row were trials that there are already, or none at all."
                _logger.warning("search %s ends early: %s", self.plan.name, self.exhausted)
            return None
        asked, plan = found
        plan = plan.model_copy(update={"study": self._index, "told": tuple(self._since)})
        self._note(asked, plan)
        self._since = []
        return plan

    def tell(self, result: TrialResult) -> None:
        """A trial has ended; one that is not of this search, or was reported already, is ignored."""
        trial = self._trials.get(result.plan.number) if result.plan.search == self.plan.name else None
        if trial is None or result.state not in _ENDED or result.key != trial.plan.key:
            return
        outcome = self._outcome(result)
        trial.result = result
        if trial.outcome is None or (trial.outcome.state == "fail" and outcome.state != "fail"):
            self._tell(trial, outcome)
            self._since.append(trial.plan.number)
            self._vain = False

    def _outcome(self, result: TrialResult) -> TrialReport:
        """What is reported about a trial: a failure where it was not measured as the first reported one."""
        for name in dict.fromkeys(map(evaluation_of, self.plan.spec.measured)):
            measured = result.under(name).measured
            if measured is None:
                continue
            first = self._measured.setdefault(name, measured.comparison_key)
            if apart := first.differs(measured.comparison_key):
                _logger.warning(
                    "search %s cannot compare %s with the trials before it: %s. Keep what changes that out of the "
                    "space, or set evaluate so that all are measured alike.",
                    *(self.plan.name, result.name, apart),
                )
                return FAILED
        return outcome_of(self.plan.spec, result, lambda: self._curve(result))

    def _tell(self, trial: _Trial, outcome: TrialReport) -> None:
        if trial.outcome is None and trial.asked:
            for number in trial.asked:
                self.study.tell(number, outcome)
        else:  # of an earlier study, or it had failed and was run again
            self.study.add(trial.plan.swept, outcome, trial=trial.plan.name)
        trial.outcome = outcome

    def _ask(self, number: int) -> tuple[Suggestion, TrialPlan] | None:
        """A suggestion that is a new configuration. A known one gets the result of that trial, now or later."""
        for _ in range(TRIES + len(self._trials)):
            asked = self.study.ask()
            try:
                plan = self._suggested(self.plan, asked.chosen, number)
            except SpecError as error:
                self.study.note(asked.number, invalid="; ".join(problem.message for problem in error.problems))
                self.study.tell(asked.number, FAILED)
                continue
            known = self._keys.get(identity(plan))
            if known is None:
                return asked, plan
            original = self._trials[known]
            self.study.note(asked.number, trial=original.plan.name, duplicate="yes")
            if original.outcome is None and original.asked:
                original.asked.append(asked.number)
            else:
                self.study.tell(asked.number, original.outcome or FAILED)
        return None

    def _note(self, asked: Suggestion, plan: TrialPlan) -> None:
        self.study.note(asked.number, trial=plan.name)
        self._trials[plan.number] = _Trial(plan, [asked.number])
        self._keys[identity(plan)] = plan.number
        self._last = max(self._last, plan.number)

    # -- budget ------------------------------------------------------------------------------------------------

    def _is_spent(self) -> bool:
        spec = self.plan.spec
        if spec.n_trials is not None and len(self._trials) >= spec.n_trials:
            return True
        ended = [trial.result for trial in self._trials.values() if trial.result is not None]
        if spec.max_seconds is not None:
            times = [(one.started, one.ended) for one in ended]
            if sum(end - start for start, end in times if start is not None and end is not None) >= spec.max_seconds:
                return True
        return spec.max_tokens is not None and self._trained(ended) >= spec.max_tokens

    def _trained(self, ended: Sequence[TrialResult]) -> int:
        """Tokens that trials were trained on, a stage that they share once."""
        shared = {stage.key: stage.train_tokens for one in ended for stage in one.stages if stage.kind != "pretrain"}
        partly = [one for one in ended if len(one.stages) < len(one.plan.stages)]
        own = sum(max(0, self._tokens(one) - sum(stage.train_tokens for stage in one.stages)) for one in partly)
        return sum(shared.values()) + own

    # -- resuming a search ---------------------------------------------------------------------------------

    def _restore(self, results: Sequence[TrialResult]) -> None:
        """Repeats the questions and answers of the latest study, or takes all that fits into a new one."""
        fitting = sorted((result for result in results if self._fits(result)), key=attrgetter("plan.number"))
        self._index = max((result.plan.study for result in results), default=0)
        numbers = {result.plan.number for result in fitting}
        latest = {result.plan.number for result in results if result.plan.study == self._index}
        if latest <= numbers and self._repeat(fitting):
            return
        if results:
            self._index += 1
        self._begin()
        self._take_over(fitting, numbers)

    def _begin(self) -> None:
        self.study = SearchStudy(self.plan.spec, self._index)
        self._trials, self._keys, self._since = {}, {}, []
        self._measured = {}

    def _fits(self, result: TrialResult) -> bool:
        """Whether a trial is one that the search as it is now could have suggested."""
        if not fits(self.plan.spec.space, result.swept):
            return False
        try:
            plan = self._suggested(self.plan, result.swept, result.plan.number)
        except SpecError:
            return False
        return identity(plan) == identity(result.plan)

    def _repeat(self, fitting: Sequence[TrialResult]) -> bool:
        """Replays all suggestions and results; returns whether they agree."""
        self._begin()
        stop = time.monotonic() + REPEAT_SECONDS
        by_number = {result.plan.number: result for result in fitting}
        earlier = [result for result in fitting if result.plan.study < self._index]
        latest = [result for result in fitting if result.plan.study == self._index]
        told = latest[0].plan.told if latest else ()
        self._take_over(earlier, set(told))
        for result in latest:
            for number in result.plan.told:
                if number == IN_VAIN:
                    if self._ask(result.plan.number) is not None:
                        return False
                elif not self._tell_again(by_number.get(number)):
                    return False
            found = self._ask(result.plan.number)
            if found is None or time.monotonic() > stop or not _is_same(found[1], result):
                return False
            self._note(found[0], found[1].model_copy(update={"study": self._index, "told": result.plan.told}))
        self._since = []
        self._tell_rest(by_number)
        return True

    def _take_over(self, results: Sequence[TrialResult], told: set[int]) -> None:
        """Adds trials of earlier studies, the reported ones with their results."""
        for result in results:
            trial = _Trial(self._suggested(self.plan, result.swept, result.plan.number))
            self._trials[trial.plan.number] = trial
            self._keys[identity(trial.plan)] = trial.plan.number
            if trial.plan.number in told and result.state in _ENDED:
                trial.result = result
                self._tell(trial, self._outcome(result))
                self._since.append(trial.plan.number)

    def _tell_again(self, result: TrialResult | None) -> bool:
        """Reports a trial's earlier result; one that is rerun had failed. Returns whether there is such a trial."""
        if result is None or result.plan.number not in self._trials:
            return False
        trial = self._trials[result.plan.number]
        ended = result.state in _ENDED
        if trial.outcome is None:
            trial.result = result if ended else None
            self._tell(trial, self._outcome(result) if ended else FAILED)
        return True

    def _tell_rest(self, results: Mapping[int, TrialResult]) -> None:
        """Tells what ended after the last suggestion."""
        left = [results[number] for number, trial in self._trials.items() if trial.outcome is None]
        for result in sorted(left, key=lambda one: (one.ended or 0.0, one.plan.number)):
            self.tell(result)


def identity(plan: TrialPlan) -> tuple[str, str]:
    """Equal for equal configurations."""
    return plan.key, plan.measured_by


def _is_same(plan: TrialPlan, result: TrialResult) -> bool:
    return identity(plan) == identity(result.plan) and dict(plan.swept) == dict(result.swept)
