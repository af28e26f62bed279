"""Taking a sweep out of the database."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select

from prunegpt.store.read import find_sweep, plan_of
from prunegpt.store.schema import attempt, stage, sweep, trial

_KEYS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Held:
    """What a sweep has in the database."""

    trials: int
    attempts: int
    stages: frozenset[str]  # keys that its trials have or had in their chains
    elsewhere: frozenset[str]  # keys that trials of other sweeps have, had, or learn from


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
        (own if mine else others).update(json.loads(tried.chain))
        attempts += mine and bool(tried.folder)
    return Held(trials, attempts, frozenset(own), frozenset(others))


def remove(connection: Connection, name: str, stages: Sequence[str] = ()) -> None:
    """Removes a sweep with its trials, attempts and curves, and the rows of these stages."""
    connection.execute(delete(sweep).where(sweep.c.id == find_sweep(connection, name)))
    for some in _chunks(stages):
        connection.execute(delete(stage).where(stage.c.key.in_(some)))


def _chunks(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    return (keys[begin : begin + _KEYS_AT_ONCE] for begin in range(0, len(keys), _KEYS_AT_ONCE))
