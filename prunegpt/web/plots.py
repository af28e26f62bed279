"""Figures of searches for Plotly, which pages alone draw; the others are in `report.plots`.

Parallel coordinates are plain lines, for Plotly's own need `eval`, which the content policy forbids. What a result
depends on is Optuna's PED-ANOVA over the trials of the store: Watanabe, Bansal & Hutter 2023, "PED-ANOVA: Efficiently
Quantifying Hyperparameter Importance in Arbitrary Subspaces". It needs no model of the objective, and takes categories
as well as numbers.
"""

import json
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from prunegpt.errors import ReportError
from prunegpt.report.format import is_number
from prunegpt.report.plots import GREY, OKABE_ITO, Plot, escaped, layout_of, need, trace_of

_ONE_AT_A_TIME = threading.Lock()  # Optuna imports its parts when first used: threads must not do that together
_SHADES = ("#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838")  # cividis, even for the colour-blind
_BEST_LINES = 300  # trials in parallel coordinates that are all drawn: thousands take a browser seconds
_OTHER_LINES = 200  # of the others, evenly from the next best to the worst
_BESIDE: Mapping[str, Any] = {"xanchor": "right", "xshift": -4}  # where a tick's text is clear of the lines
_ABOVE: Mapping[str, Any] = {"xanchor": "center", "yanchor": "bottom"}
_BELOW: Mapping[str, Any] = {"xanchor": "center", "yanchor": "top"}


def parallel(
    settings: Mapping[str, Sequence[Any]],
    perplexity: Sequence[float],
    names: Sequence[str],
    title: str = "Searched values and perplexity",
) -> Plot:
    """One line per trial over its searched values to its perplexity, the lower the darker.

    Of many trials, the best and a sample of the others, which the caption says. `settings` are the values of each trial
    by axis.
    """
    need(perplexity, "measured trials with searched values")
    ordered = sorted(range(len(perplexity)), key=lambda index: perplexity[index])
    ranks = _drawn_ranks(len(ordered))
    kept = [ordered[rank] for rank in ranks]
    axes = {**settings, "perplexity": perplexity}
    placed = {
        label: _placed([values[index] for index in kept], label == "perplexity") for label, values in axes.items()
    }
    shades = len(_SHADES)
    data = []
    for shade in reversed(range(shades)):  # the best on top
        x: list[float | None] = []
        y: list[float | None] = []
        texts: list[str] = []
        mine = [place for place, rank in enumerate(ranks) if rank * shades // len(ordered) == shade]
        shown = [perplexity[kept[place]] for place in mine]
        for place in mine:
            told = [f"{label}: {_said(values[kept[place]])}" for label, values in axes.items()]
            heights = [found[place] for found, _ in placed.values()]
            crossed = [column for column, height in enumerate(heights) if height is not None]  # axes it has values of
            x += [*crossed, None]
            y += [*(heights[column] for column in crossed), None]
            texts += ["<br>".join(map(escaped, [names[kept[place]], *told]))] * len(crossed) + [""]
        if shown:
            name = " to ".join(dict.fromkeys(f"{value:.4g}" for value in (shown[0], shown[-1])))
            look = {"line": {"color": _SHADES[shade], "width": 1.5}, "marker": {"color": _SHADES[shade], "size": 5}}
            trace = trace_of(x, y, name, mode="lines+markers", **look)
            data.append(trace | {"text": texts, "hoverinfo": "text", "connectgaps": False, "legendrank": shade})
    marks = [
        {
            "x": column, "y": height, "text": text, "showarrow": False, "font": {"size": 10},
            **(_BESIDE if 0 < height < 1 else _ABOVE if height else _BELOW),
        }
        for column, (_, ticks) in enumerate(placed.values())
        for height, text in ticks
    ]  # fmt: skip
    count = len(placed)
    layout = layout_of(
        title,
        {
            "tickvals": list(range(count)),
            "ticktext": [escaped(label) for label in placed],
            "range": [-0.4, count - 0.8],
            "zeroline": False,
        },
        {"visible": False, "range": [-0.1, 1.1]},
    )
    layout["annotations"] = marks
    layout["hovermode"] = "closest"
    layout["shapes"] = [
        {"type": "line", "x0": column, "x1": column, "y0": 0, "y1": 1, "line": {"color": GREY, "width": 1}}
        for column in range(count)
    ]
    some = f"The {_BEST_LINES} best of {len(ordered):,} trials, and {_OTHER_LINES} of the others, the worst included."
    caption = some if len(kept) < len(ordered) else ""
    return Plot(data=data, layout=layout, caption=caption)


def _drawn_ranks(trials: int) -> list[int]:
    """Which of N trials are drawn, by their rank from 0: all, or the best and others at even distances."""
    others = trials - _BEST_LINES
    if others <= _OTHER_LINES:
        return list(range(trials))
    return [
        *range(_BEST_LINES),
        *(_BEST_LINES + round(place * (others - 1) / (_OTHER_LINES - 1)) for place in range(_OTHER_LINES)),
    ]


def importance(shares: Mapping[str, float], title: str = "What perplexity depends on (PED-ANOVA)") -> Plot:
    """A bar for each searched value, by its share."""
    need(shares, "searched values whose importance can be computed")
    ordered = sorted(shares.items(), key=lambda item: item[1])
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "x": [share for _, share in ordered],
            "y": [escaped(name) for name, _ in ordered],
            "marker": {"color": OKABE_ITO[0]},
            "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
        }
    ]
    across = {"title": {"text": "share of importance"}, "tickformat": ".0%", "rangemode": "tozero"}
    return Plot(data=data, layout=layout_of(title, across, {"automargin": True}))


def _placed(values: Sequence[Any], logarithmic: bool) -> tuple[list[float | None], list[tuple[float, str]]]:
    """Heights of values on an axis from 0 to 1, and its ticks; what is no number is spread evenly."""
    present = [value for value in values if value is not None]
    numeric = all(is_number(value) for value in present)
    if present and numeric:
        low, high = float(min(present)), float(max(present))
        scale = math.log if low > 0 and (logarithmic or high / low >= 100) else float
        width = scale(high) - scale(low)
        heights = [None if value is None else (scale(value) - scale(low)) / width if width else 0.5 for value in values]
        ticks = [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")] if width else [(0.5, f"{low:.3g}")]
        return heights, ticks
    distinct = sorted({_said(value) for value in present})
    height = {text: (index + 0.5) / len(distinct) for index, text in enumerate(distinct)}
    return [None if value is None else height[_said(value)] for value in values], [
        (at, escaped(text)) for text, at in height.items()
    ]


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:39]}…"


def importances(settings: Sequence[Mapping[str, Any]], values: Sequence[float]) -> dict[str, float]:
    """The share of each setting in what makes the best trials, the greatest first; together 1.

    Args:
        settings: path -> value, of each trial; all have the same paths, and each path several values.
        values: what is to be low, of each trial.

    Raises:
        ReportError: Optuna cannot compute it from these.
    """
    with _ONE_AT_A_TIME:
        try:
            return _told(settings, values)
        except Exception as error:  # of whatever kind: a figure is missing then, and the page shows the reason
            reason = str(error) or type(error).__name__
            raise ReportError(f"importance cannot be computed from these trials: {reason}") from error


def _told(settings: Sequence[Mapping[str, Any]], values: Sequence[float]) -> dict[str, float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {path: _distribution([one[path] for one in settings]) for path in settings[0]}
    study = optuna.create_study()
    for one, value in zip(settings, values, strict=True):
        parameters = {
            path: float(one[path]) if isinstance(kind, optuna.distributions.FloatDistribution) else _text(one[path])
            for path, kind in distributions.items()
        }
        study.add_trial(optuna.trial.create_trial(params=parameters, distributions=distributions, value=value))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _distribution(values: Sequence[Any]) -> Any:
    """A range of numbers, logarithmic where they span two decades; else a choice."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(is_number(value) for value in values):
        low, high = float(min(values)), float(max(values))
        return FloatDistribution(low, high, log=low > 0 and high / low >= 100)
    return CategoricalDistribution(sorted({_text(value) for value in values}))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
