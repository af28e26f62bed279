"""A copy of a study in ROOT/optuna.db, for optuna-dashboard and whoever reads Optuna's databases.

Nothing depends on it: the truth is in the store. It is written when it can be, rebuilt when it is lost or says
something else, and what goes wrong with it is logged once and tried again at the next change.
"""

import copy
import logging
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunegpt.planning.samplers import quiet
from prunegpt.spec.search import SearchSpec

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

FILE = "optuna.db"
_BUSY = 0.3  # seconds to wait for somebody else's write
_CONSTRAINT = "constraints"  # begins the names of those attributes of a trial that are shown
_HEADER = b"SQLite format 3\x00"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Told:
    """What the mirror says of a trial beside Optuna's own."""

    attributes: Mapping[str, Any]
    started: float | None = None  # seconds since the epoch
    ended: float | None = None


class OptunaMirror:
    """Writes one study.

    Args:
        path: of the database.
        name: of the study.
        spec: the search.
        told: what else to say of the trial of that name.
    """

    def __init__(self, path: Path, name: str, spec: SearchSpec, told: Callable[[str], Told | None] = lambda _: None):
        self._path = path
        self._name = name
        self._spec = spec
        self._told = told
        self._storage: RDBStorage | None = None
        self._study = 0
        self._shown: dict[int, tuple[int, bool]] = {}  # number -> id in the database, and whether it has ended there
        self._complained = False

    def show(self, trials: "Sequence[FrozenTrial]") -> None:
        """Brings the copy up to these trials, all that the study has; an error is logged and no more."""
        try:
            with quiet():
                self._bring_up(trials)
        except Exception as error:  # whatever it is, the sweep goes on without the copy
            self._close()
            if not self._complained:
                _logger.warning("%s is not up to date, which stops nothing: %s", self._path, str(error).split("\n")[0])
                self._complained = True

    def _bring_up(self, trials: "Sequence[FrozenTrial]") -> None:
        if self._storage is not None and not self._path.exists():
            self._close()
        if self._storage is None and self._path.exists() and not _is_database(self._path):
            os.replace(self._path, self._path.with_name(f"{FILE}.broken"))
        if self._path.exists():
            _check_writable(self._path)  # Optuna itself would wait and try again for seconds
        if self._storage is None:
            self._open(trials)
        for trial in trials:
            self._show_trial(trial)

    def _open(self, trials: "Sequence[FrozenTrial]") -> None:
        import optuna

        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._storage = optuna.storages.RDBStorage(
            f"sqlite:///{self._path}", engine_kwargs={"connect_args": {"timeout": _BUSY}}
        )
        directions = [objective.wanted for objective in self._spec.objectives]
        known = {study.study_name for study in optuna.get_all_study_summaries(self._storage, include_best_trial=False)}
        if self._name in known:
            study = optuna.load_study(study_name=self._name, storage=self._storage)
            there = study.get_trials(deepcopy=False)
            wanted = [direction.name.lower() for direction in study.directions]
            if wanted == directions and len(there) <= len(trials) and all(map(_may_become, there, trials)):
                self._shown = {trial.number: (trial._trial_id, trial.state.is_finished()) for trial in there}
                self._study = study._study_id
                return
            optuna.delete_study(study_name=self._name, storage=self._storage)
        study = optuna.create_study(study_name=self._name, storage=self._storage, directions=directions)
        study.set_metric_names([objective.metric for objective in self._spec.objectives])
        self._study = study._study_id

    def _show_trial(self, trial: "FrozenTrial") -> None:
        assert self._storage is not None
        there = self._shown.get(trial.number)
        if there is None:
            number = self._storage.create_new_trial(self._study, template_trial=self._as_shown(trial))
            self._shown[trial.number] = (number, trial.state.is_finished())
        elif trial.state.is_finished() and not there[1]:
            shown = self._as_shown(trial)
            for key, value in shown.user_attrs.items():
                self._storage.set_trial_user_attr(there[0], key, value)
            for key, value in shown.system_attrs.items():
                self._storage.set_trial_system_attr(there[0], key, value)
            for step, value in shown.intermediate_values.items():
                self._storage.set_trial_intermediate_value(there[0], step, value)
            self._storage.set_trial_state_values(there[0], trial.state, trial.values)
            self._shown[trial.number] = (there[0], True)

    def _as_shown(self, trial: "FrozenTrial") -> "FrozenTrial":
        """The trial with what we say of it, and without what samplers keep for themselves."""
        shown = copy.copy(trial)
        told = self._told(str(trial.user_attrs.get("trial", "")))
        shown.user_attrs = {**trial.user_attrs, **(told.attributes if told else {})}
        shown._system_attrs = {
            key: value for key, value in trial.system_attrs.items() if key.partition(":")[0] == _CONSTRAINT
        }
        if told and told.started is not None:
            shown.datetime_start = _time(told.started)
            if trial.state.is_finished() and told.ended is not None:
                shown.datetime_complete = _time(told.ended)
        return shown

    def _close(self) -> None:
        self._shown = {}
        if self._storage is not None:
            self._storage.engine.dispose()
            self._storage = None


def _may_become(there: "FrozenTrial", trial: "FrozenTrial") -> bool:
    """Whether a shown trial is this one, at this time or an earlier one."""
    same = there.params == trial.params and there.distributions == trial.distributions
    ended = there.state == trial.state and there.values == trial.values
    return same and (ended or not there.state.is_finished())


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)  # Optuna's times are UTC without saying so


def _is_database(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(len(_HEADER))
    return start in (b"", _HEADER)


def _check_writable(path: Path) -> None:
    """Raises sqlite3.OperationalError where somebody else holds the database for longer than we wait."""
    with closing(sqlite3.connect(path, timeout=_BUSY, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
