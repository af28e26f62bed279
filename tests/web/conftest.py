"""A root with every kind of trial, and clients of its dashboard."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from prunegpt.root import Root
from tests.support.served import HEADERS, ORIGIN, open_app
from tests.support.study import SEARCH, make_root, searching


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A root that no test changes."""
    return make_root(tmp_path_factory.mktemp("kept") / "runs")


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a root of one's own begins as; nobody opens it."""
    return make_root(tmp_path_factory.mktemp("untouched") / "runs").path


@pytest.fixture
def made(untouched: Path, tmp_path: Path) -> Root:
    """A root of one's own."""
    return Root(Path(shutil.copytree(untouched, tmp_path / "runs")))


@pytest.fixture(scope="session")
def client(kept: Root) -> Iterator[TestClient]:
    """Of the root that no test changes."""
    with TestClient(open_app(kept), base_url=ORIGIN) as client:
        yield client


@pytest.fixture
def own(made: Root) -> Iterator[TestClient]:
    """Of a root of one's own, with what an action needs."""
    app = open_app(made)
    with TestClient(app, base_url=ORIGIN, headers=HEADERS) as client:
        yield client


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Of a root whose sweep "study" is a search with two objectives, some of whose trials were stopped early."""
    root = make_root(tmp_path_factory.mktemp("searched") / "runs", searching(), windows=False, searches=[SEARCH])
    with TestClient(open_app(root), base_url=ORIGIN) as client:
        yield client
