"""Statements that change the database, each on a connection inside a transaction. Only the coordinator calls them."""

import json
import time
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Connection, Executable, Table, case, delete, func, or_, select, update

from prunegpt.errors import StoreError
from prunegpt.points import Point
from prunegpt.records import AttemptRecord, StageRecord, TrialState
from prunegpt.spec.naming import joined
from prunegpt.store.curves import sum_up
from prunegpt.store.read import IDS_AT_ONCE, find_sweep, plan_of, stored_plan
from prunegpt.store.rows import SavedTrial, StartedAttempt
from prunegpt.store.schema import attempt, attempt_stage, curve, note, point, stage, sweep, trial

if TYPE_CHECKING:
    from prunegpt.spec.plan import SweepPlan, TrialPlan

CurveIds = dict[tuple[int, str], int]  # (position in the chain, name) -> curve.id
_NO_SPEC = "{}"  # of a sweep that only other sweeps' teachers have named so far


def save_sweep(connection: Connection, plan: "SweepPlan") -> list[SavedTrial]:
    """Writes a plan over what is known of its sweep; gives its trials, in the plan's order.

    Trials gone from the spec keep their rows and are no longer shown; what a search of the plan has suggested stays
    shown. A trial keeps its state where its key and evaluation key are unchanged, and is requeued otherwise.
    Teachers of another sweep are saved as trials of that one; where it has the trial with another configuration, that
    stays and the teacher gets a name of its own.
    """
    now = time.time()
    values = {
        "title": plan.title,
        "source": plan.source,
        "folder": plan.folder,
        "spec": _json(plan.model_dump(mode="json", include={"spec"})["spec"]),
        "tables": _json(plan.model_dump(mode="json", include={"tables"})["tables"]),
        "unchecked": _json(list(plan.unchecked)),
        "updated": now,
    }
    connection.execute(_upsert(connection, sweep, ["name"], values), {"name": plan.name, "created": now, **values})
    for other in {one.sweep for one in plan.trials} - {plan.name}:
        unknown = {"title": other, "spec": _NO_SPEC, "tables": "[]", "unchecked": "[]", "created": now, "updated": now}
        connection.execute(_insert(connection, sweep).on_conflict_do_nothing(), {"name": other, **unknown})
    ids = {row.name: row.id for row in connection.execute(select(sweep.c.id, sweep.c.name))}
    shown = trial.c.search.in_([search.name for search in plan.searches])
    connection.execute(update(trial).where(trial.c.sweep_id == ids[plan.name]).values(shown=shown))
    placed = [_placed(connection, one, plan.name) for one in plan.trials]
    rows = [_row(one, ids[one.sweep]) for one in placed]
    if rows:
        replaced = [name for name in rows[0] if name not in ("sweep_id", "name")]
        rows.sort(key=lambda row: row["position"])  # so that ids follow the spec
        connection.execute(_upsert(connection, trial, ["sweep_id", "name"], replaced, keep_state=True), rows)
    query = select(trial.c.id, trial.c.sweep_id, trial.c.name, trial.c.state).where(trial.c.sweep_id.in_(ids.values()))
    found = {(row.sweep_id, row.name): row for row in connection.execute(query)}
    saved = [(one, found[ids[one.sweep], one.name]) for one in placed]
    return [SavedTrial(row.id, one, row.state) for one, row in saved]


def add_trial(connection: Connection, one: "TrialPlan") -> SavedTrial:
    """One more trial of a sweep that was saved, such as a suggested one; it keeps its state as in `save_sweep`.

    Raises:
        StoreError: its sweep was not saved.
    """
    sweep_id = connection.execute(select(sweep.c.id).where(sweep.c.name == one.sweep)).scalar()
    if sweep_id is None:
        raise StoreError(f"a trial must belong to a sweep; the store has no sweep {one.sweep!r}. Save it first.")
    row = _row(one, sweep_id)
    replaced = [name for name in row if name not in ("sweep_id", "name")]
    connection.execute(_upsert(connection, trial, ["sweep_id", "name"], replaced, keep_state=True), row)
    query = select(trial.c.id, trial.c.state).where(trial.c.sweep_id == sweep_id, trial.c.name == one.name)
    found = connection.execute(query).one()
    return SavedTrial(found.id, one, found.state)


def keep_suggested(connection: Connection, sweep_name: str, search: str, names: Collection[str]) -> None:
    """These trials are what a search has suggested; others of its trials keep their rows and are no longer shown.

    A spec may have changed so that the search as it is now could not have suggested them; one that changes back
    shows them again.
    """
    sweep_id = connection.execute(select(sweep.c.id).where(sweep.c.name == sweep_name)).scalar()
    rows = connection.execute(
        select(trial.c.id, trial.c.name, trial.c.search, trial.c.plan).where(trial.c.sweep_id == sweep_id)
    )
    for row in rows.all():
        if plan_of(row.plan, sweep_name, row.name).search == search:
            wanted = search if row.name in names else ""
            if row.search != wanted:
                connection.execute(update(trial).where(trial.c.id == row.id).values(search=wanted, shown=bool(wanted)))


def _row(one: "TrialPlan", sweep_id: int) -> dict[str, Any]:
    return {
        "sweep_id": sweep_id,
        "name": one.name,
        "group": one.group,
        "seed": one.seed,
        "label": one.label,
        "position": one.order,
        "implicit": one.implicit,
        "shown": True,
        "state": "waiting",
        "key": one.key,
        "evaluation_key": one.measured_by,
        "plan": one.model_dump_json(),
        "search": one.search,
    }


def _placed(connection: Connection, one: "TrialPlan", own: str) -> "TrialPlan":
    """A trial under the name it is saved as: another sweep's teacher must not replace what that sweep says itself."""
    if one.sweep == own:
        return one
    query = (
        select(trial.c.key, trial.c.evaluation_key)
        .join(sweep, sweep.c.id == trial.c.sweep_id)
        .where(sweep.c.name == one.sweep, trial.c.name == one.name, trial.c.shown, sweep.c.spec != _NO_SPEC)
    )
    there = connection.execute(query).one_or_none()
    if there is None or tuple(there) == (one.key, one.measured_by):
        return one
    return one.model_copy(update={"name": joined(one.name, own), "implicit": True})


def retry(connection: Connection, name: str, trials: Sequence[str], *, finished: bool = False) -> list[str]:
    """Requeues trials of a sweep that failed, diverged or were stopped, or finished; returns their names.

    W&B runs are left alone: nobody here can run them.
    """
    ended = ("failed", "diverged", "stopped", *(("finished",) if finished else ()))
    sweep_id = select(sweep.c.id).where(sweep.c.name == name).scalar_subquery()
    query = select(trial.c.id, trial.c.name, trial.c.plan).where(trial.c.sweep_id == sweep_id, trial.c.state.in_(ended))
    wanted = set(trials)
    rows = connection.execute(query.order_by(trial.c.position, trial.c.id)).all()
    found = [row for row in rows if row.name in wanted and not plan_of(row.plan, name, row.name).foreign]
    for row in found:
        connection.execute(update(trial).where(trial.c.id == row.id).values(state="waiting"))
    return [row.name for row in found]


def remove_sweep(connection: Connection, name: str, stages: Sequence[str] = ()) -> None:
    """Removes a sweep with its trials, attempts and curves, and the rows of these stages."""
    connection.execute(delete(sweep).where(sweep.c.id == find_sweep(connection, name)))
    for begin in range(0, len(stages), IDS_AT_ONCE):
        connection.execute(delete(stage).where(stage.c.key.in_(stages[begin : begin + IDS_AT_ONCE])))


def set_note(connection: Connection, trial_id: int, text: str) -> None:
    """Replaces the note of a trial; an empty text removes it. Anybody may, at any time: nothing depends on it."""
    connection.execute(delete(note).where(note.c.trial_id == trial_id))
    if text:
        connection.execute(note.insert(), {"trial_id": trial_id, "text": text, "updated": time.time()})


def let_wait(connection: Connection, trial_id: int) -> None:
    """Requeues a trial, however it ended."""
    connection.execute(update(trial).where(trial.c.id == trial_id).values(state="waiting"))


def correct_stages(connection: Connection, trial_id: int, stages: Iterable[StageRecord]) -> None:
    """Overwrites the recorded stages of a trial's attempts."""
    mine = select(attempt.c.id).where(attempt.c.trial_id == trial_id)
    for record in stages:
        same = attempt_stage.c.attempt_id.in_(mine) & (attempt_stage.c.position == record.index)
        for cached in (True, False):
            here = same & (attempt_stage.c.key == record.key) & (attempt_stage.c.cached == cached)
            text = record.model_copy(update={"cached": cached}).model_dump_json()
            connection.execute(update(attempt_stage).where(here).values(record=text))


def start_attempt(
    connection: Connection, trial_id: int, *, at_least: int = 1, started: float | None = None
) -> StartedAttempt:
    """A new attempt of a trial, numbered after the last one and from `at_least` on; it is running from now on.

    Args:
        started: when it began, where that is not now.
    """
    row = connection.execute(
        select(trial.c.name, sweep.c.name.label("sweep"))
        .join(sweep, sweep.c.id == trial.c.sweep_id)
        .where(trial.c.id == trial_id)
    ).one_or_none()
    if row is None:
        raise StoreError(f"an attempt must belong to a trial; the store has no trial {trial_id}.")
    last = connection.execute(select(func.max(attempt.c.number)).where(attempt.c.trial_id == trial_id)).scalar() or 0
    number = max(last + 1, at_least)
    folder = f"trials/{row.sweep}/{row.name}/attempt-{number}"
    attempt_id = _insert_attempt(connection, trial_id, number, folder, "running", started or time.time())
    connection.execute(update(trial).where(trial.c.id == trial_id).values(state="running"))
    return StartedAttempt(attempt_id, number, folder)


def conclude(
    connection: Connection,
    trial_id: int,
    state: TrialState,
    *,
    reason: str,
    error: str = "",
    stages: Sequence[StageRecord] = (),
) -> None:
    """Ends a trial that no worker ran: all of it was published already, or it can never start.

    It is kept as an attempt without a folder, so that the trial's result is at its usual path.
    """
    last = connection.execute(select(func.max(attempt.c.number)).where(attempt.c.trial_id == trial_id)).scalar() or 0
    now = time.time()
    attempt_id = _insert_attempt(connection, trial_id, last + 1, "", state, now)
    values = {"reason": reason, "error": error, "ended": now, "outcome": state}
    connection.execute(update(attempt).where(attempt.c.id == attempt_id).values(values))
    for record in stages:
        record_stage(connection, record, attempt_id)
    connection.execute(update(trial).where(trial.c.id == trial_id).values(state=state))


def add_points(
    connection: Connection, attempt_id: int, points: Iterable[Point], offset: int | None, curves: CurveIds
) -> None:
    """Stores points; one that is there already is replaced.

    Args:
        offset: bytes of points.jsonl that are stored with these.
        curves: the curves of this attempt known so far; new ones are added to it.
    """
    chain: list[str] | None = None
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for one in points:
        curve_id = curves.get((one.stage, one.name))
        if curve_id is None:
            if chain is None:
                text = connection.execute(select(attempt.c.chain).where(attempt.c.id == attempt_id)).scalar_one()
                chain = cast("list[str]", json.loads(text))
            curve_id = _curve(connection, attempt_id, one, chain)
            curves[one.stage, one.name] = curve_id
        rows[curve_id, one.step] = {
            "curve_id": curve_id,
            "step": one.step,
            "epoch": one.epoch,
            "value": one.value,
            "time": one.time,
            "tokens": one.tokens,
        }
    if rows:
        replaced = ["epoch", "value", "time", "tokens"]
        connection.execute(_upsert(connection, point, ["curve_id", "step"], replaced), list(rows.values()))
        sum_up(connection, rows)
    if offset is not None:
        connection.execute(update(attempt).where(attempt.c.id == attempt_id).values(offset=offset))


def record_stage(connection: Connection, record: StageRecord, attempt_id: int) -> None:
    """Notes that an attempt came through a stage; `record.cached` says whether somebody else computed it.

    Idempotent; the last call counts.
    """
    values = {"key": record.key, "cached": record.cached, "record": record.model_dump_json()}
    connection.execute(
        _upsert(connection, attempt_stage, ["attempt_id", "position"], values),
        {"attempt_id": attempt_id, "position": record.index, **values},
    )
    own = stage.c.computed_by == attempt_id
    known = connection.execute(select(stage.c.computed_by).where(stage.c.key == record.key)).one_or_none()
    if known is None:
        connection.execute(
            _insert(connection, stage).on_conflict_do_nothing(),
            {
                "key": record.key,
                "kind": record.kind,
                "computed_by": None if record.cached else attempt_id,
                "published": time.time(),
                "computations": 0 if record.cached else 1,
            },
        )
    elif record.cached:
        connection.execute(update(stage).where(stage.c.key == record.key, own).values(computed_by=None))
    else:
        connection.execute(
            update(stage)
            .where(stage.c.key == record.key, or_(stage.c.computed_by.is_(None), ~own))
            .values(computed_by=attempt_id, computations=stage.c.computations + 1)
        )


def finish_attempt(
    connection: Connection,
    record: AttemptRecord,
    *,
    state: TrialState | None = None,
    log: str = "",
    retried: bool = False,
) -> None:
    """Stores how an attempt ended. The trial keeps its own state where its configuration has changed since the attempt
    began, or a later attempt has resumed it: one that was taken for dead may come back.

    Args:
        state: the trial's state from now on, where it is not the attempt's: `waiting` when it shall run again.
        log: the last lines of its log.
        retried: the trial runs again because of how this attempt ended.
    """
    row = connection.execute(
        select(attempt.c.id, attempt.c.number, attempt.c.trial_id, attempt.c.key, attempt.c.evaluation_key)
        .join(trial, trial.c.id == attempt.c.trial_id)
        .join(sweep, sweep.c.id == trial.c.sweep_id)
        .where(sweep.c.name == record.sweep, trial.c.name == record.trial, attempt.c.number == record.attempt)
    ).one_or_none()
    if row is None:
        raise StoreError(
            f"a record must belong to an attempt; the store has no attempt {record.attempt} of "
            f"{record.sweep}/{record.trial}."
        )
    values = {
        "state": record.state,
        "reason": record.reason,
        "error": record.error,
        "trace": record.trace,
        "ended": record.ended or time.time(),
        "device": record.device,
        "versions": _json(dict(record.versions)),
        "log": log,
        "outcome": "retried" if retried else state or record.state,
    }
    connection.execute(update(attempt).where(attempt.c.id == row.id).values(values))
    for stage_record in record.stages:
        record_stage(connection, stage_record, row.id)
    later = select(attempt.c.id).where(attempt.c.trial_id == row.trial_id, attempt.c.number > row.number)
    connection.execute(
        update(trial)
        .where(
            trial.c.id == row.trial_id,
            trial.c.key == row.key,
            trial.c.evaluation_key == row.evaluation_key,
            ~later.exists(),
        )
        .values(state=state or record.state)
    )


def reopen_attempt(connection: Connection, attempt_id: int) -> None:
    """An attempt that had ended, or was taken for lost, runs again: its client has come back."""
    again = {"state": "running", "reason": "", "error": "", "trace": "", "ended": None, "log": "", "outcome": ""}
    connection.execute(update(attempt).where(attempt.c.id == attempt_id).values(again))
    of = select(attempt.c.trial_id).where(attempt.c.id == attempt_id).scalar_subquery()
    connection.execute(update(trial).where(trial.c.id == of).values(state="running"))


def _insert_attempt(connection: Connection, trial_id: int, number: int, folder: str, state: str, started: float) -> int:
    plan = stored_plan(connection, trial_id)
    statement = attempt.insert().returning(attempt.c.id)
    values = {
        "trial_id": trial_id,
        "number": number,
        "folder": folder,
        "chain": _json([one.key for one in plan.stages]),
        "key": plan.key,
        "evaluation_key": plan.measured_by,
        "state": state,
        "reason": "",
        "error": "",
        "trace": "",
        "started": started,
        "device": "",
        "versions": "{}",
        "offset": 0,
    }
    return cast(int, connection.execute(statement, values).scalar_one())


def _curve(connection: Connection, attempt_id: int, one: Point, chain: Sequence[str]) -> int:
    known = select(curve.c.id).where(
        curve.c.attempt_id == attempt_id, curve.c.stage == one.stage, curve.c.name == one.name
    )
    found = connection.execute(known).scalar()
    if found is not None:
        return cast(int, found)
    key = chain[one.stage] if 0 <= one.stage < len(chain) else ""
    values = {"attempt_id": attempt_id, "stage": one.stage, "stage_key": key, "name": one.name}
    return cast(int, connection.execute(curve.insert().returning(curve.c.id), values).scalar_one())


def _insert(connection: Connection, table: Table) -> Any:
    return _insert_into(connection.dialect.name, table)


def _upsert(
    connection: Connection, table: Table, keys: Iterable[str], replaced: Iterable[str], keep_state: bool = False
) -> Executable:
    """INSERT, or replace these columns where the keys are there; `keep_state`: only a changed configuration waits."""
    return _upsert_into(connection.dialect.name, table, tuple(keys), tuple(replaced), keep_state)


@cache
def _insert_into(dialect: str, table: Table) -> Any:
    return import_module(f"sqlalchemy.dialects.{dialect}").insert(table)  # here: a reader needs neither of them


@cache
def _upsert_into(
    dialect: str, table: Table, keys: tuple[str, ...], replaced: tuple[str, ...], keep_state: bool
) -> Executable:
    statement = _insert_into(dialect, table)
    new: dict[str, Any] = {name: statement.excluded[name] for name in replaced}
    if keep_state:
        excluded = statement.excluded
        same = (table.c.key == excluded.key) & (table.c.evaluation_key == excluded.evaluation_key)
        new["state"] = case((same, table.c.state), else_=excluded.state)
    return cast(Executable, statement.on_conflict_do_update(index_elements=list(keys), set_=new))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
