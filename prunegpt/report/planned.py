"""Trials that a spec names and that nobody has run: a table shows their rows, and says so."""

from collections.abc import Sequence

from prunegpt.records import TrialResult
from prunegpt.spec.plan import SweepPlan


def with_planned(results: Sequence[TrialResult], plan: SweepPlan) -> tuple[TrialResult, ...]:
    """The stored results of a sweep, and a waiting one for each trial of its plan that is not among them.

    The others stand where they are; ids of added ones are negative, for they are in no store.
    """
    known = {(trial.sweep, trial.name) for trial in results}
    missing = [trial for trial in plan.trials if (trial.sweep, trial.name) not in known and not trial.implicit]
    return (
        *results,
        *(
            TrialResult(
                id=-number,
                shown=True,
                state="waiting",
                key=trial.key,
                plan=trial.model_dump(mode="json"),
                **trial.model_dump(
                    include={
                        *("sweep", "name", "group", "seed", "label", "order", "implicit"),
                        *("evaluation_key", "swept", "config"),
                    }
                ),
            )
            for number, trial in enumerate(missing, start=1)
        ),
    )
