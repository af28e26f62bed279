"""A run that a W&B client has logged: what it says of itself, its metrics, its files."""

import mimetypes
from pathlib import Path

from pydantic import Field
from starlette.responses import FileResponse, Response

from prunegpt.errors import StoreError
from prunegpt.records import TrialResult
from prunegpt.report.logged import metrics_of
from prunegpt.web.api.trials import inside
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer, ApiRequest, attachment, endpoint

_FILES = "files"  # in the folder of an attempt
_SHOWN = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp")  # in a page; others are saved
_MOST_FILES = 5000


class LoggedFile(Answer):
    """A file that was uploaded with the run."""

    name: str
    size: int = Field(description="bytes")
    media: str = Field(description="media type, by its name")


class LoggedMetric(Answer):
    """The last value of a metric, by the name it was logged under."""

    name: str
    value: bool | int | float | str | None


class Logged(Answer):
    """What a run says of itself."""

    entity: str
    project: str
    id: str
    name: str
    group: str
    job_type: str
    sweep: str
    host: str
    program: str
    notes: str
    tags: list[str]
    summary: list[LoggedMetric]
    files: list[LoggedFile]


class FileQuery(ApiRequest):
    name: str = Field("", description="of the file, as listed")


@endpoint("/trials/{sweep}/{trial}/logged")
def logged(dashboard: Dashboard, sweep: str, trial: str) -> Logged:
    """What a W&B run says of itself; its files."""
    found = _run(dashboard, sweep, trial)
    run = found.plan.run
    described = run.model_dump() if run else dict.fromkeys(("entity", "project", "id"), "")
    return Logged.model_validate(
        {
            **dict.fromkeys(("group", "job_type", "sweep", "host", "program", "notes"), ""),
            "tags": [],
            **described,
            "name": found.label,
            "summary": [LoggedMetric(name=name, value=value) for name, value in metrics_of(found)],
            "files": files_of(dashboard.root.path / found.folder / _FILES),
        }
    )


@endpoint("/trials/{sweep}/{trial}/file", "application/octet-stream")
def file(dashboard: Dashboard, sweep: str, trial: str, asked: FileQuery) -> Response:
    """A file that a W&B run has uploaded."""
    found = _run(dashboard, sweep, trial)
    path = inside(dashboard.root.path / found.folder / _FILES, asked.name)
    if not path.is_file():
        raise StoreError(f"a file must be one of the run's; {asked.name[:80]!r} is none.")
    media = _media(path.name)
    if media in _SHOWN:
        return FileResponse(path, media_type=media)
    return FileResponse(path, media_type="application/octet-stream", headers=attachment(path.name))


def files_of(folder: Path) -> list[LoggedFile]:
    """The files of a run, by name."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())[:_MOST_FILES]
    return [
        LoggedFile(name=path.relative_to(folder).as_posix(), size=path.stat().st_size, media=_media(path.name))
        for path in found
    ]


def _media(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def _run(dashboard: Dashboard, sweep: str, trial: str) -> TrialResult:
    found = dashboard.source.trial(sweep, trial)
    if not found.plan.foreign:
        raise StoreError(f"only a run that a W&B client has logged has this; {found.address} is a trial of a spec.")
    return found
