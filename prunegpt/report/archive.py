"""The records and window losses that tables are made from, in two files: results travel with a repository or a paper.

A table made from an archive equals the one made from the store it came from, to the letter.
"""

import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunegpt.errors import ReportError
from prunegpt.records import TrialResult
from prunegpt.report.measure import WindowsOf
from prunegpt.report.scores import DocumentsOf, no_documents
from prunegpt.report.statistics import WindowLosses
from prunegpt.root import publishing, read_json, write_json
from prunegpt.spec.part import Part, in_short
from prunegpt.spec.plan import TrialPlan
from prunegpt.spec.schema import TableSpec

_RESULTS, _WINDOWS = "results.json", "windows.npz"
_DOCUMENTS = "documents"  # in names of arrays: of tasks
_FOLDERS = re.compile(r"(?:file://|(?<=[\s=:,'\"(\[]))/(?:[^/\s]+/)+")  # of absolute paths within a text
_LARGEST = 1 << 29  # bytes of either, unpacked: the windows of 10,000 trials take a tenth


@dataclass(frozen=True)
class Archive:
    """What an archive holds."""

    sweep: str
    commit: str | None  # of the spec
    tables: tuple[TableSpec, ...]
    results: tuple[TrialResult, ...]
    windows: WindowsOf  # of a trial's evaluation; read when a table asks for them
    documents: DocumentsOf = no_documents  # of its tasks


def write_archive(folder: Path, archive: Archive) -> None:
    """Writes the archive of a sweep; one that is there already is replaced.

    No path of this machine travels with it, nor the message of a failure, which may name one.
    """
    losses: dict[str, Any] = {}
    for trial in archive.results:
        views = [trial, *(trial.under(one.name) for one in trial.plan.also)]
        arrays = {_place(view, trial): archive.windows(view) for view in views}
        arrays |= {f"{trial.id}/{_DOCUMENTS}/{name}": values for name, values in archive.documents(trial).items()}
        losses |= {name: found for name, found in arrays.items() if found is not None}
    folder.mkdir(parents=True, exist_ok=True)
    with publishing(folder / ".new", replace=True) as temporary:
        np.savez_compressed(temporary / _WINDOWS, allow_pickle=False, **losses)
        results = [public({**trial.model_dump(mode="json"), "error": ""}) for trial in archive.results]
        tables = [table.model_dump(mode="json") for table in archive.tables]
        written = {"sweep": archive.sweep, "commit": archive.commit, "tables": tables, "results": results}
        write_json(temporary / _RESULTS, written)
    for name in (_WINDOWS, _RESULTS):
        (folder / ".new" / name).replace(folder / name)
    (folder / ".new").rmdir()


def _place(view: TrialResult, trial: TrialResult) -> str:
    """What the windows of one of a trial's evaluations are called in the archive."""
    return str(trial.id) if view.evaluation_key == trial.evaluation_key else f"{trial.id}/{view.evaluation_key}"


def public(value: Any) -> Any:
    """The same without local paths: of an absolute path its last part is kept, of one that is a key its folder too."""
    if isinstance(value, dict):
        names = _ends([key for key in value if key.startswith("/")])
        return {names.get(key, key): public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public(item) for item in value]
    if not isinstance(value, str):
        return value
    return Path(value).name if value.startswith("/") and "\n" not in value else _FOLDERS.sub("", value)


def _ends(paths: Sequence[str]) -> dict[str, str]:
    """Absolute path -> its last two parts, and more of them where another path ends alike."""
    ends: dict[str, str] = {}
    for count in range(2, 2 + max((path.count("/") for path in paths), default=0)):
        short = {path: "/".join(Path(path).parts[1:][-count:]) for path in paths if path not in ends}
        taken = Counter(short.values())
        ends |= {path: end for path, end in short.items() if taken[end] == 1}
    return ends


def read_archive(folder: Path) -> Archive:
    """Reads an archive.

    Raises:
        ReportError: the folder holds none, or one that was damaged or made to do harm.
    """
    try:
        content = read_json(_bounded(folder / _RESULTS))
        written = _Written.model_validate(content)
        losses = _losses(_bounded(folder / _WINDOWS))
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ReportError(
            f"an archive of results must hold {_RESULTS} and {_WINDOWS}; {folder} does not: {reason}. Write it with "
            "`prunegpt table NAME --archive FOLDER`."
        ) from error
    results = tuple(_result(trial, folder) for trial in written.results)
    known = {trial.id: trial for trial in results}

    def documents(trial: TrialResult) -> Mapping[str, WindowLosses]:
        start = f"{trial.id}/{_DOCUMENTS}/"
        return {name.removeprefix(start): found for name, found in losses.items() if name.startswith(start)}

    return Archive(
        sweep=written.sweep,
        commit=written.commit,
        tables=written.tables,
        results=results,
        windows=lambda trial: losses.get(_place(trial, known.get(trial.id, trial))),
        documents=documents,
    )


class _Written(Part):
    """results.json, but for the results themselves, which another version may have written."""

    sweep: str
    commit: str | None
    tables: tuple[TableSpec, ...]
    results: tuple[Mapping[str, Any], ...]


def _bounded(file: Path) -> Path:
    """Raises ValueError where a file is larger than any archive's."""
    if file.stat().st_size > _LARGEST:
        raise ValueError(f"{file.name} must be at most {_LARGEST:,} bytes; it has {file.stat().st_size:,}")
    return file


def _losses(file: Path) -> dict[str, WindowLosses]:
    """Name -> array: losses of windows [windows, 2], scores [documents], float64; the unpacked size comes first."""
    with zipfile.ZipFile(file) as packed:
        size = sum(item.file_size for item in packed.infolist())
    if size > _LARGEST:
        raise ValueError(f"{file.name} must unpack to at most {_LARGEST:,} bytes; it unpacks to {size:,}")
    with np.load(file, allow_pickle=False) as stored:
        return {name: np.asarray(stored[name], dtype=np.float64) for name in stored.files}


def _result(written: Mapping[str, Any], folder: Path) -> TrialResult:
    """A trial that this version kept, or an earlier one, which repeated parts of the plan beside it."""
    plan = written.get("plan")
    try:
        own = {name: value for name, value in written.items() if name in TrialResult.model_fields}
        return TrialResult.model_validate({**own, "plan": TrialPlan.reopened(json.dumps(plan))})
    except ValueError as error:
        named = f"{plan.get('sweep')}/{plan.get('name')}" if isinstance(plan, dict) else "a trial"
        raise ReportError(
            f"the plan of {named} in {folder} cannot be read by this version: {in_short(error)}. "
            f"Write the archive again with `prunegpt table NAME --archive {folder}`, where its sweep was run."
        ) from error
