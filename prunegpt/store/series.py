"""Whole curves as arrays, for drawing: a hundred thousand points without as many objects."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from prunegpt.store.curves import curves_of
from prunegpt.store.read import stored_plan
from prunegpt.store.schema import point


@dataclass(frozen=True)
class Series:
    """One curve of a trial, by step; all arrays are [points]."""

    stage: int  # position in the chain
    name: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]  # NaN where a value was not finite
    times: NDArray[np.float64]  # seconds since the epoch
    tokens: NDArray[np.int64]
    epochs: NDArray[np.float64]


def series(connection: Connection, trial_id: int, wanted: Callable[[int, str], bool]) -> list[Series]:
    """Selected curves of a trial, by stage and name, whichever trial computed the stages.

    Where attempts overlap at a step, the later one counts.

    Args:
        trial_id: the trial.
        wanted: of a stage's position and a curve's name.

    Raises:
        StoreError: there is no such trial.
    """
    parts: dict[tuple[int, str], list[int]] = {}
    for one in curves_of(connection, stored_plan(connection, trial_id)):
        if wanted(one.stage, one.name):
            parts.setdefault((one.stage, one.name), []).append(one.id)
    found = [_read(connection, stage, name, ids) for (stage, name), ids in sorted(parts.items())]
    return [one for one in found if len(one.steps)]


def _read(connection: Connection, stage: int, name: str, curves: list[int]) -> Series:
    columns = (point.c.step, point.c.value, point.c.time, point.c.tokens, point.c.epoch)
    rows: list[Any] = []
    for curve_id in curves:  # later attempts last
        query = select(*columns).where(point.c.curve_id == curve_id).order_by(point.c.step)
        with connection.execute(query) as result:
            assert result.cursor is not None
            rows += result.cursor.fetchall()  # plain tuples: a row object each would take three times as long
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)  # [points, 5]; None becomes NaN
    if len(curves) > 1:
        _, last = np.unique(table[::-1, 0], return_index=True)
        table = table[::-1][last]  # [points, 5], by step
    steps, values, times, tokens, epochs = table.T
    return Series(stage, name, steps.astype(np.int64), values, times, tokens.astype(np.int64), epochs)
