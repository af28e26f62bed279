"""Bringing a database to the schema of this version. Alembic is imported only where an older one is upgraded."""

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from prunegpt import __version__
from prunegpt.errors import StoreError
from prunegpt.store.engine import frozen, writer
from prunegpt.store.schema import REVISIONS, metadata

_MIGRATIONS = Path(__file__).with_name("migrations")
_VERSION = (  # Alembic's own table
    "CREATE TABLE alembic_version "
    "(version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
)
_POSTGRES_LOCK = 5_108_437_001  # any number, the same for all who migrate


def prepare(engine: Engine, revisions: Sequence[str] = REVISIONS, versions: Sequence[Path] = ()) -> None:
    """Creates or updates the tables where they are not those of the last revision.

    Args:
        engine: the database.
        revisions: the schemas that are known, oldest first.
        versions: folders with further migrations, beside those of this package.

    Raises:
        StoreError: the schema is newer than the last one known here, or older and nothing can be written.
    """
    with engine.connect() as connection:
        found = current(connection)
    if found == revisions[-1]:
        return
    if found is not None and found not in revisions:
        raise StoreError(
            f"this PruneGPT ({__version__}) knows schemas up to {revisions[-1]}; {engine.url.database} has {found}. "
            "Install the newer PruneGPT that wrote it, or use another --root."
        )
    if frozen(engine):
        raise StoreError(
            f"a database must have the schema {revisions[-1]} to be read; {engine.url.database} has {found}, and is "
            "read-only here. Copy its folder to where it can be written, and open it there to upgrade it."
        )
    with writer(engine).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _POSTGRES_LOCK})
        if versions or inspect(connection).has_table("alembic_version"):
            _upgrade(connection, revisions[-1], versions)
        else:
            metadata.create_all(connection)
            connection.execute(text(_VERSION))
            connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": revisions[-1]})


def current(connection: Connection) -> str | None:
    """The revision of a database, None where it holds no tables of ours."""
    try:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except (OperationalError, ProgrammingError) as error:
        connection.rollback()
        if not any(words in str(error.orig) for words in ("no such table", "does not exist")):
            raise
        return None


def _upgrade(connection: Connection, revision: str, versions: Sequence[Path]) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    locations = [_MIGRATIONS / "versions", *versions]
    config.set_main_option("version_locations", "\n".join(str(path) for path in locations).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
