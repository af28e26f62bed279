"""A sweep's searches as Optuna studies in a file, for optuna-dashboard and Optuna itself.

Written when it is asked for, from what the store knows, by Optuna's public functions alone. Nothing reads it back.
"""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from prunegpt.errors import StoreError
from prunegpt.planning.samplers import quiet
from prunegpt.records import TrialResult
from prunegpt.spec.search import SearchSpec, searches_of
from prunegpt.spec.space import fits
from prunegpt.store import Store
from prunegpt.sweep.search.objectives import objective_curve, outcome_of
from prunegpt.sweep.search.study import frozen

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

_OPEN = ("running", "waiting")


def write_studies(path: Path, store: Store, sweep: str) -> dict[str, int]:
    """Writes a study SWEEP/SEARCH for each search of a sweep; one of that name that is in the file is replaced.

    Args:
        path: a new file, or an Optuna storage, whose other studies are kept.
        store: has the sweep.
        sweep: its name.

    Returns:
        How many trials each study got, by its name.

    Raises:
        StoreError: no such sweep, it has no search, or the file is another or cannot be written.
    """
    import optuna

    results = store.results(sweep)
    spec = next(row.spec for row in store.sweeps() if row.name == sweep)
    searches = searches_of(spec)
    if not searches:
        raise StoreError(f"a study is made of a search; {sweep} has none. Its spec needs a trial with `search`.")
    _check_is_optunas(path)
    written: dict[str, int] = {}
    try:
        with quiet():
            storage = optuna.storages.RDBStorage(str(URL.create("sqlite", database=str(path))))
            try:
                for name, search in searches.items():
                    own = [one for one in results if one.plan.search == name and fits(search.space, one.swept)]
                    trials = [_frozen(search, one, store) for one in sorted(own, key=lambda one: one.plan.number)]
                    _write(storage, f"{sweep}/{name}", search, trials)
                    written[f"{sweep}/{name}"] = len(trials)
            finally:
                storage.engine.dispose()
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).split("\n")[0]
        raise StoreError(f"a study needs a file that can be written; {path} cannot: {reason}.") from error
    return written


def _write(storage: "BaseStorage", name: str, search: SearchSpec, trials: "Sequence[FrozenTrial]") -> None:
    import optuna

    if name in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=name, storage=storage)
    directions = [objective.wanted for objective in search.objectives]
    study = optuna.create_study(study_name=name, storage=storage, directions=directions)
    study.set_metric_names([objective.metric for objective in search.objectives])
    study.add_trials(trials)


def _frozen(search: SearchSpec, result: TrialResult, store: Store) -> "FrozenTrial":
    """A trial of ours as Optuna's: its choices, what it came to, and as attributes its name, state and metrics."""
    outcome = None
    if result.state not in _OPEN:
        outcome = outcome_of(search, result, lambda: objective_curve(search, result, store))
    metrics = {key: value for key, value in result.metrics.items() if value is not None}
    trial = frozen(search, result.swept, outcome, trial=result.name, state=result.state, **metrics)
    if result.started is not None:
        trial.datetime_start = _time(result.started)
        if outcome is not None and result.ended is not None:
            trial.datetime_complete = _time(result.ended)
    return trial


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)  # Optuna's times are UTC without saying so


def _check_is_optunas(path: Path) -> None:
    """Raises StoreError where the file is there and holds something else than Optuna's studies."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error:
        tables = set()
    if not {"studies", "trials", "version_info"} <= tables:
        raise StoreError(
            f"a study is written to a new file or an Optuna storage; {path} is neither. Choose another --out."
        )
