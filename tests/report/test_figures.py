"""Figures by what they show: the data in their axes, the text in the SVG, and equal bytes for equal data."""

import io
import itertools
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.figure import Figure
from PIL import Image

from prunegpt.errors import ReportError
from prunegpt.report.figures import FORMATS, draw, png, save, svg
from prunegpt.report.plot import DENSE, OKABE_ITO, Plot
from prunegpt.report.plots import (
    Curve,
    LayerBar,
    by_block,
    by_layer,
    curves,
    heat_map,
    layer_bars,
    training,
)
from prunegpt.report.quality import (
    QualityPoint,
    apart_from_sparsity,
    front,
    over_sparsity,
    pareto,
    quality_points,
)
from prunegpt.store.series import Series
from tests.support.results import Kept, draw_windows, make_trial

POINTS = (
    QualityPoint("dense", DENSE, 0.0, 60.5, 59.0, 62.0),
    QualityPoint("p50", "magnitude", 50.0, 60.3, 59.0, 62.0),
    QualityPoint("p90", "magnitude", 90.0, 66.6, 65.0, 68.0),
    QualityPoint("d90", "magnitude, distilled", 90.0, 65.6),
    QualityPoint("$odd_{name}", "we <b> & $x", 80.0, 400.0),
)
BARS = tuple(LayerBar(i, 23 + i / 10, 22.9, 24.5) for i in range(12))
CURVES = (Curve("a", (0.0, 10.0, 20.0), (500.0, 100.0, 60.0)), Curve("b", (0.0, 20.0), (400.0, 70.0)))
HEAT = heat_map({f"h.{i}.{t}.weight": 0.5 + i / 30 for i in range(12) for t in ("attn.c_attn", "mlp.c_fc")})


def drawing(make: Callable[..., Plot]) -> Callable[..., Figure]:
    return lambda *data, **options: draw(make(*data, **options))


def drawn() -> dict[str, Figure]:
    return {
        "sparsity": drawing(over_sparsity)(POINTS),
        "pareto": drawing(front)(POINTS),
        "layers": drawing(by_layer)(BARS, dense=21.76),
        "training": drawing(training)(CURVES, (Curve("a", (0.0, 20.0), (0.0, 90.0)),)),
        "heat": draw(by_block(HEAT)),
    }


def visible_text(figure: Figure) -> str:
    root = ElementTree.fromstring(svg(figure))
    return " ".join("".join(element.itertext()) for element in root.iter() if element.tag.endswith("text"))


def lines(figure: Figure, axes: int = 0) -> list[tuple[list[float], list[float]]]:
    return [
        ([round(float(x), 9) for x in line.get_xdata()], [round(float(y), 9) for y in line.get_ydata()])
        for line in figure.axes[axes].lines
    ]


@pytest.mark.parametrize("name", drawn())
def test_every_format_without_a_browser(name: str, tmp_path: Path) -> None:
    first, again = drawn()[name], drawn()[name]
    assert png(first) == png(again)
    assert svg(first) == svg(again)
    image = Image.open(io.BytesIO(png(first)))
    assert image.format == "PNG"
    pixels = np.asarray(image.convert("L"))
    assert pixels.shape[0] > 200
    assert pixels.std() > 10  # something is drawn
    for suffix, (_, make) in FORMATS.items():
        save(first, tmp_path / f"x.{suffix}")
        assert (tmp_path / f"x.{suffix}").read_bytes() == make(again)
        assert (tmp_path / f"x.{suffix}").stat().st_size > 1000
    assert b"CreationDate" not in (tmp_path / "x.pdf").read_bytes()


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"unknown figure format '.pgn'. Did you mean '.png'"):
        save(drawn()["heat"], tmp_path / "x.pgn")


def test_perplexity_over_sparsity_draws_every_point_and_interval() -> None:
    figure = drawing(over_sparsity)(POINTS[:4])
    found = lines(figure)
    assert ([50.0, 90.0], [60.3, 66.6]) in found
    for point in POINTS[:3]:
        assert ([point.x] * 2, [point.low, point.high]) in found
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [DENSE, "magnitude", "magnitude, distilled"]
    assert "perplexity" in visible_text(figure)


def test_a_line_joins_what_differs_in_sparsity_alone() -> None:
    """Two learning rates are two lines; what has a third one is a point, and no line goes through it."""
    measured = [(90, 70.0, "slow"), (50, 60.0, "slow"), (90, 66.0, "fast"), (50, 61.0, "fast"), (70, 99.0, "alone")]
    points = [QualityPoint(str(i), "m", s, p, series=series) for i, (s, p, series) in enumerate(measured)]
    found = lines(drawing(over_sparsity)(points))
    assert ([50.0, 90.0], [60.0, 70.0]) in found
    assert ([50.0, 90.0], [61.0, 66.0]) in found
    assert not [y for x, y in found if len(set(x)) > 1 and 99.0 in y and 70.0 in x and len(y) != len(points)]
    with pytest.raises(ReportError, match="trials that differ in sparsity alone"):
        over_sparsity(points[:1])


def test_seeds_and_sparsity_are_all_that_a_line_passes_over() -> None:
    def trial(seed: int = 1, **prune: object) -> str:
        chain = [{"kind": "prune", "prune": {"method": "wanda", **prune}, "seed": seed}]
        return apart_from_sparsity(make_trial(f"t{seed}{prune}", stages=chain, seed=seed))

    same = trial(sparsity=0.5)
    assert trial(sparsity=0.9) == trial(2, sparsity=0.5) == same
    others = [trial(sparsity=0.5, **more) for more in ({"method": "magnitude"}, {"layers": [1]}, {"allocation": "owl"})]
    assert len({same, *others}) == 4


def test_wide_ranges_are_logarithmic_and_narrow_ones_are_not() -> None:
    assert drawing(over_sparsity)(POINTS).axes[0].get_yscale() == "log"
    assert drawing(over_sparsity)(POINTS[:4]).axes[0].get_yscale() == "linear"


def test_labels_are_text_and_not_mathematics() -> None:
    text = visible_text(drawing(over_sparsity)(POINTS))
    assert "we <b> & $x" in text


def test_the_front_is_what_brute_force_finds() -> None:
    generator = np.random.default_rng(0)
    points = [
        QualityPoint(str(i), "m", float(s), float(p)) for i, (s, p) in enumerate(generator.integers(0, 12, (60, 2)))
    ]

    def beaten(point: QualityPoint) -> bool:
        return any(
            other.x >= point.x
            and other.perplexity <= point.perplexity
            and (other.x, other.perplexity) != (point.x, point.perplexity)
            for other in points
        )

    expected = sorted({(point.x, point.perplexity) for point in points if not beaten(point)})
    assert [(point.x, point.perplexity) for point in pareto(points)] == expected


def test_layer_bars_start_at_the_dense_model() -> None:
    found = lines(drawing(by_layer)(BARS, dense=21.76))
    for bar in BARS:
        assert ([bar.layer] * 2, [21.76, bar.perplexity]) in found
        assert ([bar.layer] * 2, [bar.low, bar.high]) in found


def test_training_curves_share_their_steps() -> None:
    figure = drawing(training)(CURVES, (Curve("a", (0.0, 20.0), (0.0, 90.0)),))
    above, below = figure.axes
    assert above.get_xlim() == below.get_xlim()
    assert (list(CURVES[0].steps), list(CURVES[0].values)) in lines(figure, 0)
    assert lines(figure, 1) == [([0.0, 20.0], [0.0, 90.0])]
    assert above.lines[0].get_color() == below.lines[0].get_color()  # one trial, one colour


def test_the_heat_map_shows_the_shares() -> None:
    figure = draw(by_block(HEAT))
    shown = figure.axes[0].images[0].get_array()
    assert shown is not None
    assert np.allclose(shown, np.array(HEAT.values, dtype=float).T)  # layers go across
    assert figure.axes[0].images[0].get_clim() == (0, 100)
    assert HEAT.rows == tuple(map(str, range(12)))
    assert HEAT.columns == ("attn.c_attn", "mlp.c_fc")


def test_colours_stay_apart_for_the_colour_blind() -> None:
    """Seen without the red receptor, no two colours come close."""
    matrix = np.array([[0.56667, 0.43333, 0.0], [0.55833, 0.44167, 0.0], [0.0, 0.24167, 0.75833]])  # protanopia
    seen = np.array([colors.to_rgb(colour) for colour in OKABE_ITO]) @ matrix.T
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(apart) > 0.1


def test_many_lines_have_looks_of_their_own() -> None:
    points = [QualityPoint(str(i), f"m{i}", s, 60.0 + i) for i in range(20) for s in (50.0, 90.0)]
    axes = drawing(over_sparsity)(points).axes[0]
    looks = {
        (line.get_color(), line.get_marker(), line.get_linestyle())
        for line in axes.lines
        if line.get_label().startswith("m")
    }
    assert len(looks) == 20


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: drawing(over_sparsity)([]), "needs measured trials"),
        (lambda: drawing(front)([]), "needs measured trials"),
        (lambda: drawing(by_layer)([]), "pruned a single layer"),
        (lambda: drawing(training)([Curve("a", (), ())]), "needs curve points"),
        (lambda: by_block(heat_map({})), "needs tensors"),
    ],
)
def test_nothing_to_draw_is_an_error(draw, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ReportError, match=message):
        draw()


def test_points_come_from_what_was_measured() -> None:
    kept = Kept()
    gradual = {"kind": "finetune", "finetune": {"prune": {"method": "magnitude", "schedule": "cubic"}}}
    distil = {"kind": "distill", "distill": {"prune": {"method": "magnitude"}}}
    results = [
        kept.trial("dense", draw_windows(3.0), order=0),
        kept.trial("p@1", draw_windows(3.1), group="p", seed=1, order=1, stages=[gradual], pruned=0.89, target=0.9),
        kept.trial("p@2", draw_windows(3.2), group="p", seed=2, order=1, stages=[gradual], pruned=0.91),
        kept.trial("d", draw_windows(3.2), order=2, stages=[distil], pruned=0.9, layers=[4]),
        make_trial("failed", state="failed", stages=[gradual]),
    ]
    dense, pruned, distilled = quality_points(results, kept)
    assert (dense.method, dense.x) == (DENSE, 0.0)
    assert (pruned.method, pruned.x) == ("magnitude (cubic)", pytest.approx(90.0))
    assert pruned.perplexity == pytest.approx((np.exp(3.1) + np.exp(3.2)) / 2, rel=0.1)
    assert distilled.method == "magnitude (cubic), distilled"
    assert distilled.low is not None
    assert distilled.low < distilled.perplexity < (distilled.high or 0)
    assert [bar.layer for bar in layer_bars(results, kept)] == [4]


def test_steps_count_on_through_the_stages() -> None:
    def series(stage: int, name: str, *points: tuple[int, float]) -> Series:
        steps, values = (np.array(column) for column in zip(*points, strict=True))
        return Series(stage, name, steps, values, np.zeros(len(steps)), np.zeros(len(steps), int), np.zeros(len(steps)))

    found = [
        series(0, "loss", (20, 4.0)),
        series(0, "perplexity", (5, float("nan")), (10, 60.0)),
        series(1, "perplexity", (5, 50.0)),
        series(1, "sparsity", (5, 0.5)),
    ]
    made = curves(make_trial("a"), found)
    assert set(made) == {"perplexity", "sparsity"}
    assert (made["perplexity"].label, made["perplexity"].steps) == ("a", (10.0, 25.0))
    assert made["perplexity"].values == (60.0, 50.0)
    assert made["sparsity"].values == (50.0,)


def test_heat_map_of_other_names() -> None:
    names = {
        "model.layers.10.self_attn.q_proj.weight": 0.5,
        "model.layers.2.mlp.up_proj.weight": 0.25,
        "lm_head.weight": 0.1,
    }
    found = heat_map(names)
    assert found.rows == ("2", "10", "outside")
    assert found.columns == ("self_attn.q_proj", "mlp.up_proj", "lm_head")
    assert found.values == ((None, 25.0, None), (50.0, None, None), (None, None, 10.0))
