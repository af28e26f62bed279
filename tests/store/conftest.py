"""A store on SQLite, and on PostgreSQL where its server and driver are at hand."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunegpt.root import Root
from prunegpt.store import Store


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of an empty PostgreSQL server, in a temporary folder and on a socket there."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'prunegpt[postgres]'")
    programs = next((path.parent for path in map(Path, _candidates()) if path.exists()), None)
    if programs is None:
        pytest.skip("no PostgreSQL server program: install postgresql")
    user = None if os.getuid() else next(name for name in ("postgres", "nobody") if _exists(name))
    home = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a socket's path must be short
    if user:
        shutil.chown(home, user)
    data = home / "data"
    command = [programs / "initdb", "-D", data, "-A", "trust", "-U", "prunegpt", "-E", "UTF8", "--no-sync"]
    subprocess.run(command, check=True, user=user, capture_output=True, cwd=home)
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={home}", "-c", "fsync=off"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen([programs / "postgres", "-D", data, *options], user=user, stderr=log, cwd=home)
    try:
        while not list(home.glob(".s.PGSQL.*")) or (home / ".s.PGSQL.5432.lock").stat().st_size == 0:
            assert server.poll() is None, (home / "log").read_text()
        while "ready to accept connections" not in (home / "log").read_text():
            assert server.poll() is None, (home / "log").read_text()
        yield f"postgresql://prunegpt@/DATABASE?host={home}"
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(home)


@pytest.fixture
def postgres_url(postgres: str, request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    import psycopg

    name = f"test_{os.urandom(6).hex()}"
    with psycopg.connect(postgres.replace("DATABASE", "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres.replace("DATABASE", name)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    where = Root(tmp_path / "runs") if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    with Store.open(where) as store:
        yield store


def _candidates() -> list[str]:
    found = shutil.which("initdb")
    real = [str(Path(found).resolve())] if found else []
    return real + [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)]


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
