"""A database whose cells somebody has changed is told of in a sentence, and made again from the trials."""

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress

import pytest

from prunegpt.errors import StoreError
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.store.schema import metadata
from prunegpt.sweep.repair import examine, repair
from tests.support.finished_root import Undisturbed, figures

CELLS = [(table.name, column.name) for table in metadata.sorted_tables for column in table.columns]
VALUES = ("{", "3", "null", "[" * 3000 + "]" * 3000, '{"a": 1}', b"\xff\xfe", -1, "")


def change(root: Root, table: str, column: str, value: object) -> bool:
    """Whether the database took it."""
    with closing(sqlite3.connect(root.database)) as connection:
        try:
            connection.execute(f'UPDATE "{table}" SET "{column}" = ?', (value,))
            connection.commit()
        except sqlite3.IntegrityError:
            return False
    return True


def read(root: Root) -> None:
    with Store.open(root, create=False) as store:
        for sweep in store.sweeps():
            for result in store.results(sweep.name, shown=None):
                store.attempts(result.id)
        store.stages()


def test_no_cell_makes_a_traceback(broken: Callable[[], Root]) -> None:
    root = broken()
    whole = root.database.read_bytes()
    for table, column in CELLS:
        for value in VALUES:
            root.database.write_bytes(whole)
            if change(root, table, column, value):
                with suppress(StoreError):
                    read(root)


@pytest.mark.parametrize("column", ["spec", "tables", "unchecked"])
@pytest.mark.parametrize("value", ["{", "3"])
def test_a_database_that_cannot_be_read_is_made_again(
    broken: Callable[[], Root], undisturbed: Undisturbed, column: str, value: str
) -> None:
    root = broken()
    assert change(root, "sweep", column, value)
    with pytest.raises(StoreError, match="doctor --repair"):
        read(root)
    assert "database" in [finding.kind for finding in examine(root)]
    repair(root, lambda _: True)
    read(root)
    assert figures(root).keys() <= undisturbed.figures.keys()
