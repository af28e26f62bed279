"""A root with its store, and a way to run plans on fake workers."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep import coordinator
from tests.sweep.bench import Bench

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def package_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are processes of their own and must find the package where this one does."""
    checkout = str(HERE.parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([checkout, *filter(None, [os.environ.get("PYTHONPATH")])]))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A root whose coordinator asks after its workers often: they are done in no time."""
    monkeypatch.setattr(coordinator, "POLL", 0.01)
    root = Root(tmp_path / "runs")
    with Store.open(root) as store:
        yield Bench(root, store)
