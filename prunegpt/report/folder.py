"""A report as a folder that can be sent away: tables in every format, figures, configurations, provenance."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from prunegpt.errors import ReportError, listed
from prunegpt.records import TrialResult
from prunegpt.registry import RENDERERS
from prunegpt.report.cells import Table
from prunegpt.report.config import resolved
from prunegpt.report.figures import FORMATS, save
from prunegpt.report.gallery import NamedFigure
from prunegpt.report.provenance import gather
from prunegpt.report.render.html import page
from prunegpt.root import publishing, write_json, write_text

SUFFIXES = {"latex": "tex"}  # of formats whose name is not their suffix
_PROVENANCE = "provenance.json"
MARK = "no perplexity"  # how the footnote of such a figure begins
POSITIONS, TEMPERATURE, HARDNESS = 1024, 2.0, 0.5  # of the study


def write_folder(
    destination: Path,
    tables: Sequence[Table],
    *,
    title: str,
    results: Sequence[TrialResult] = (),
    figures: Sequence[NamedFigure] = (),
    commit: str | None = None,
) -> list[str]:
    """Writes the report whole or not at all; an existing report is replaced.

        index.html, provenance.json
        tables/NAME.md .tex .csv .html .json
        figures/NAME.png .svg .pdf
        configs/SWEEP/TRIAL.json

    Args:
        tables: with different names.
        results: the trials behind the tables; their configurations are written.
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
            f"the tables of a report must have different names; {listed(twice)} is used twice. Give one a `name` in "
            "the spec."
        )
    destination = destination.absolute()
    _check_destination(destination)
    with publishing(destination, replace=True) as folder:
        provenance = gather(results, commit=commit)
        suffixes = {form: SUFFIXES.get(form, form) for form in RENDERERS.names()}
        for form, suffix in suffixes.items():
            for table in tables:
                write_text(folder / "tables" / f"{table.name}.{suffix}", RENDERERS.load(form)([table]))
        for named in figures:
            for suffix in FORMATS:
                save(named.figure, folder / "figures" / f"{named.name}.{suffix}")
        for trial in results:
            described = {"trial": trial.name, "seed": trial.seed, "state": trial.state, "config": resolved(trial)}
            write_json(folder / "configs" / trial.sweep / f"{trial.name}.json", described)
        write_json(folder / _PROVENANCE, dataclasses.asdict(provenance) | {"date": provenance.date})
        index = page(
            "report.html",
            title=title,
            tables=tables,
            suffixes=suffixes.values(),
            figures=figures,
            formats=tuple(FORMATS),
            anomalous=[table for table in tables if any(note.text.startswith(MARK) for note in table.footnotes)],
            explanation=explanation(),
            results=results,
            provenance=provenance,
            provenance_file=_PROVENANCE,
        )
        write_text(folder / "index.html", index)
    return sorted(str(path.relative_to(destination)) for path in destination.rglob("*") if path.is_file())


def _check_destination(destination: Path) -> None:
    if destination.exists() and not destination.is_dir():
        raise ReportError(f"a report is a folder; {destination} is a file. Name another place.")
    if destination.is_dir() and any(destination.iterdir()) and not (destination / _PROVENANCE).exists():
        raise ReportError(
            f"a report replaces only a report; {destination} holds other files. Name a new or empty folder."
        )


def blended(cross_entropy: float, divergence: float) -> float:
    """What was exponentiated, in nats: half the cross-entropy, and half the divergence summed over all positions.

    Args:
        cross_entropy: mean nats per token.
        divergence: mean nats per token between the softened distributions.
    """
    summed = TEMPERATURE**2 * POSITIONS * divergence
    return (1 - HARDNESS) * cross_entropy + HARDNESS * summed


def divergence_of(published: float, cross_entropy: float) -> float:
    """The mean divergence, nats per token, that a published figure stands for: `blended` read backwards."""
    return (math.log(published) - (1 - HARDNESS) * cross_entropy) / (HARDNESS * TEMPERATURE**2 * POSITIONS)


def explanation(published: float = 1.33e9, perplexity: float = 21.76) -> str:
    """Why a published figure of 1e9 or infinity is no perplexity: one figure of the study read backwards.

    `tests/distill` reproduces it: the naive formula and ours on the same tensors.
    """
    cross_entropy = math.log(perplexity)
    found = divergence_of(published, cross_entropy)
    return (
        f"A perplexity is exp of the mean cross-entropy of a token. The published figures of distilled rows are exp "
        f"of the training loss of distillation, {1 - HARDNESS:g} · CE + {HARDNESS:g} · T² · KL, whose divergence "
        f"was summed over the {POSITIONS:,} positions of a block, not averaged. A student {found:.4f} nats per token "
        f"from its teacher then shows exp({blended(cross_entropy, found):.2f}) = {published:.3g}, while its "
        f"perplexity may be {perplexity:g}; ten times that divergence shows "
        f"{math.exp(blended(cross_entropy, 10 * found)):.3g}, and past 709 nats the exponential is infinite. Here "
        f"perplexity is computed in one place, without teacher and without blended terms."
    )
