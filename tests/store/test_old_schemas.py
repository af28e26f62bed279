"""A database that an earlier version wrote opens, is brought up to date, and goes on; SQLite and PostgreSQL.

The fixtures are dumps of each schema there was: two finished trials that share two stages, with their curves. A new
schema needs dumps of the one before it here (`sqlite3 FILE .dump`; `pg_dump --inserts --no-owner`, without its
comments and settings).
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.store.engine import open_engine
from prunegpt.store.schema import REVISIONS, metadata
from tests.support.finished_root import MORE, Undisturbed, figures, run

FIXTURES = Path(__file__).parent / "fixtures"
ENDINGS = {"sqlite": ".sql", "postgresql": ".postgresql.sql"}
VERSION = "SELECT version_num FROM alembic_version"


@dataclass(frozen=True)
class Old:
    """A root whose database an earlier version wrote."""

    root: Root
    database: str | None  # None: the root's own

    @property
    def where(self) -> Root | str:
        return self.database or self.root


@pytest.fixture(params=[(revision, kind) for kind in ENDINGS for revision in REVISIONS], ids="-".join)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Old]:
    revision, kind = request.param
    script = (FIXTURES / f"schema-{revision}{ENDINGS[kind]}").read_text(encoding="utf-8")
    root = Root(tmp_path / "runs")
    root.path.mkdir()
    if kind == "sqlite":
        with closing(sqlite3.connect(root.database)) as database:
            database.executescript(script)
            assert database.execute(VERSION).fetchall() == [(revision,)]
        yield Old(root, None)
        return
    url = request.getfixturevalue("postgres_url")
    import psycopg

    with psycopg.connect(url) as database:
        database.execute(script)
        assert database.execute(VERSION).fetchall() == [(revision,)]
    yield Old(root, url)


def test_every_schema_there_was_has_its_fixtures() -> None:
    names = [f"schema-{revision}{ending}" for revision in REVISIONS for ending in ENDINGS.values()]
    assert sorted(path.name for path in FIXTURES.iterdir()) == sorted(names)


def test_what_it_holds_is_there(old: Old, undisturbed: Undisturbed) -> None:
    with Store.open(old.where) as store:
        (sweep,) = store.sweeps()
        assert (sweep.name, dict(sweep.states)) == ("words", {"finished": 2})
        assert [point.value for point in store.points("words/a", "loss", stage=1)] == [1.0, 0.5, pytest.approx(1 / 3)]
        assert [(stage.key, stage.computations) for stage in store.stages()] == [
            ("load", 1),
            ("ft", 1),
            ("pa", 1),
            ("pb", 1),
        ]
        assert [row.state for row in store.attempts("words/a")] == ["finished"]
        assert store.note(2) == ""
        store.set_note(2, "new")
        assert store.note(2) == "new"
        for measured_by, ends in store.curve_ends("loss")["ft"]:
            assert (measured_by, ends) == ("measured", (2, pytest.approx(1 / 3), pytest.approx(1 / 3), 1.0))
    assert figures(old.where) == {name: undisturbed.figures[name] for name in "ab"}


def test_a_sweep_goes_on_in_it(old: Old, undisturbed: Undisturbed) -> None:
    """Its folder holds no stages: what is finished stays so, and what is new computes what it needs."""
    outcome = run(old.root, *MORE, database=old.database)
    assert set(outcome.unchanged) == {"words/a", "words/b"}
    found = figures(old.where)
    assert found["a"] == undisturbed.figures["a"]
    assert found["c"][0] in ("finished", "failed")  # its teacher's model is gone, and that is said


def test_it_is_brought_up_to_date_once(old: Old) -> None:
    Store.open(old.where).close()
    engine = open_engine(old.where, create=False)
    with engine.connect() as connection:
        assert connection.execute(text(VERSION)).scalars().all() == [REVISIONS[-1]]
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        if old.database is None:
            assert connection.execute(text("PRAGMA integrity_check")).scalars().all() == ["ok"]
            assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
    engine.dispose()


def test_what_is_new_there_gets_a_number_of_its_own(old: Old) -> None:
    with Store.open(old.where) as store:
        (trial, *_) = store.results("words")
        started = store.start_attempt(trial.id)
        assert (started.id, started.number) == (3, 2)
