"""The names in a store, for who types them: one quick question, without reading a plan."""

from sqlalchemy import Connection, select

from prunegpt.store.schema import sweep, trial


def names(connection: Connection, name: str | None = None) -> list[str]:
    """The sweeps, latest first; or of a sweep its trials, in spec order, and then the groups of their seeds."""
    if name is None:
        return list(connection.execute(select(sweep.c.name).order_by(sweep.c.updated.desc())).scalars())
    query = select(trial.c.name, trial.c.group).join(sweep, sweep.c.id == trial.c.sweep_id)
    rows = connection.execute(query.where(sweep.c.name == name, trial.c.shown).order_by(trial.c.position)).all()
    return list(dict.fromkeys([*(row.name for row in rows), *(row.group for row in rows)]))
