"""Opening a database: making it, bringing it up to date, refusing what cannot be opened."""

import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from prunegpt.errors import MissingPackageError, StoreError
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.store.engine import choose_journal, open_engine
from prunegpt.store.migrate import current, prepare
from prunegpt.store.schema import REVISIONS, metadata
from tests.support.sweep_plans import make_plan, make_trial

NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = "{before}"


def upgrade() -> None:
    with op.batch_alter_table("sweep") as batch:
        batch.add_column(sa.Column("colour", sa.Text))
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Root | str:
    return Root(tmp_path / "runs") if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.mark.parametrize("migrated", [False, True])
def test_a_new_database_and_one_that_was_migrated_have_the_tables_of_the_schema(
    where: Root | str, migrated: bool, tmp_path: Path
) -> None:
    engine = open_engine(where, create=True)
    prepare(engine, versions=[tmp_path] if migrated else [])
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert current(connection) == REVISIONS[-1]
        names = set(inspect(connection).get_table_names())
    engine.dispose()
    assert names == {*metadata.tables, "alembic_version"}


def test_the_known_revisions_are_those_of_the_scripts() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(sys.modules["prunegpt.store"].__file__).parent / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    assert tuple(reversed([script.revision for script in scripts.walk_revisions()])) == REVISIONS
    assert scripts.get_heads() == [REVISIONS[-1]]


def test_an_old_database_is_brought_up_to_date_with_what_it_holds(where: Root | str, tmp_path: Path) -> None:
    with Store.open(where) as store:
        store.save_sweep(make_plan(make_trial("a")))
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "next.py").write_text(NEXT.format(before=REVISIONS[-1]))
    engine = open_engine(where, create=False)
    prepare(engine, (*REVISIONS, "next"), [tmp_path / "later"])
    with engine.connect() as connection:
        assert connection.execute(text("SELECT name, colour FROM sweep")).one() == ("words", None)
        assert current(connection) == "next"
    engine.dispose()
    with pytest.raises(StoreError, match=rf"knows schemas up to {REVISIONS[-1]}; .* has next. Install the newer"):
        Store.open(where)


def test_several_may_open_a_new_database_at_once(where: Root | str) -> None:
    problems: list[Exception] = []

    def opener() -> None:
        try:
            with Store.open(where) as store:
                assert store.sweeps() == []
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=opener) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_journal_that_is_refused_at_once_is_chosen_again() -> None:
    asked: list[str] = []

    class Refusing:
        def execute(self, statement: str) -> None:
            asked.append(statement)
            if len(asked) < 3:
                error = sqlite3.OperationalError("database is locked")
                error.sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise error

    choose_journal(Refusing())
    assert asked == ["PRAGMA journal_mode=WAL"] * 3


def test_a_database_is_made_and_opened_without_alembic(tmp_path: Path) -> None:
    root = Root(tmp_path / "runs")
    program = (
        "import sys\nfrom pathlib import Path\nfrom prunegpt.root import Root\nfrom prunegpt.store import Store\n"
        f"with Store.open(Root(Path({str(root.path)!r}))) as store: store.sweeps()\n"
        "print([name for name in ('alembic', 'torch', 'transformers', 'numpy') if name in sys.modules])\n"
    )
    checkout = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=checkout, check=True)
    assert done.stdout == "[]\n"


def test_looking_does_not_make_a_database(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nothing has run under .*: it holds no prunegpt.db. Start with `prunegpt"):
        Store.open(Root(tmp_path / "runs"), create=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("synced")
def test_the_journal_is_written_ahead_and_foreign_keys_hold(tmp_path: Path) -> None:
    root = Root(tmp_path / "runs")
    Store.open(root).close()
    engine = open_engine(root, create=False)
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 1
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    engine.dispose()


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.database.write_text("hello " * 1000)
    with pytest.raises(StoreError, match=r"prunegpt.db cannot be opened: file is not a database"):
        Store.open(root)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "must look like postgresql://USER@HOST/DATABASE or sqlite:///FILE, got 'nonsense'"),
        ("mysql://a@b/c", "must be SQLite or PostgreSQL; the URL names 'mysql'"),
        ("sqlite://", "must be a file; the URL names none"),
    ],
)
def test_a_wrong_url_is_told(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        Store.open(url)


def test_a_sqlite_url_names_a_file(tmp_path: Path) -> None:
    Store.open(f"sqlite:///{tmp_path}/deep/er.db").close()
    assert (tmp_path / "deep" / "er.db").exists()


def test_postgresql_without_its_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'prunegpt\[postgres\]'"):
        Store.open("postgresql://a@b/c")


def test_postgresql_takes_one_coordinator(postgres_url: str) -> None:
    with Store.open(postgres_url) as one, Store.open(postgres_url) as two:
        with one.sole_writer() as first, two.sole_writer() as second:
            assert (first, second) == (True, False)
        with two.sole_writer() as again:
            assert again


def test_a_database_whose_folder_moved_opens(tmp_path: Path) -> None:
    with Store.open(Root(tmp_path / "runs")) as store:
        (saved,) = store.save_sweep(make_plan(make_trial("a")))
        store.start_attempt(saved.id)
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    with Store.open(Root(tmp_path / "moved"), create=False) as store:
        assert store.result("words/a").folder == "trials/words/a/attempt-1"
