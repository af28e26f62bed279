"""Figures that a spec declares: what they show, and what is refused."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prunegpt import Sweep
from prunegpt.api import declared
from prunegpt.errors import PruneGPTError, ReportError
from prunegpt.report.figures import draw, png
from prunegpt.report.panels import lines, over_training
from prunegpt.spec.figures import KINDS, FigureSpec
from prunegpt.spec.schema import Spec
from prunegpt.store import Store
from tests.support.study import SEARCH, make_root, searching, seeds, study
from tests.support.timed import speed, timed_evaluation


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("made") / "runs", seeds()).path


def test_seeds_are_a_mean_and_a_band(made: Path) -> None:
    results = Sweep("study", root=made).results()
    plot = lines(results, x="sparsity", y="perplexity", by="method", band=True)
    drawn = {trace["name"]: trace for trace in plot.data if "fill" not in trace}
    assert set(drawn) == {"magnitude", "wanda"}
    assert [round(x, 6) for x in drawn["wanda"]["x"]] == [50.0, 90.0]
    values = [one.metrics["perplexity"] or 0.0 for one in results if one.group == "wanda-0.9"]
    mean = sum(values) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    assert drawn["wanda"]["y"][1] == pytest.approx(mean)
    (band,) = [trace for trace in plot.data if "fill" in trace and trace["name"] == "wanda"]
    assert band["y"][1] == pytest.approx(mean + deviation)
    assert band["y"][2] == pytest.approx(mean - deviation)
    assert "one sample standard deviation over seeds" in plot.caption
    assert not [
        trace for trace in lines(results, x="sparsity", y="tokens", by=None, band=False).data if "fill" in trace
    ]
    assert png(draw(plot)) != png(draw(lines(results, x="sparsity", y="perplexity", by="method", band=False)))


def test_curves_of_seeds_are_averaged_at_the_steps_that_all_have(tmp_path: Path) -> None:
    root = make_root(tmp_path / "runs")
    with Store.open(root) as store:
        results = [one for one in store.results("study") if one.name in ("finetuned", "recovered")]
        plan = results[0].plan.model_copy(update={"group": "recovered"})
        results[0] = results[0].model_copy(update={"plan": plan})

        def series_of(trial: Any, name: str) -> Any:
            return store.series(trial.id, lambda stage, other: other == name and stage == 1)

        single = over_training(results, series_of, y="loss", band=False)
        both = over_training(results, series_of, y="loss", band=True)
        with pytest.raises(ReportError, match="a figure needs trials with a curve los"):
            over_training(results, series_of, y="los", band=True)
    assert [trace["name"] for trace in single.data] == ["finetuned", "recovered"]
    assert [trace["name"] for trace in both.data] == ["recovered"]  # equal curves: the band has no height
    assert both.data[0]["y"] == pytest.approx(single.data[0]["y"])


def test_every_kind_is_drawn_and_saved_in_its_size(tmp_path: Path) -> None:
    own = {"lines": {"x": "tokens", "y": "bits_per_byte", "log": ["y"], "by": "distilled"}, "training": {"y": "loss"}}
    figures = [{"name": kind, "kind": kind, "size": [5, 3], "title": "T", **own.get(kind, {})} for kind in KINDS]
    timed = [
        replace(one, also={"speed": timed_evaluation(speed(1 + number / 50))}, parameters=940_000 - 9_000 * number)
        for number, one in enumerate(study())
    ]
    root = make_root(
        tmp_path / "runs",
        [*timed, *searching()],
        searches=[SEARCH],
        figures=[*figures, {"name": "none", "rows": "wnada-*"}, {"name": "odd", "x": "config:train.lr"}],
    )
    found = {spec.name: one for spec, one in declared("study", root)}
    assert str(found.pop("none")).startswith("unknown trial 'wnada-*'. Did you mean 'wanda-")
    assert "unknown config path 'train.lr'" in str(found.pop("odd"))
    for name, one in found.items():
        assert not isinstance(one, PruneGPTError), f"{name}: {one}"
        assert tuple(one.figure.get_size_inches()) == (5, 3)
        assert one.figure.axes[0].get_title(loc="left") == "T"
        one.save(tmp_path / f"{name}.pdf")
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    sweep = Sweep("study", root=root.path)
    assert sweep.figures[: len(KINDS)] == list(KINDS)
    assert sweep.figure("lines").name == "lines"
    with pytest.raises(ReportError, match="unknown trial"):
        sweep.figure("none")
    with pytest.raises(ReportError, match=r"unknown figure 'line'. Did you mean 'lines'"):
        sweep.figure("line")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "pie"}, "unknown kind of figure 'pie'"),
        ({"x": "sparsty"}, "unknown column 'sparsty'. Did you mean 'sparsity'"),
        ({"y": "perplexty"}, "unknown column 'perplexty'"),
        ({"kind": "training", "x": "tokens"}, "x is a field of figures of kind lines; f is of kind training"),
        ({"kind": "pareto", "band": "seeds"}, "band is a field of the kinds lines and training, got it of pareto"),
        ({"size": [0.1, 3]}, "size is between 1 and 40 inches each way"),
        ({"formats": []}, "at least 1 item"),
        ({"formats": ["gif"]}, "'pdf', 'svg' or 'png'"),
    ],
)
def test_what_makes_no_figure_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace(".", r"\.")):
        FigureSpec.model_validate({"name": "f", **fields})


def test_two_figures_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="figures have different names, got pareto twice"):
        Spec.model_validate({"name": "s", "trials": [{"name": "a"}], "figures": [{"name": "pareto"}] * 2})


def test_what_another_version_has_stored_is_refused_with_the_reason(tmp_path: Path) -> None:
    root = make_root(tmp_path / "runs", figures=[{"name": "f", "colour": "red"}])
    with pytest.raises(ReportError, match="the figures that study declares cannot be read by this version"):
        list(declared("study", root))


def test_a_filter_chooses_the_trials(tmp_path: Path) -> None:
    own = [{"name": "wanda", "where": "method == 'wanda'"}, {"name": "odd", "where": "method ="}]
    found = {spec.name: one for spec, one in declared("study", make_root(tmp_path / "runs", seeds(), figures=own))}
    assert not isinstance(found["wanda"], PruneGPTError)
    (axes,) = found["wanda"].figure.axes
    assert axes.get_legend_handles_labels()[1] == ["wanda"]
    assert isinstance(found["odd"], PruneGPTError)
