"""Opening a database: SQLite in a root, or PostgreSQL by URL."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError

from prunegpt.errors import MissingPackageError, PruneGPTError, StoreError
from prunegpt.root import Root

BUSY = 30.0  # seconds that a connection waits for another one's lock
_AGAIN = 0.01  # seconds until what was refused at once is tried again
_WRITES = "prunegpt_writes"
_FROZEN = "prunegpt_frozen"
_HINT = (
    "Check that it is a PruneGPT database and that you may read and write it; `prunegpt doctor --repair` makes a "
    "damaged one again from the trials."
)
_HINTS = {
    sqlite3.SQLITE_FULL: "Free some space on its disk and run the same command again to resume.",
    sqlite3.SQLITE_BUSY: f"Another process has held it for {BUSY:g} s: end that one, or wait, and try again.",
}


def open_engine(where: Root | str, create: bool) -> Engine:
    """An engine for the database of a root, or for a URL.

    Args:
        where: a root (SQLite inside it), or a URL such as postgresql://user@host/name.
        create: a SQLite file that is not there is made; without it, that is an error. Without it too, one in a folder
            that cannot be written is opened for looking only.

    Raises:
        StoreError: the URL is none, its database is of another kind, or the file is not there or cannot be written.
        MissingPackageError: PostgreSQL's driver is not installed.
    """
    url = _url(where)
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, create)
    if url.get_backend_name() != "postgresql":
        raise StoreError(
            f"the store must be SQLite or PostgreSQL; the URL names {url.get_backend_name()!r}. Use sqlite:///FILE or "
            "postgresql://USER@HOST/DATABASE."
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


def frozen(engine: Engine) -> bool:
    """Whether a database is read-only, because nothing can be written next to it."""
    return bool(engine.get_execution_options().get(_FROZEN, False))


@contextmanager
def told(engine: Engine, done: str = "used") -> Iterator[None]:
    """Turns what a database says of its disk, its file or its other users into an error with a hint.

    Raises:
        StoreError: the database cannot be used just now, or at all.
    """
    try:
        yield
    except DatabaseError as error:
        if type(error) not in (DatabaseError, OperationalError) and done == "used":
            raise  # a fault of ours
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        raise StoreError(
            f"the database {engine.url.render_as_string()} cannot be {done}: {str(error.orig).strip()}. "
            f"{_HINTS.get(code, _HINT)}"
        ) from error


@contextmanager
def understood(engine: Engine) -> Iterator[None]:
    """Turns what JSON and validation say of cells that somebody else has changed into an error with a hint.

    Raises:
        StoreError: a cell does not hold what is written there.
    """
    try:
        yield
    except PruneGPTError:
        raise
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"the database {engine.url.render_as_string()} must hold what PruneGPT writes; it does not: "
            f"{str(error).splitlines()[0]}. {_HINT}"
        ) from error


def _url(where: Root | str) -> URL:
    if isinstance(where, Root):
        return URL.create("sqlite", database=str(where.database))
    try:
        return make_url(where.replace("postgres://", "postgresql://", 1) if where.startswith("postgres://") else where)
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise StoreError(
            f"a store URL must look like postgresql://USER@HOST/DATABASE or sqlite:///FILE, got {where!r}."
        ) from error


def _sqlite(url: URL, create: bool) -> Engine:
    if not url.database or url.database == ":memory:":
        raise StoreError("a SQLite store must be a file; the URL names none. Use sqlite:///FILE.")
    file = Path(url.database)
    if create:
        file.parent.mkdir(parents=True, exist_ok=True)
    elif not file.exists():
        raise StoreError(
            f"nothing has run under {file.parent}: it holds no {file.name}. "
            f"Start with `prunegpt sweep run SPEC`, or name another folder with --root or PRUNEGPT_ROOT."
        )
    if os.access(file.parent, os.W_OK):
        engine = create_engine(url, connect_args={"timeout": BUSY})
    elif create:
        raise StoreError(
            f"a root must be writable for this command; {file.parent} is read-only here. Use another --root, copy this "
            "one, or get write permission; reading works."
        )
    else:
        engine = _for_looking(url, file)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, see `begin`
        if not frozen(engine):
            choose_journal(connection)
        for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        if writes and frozen(engine):
            raise StoreError(
                f"the database must be writable for this command; {file.parent} is read-only here. Copy the folder to "
                "where it can be written, or get write permission."
            )
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def choose_journal(connection: Any) -> None:
    """Written ahead, so that readers and the writer do not wait for each other; where that cannot be, a rollback file.

    It takes memory that processes share, which network file systems do not have. SQLite then makes a new database the
    other way by itself, but needs a flag for one that comes from elsewhere.
    """
    try:
        _patiently(connection, "PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
            raise
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("PRAGMA locking_mode=NORMAL")
        connection.execute("SELECT count(*) FROM sqlite_master")  # the first error again, where that was no help


def _patiently(connection: Any, statement: str) -> None:
    """Executes what SQLite refuses at once, without its time-out, while another connection opens the same new file."""
    end = time.monotonic() + BUSY
    while True:
        try:
            connection.execute(statement)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(_AGAIN)
        else:
            return


def _for_looking(url: URL, file: Path) -> Engine:
    """An engine for a file in a folder that cannot be written.

    SQLite wants to make files beside a database with a write-ahead log even to read it, unless it knows that nobody
    writes. Somebody elsewhere may, so how to open it is decided for each read, and no connection is kept.
    """
    log, shared = (file.with_name(file.name + ending) for ending in ("-wal", "-shm"))

    def connect() -> Any:
        filled = log.exists() and log.stat().st_size > 0
        if filled and not shared.exists():
            raise StoreError(
                f"a database can be read where nothing can be written once its write-ahead log is merged; {log} is "
                "not: its writer was killed, or the folder was copied meanwhile. Copy the folder to where it can be "
                "written, and open it there."
            )
        how = "mode=ro" if filled else "immutable=1"
        return sqlite3.connect(f"{file.absolute().as_uri()}?{how}", uri=True, timeout=BUSY, check_same_thread=False)

    return create_engine(url, creator=connect, poolclass=NullPool, execution_options={_FROZEN: True})
