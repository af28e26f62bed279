"""Questions to the database. Each takes a connection and gives frozen rows."""

import json
from collections import defaultdict
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, Select, and_, func, select

from prunegpt.errors import StoreError, unknown
from prunegpt.memory import without_collector
from prunegpt.points import Point
from prunegpt.records import StageRecord, TrialResult, TrialState
from prunegpt.spec.plan import SweepPlan, TrialPlan
from prunegpt.spec.schema import TableSpec
from prunegpt.store.curves import curves_of
from prunegpt.store.rows import AttemptRow, CurveRow, Held, Replaced, SavedTrial, StageRow, SweepRow
from prunegpt.store.schema import attempt, attempt_stage, curve, point, stage, sweep, trial
from prunegpt.store.schema import note as notes

_Kind = TypeVar("_Kind", dict[str, Any], list[Any])

IDS_AT_ONCE = 10_000  # SQLite takes 32,766 parameters


def sweeps(connection: Connection) -> list[SweepRow]:
    """All sweeps, in the order they were first run."""
    counts: dict[int, dict[TrialState, int]] = defaultdict(dict)
    shown = trial.c.shown & ~trial.c.implicit
    query = select(trial.c.sweep_id, trial.c.state, func.count().label("trials"))
    for row in connection.execute(query.where(shown).group_by(trial.c.sweep_id, trial.c.state)):
        counts[row.sweep_id][cast(TrialState, row.state)] = row.trials
    return [
        SweepRow(
            id=row.id,
            name=row.name,
            title=row.title,
            source=row.source,
            folder=row.folder,
            spec=_stored(row.spec, dict),
            tables=tuple(_stored(row.tables, list)),
            unchecked=tuple(_stored(row.unchecked, list)),
            created=row.created,
            updated=row.updated,
            states=counts[row.id],
        )
        for row in connection.execute(select(sweep).order_by(sweep.c.id))
    ]


def _stored(text: str, kind: type[_Kind]) -> _Kind:
    """The JSON in a column. Raises ValueError where it is of another kind, or none."""
    found = json.loads(text) if isinstance(text, str) else text
    if not isinstance(found, kind):
        raise ValueError(f"a column of JSON must hold a {kind.__name__}; one holds {str(text)[:80]!r}.")
    return found


def sweep_row(connection: Connection, name: str) -> SweepRow:
    """One sweep. Raises StoreError with the nearest names where there is none."""
    found = find_sweep(connection, name)
    return next(row for row in sweeps(connection) if row.id == found)


def tables(connection: Connection, name: str) -> tuple[TableSpec, ...]:
    """The tables that a sweep's spec asks for."""
    return tuple(TableSpec.model_validate(table) for table in sweep_row(connection, name).tables)


def results(connection: Connection, name: str, *, shown: bool | None = True) -> list[TrialResult]:
    """The trials of a sweep, in spec order.

    Args:
        shown: True: those of the spec; False: those that have gone from it; None: both.
    """
    conditions = [trial.c.sweep_id == find_sweep(connection, name)]
    return _results(connection, *conditions, *([] if shown is None else [trial.c.shown == shown]))


def results_of(connection: Connection, ids: Sequence[int]) -> list[TrialResult]:
    """These trials, of whatever sweep, in spec order; those that are gone are left out."""
    chunks = [ids[begin : begin + IDS_AT_ONCE] for begin in range(0, len(ids), IDS_AT_ONCE)]
    return [one for chunk in chunks for one in _results(connection, trial.c.id.in_(chunk))]


def _results(connection: Connection, *conditions: Any) -> list[TrialResult]:
    """Trials that meet the conditions, in spec order, each with the stages of the attempt that got furthest.

    Attempts of an earlier configuration of a trial do not count.
    """
    trials = connection.execute(
        select(trial.c.id, trial.c.name, trial.c.shown, trial.c.state, trial.c.plan, sweep.c.name.label("sweep_name"))
        .join(sweep, sweep.c.id == trial.c.sweep_id)
        .where(*conditions)
        .order_by(trial.c.sweep_id, trial.c.position, trial.c.id)
    ).all()
    same = and_(attempt.c.key == trial.c.key, attempt.c.evaluation_key == trial.c.evaluation_key)
    columns = (attempt.c.trial_id, attempt.c.number, attempt.c.id, attempt.c.folder, attempt.c.state)
    ends = (attempt.c.reason, attempt.c.error, attempt.c.started, attempt.c.ended)
    tried: dict[int, list[Row[Any]]] = defaultdict(list)
    ran = connection.execute(_of_trials(select(*columns, *ends)).where(*conditions, same)).all()
    for row in sorted(ran, key=itemgetter(0, 1)):
        tried[row.trial_id].append(row)
    fields = (attempt_stage.c.attempt_id, attempt_stage.c.position, attempt_stage.c.record)
    query = select(*fields).join(attempt, attempt.c.id == attempt_stage.c.attempt_id)
    records: dict[int, list[str]] = defaultdict(list)
    with without_collector():
        rows = connection.execute(_of_trials(query).where(*conditions, same)).all()
        for attempt_id, _, record in sorted(rows, key=itemgetter(0, 1)):  # the database would sort the records too
            records[attempt_id].append(record)
        parsed: dict[str, StageRecord] = {}  # trials share stages, so records repeat
        return [_result(row, tried[row.id], records, parsed) for row in trials]


def names(connection: Connection, name: str | None = None) -> list[str]:
    """The sweeps, latest first; or of a sweep its trials, in spec order, and then the groups of their seeds."""
    if name is None:
        return list(connection.execute(select(sweep.c.name).order_by(sweep.c.updated.desc())).scalars())
    query = select(trial.c.name, trial.c.group).join(sweep, sweep.c.id == trial.c.sweep_id)
    rows = connection.execute(query.where(sweep.c.name == name, trial.c.shown).order_by(trial.c.position)).all()
    return list(dict.fromkeys([*(row.name for row in rows), *(row.group for row in rows)]))


def states(connection: Connection, name: str) -> list[tuple[int, TrialState]]:
    """Id and state of the trials of a sweep that are shown, in spec order."""
    query = select(trial.c.id, trial.c.state).where(trial.c.sweep_id == find_sweep(connection, name), trial.c.shown)
    return [(row.id, row.state) for row in connection.execute(query.order_by(trial.c.position, trial.c.id))]


def outdated(connection: Connection, plan: SweepPlan) -> dict[str, bool]:
    """Finished trials of a sweep whose keys a plan gives otherwise: something that decides them has changed since.

    By name, each with whether its model is decided otherwise, and not its evaluation alone.
    """
    keys = {one.name: (one.key, one.measured_by) for one in plan.trials if one.sweep == plan.name}
    query = (
        select(trial.c.name, trial.c.key, trial.c.evaluation_key)
        .join(sweep, sweep.c.id == trial.c.sweep_id)
        .where(sweep.c.name == plan.name, trial.c.state == "finished")
    )
    now = {row.name: (tuple(row[1:]), keys.get(row.name, row[1:])) for row in connection.execute(query)}
    return {name: before[0] != after[0] for name, (before, after) in now.items() if before != tuple(after)}


def replaced(connection: Connection, plan: SweepPlan) -> Replaced | None:
    """What a plan would take out of sight of a sweep that has its name; None where it takes nothing."""
    columns = (trial.c.name, sweep.c.source)
    query = (
        select(*columns)
        .join(sweep, sweep.c.id == trial.c.sweep_id)
        .where(sweep.c.name == plan.name, trial.c.shown, ~trial.c.implicit)
    )
    query = query.where(trial.c.search.not_in([search.name for search in plan.searches])).order_by(trial.c.position)
    kept = {one.name for one in plan.trials if one.sweep == plan.name}
    gone = [row for row in connection.execute(query) if row.name not in kept]
    return Replaced(gone[0].source, plan.source, tuple(row.name for row in gone)) if gone else None


def result(connection: Connection, reference: int | str) -> TrialResult:
    """One trial, by id or as SWEEP/TRIAL.

    Raises:
        StoreError: there is none.
    """
    if isinstance(reference, int):
        found = _results(connection, trial.c.id == reference)
        if not found:
            raise StoreError(f"the store has no trial {reference}. `prunegpt sweep status` lists the trials there are.")
        return found[0]
    sweep_name, slash, name = reference.partition("/")
    if not slash:
        raise StoreError(f"a trial is named SWEEP/TRIAL, got {reference!r}.")
    sweep_id = find_sweep(connection, sweep_name)
    found = _results(connection, trial.c.sweep_id == sweep_id, trial.c.name == name)
    if not found:
        names = connection.execute(select(trial.c.name).where(trial.c.sweep_id == sweep_id)).scalars()
        raise StoreError(unknown(f"trial of {sweep_name}", name, names, f"`prunegpt sweep status {sweep_name}`"))
    return found[0]


def find_sweep(connection: Connection, name: str) -> int:
    """The id of a sweep.

    Raises:
        StoreError: there is none of that name; the nearest ones are listed.
    """
    found = connection.execute(select(sweep.c.id).where(sweep.c.name == name)).scalar()
    if found is None:
        names = connection.execute(select(sweep.c.name)).scalars()
        raise StoreError(unknown("sweep", name, names, "`prunegpt sweep status`"))
    return cast(int, found)


def attempts(connection: Connection, reference: int | str) -> list[AttemptRow]:
    """All attempts of a trial, oldest first, those of earlier configurations included."""
    return _attempts(connection, _IN_ORDER.where(trial.c.id == _trial_id(connection, reference)))


def running_attempts(connection: Connection) -> list[AttemptRow]:
    """Attempts that were started and not finished, of all sweeps."""
    return _attempts(connection, _IN_ORDER.where(attempt.c.state == "running"))


def last_attempts(connection: Connection, name: str | None = None, count: int = 10) -> list[AttemptRow]:
    """The attempts of a sweep, or of all, that ended last; the latest is the last one."""
    query = _EVERY_ATTEMPT.where(attempt.c.ended.is_not(None)).order_by(attempt.c.ended.desc()).limit(count)
    return _attempts(connection, query if name is None else query.where(sweep.c.name == name))[::-1]


def _attempts(connection: Connection, query: Select[*tuple[Any, ...]]) -> list[AttemptRow]:
    found = [row._asdict() for row in connection.execute(query)]
    return [
        AttemptRow(**{**row, "chain": tuple(_stored(row["chain"], list)), "versions": _stored(row["versions"], dict)})
        for row in found
    ]


def suggested(connection: Connection, plan: SweepPlan) -> list[SavedTrial]:
    """Trials that searches of a plan suggested earlier and that still wait, in spec order."""
    query = (
        select(trial.c.id, trial.c.name, trial.c.plan, trial.c.state)
        .join(sweep, sweep.c.id == trial.c.sweep_id)
        .where(sweep.c.name == plan.name, trial.c.state == "waiting", trial.c.shown)
        .where(trial.c.search.in_([search.name for search in plan.searches]))
        .order_by(trial.c.position, trial.c.id)
    )
    found = connection.execute(query).all()
    return [SavedTrial(row.id, plan_of(row.plan, plan.name, row.name), row.state) for row in found]


def endings(connection: Connection, trial_id: int) -> list[tuple[str, str]]:
    """Reason and outcome of the attempts of a trial's present configuration, oldest first.

    The outcome is the state that the trial got with it, or `retried`.
    """
    same = and_(attempt.c.key == trial.c.key, attempt.c.evaluation_key == trial.c.evaluation_key)
    query = select(attempt.c.reason, attempt.c.outcome).join(trial, (trial.c.id == attempt.c.trial_id) & same)
    rows = connection.execute(query.where(trial.c.id == trial_id).order_by(attempt.c.number))
    return [(row.reason, row.outcome) for row in rows]


def stages(connection: Connection) -> list[StageRow]:
    """Every stage that an attempt came through, oldest first."""
    uses = (
        select(attempt_stage.c.key, func.count().label("uses"))
        .where(attempt_stage.c.cached)
        .group_by(attempt_stage.c.key)
        .subquery()
    )
    query = (
        select(
            stage,
            func.coalesce(uses.c.uses, 0).label("uses"),
            attempt.c.number,
            trial.c.name.label("trial"),
            sweep.c.name.label("sweep"),
        )
        .outerjoin(uses, uses.c.key == stage.c.key)
        .outerjoin(attempt, attempt.c.id == stage.c.computed_by)
        .outerjoin(trial, trial.c.id == attempt.c.trial_id)
        .outerjoin(sweep, sweep.c.id == trial.c.sweep_id)
        .order_by(stage.c.published, stage.c.key)
    )
    return [
        StageRow(
            key=row.key,
            kind=row.kind,
            computed_by=f"{row.sweep}/{row.trial}/attempt-{row.number}" if row.sweep is not None else None,
            published=row.published,
            computations=row.computations,
            uses=row.uses,
        )
        for row in connection.execute(query)
    ]


def held(connection: Connection, name: str) -> Held:
    """What a sweep has.

    Raises:
        StoreError: there is none of that name.
    """
    sweep_id = find_sweep(connection, name)
    own: set[str] = set()
    others: set[str] = set()
    trials = attempts = 0
    for row in connection.execute(select(trial.c.sweep_id, trial.c.name, trial.c.plan)):
        plan = plan_of(row.plan, name, row.name)
        keys = {stage.key for stage in plan.stages}
        if row.sweep_id == sweep_id:
            own |= keys
            trials += 1
        else:
            others |= keys | set(plan.needs)
    query = select(trial.c.sweep_id, attempt.c.chain, attempt.c.folder).join(trial, trial.c.id == attempt.c.trial_id)
    for tried in connection.execute(query):
        mine = tried.sweep_id == sweep_id
        (own if mine else others).update(_stored(tried.chain, list))
        attempts += mine and bool(tried.folder)
    return Held(trials, attempts, frozenset(own), frozenset(others))


def note(connection: Connection, trial_id: int) -> str:
    """The note that people have written on a trial, as they wrote it; empty where there is none."""
    return str(connection.execute(select(notes.c.text).where(notes.c.trial_id == trial_id)).scalar() or "")


def every_note(connection: Connection) -> dict[int, str]:
    """All notes, by the trial's id."""
    return {row.trial_id: row.text for row in connection.execute(select(notes.c.trial_id, notes.c.text))}


def points(
    connection: Connection, reference: int | str, name: str | None = None, *, stage: int | None = None
) -> list[Point]:
    """The curves of a trial, or the one of that name or stage, by stage, name and step.

    A stage has one set of curves, whichever trial computed it: those of cached stages are included.
    Where attempts overlap at a step, the later one counts.
    """
    found = _curves(connection, _trial_id(connection, reference), name, stage)
    values = (point.c.step, point.c.epoch, point.c.value, point.c.time, point.c.tokens)
    query = select(point.c.curve_id, *values).where(point.c.curve_id.in_(found))
    fields = ("stage", "name", "step", "epoch", "value", "time", "tokens")
    with without_collector():
        place = {curve_id: place for place, curve_id in enumerate(found)}
        rows = sorted(connection.execute(query).all(), key=lambda row: place[row.curve_id])
        latest = {(*found[row[0]], row[1]): (*found[row[0]], *row[1:]) for row in rows}
        told = [dict(zip(fields, row, strict=True)) for _, row in sorted(latest.items(), key=itemgetter(0))]
        return TypeAdapter(list[Point]).validate_python(told)


def curves(connection: Connection, reference: int | str) -> list[CurveRow]:
    """Which curves `points` would give, by stage and name."""
    found = _curves(connection, _trial_id(connection, reference))
    query = (
        select(curve.c.stage, curve.c.name, func.count(point.c.step.distinct()), func.max(point.c.step))
        .join(point, point.c.curve_id == curve.c.id)
        .where(curve.c.id.in_(found))
        .group_by(curve.c.stage, curve.c.name)
    )
    return [CurveRow(*row) for row in connection.execute(query.order_by(curve.c.stage, curve.c.name))]


def stages_with(connection: Connection, name: str) -> set[str]:
    """Keys of the stages that have a curve of that name with several points."""
    query = select(curve.c.stage_key).join(point, point.c.curve_id == curve.c.id).where(curve.c.name == name)
    return set(connection.execute(query.group_by(curve.c.id).having(func.count() > 1)).scalars())


def _trial_id(connection: Connection, reference: int | str) -> int:
    return reference if isinstance(reference, int) else result(connection, reference).id


def _curves(
    connection: Connection, trial_id: int, name: str | None = None, stage: int | None = None
) -> dict[int, tuple[int, str]]:
    """The curves of a trial by id, each with its stage and name; those of earlier attempts first."""
    found = curves_of(connection, stored_plan(connection, trial_id), name)
    return {row.id: (row.stage, row.name) for row in found if stage is None or row.stage == stage}


def stored_plan(connection: Connection, trial_id: int) -> TrialPlan:
    """The plan of a trial.

    Raises:
        StoreError: there is no such trial.
    """
    row = _of_one(connection, trial_id)
    return plan_of(row.plan, row.sweep, row.name)


def _of_one(connection: Connection, trial_id: int) -> Row[str, str, str]:
    columns = (trial.c.plan, trial.c.name, sweep.c.name.label("sweep"))
    query = select(*columns).join(sweep, sweep.c.id == trial.c.sweep_id).where(trial.c.id == trial_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise StoreError(f"the store has no trial {trial_id}. `prunegpt sweep status` lists the trials there are.")
    return row


def plan_of(written: str, sweep_name: str, name: str) -> TrialPlan:
    """A trial's plan, whichever version wrote it.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        return TrialPlan.reopened(written)
    except ValueError as error:
        raise StoreError(
            f"the plan of {sweep_name}/{name} cannot be read by this version: {error}. "
            f"Run its spec again (`prunegpt sweep run SPEC`), which plans it again."
        ) from error


def _of_trials(query: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    return query.join(trial, trial.c.id == attempt.c.trial_id).join(sweep, sweep.c.id == trial.c.sweep_id)


def _result(
    row: Row[*tuple[Any, ...]], tried: Sequence[Row[Any]], stages: dict[int, list[str]], parsed: dict[str, StageRecord]
) -> TrialResult:
    furthest: list[str] = []
    for one in tried:  # later ones win a draw
        if len(stages.get(one.id, ())) >= len(furthest):
            furthest = stages.get(one.id, [])
    for text in furthest:
        if text not in parsed:
            parsed[text] = StageRecord.model_validate_json(text)
    executed = [one for one in tried if one.folder]
    last = tried[-1] if tried else None
    failed = last is not None and last.state in ("failed", "diverged", "stopped")
    return TrialResult(
        id=row.id,
        plan=plan_of(row.plan, row.sweep_name, row.name),
        shown=row.shown,
        state=row.state,
        stages=tuple(parsed[text] for text in furthest),
        attempts=len(executed),
        reason=last.reason if last is not None and failed else "",
        error=last.error if last is not None and failed else "",
        folder=executed[-1].folder if executed else "",
        started=last.started if last else None,
        ended=last.ended if last else None,
    )


_EVERY_ATTEMPT = _of_trials(
    select(
        *(column for column in attempt.c if column.name in AttemptRow.__dataclass_fields__),
        trial.c.name.label("trial"),
        sweep.c.name.label("sweep"),
    )
)

_IN_ORDER = _EVERY_ATTEMPT.order_by(attempt.c.trial_id, attempt.c.number)
