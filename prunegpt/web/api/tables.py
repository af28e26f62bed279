"""The tables of a sweep, and the list of all its trials to take away; from what is stored now."""

import json
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import Response

from prunegpt.errors import unknown
from prunegpt.registry import RENDERERS
from prunegpt.report.archive import Archive
from prunegpt.report.cells import Footnote, Table
from prunegpt.report.curve_fields import with_curves
from prunegpt.report.declared import tables_of
from prunegpt.report.format import plain
from prunegpt.report.measure import stored_windows
from prunegpt.report.render.csv import lines
from prunegpt.report.render.html import fragment
from prunegpt.report.rows import other_sweeps
from prunegpt.report.scores import stored_documents
from prunegpt.store.curves import Summaries
from prunegpt.web.api.lists import TrialFilter, chosen, filtered
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer, RequestError, attachment, endpoint

FORMATS = {
    "md": ("md", "text/markdown"),
    "tex": ("latex", "text/x-tex"),
    "csv": ("csv", "text/csv"),
    "json": ("json", "application/json"),
    "html": ("html", "text/html"),
}


class TableColumn(Answer):
    key: str
    text: str
    kind: str


class TableShown(Answer):
    """One table: as HTML to show, and as values."""

    name: str
    title: str
    html: str
    columns: list[TableColumn]
    rows: list[dict[str, Any]]
    footnotes: list[Footnote]
    provenance: str


class Tables(Answer):
    tables: list[TableShown]


def tables(dashboard: Dashboard, name: str) -> list[Table]:
    """The tables of a sweep, one of all trials where it declares none; those of one state of the store made once."""
    with dashboard.source.following():
        sweep = dashboard.source.sweep(name)
        declared = dashboard.source.store.tables(name)
        others = sorted(other_sweeps(declared, name) & {other.name for other in dashboard.source.sweeps()})
        state = tuple(dashboard.source.sweep_revision(each) for each in (name, *others))
        results = [trial for each in (name, *others) for trial in dashboard.source.trials(each)]
    root = dashboard.root

    def made() -> list[Table]:
        store = dashboard.source.store
        trials = tuple(with_curves(results, lambda: Summaries(store, None if others else name), declared))
        return tables_of(Archive(name, None, declared, trials, stored_windows(root), stored_documents(root)))

    return dashboard.kept.get(("tables", name), (state, sweep.updated), made)


@endpoint("/sweeps/{name}/tables")
def shown(dashboard: Dashboard, name: str) -> Tables:
    """The declared tables, or where there is none one of all trials."""
    return Tables(
        tables=[
            TableShown(
                name=table.name,
                title=table.title,
                html=fragment(table),
                columns=[
                    TableColumn(key=key, text=heading.text, kind=heading.kind)
                    for key, heading in zip(table.keys, table.columns, strict=True)
                ],
                rows=[table.entries(row) for row in table.rows],
                footnotes=list(table.footnotes),
                provenance=table.provenance,
            )
            for table in tables(dashboard, name)
        ]
    )


@endpoint("/sweeps/{name}/tables/{table}.{format}", *(media for _, media in FORMATS.values()))
def download(dashboard: Dashboard, name: str, table: str, format: Annotated[str, tuple(FORMATS)]) -> Response:
    """A table as md, tex, csv, json or html; `all` means every one."""
    found = tables(dashboard, name)
    if table != "all":
        known = [one.name for one in found]
        found = [one for one in found if one.name == table]
        if not found:
            raise RequestError(404, unknown(f"table of {name}", table, ["all", *known]))
    renderer, media = FORMATS[format]
    text = RENDERERS.load(renderer)(found)
    return Response(text, media_type=media, headers=attachment(f"{name}-{table}.{format}"))


class TrialDownload(TrialFilter):
    columns: list[str] = Field([], description="names or keys of fields, with commas between them; all if empty")


@endpoint("/sweeps/{name}/trials.csv", "text/csv")
def trials_csv(dashboard: Dashboard, name: str, asked: TrialDownload) -> Response:
    """Trials as CSV, with every field."""
    _, trials, fields = filtered(dashboard, name, asked)
    shown = chosen(fields, asked.columns) or list(fields)
    names = [field.name for field in shown]
    header = [field.key if names.count(field.name) > 1 else field.name for field in shown]
    text = lines([header, *([_cell(field.of(trial)) for field in shown] for trial in trials)])
    return Response(text, media_type="text/csv", headers=attachment(f"{name}-trials.csv"))


def _cell(value: Any) -> Any:
    return plain(list(value) if isinstance(value, tuple) else value)


@endpoint("/sweeps/{name}/trials.json")
def trials_json(dashboard: Dashboard, name: str, asked: TrialFilter) -> Response:
    """Trials' records as JSON."""
    _, trials, _ = filtered(dashboard, name, asked)
    text = json.dumps({"trials": [trial.described() for trial in trials]}, ensure_ascii=False)
    return Response(text, media_type="application/json", headers=attachment(f"{name}-trials.json"))
