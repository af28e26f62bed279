"""What Optuna's dashboard shows of a root: the searches as they are mirrored, with our link, note and figure on trials.

Nothing is written for it. The dashboard reads notes and artifacts out of the attributes of a study, and they are added
to what it reads; a note that somebody writes in Optuna's dashboard is kept in its database and shown instead of ours.
"""

import io
import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import RDBStorage
from optuna.study._frozen import FrozenStudy

from prunegpt.errors import ReportError
from prunegpt.records import TrialResult
from prunegpt.report.figures import draw, png
from prunegpt.report.plots import training
from prunegpt.web.api.figures import curves
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.rows import row

_FIGURE = "f19"  # begins the ids of our figures, which the dashboard wants to be hexadecimal
_LABELS = {"ce": "training text", "perplexity": "evaluation"}
_OWN = 1  # the version of a note that nobody has edited


class View(RDBStorage):
    """Optuna's storage, in which studies of our searches say more than the database does.

    Args:
        url: of the database.
        dashboard: our own, of the same root.
        address: where our pages are, such as http://127.0.0.1:8000.
    """

    def __init__(self, url: str, dashboard: Dashboard, address: str) -> None:
        super().__init__(url)
        self.dashboard = dashboard
        self._address = address.rstrip("/")
        self._known: dict[int, tuple[int, dict[int, str]]] = {}  # study -> its size, and trial id -> our name for it
        self._made: dict[int, tuple[int, dict[str, Any]]] = {}  # study -> our revision, and what is added
        self._alone = threading.Lock()

    def get_all_studies(self) -> list[FrozenStudy]:
        studies = super().get_all_studies()
        for study in studies:
            study.system_attrs = self._with_ours(study._study_id, study.study_name, study.system_attrs)
        return studies

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        written = super().get_study_system_attrs(study_id)
        return self._with_ours(study_id, self.get_study_name_from_id(study_id), written)

    def _with_ours(self, study: int, name: str, written: dict[str, Any]) -> dict[str, Any]:
        sweep = name.rpartition("/")[0]
        with self.dashboard.source.following():
            if not self.dashboard.source.has(sweep):
                return written
        edited = {key.removesuffix("note_ver") for key in written if key.endswith("note_ver")}
        added = self._added(study, sweep)
        return {key: value for key, value in added.items() if key.partition("note_")[0] not in edited} | written

    def _added(self, study: int, sweep: str) -> dict[str, Any]:
        """Notes and figures of a study's trials, made once for each state of our store."""
        with self._alone:
            size = self.get_n_trials(study)
            with self.dashboard.source.following():
                revision = self.dashboard.source.revision
                trials = {trial.name: trial for trial in self.dashboard.source.trials(sweep, hidden=True)}
            if study not in self._known or self._known[study][0] != size:
                found = self.get_all_trials(study, deepcopy=False)
                self._known[study] = size, {one._trial_id: str(one.user_attrs.get("trial", "")) for one in found}
                self._made.pop(study, None)
            if study not in self._made or self._made[study][0] != revision:
                self._made[study] = revision, self._make(sweep, self._known[study][1], trials)
            return self._made[study][1]

    def _make(self, sweep: str, names: Mapping[int, str], trials: Mapping[str, TrialResult]) -> dict[str, Any]:
        added: dict[str, Any] = _note("dashboard:", f"[{sweep} in PruneGPT]({self._address}/sweeps/{quote(sweep)})")
        for number, name in names.items():
            trial = trials.get(name)
            if trial is None:
                continue
            added |= _note(f"dashboard:{number}:", self._text(trial))
            if any(stage.steps for stage in trial.stages) or trial.state == "running":
                figure = f"{_FIGURE}{trial.id:x}"
                told = {"artifact_id": figure, "filename": f"{name}.png", "mimetype": "image/png", "encoding": None}
                added[f"dashboard:artifacts:{number}:{figure}"] = json.dumps(told)
        return added

    def _text(self, trial: TrialResult) -> str:
        """The note on a trial: the way to our page, what it came to, and what people wrote there."""
        shown = row(trial)
        facts = [shown.state]
        if shown.perplexity is not None:
            facts.append(f"perplexity {shown.perplexity:.4g}")
        if shown.sparsity is not None:
            facts.append(f"sparsity {100 * shown.sparsity:.1f} %")
        link = f"{self._address}/trials/{quote(trial.sweep)}/{quote(trial.name)}"
        written = self.dashboard.source.store.note(trial.id)
        return "\n\n".join([f"[{trial.name} in PruneGPT]({link})", ", ".join(facts), *([written] if written else [])])


class Figures(FileSystemArtifactStore):
    """Draws the figures of trials when they are asked for; what people upload lies in a folder."""

    def __init__(self, folder: Path, dashboard: Dashboard) -> None:
        super().__init__(folder)
        self._folder = folder
        self.dashboard = dashboard
        self._alone = threading.Lock()  # matplotlib draws one figure at a time

    def open_reader(self, artifact_id: str) -> BinaryIO:
        if not artifact_id.startswith(_FIGURE):
            return super().open_reader(artifact_id)
        wanted = int(artifact_id.removeprefix(_FIGURE), 16)
        trial = next((one for one in self.dashboard.source.every_trial() if one.id == wanted), None)
        if trial is None:
            raise ArtifactNotFound("this trial has gone")
        found = curves(self.dashboard, trial)
        perplexity = [replace(found[name], label=label) for name, label in _LABELS.items() if found[name].steps]
        sparsity = [replace(found["sparsity"], label="pruned")] if any(found["sparsity"].values) else []
        try:
            with self._alone:
                return io.BytesIO(png(draw(training(perplexity, sparsity, trial.name))))
        except ReportError as error:
            raise ArtifactNotFound(str(error)) from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        super().write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        if artifact_id.startswith(_FIGURE):
            raise ArtifactNotFound("this figure is drawn from the trial, and goes with it")
        super().remove(artifact_id)


def _note(where: str, text: str) -> dict[str, Any]:
    """A note as the dashboard reads it."""
    return {f"{where}note_ver": _OWN, f"{where}note_str:0": text}
