"""The figures that a spec may declare. How each is drawn is in `report/declared.py`."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from prunegpt.errors import unknown
from prunegpt.spec.columns import check_column
from prunegpt.spec.data import many
from prunegpt.spec.part import NAME, REFERENCE, Part, short

LINES, TRAINING = "lines", "training"
KINDS: Mapping[str, str] = {
    LINES: "one column over another: a line per value of `by`, a point per configuration",
    TRAINING: "a curve over optimizer steps: a line per trial, or per configuration with `band`",
    "sparsity": "perplexity over sparsity, with intervals, as in every report",
    "pareto": "sparsity against perplexity, and the front",
    "speed": "perplexity against measured speed-up, with intervals, and the front",
    "size": "perplexity against parameters that are not zero, and the front",
    "bytes": "perplexity against bytes of the weight files, and the front",
    "layers": "perplexity when one decoder layer is pruned",
    "history": "what a search has come to, trial by trial",
    "objectives": "two objectives of a search, and the front",
    "importance": "which searched values decide",
    "parallel": "parallel coordinates of a search",
    "slice": "an objective over each searched value",
    "contour": "an objective over two searched values",
}
ColumnName = Annotated[str, AfterValidator(check_column)]


def _kind(name: str) -> str:
    if name not in KINDS:
        raise ValueError(unknown("kind of figure", name, KINDS, REFERENCE))
    return name


class FigureSpec(Part):
    """A figure that comes out of the sweep: `report`, `figure` and the end of `sweep run` write it."""

    name: Annotated[str, AfterValidator(short)] = Field(pattern=NAME, description="name of its files")
    kind: Annotated[str, AfterValidator(_kind)] = Field(LINES, description=f"{', '.join(KINDS)}; see below")
    title: str | None = Field(None, description="heading (default: that of its kind)")
    rows: Annotated[tuple[str, ...], BeforeValidator(many)] = Field(
        ("*",), description="trials by name or glob, or the name that seeds share"
    )
    where: str = Field("", description="filter of these trials, such as `sparsity > 0.5`; see docs/how-to/filters.md")
    x: ColumnName = Field("sparsity", description="column across, of `lines`")
    y: str = Field("perplexity", description="column upwards, of `lines`; the name of a curve, of `training`")
    by: ColumnName | None = Field("method", description="column of which each value is a line, of `lines`")
    band: Literal["seeds"] | None = Field(
        None, description="seeds: the mean over seeds, and a band of one sample standard deviation on each side"
    )
    log: tuple[Literal["x", "y"], ...] = Field((), description="axes that are logarithmic, of `lines`")
    formats: tuple[Literal["pdf", "svg", "png"], ...] = Field(
        ("pdf", "svg", "png"), min_length=1, description="formats that it is written in"
    )
    size: tuple[float, float] | None = Field(None, description="width and height in inches (default: 6.4, 4)")

    @model_validator(mode="after")
    def _fitting(self) -> "FigureSpec":
        """Raises ValueError where a field has no meaning for the kind, or a value no size."""
        if self.kind == LINES:
            check_column(self.y)
        elif given := sorted(self.model_fields_set & {"x", "by", "log"}):
            raise ValueError(f"{given[0]} is a field of figures of kind {LINES}; {self.name} is of kind {self.kind}.")
        if self.kind not in (LINES, TRAINING) and (given := sorted(self.model_fields_set & {"y", "band"})):
            raise ValueError(f"{given[0]} is a field of the kinds {LINES} and {TRAINING}, got it of {self.kind}.")
        if self.size and not all(1 <= length <= 40 for length in self.size):
            raise ValueError(f"size is between 1 and 40 inches each way, got {list(self.size)}.")
        return self


def _distinct(figures: tuple[FigureSpec, ...]) -> tuple[FigureSpec, ...]:
    names = [figure.name for figure in figures]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"figures have different names, got {twice[0]} twice.")
    return figures


DeclaredFigures = Annotated[tuple[FigureSpec, ...], AfterValidator(_distinct)]
