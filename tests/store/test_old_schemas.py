"""A database that an earlier version wrote opens, is brought up to date, and goes on.

The fixtures are dumps of SQLite databases of each schema there was: two finished trials that share two stages, with
their curves. A new schema needs a dump of the one before it here.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.store.schema import REVISIONS
from tests.robust.conftest import MORE, Undisturbed, figures, run, undisturbed

__all__ = ["undisturbed"]

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(params=REVISIONS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    root = Root(tmp_path / "runs")
    root.path.mkdir()
    with closing(sqlite3.connect(root.database)) as database:
        database.executescript((FIXTURES / f"schema-{request.param}.sql").read_text(encoding="utf-8"))
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [(request.param,)]
    return root


def test_every_schema_there_was_has_its_fixture() -> None:
    assert sorted(path.name for path in FIXTURES.iterdir()) == [f"schema-{revision}.sql" for revision in REVISIONS]


def test_what_it_holds_is_there(old: Root, undisturbed: Undisturbed) -> None:
    with Store.open(old) as store:
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
    assert figures(old) == {name: undisturbed.figures[name] for name in "ab"}


def test_a_sweep_goes_on_in_it(old: Root, undisturbed: Undisturbed) -> None:
    """Its folder holds no stages: what is finished stays so, and what is new computes what it needs."""
    outcome = run(old, *MORE)
    assert set(outcome.unchanged) == {"words/a", "words/b"}
    found = figures(old)
    assert found["a"] == undisturbed.figures["a"]
    assert found["c"][0] in ("finished", "failed")  # its teacher's model is gone, and that is said


def test_it_is_brought_up_to_date_once(old: Root) -> None:
    Store.open(old).close()
    with closing(sqlite3.connect(old.database)) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [(REVISIONS[-1],)]
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
