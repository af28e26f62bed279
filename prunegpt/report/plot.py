"""What a figure is, and what all figures share: looks, labels, and where their points lead.

Whatever shows a trial leads to it: a point has in `customdata` the addresses of its trials, a whole trace has them in
`meta`; what shows none, such as a line through points, is skipped when hovered, or has the meta "summary".

Colours are those of Okabe & Ito 2008 ("Color universal design"), which stay apart under every common form of colour
blindness; each line has its own marker and dash as well. Only traces are used that Plotly draws without `eval`, which
the content policy of pages forbids, and parallel coordinates, which pages draw themselves.
"""

import json
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

from pydantic import BaseModel, ConfigDict

from prunegpt.errors import ReportError

DENSE = "not pruned"
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
_DASHES = ("solid", "dash", "dashdot", "dot")
GREY = "#666666"
LOG_FROM = 4.0  # the largest value over the smallest from which an axis is logarithmic


class Plot(BaseModel):
    """What `Plotly.react` takes, and what is to be said below it."""

    model_config = ConfigDict(frozen=True)

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    caption: str = ""


def need(found: Sized, what: str) -> None:
    if not found:
        raise ReportError(f"a figure needs {what}; there are none yet. Run more of the sweep first.")


def trace_of(x: Sequence[Any], y: Sequence[Any], name: str, **more: Any) -> dict[str, Any]:
    return {"type": "scatter", "x": list(x), "y": list(y), "name": escaped(name), **more}


def leading(trials: Sequence[Sequence[str]], texts: Sequence[str]) -> dict[str, Any]:
    """What makes the points of a trace lead to their trials, and show these lines when hovered."""
    return {
        "customdata": [list(some) for some in trials],
        "hovertext": list(texts),
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def hover(name: str, *lines: str, swept: Mapping[str, Any]) -> str:
    """The text of a point: its name, these lines, and the swept values of its trial, a line each."""
    values = (f"{short(path, list(swept))}: {said(value)}" for path, value in swept.items())
    return "<br>".join(map(escaped, (name, *lines, *values)))


def short(path: str, paths: Sequence[str]) -> str:
    """The shortest end of a path that no other has."""
    parts = path.split(".")
    for length in range(1, len(parts)):
        end = ".".join(parts[-length:])
        if sum(other.split(".")[-length:] == parts[-length:] for other in paths) == 1 and not end.isdigit():
            return end
    return path


def said(value: Any) -> str:
    """A value of a configuration, in at most 40 characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:39]}…"


def looks(names: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, symbol and dash of each line; colours come round again with another dash."""
    distinct = dict.fromkeys(names)
    found = {DENSE: (GREY, "star", "dot")} if DENSE in distinct else {}
    for index, name in enumerate(name for name in distinct if name != DENSE):
        turn, position = divmod(index, len(OKABE_ITO) - 1)  # not black: pages may be dark
        symbol = _SYMBOLS[(position + turn) % len(_SYMBOLS)]
        found[name] = OKABE_ITO[position], symbol, _DASHES[turn % len(_DASHES)]
    return found


def layout_of(title: str, across: Mapping[str, Any], upwards: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": {"text": escaped(title)},
        "xaxis": {**across, "automargin": True},
        "yaxis": {**upwards, "automargin": True},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.25},
    }


def escaped(text: str) -> str:
    """Escapes text, because Plotly interprets a few HTML elements."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
