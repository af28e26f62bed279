"""A report as a folder that can be sent away: tables in every format, figures, configurations, provenance."""

import dataclasses
from collections.abc import Sequence
from html import escape
from pathlib import Path

from prunegpt.errors import ReportError
from prunegpt.records import TrialResult
from prunegpt.registry import RENDERERS
from prunegpt.report import anomaly
from prunegpt.report.cells import Table
from prunegpt.report.config import resolved
from prunegpt.report.figures import save
from prunegpt.report.gallery import NamedFigure
from prunegpt.report.provenance import Provenance, gather
from prunegpt.report.render.html import fragment, page
from prunegpt.root import publishing, write_json, write_text

SUFFIXES = {"latex": "tex"}  # of formats whose name is not their suffix
_PROVENANCE = "provenance.json"
_FIGURE_FORMATS = ("svg", "png")


def write_folder(
    destination: Path,
    tables: Sequence[Table],
    *,
    title: str,
    results: Sequence[TrialResult] = (),
    figures: Sequence[NamedFigure] = (),
    commit: str | None = None,
) -> list[str]:
    """Writes the report whole or not at all; a report that stood there is replaced.

        index.html, provenance.json
        tables/NAME.md .tex .csv .html .json
        figures/NAME.svg .png
        configs/SWEEP/TRIAL.json

    Args:
        destination: the folder.
        tables: with different names.
        title: heading of the index.
        results: the trials behind the tables; their configurations are written.
        figures: see `figures_of`.
        commit: of the spec, for the provenance.

    Returns:
        The files, relative to the folder, in order.

    Raises:
        ReportError: two tables of one name, or a destination that holds something else.
    """
    names = [table.name for table in tables]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ReportError(
            f"the tables of a report must have different names, but {', '.join(twice)} stands twice. "
            f"Give one a `name` in the spec."
        )
    destination = destination.absolute()
    _check_destination(destination)
    with publishing(destination, replace=True) as folder:
        provenance = gather(results, commit=commit)
        _tables(folder / "tables", tables)
        for named in figures:
            for suffix in _FIGURE_FORMATS:
                save(named.figure, folder / "figures" / f"{named.name}.{suffix}", named.caption)
        for trial in results:
            described = {"trial": trial.name, "seed": trial.seed, "state": trial.state, "config": resolved(trial)}
            write_json(folder / "configs" / trial.sweep / f"{trial.name}.json", described)
        write_json(folder / _PROVENANCE, dataclasses.asdict(provenance) | {"date": provenance.date})
        write_text(folder / "index.html", _index(title, tables, results, figures, provenance))
    return sorted(str(path.relative_to(destination)) for path in destination.rglob("*") if path.is_file())


def _check_destination(destination: Path) -> None:
    if destination.exists() and not destination.is_dir():
        raise ReportError(f"a report is a folder, but {destination} is a file. Name another place.")
    if destination.is_dir() and any(destination.iterdir()) and not (destination / _PROVENANCE).exists():
        raise ReportError(
            f"a report replaces only a report, but {destination} holds other files. Name a new or empty folder."
        )


def _tables(folder: Path, tables: Sequence[Table]) -> None:
    for form in RENDERERS.names():
        render = RENDERERS.load(form)
        for table in tables:
            write_text(folder / f"{table.name}.{SUFFIXES.get(form, form)}", render([table]))


def _index(
    title: str,
    tables: Sequence[Table],
    results: Sequence[TrialResult],
    figures: Sequence[NamedFigure],
    provenance: Provenance,
) -> str:
    parts = [f"<h1>{escape(title)}</h1>\n"]
    for table in tables:
        links = " ".join(
            f'<a href="tables/{escape(table.name)}.{suffix}">{suffix}</a>'
            for suffix in (SUFFIXES.get(form, form) for form in RENDERERS.names())
        )
        why = ' <a href="#no-perplexity">Why such figures are no perplexities</a>' if anomaly.is_shown([table]) else ""
        parts.append(f'{fragment(table)}<p class="note">{links}{why}</p>\n')
    for named in figures:
        name, caption = escape(named.name), escape(named.caption)
        links = " ".join(f'<a href="figures/{name}.{suffix}">{suffix}</a>' for suffix in _FIGURE_FORMATS)
        image = f'<img src="figures/{name}.svg" alt="{caption}">'
        parts.append(f"<figure>{image}<figcaption>{caption}. {links}</figcaption></figure>\n")
    if anomaly.is_shown(tables):
        parts.append(anomaly.explanation())
    if results:
        items = "".join(
            f'<li><a href="configs/{escape(trial.sweep)}/{escape(trial.name)}.json">{escape(trial.name)}</a></li>\n'
            for trial in results
        )
        parts.append(f"<h2>Configurations</h2>\n<ul>\n{items}</ul>\n")
    parts.append(f'<p class="provenance">{escape(provenance.line)} <a href="{_PROVENANCE}">json</a></p>\n')
    return page(title, "".join(parts))
