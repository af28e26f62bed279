"""Opening a database: SQLite in a root, or PostgreSQL by URL."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from prunegpt.errors import MissingPackageError, StoreError
from prunegpt.root import Root

_BUSY = 30.0  # seconds that a connection waits for another one's lock
_WRITES = "prunegpt_writes"


def open_engine(where: Root | str, create: bool) -> Engine:
    """An engine for the database of a root, or for a URL.

    Args:
        where: a root (SQLite inside it), or a URL such as postgresql://user@host/name.
        create: a SQLite file that is not there is made; without it, that is an error.

    Raises:
        StoreError: the URL is none, its database is of another kind, or the file is not there.
        MissingPackageError: PostgreSQL's driver is not installed.
    """
    url = _url(where)
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, create)
    if url.get_backend_name() != "postgresql":
        raise StoreError(
            f"the store must be SQLite or PostgreSQL, but the URL names {url.get_backend_name()!r}. "
            f"Use sqlite:///FILE or postgresql://USER@HOST/DATABASE."
        )
    try:
        return create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    except ImportError as error:
        raise MissingPackageError(
            "a PostgreSQL store needs the package psycopg, which is not installed. "
            "Install it with: pip install 'prunegpt[postgres]'"
        ) from error


def writer(engine: Engine) -> Engine:
    """The same engine for transactions that write: SQLite takes its write lock at their start, not half-way."""
    return engine.execution_options(**{_WRITES: True})


def _url(where: Root | str) -> URL:
    if isinstance(where, Root):
        return URL.create("sqlite", database=str(where.database))
    try:
        return make_url(where.replace("postgres://", "postgresql://", 1) if where.startswith("postgres://") else where)
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise StoreError(
            f"a store URL must look like postgresql://USER@HOST/DATABASE or sqlite:///FILE, but got {where!r}."
        ) from error


def _sqlite(url: URL, create: bool) -> Engine:
    if not url.database or url.database == ":memory:":
        raise StoreError("a SQLite store must be a file, but the URL names none. Use sqlite:///FILE.")
    file = Path(url.database)
    if create:
        file.parent.mkdir(parents=True, exist_ok=True)
    elif not file.exists():
        raise StoreError(
            f"nothing has run under {file.parent}: it holds no {file.name}. "
            f"Start with `prunegpt sweep run SPEC`, or name another folder with --root or PRUNEGPT_ROOT."
        )
    engine = create_engine(url, connect_args={"timeout": _BUSY})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, see `begin`
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
