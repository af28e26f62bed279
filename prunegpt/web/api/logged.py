"""A run that a W&B client has logged: what it says of itself, its metrics, its files."""

import mimetypes
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import Field
from starlette.responses import FileResponse, Response

from prunegpt.errors import StoreError
from prunegpt.records import TrialResult
from prunegpt.report.logged import metrics_of
from prunegpt.sweep.recovery import OUTSIDE
from prunegpt.tracking.endpoint.artifacts import ArtifactVersion
from prunegpt.tracking.foreign import StoredRun
from prunegpt.tracking.run_path import RunPath
from prunegpt.web.api.trials import inside
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer, ApiRequest, attachment, endpoint

_FILES = "files"  # in the folder of an attempt
_SHOWN = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp")  # in a page; others are saved
_MOST_FILES = 5000
# Pages that others have written are shown in an origin of their own, from which they reach nothing and nobody.
_APART = {
    "Content-Security-Policy": "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; frame-ancestors 'self'; base-uri 'none'; "
    "form-action 'none'",
    "X-Frame-Options": "SAMEORIGIN",
}


class LoggedFile(Answer):
    """A file that was uploaded with the run."""

    name: str
    size: int = Field(description="bytes")
    media: str = Field(description="media type, by its name")


class LoggedMetric(Answer):
    """The last value of a metric, by the name it was logged under."""

    name: str
    value: bool | int | float | str | None


class LoggedPlot(Answer):
    """A plot of `wandb.plot`: a table that was uploaded, and which of its columns are drawn how."""

    name: str
    kind: str = Field(description="as the client names it, such as wandb/line/v0")
    fields: dict[str, str] = Field(description="what is drawn, and the column that has it")
    labels: dict[str, str] = Field(description="title and names of axes")
    file: str = Field(description="name of the table's file")


class ArtifactFile(Answer):
    """A file of an artifact."""

    name: str
    size: int = Field(description="bytes")
    address: str = Field(description="where it is: a path of this server, or a reference to elsewhere")


class LoggedArtifact(Answer):
    """A version of an artifact that the run has logged or used."""

    name: str = Field(description="with its version")
    type: str
    used: bool = Field(description="false for one that it has logged")
    aliases: list[str]
    size: int = Field(description="bytes")
    files: list[ArtifactFile]


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
    plots: list[LoggedPlot]
    artifacts: list[LoggedArtifact]


class FileQuery(ApiRequest):
    name: str = Field("", description="of the file, as listed")


@endpoint("/trials/{sweep}/{trial}/logged")
def logged(dashboard: Dashboard, sweep: str, trial: str) -> Logged:
    """What a W&B run says of itself; its files, plots and artifacts."""
    found = _run(dashboard, sweep, trial)
    run = found.plan.run
    described = run.model_dump() if run else dict.fromkeys(("entity", "project", "id"), "")
    at = RunPath(run.entity, run.project, run.id) if run else RunPath("", "", "")
    folder = dashboard.root.path / found.folder
    return Logged.model_validate(
        {
            **dict.fromkeys(("group", "job_type", "sweep", "host", "program", "notes"), ""),
            "tags": [],
            **described,
            "name": found.label,
            "summary": [LoggedMetric(name=name, value=value) for name, value in metrics_of(found)],
            "files": files_of(folder / _FILES),
            "plots": list(_plots(folder)),
            "artifacts": [
                _artifact(dashboard, one, used)
                for used in (False, True)
                for one in dashboard.artifacts.of_run(at, used)
            ],
        }
    )


@endpoint("/trials/{sweep}/{trial}/file", "application/octet-stream")
def file(dashboard: Dashboard, sweep: str, trial: str, asked: FileQuery) -> Response:
    """A file that a W&B run has uploaded; a page is shown apart from this server's origin."""
    found = _run(dashboard, sweep, trial)
    path = inside(dashboard.root.path / found.folder / _FILES, asked.name)
    if not path.is_file():
        raise StoreError(f"a file must be one of the run's; {asked.name[:80]!r} is none.")
    media = _media(path.name)
    if media in _SHOWN:
        return FileResponse(path, media_type=media)
    if media == "text/html":
        return FileResponse(path, media_type=media, headers=_APART)
    return FileResponse(path, media_type="application/octet-stream", headers=attachment(path.name))


def files_of(folder: Path) -> list[LoggedFile]:
    """The files of a run, by name."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())[:_MOST_FILES]
    return [
        LoggedFile(name=path.relative_to(folder).as_posix(), size=path.stat().st_size, media=_media(path.name))
        for path in found
    ]


def _plots(folder: Path) -> Iterator[LoggedPlot]:
    """The plots of a run, as its client has described them in the configuration."""
    with suppress(OSError, ValueError):
        kept = StoredRun.read(folder / OUTSIDE)
        for name, told in _mapping(kept.client.get("visualize")).items():
            panel, table = _mapping(_mapping(told).get("panel_config")), _mapping(kept.summary.get(f"{name}_table"))
            if isinstance(file := table.get("path"), str):
                yield LoggedPlot(
                    name=name,
                    kind=str(panel.get("panelDefId", "")),
                    fields=_strings(panel.get("fieldSettings")),
                    labels=_strings(panel.get("stringSettings")),
                    file=file,
                )


def _artifact(dashboard: Dashboard, version: ArtifactVersion, used: bool) -> LoggedArtifact:
    entries = list(dashboard.artifacts.entries(version))
    return LoggedArtifact(
        name=f"{version.collection}:v{version.number}",
        type=version.type,
        used=used,
        aliases=version.aliases,
        size=sum(one.size for one in entries),
        files=[
            ArtifactFile(
                name=one.name,
                size=one.size,
                address=one.reference or f"/artifacts/{quote(version.entity)}/{one.digest}/{quote(one.name)}",
            )
            for one in entries[:_MOST_FILES]
        ],
    )


def _mapping(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}


def _strings(given: Any) -> dict[str, str]:
    return {name: value for name, value in _mapping(given).items() if isinstance(value, str)}


def _media(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def _run(dashboard: Dashboard, sweep: str, trial: str) -> TrialResult:
    found = dashboard.source.trial(sweep, trial)
    if not found.plan.foreign:
        raise StoreError(f"only a run that a W&B client has logged has this; {found.address} is a trial of a spec.")
    return found
