"""What a spec declares of its results: tables and figures, made from what is stored."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pydantic import ValidationError

from prunegpt.errors import PruneGPTError, ReportError, listed, unknown
from prunegpt.records import TrialResult
from prunegpt.report.archive import Archive
from prunegpt.report.cells import Table
from prunegpt.report.gallery import DRAWINGS, NamedFigure
from prunegpt.report.logged import is_logged, logged_table
from prunegpt.report.material import Material
from prunegpt.report.measure import WindowsOf
from prunegpt.report.panels import SeriesOf, lines, over_training
from prunegpt.report.plot import Plot
from prunegpt.report.query import selected
from prunegpt.report.tables import build_table, table_name, usual_table
from prunegpt.spec.figures import LINES, TRAINING, FigureSpec
from prunegpt.spec.part import in_short

STYLE = ("decimals", "caption", "provenance")  # of tables, in place of what the spec has


def tables_of(found: Archive, names: Sequence[str] = (), **style: Any) -> list[Table]:
    """The tables that stored results make; one of all trials where none is declared.

    Args:
        names: of the tables that are wanted; default all.
        style: fields of a TableSpec in place of what the spec says: decimals, caption, provenance.

    Raises:
        ReportError: there is no table of a name, no such style, or a caption for several.
    """
    if wrong := [name for name in style if name not in STYLE]:
        raise ReportError(unknown("style of tables", wrong[0], STYLE))
    if not found.tables and is_logged(found.results):
        return [logged_table(found.sweep, found.results)]
    specs = found.tables or (usual_table(found.sweep, found.results),)
    known = [table_name(spec) for spec in specs]
    if missing := [name for name in names if name not in known]:
        raise ReportError(unknown(f"table of {found.sweep}", missing[0], known))
    wanted = [spec for spec in specs if not names or table_name(spec) in names]
    if style.get("caption") and len(wanted) > 1:
        raise ReportError(f"a caption is of one table; {found.sweep} has {listed(known)}. Choose one with --table.")
    return [
        build_table(
            spec.model_copy(update=style),
            found.results,
            found.windows,
            documents=found.documents,
            sweep=found.sweep,
            commit=found.commit,
        )
        for spec in wanted
    ]


def figures_in(spec: Mapping[str, Any]) -> list[FigureSpec]:
    """The figures that a spec declares, as it was read or is stored.

    Raises:
        ReportError: another version has stored what this one does not know.
    """
    try:
        return [FigureSpec.model_validate(one) for one in spec.get("figures") or ()]
    except ValidationError as error:
        raise ReportError(
            f"the figures that {spec.get('name')} declares cannot be read by this version: {in_short(error)}. Run its "
            "spec again."
        ) from error


@dataclass(frozen=True)
class SpecFigures:
    """The figures that a sweep declares.

    Attributes:
        spec: of the sweep, as it was read or is stored; it declares its searches too.
        results: the trials of the sweep.
        windows: gives the per-window losses of a trial.
        series_of: gives a trial's curve of a name, by stage.
    """

    spec: Mapping[str, Any]
    results: Sequence[TrialResult]
    windows: WindowsOf
    series_of: SeriesOf

    def plot(self, figure: FigureSpec) -> Plot:
        """A figure as the spec declares it.

        Raises:
            ReportError: its rows match no trial, or there is nothing yet to draw it from.
        """
        chosen = [
            one for one in self.results if any(fnmatchcase(one.name, row) or one.group == row for row in figure.rows)
        ]
        if self.results and not chosen:
            names = [name for one in self.results for name in (one.name, one.group)]
            raise ReportError(unknown("trial", figure.rows[0], dict.fromkeys(names)))
        chosen, band, title = selected(chosen, figure.where), figure.band is not None, figure.title
        if figure.kind == LINES:
            return lines(chosen, x=figure.x, y=figure.y, by=figure.by, band=band, title=title, log=figure.log)
        if figure.kind == TRAINING:
            return over_training(chosen, self.series_of, y=figure.y, band=band, title=title)
        return DRAWINGS[figure.kind].made(Material(chosen, self.windows, lambda trial: {}, self.spec))

    def drawn(self, figure: FigureSpec) -> NamedFigure:
        """The same, drawn."""
        from prunegpt.report.figures import draw, restyled

        plot = self.plot(figure)
        if figure.kind in DRAWINGS:
            caption, title = DRAWINGS[figure.kind].caption, figure.title
        else:
            told = f"{figure.title or plot.layout['title']['text']}. {plot.caption}"
            caption, title = told.strip().removesuffix("."), None
        return NamedFigure(figure.name, caption, restyled(draw(plot), figure.size, title))

    def __iter__(self) -> Iterator[tuple[FigureSpec, NamedFigure | PruneGPTError]]:
        """Each of them drawn, or why there is none yet."""
        for figure in figures_in(self.spec):
            try:
                yield figure, self.drawn(figure)
            except PruneGPTError as error:
                yield figure, error
