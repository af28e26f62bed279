"""Curves: which are those of a trial, and what their points come to."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, bindparam, case, func, or_, select, true, update

from prunegpt.store.schema import attempt, attempt_stage, curve, point, sweep, trial

if TYPE_CHECKING:
    from prunegpt.spec.plan import TrialPlan
    from prunegpt.store.store import Store

_PERPLEXITY, _EVALUATED, _TASKS = "perplexity", "eval_", ("task:", "tasks:")  # begin names of measured curves


class CurveEnds(NamedTuple):
    """What the points of a curve come to; a value is None where none was finite."""

    step: int  # of the last point
    last: float | None
    low: float | None
    high: float | None


class CurveName(NamedTuple):
    """All curves of one name."""

    name: str
    stages: tuple[int, ...]  # positions in chains
    falls: bool  # whether one has ended below its greatest value
    rises: bool  # whether one has ended above its least value

    @property
    def of_tensor(self) -> bool:
        """Whether it is of a single tensor, of which a model has hundreds."""
        return self.name.startswith("sparsity/")


class Summaries:
    """The ends of the curves of a sweep's trials, or of all: read once, those of a name when it is asked for.

    Args:
        store: is asked.
        sweep: None means all of them.
    """

    def __init__(self, store: "Store", sweep: str | None = None) -> None:
        self._store = store
        self._sweep = sweep
        self.metrics: Mapping[str, CurveName] = {one.name: one for one in store.metrics(sweep)}
        self._ends: dict[str, Mapping[str, Sequence[tuple[str, CurveEnds]]]] = {}

    def of(self, plan: "TrialPlan", name: str, stage: int | None = None) -> CurveEnds | None:
        """Those of a trial's curve, in a stage or in the last one that has such a curve; None where there is none."""
        if name not in self._ends:
            self._ends[name] = self._store.curve_ends(name, self._sweep)
        stages = self._ends[name]
        for one in reversed(plan.stages if stage is None else plan.stages[stage : stage + 1]):
            parts = [ends for measured_by, ends in stages.get(one.key, ()) if alike(plan, name, measured_by)]
            if parts:
                return reduce(_together, parts)
        return None


def _together(earlier: CurveEnds, later: CurveEnds) -> CurveEnds:
    """The ends of what two attempts have written of one curve."""
    newest = later if later.step >= earlier.step else earlier
    lows = [one.low for one in (earlier, later) if one.low is not None]
    highs = [one.high for one in (earlier, later) if one.high is not None]
    return CurveEnds(newest.step, newest.last, min(lows, default=None), max(highs, default=None))


def alike(plan: "TrialPlan", name: str, measured_by: str) -> bool:
    """Whether a curve of a trial's stage is the trial's own: what evaluations gave must be measured as it measures."""
    if not name.startswith((_PERPLEXITY, _EVALUATED, *_TASKS)):
        return True
    evaluated = name.startswith(_EVALUATED)
    if name == _PERPLEXITY or (evaluated and ":" not in name):
        return measured_by == plan.evaluation_key or measured_by.startswith(f"{plan.evaluation_key} ")
    for one in plan.also:
        if one.evaluate.tasks is None:
            of_it = (evaluated or name.startswith(_PERPLEXITY)) and name.endswith(f":{one.name}")
        else:
            of_it = name.startswith(_TASKS)
        if of_it and f" {one.name}={one.key}" not in measured_by:
            return False
    return True


def curves_of(
    connection: Connection, plan: "TrialPlan", name: str | None = None
) -> "Sequence[Row[int, int, str, str]]":
    """The curves of a trial (id, stage, name), whichever trial computed its stages; those of earlier attempts first."""
    query = (
        select(curve.c.id, curve.c.stage, curve.c.name, attempt.c.evaluation_key)
        .join(attempt, attempt.c.id == curve.c.attempt_id)
        .where(curve.c.stage_key.in_([stage.key for stage in plan.stages]))
        .where(true() if name is None else curve.c.name == name)
    )
    found = connection.execute(query.order_by(curve.c.attempt_id))
    return [row for row in found if alike(plan, row.name, row.evaluation_key)]


def metrics(connection: Connection, sweep_name: str | None = None) -> list[CurveName]:
    """All curves that trials of a sweep have, or those of all, by name."""
    falls = func.max(case((curve.c.last < curve.c.high, 1), else_=0))
    rises = func.max(case((curve.c.last > curve.c.low, 1), else_=0))
    query = select(curve.c.name, curve.c.stage, falls, rises).where(_of_sweep(sweep_name))
    found: dict[str, list[Any]] = {}
    for name, *rest in connection.execute(query.group_by(curve.c.name, curve.c.stage)):
        found.setdefault(name, []).append(rest)
    return [
        CurveName(name, tuple(sorted(row[0] for row in rows)), *(any(row[place] for row in rows) for place in (1, 2)))
        for name, rows in sorted(found.items())
    ]


def curve_ends(
    connection: Connection, name: str, sweep_name: str | None = None
) -> dict[str, list[tuple[str, CurveEnds]]]:
    """The ends of all curves of a name, by the key of the stage, each with what its attempt measured by.

    Those of earlier attempts come first.
    """
    query = (
        select(curve.c.stage_key, attempt.c.evaluation_key, curve.c.last_step, curve.c.last, curve.c.low, curve.c.high)
        .join(attempt, attempt.c.id == curve.c.attempt_id)
        .where(curve.c.name == name, curve.c.last_step.is_not(None), _of_sweep(sweep_name))
        .order_by(curve.c.attempt_id)
    )
    found: dict[str, list[tuple[str, CurveEnds]]] = {}
    for stage_key, measured_by, *ends in connection.execute(query):
        found.setdefault(stage_key, []).append((measured_by, CurveEnds(*ends)))
    return found


def _of_sweep(name: str | None) -> ColumnElement[bool]:
    """Curves that attempts of a sweep have written, or of stages that others have computed for it."""
    if name is None:
        return true()
    trials = select(trial.c.id).join(sweep, sweep.c.id == trial.c.sweep_id).where(sweep.c.name == name)
    mine = select(attempt.c.id).where(attempt.c.trial_id.in_(trials))
    shared = select(attempt_stage.c.key).where(attempt_stage.c.attempt_id.in_(mine), attempt_stage.c.cached)
    return or_(curve.c.attempt_id.in_(mine), curve.c.stage_key.in_(shared))


def sum_up(connection: Connection, rows: Mapping[tuple[int, int], Mapping[str, Any]]) -> None:
    """Brings the ends of curves up to date with points, by curve and step, that have just been stored."""
    added: dict[int, dict[int, float | None]] = {}
    for (curve_id, step), row in rows.items():
        added.setdefault(curve_id, {})[step] = row["value"]
    known = select(curve.c.id, curve.c.last_step, curve.c.low, curve.c.high).where(curve.c.id.in_(added))
    appended, others = [], []
    for one in connection.execute(known):
        values = added[one.id]
        if one.last_step is not None and min(values) <= one.last_step:
            others.append(one.id)
            continue
        finite = [value for value in (*values.values(), one.low, one.high) if value is not None]
        end = max(values)
        ends = {"last_step": end, "last": values[end]}
        ends |= {"low": min(finite, default=None), "high": max(finite, default=None)}
        appended.append({"of": one.id, **ends})
    if appended:
        connection.execute(update(curve).where(curve.c.id == bindparam("of")), appended)
    if others:  # a point may have been replaced that was an end
        mine = point.c.curve_id == curve.c.id
        last = select(point.c.value).where(mine).order_by(point.c.step.desc()).limit(1)
        found = {"last_step": func.max(point.c.step), "low": func.min(point.c.value), "high": func.max(point.c.value)}
        again = {name: select(value).where(mine).scalar_subquery() for name, value in found.items()}
        again["last"] = last.scalar_subquery()
        connection.execute(update(curve).where(curve.c.id.in_(others)).values(again))
