"""What can be wrong with a sweep as a whole although every trial of it is well formed."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prunegpt.errors import Problem, PruneGPTError
from prunegpt.planning import checks
from prunegpt.planning.budget import evaluates
from prunegpt.planning.samplers import early_stop_of
from prunegpt.planning.teachers import ResolvedTrial
from prunegpt.spec.columns import column_parts

if TYPE_CHECKING:
    from prunegpt.planning.resolve import Planner

_NUMBERS = 999  # of a search's trials that table rows may name where it ends by time or tokens


def sweep_problems(planner: "Planner", chains: "Sequence[ResolvedTrial | None]") -> "Iterator[Problem]":
    """Problems of tables, early stopping and the target.

    Args:
        chains: the trials of the spec; None where one has problems of its own.
    """
    yield from _table_problems(planner)
    yield from _early_stop_problems(planner, chains)
    yield from _metric_problems(planner, chains)
    yield from _column_problems(planner, chains)


def _table_problems(planner: "Planner") -> list[Problem]:
    if planner.opened.spec is None or not planner.opened.complete:
        return []  # a row may be for a trial that has problems of its own
    searched = [
        template.name_of(number)  # that trials may come to have
        for template in planner.opened.searches
        for number in range(1, (template.spec.n_trials or _NUMBERS) + 1)
    ]
    return [
        planner.opened.document.problem(("tables", index, *place), message)
        for index, table in enumerate(planner.opened.spec.tables)
        for place, message in checks.table_problems(table, [*planner.opened.groups, *searched])
    ]


def _early_stop_problems(planner: "Planner", chains: Sequence[ResolvedTrial | None]) -> list[Problem]:
    spec = planner.opened.spec
    if spec is None or spec.early_stop is None:
        return []
    try:
        early_stop_of(spec.early_stop)
    except PruneGPTError as error:
        place = ("early_stop", "options") if spec.early_stop.options else ("early_stop",)
        return [planner.opened.document.problem(place, str(error))]
    known = [chain for found in (chains, *planner.searched.values()) for chain in found if chain]
    blended = any(stage.distill for chain in known for stage in chain.trial.stages)
    if spec.early_stop.metric == "loss" and blended:
        message = (
            "early stopping must compare a measure of the model; the loss of a distillation is blended with the "
            "divergence from its teacher. Use metric: perplexity, with train.eval_strategy: steps."
        )
        return [planner.opened.document.problem(("early_stop", "metric"), message)]
    trained = [stage.training for chain in known for stage in chain.trial.stages if stage.training]
    if planner.watched and trained and not any(evaluates(training.train) for training in trained):
        message = (
            f"early stopping compares {spec.early_stop.metric} while trials train; eval_strategy is no in all of "
            "them. Remove it: they are then evaluated after each tenth of their steps."
        )
        return [planner.opened.document.problem(("early_stop",), message)]
    return []


def _metric_problems(planner: "Planner", chains: Sequence[ResolvedTrial | None]) -> list[Problem]:
    """Where the whole sweep compares a measurement that none of its trials makes."""
    spec = planner.opened.spec
    if spec is None:
        return []
    known = [chain for found in (chains, *planner.searched.values()) for chain in found if chain]
    evaluations = [one.evaluate for chain in known for one in chain.trial.evaluations]
    asked = {"target": spec.target, "early_stop": spec.early_stop}
    return [
        planner.opened.document.problem((field, "metric"), message)
        for field, one in asked.items()
        if one is not None and known and one.metric != "loss"  # which may be the curve of a training
        for message in checks.unmeasured([one.metric], evaluations)
    ]


def _column_problems(planner: "Planner", chains: Sequence[ResolvedTrial | None]) -> list[Problem]:
    """Columns of tables that name an evaluation that no trial has; of other sweeps' trials nothing is known."""
    spec = planner.opened.spec
    resolved = [chain for found in (chains, *planner.searched.values()) for chain in found if chain]
    evaluations = [one.evaluate for chain in resolved for one in chain.trial.evaluations]
    if spec is None or not evaluations:
        return []
    return [
        planner.opened.document.problem(("tables", index, "columns", place), message)
        for index, table in enumerate(spec.tables)
        if not any("/" in row.trial for row in table.rows)
        for place, column in enumerate(table.columns)
        if column_parts(column.value)[1]
        for message in checks.unmeasured([column.value], evaluations)
    ]
