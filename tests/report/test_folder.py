import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from prunegpt.errors import ReportError
from prunegpt.records import TrialResult
from prunegpt.report.folder import write_folder
from prunegpt.report.gallery import figures_of
from prunegpt.report.plots import Curve
from prunegpt.report.tables import build_table
from prunegpt.spec.schema import TableSpec
from tests.support.results import Kept, draw_windows, make_trial

PRUNE = {"kind": "prune", "prune": {"method": "magnitude"}}


def study() -> tuple[list, Kept]:
    kept = Kept()
    results = [kept.trial("dense", draw_windows(3.0), order=0)]
    results += [
        kept.trial(f"p{s}", draw_windows(3.0 + s / 200), order=1, stages=[PRUNE], pruned=s / 100) for s in (50, 90)
    ]
    results += [
        kept.trial(f"layer-{i}", draw_windows(3.05 + i / 100), order=2, stages=[PRUNE], pruned=0.8, layers=[i])
        for i in range(3)
    ]
    return [*results, make_trial("failed", state="failed", order=3)], kept


def curves(trial: TrialResult) -> dict[str, Curve]:
    if trial.name != "p50":
        return {}
    return {
        "perplexity": Curve("p50", (1.0, 2.0), (60.0, 30.0)),
        "sparsity": Curve("p50", (1.0, 2.0), (10.0, 20.0)),
    }


def tables(results: list, kept: Kept) -> list:
    specs = [
        {"title": "Main <1>", "name": "main", "rows": ["dense", "p*", "failed"], "columns": ["model", "perplexity"]},
        {"title": "Layers", "rows": ["layer-*"], "columns": ["layer", "perplexity"]},
    ]
    return [build_table(TableSpec.model_validate(spec), results, kept) for spec in specs]


def test_figures_are_those_that_have_data() -> None:
    results, kept = study()
    names = [named.name for named in figures_of(results, kept, curves)]
    assert names == ["perplexity-over-sparsity", "pareto", "layers", "training"]
    assert figures_of(results[:1], kept) == ()
    assert figures_of([], kept) == ()


def test_single_layers_are_no_points_of_the_sparsity_figure() -> None:
    results, kept = study()
    sparsity = figures_of(results, kept)[0].figure
    drawn = [float(y) for line in sparsity.axes[0].lines for y in line.get_ydata()]
    layers = [trial.evaluation.perplexity for trial in results if trial.name.startswith("layer")]
    assert layers
    assert not set(layers) & set(drawn)


def test_figures_draw_one_protocol() -> None:
    results, kept = study()
    other = kept.trial("xl", draw_windows(1.0), protocol="stride", pruned=0.2, stages=[PRUNE])
    drawn = [float(y) for line in figures_of([*results, other], kept)[0].figure.axes[0].lines for y in line.get_ydata()]
    assert min(drawn) > 10  # exp(1.0) of the other protocol is not there


def test_tensors_that_differ_make_a_heat_map() -> None:
    results, kept = study()
    by_tensor = {"h.0.a.weight": 0.5, "h.1.a.weight": 0.7}
    trial = results[1]
    last = trial.stages[-1]
    sparsity = last.sparsity.model_copy(update={"by_tensor": by_tensor})
    stages = (*trial.stages[:-1], last.model_copy(update={"sparsity": sparsity}))
    names = [named.name for named in figures_of([trial.model_copy(update={"stages": stages})], kept)]
    assert names == ["sparsity-p50"]


def test_the_folder_holds_everything_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    results, kept = study()
    files = write_folder(
        tmp_path / "report",
        tables(results, kept),
        title="A & B",
        results=results,
        figures=figures_of(results, kept, curves),
        commit="abc1234",
    )
    formats = ("csv", "html", "json", "md", "tex")
    figures = ("layers", "pareto", "perplexity-over-sparsity", "training")
    expected = ["index.html", "provenance.json"]
    expected += [f"tables/{name}.{form}" for name in ("main", "layers") for form in formats]
    expected += [f"figures/{name}.{form}" for name in figures for form in ("pdf", "png", "svg")]
    expected += [f"configs/wikitext2/{trial.name}.json" for trial in results]
    assert files == sorted(expected)
    assert list(tmp_path.iterdir()) == [tmp_path / "report"]

    links: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list) -> None:
            links.extend(value for name, value in attrs if name in ("href", "src"))

    index = (tmp_path / "report" / "index.html").read_text()
    Links().feed(index)
    assert len(links) > 20
    assert all((tmp_path / "report" / link).is_file() for link in links)
    assert "Main &lt;1&gt;" in index
    provenance = json.loads((tmp_path / "report" / "provenance.json").read_text())
    assert provenance["commit"] == "abc1234"
    assert provenance["versions"]["torch"] == ["2.13.0"]
    config = json.loads((tmp_path / "report" / "configs" / "wikitext2" / "p50.json").read_text())
    (stage,) = config["config"]["stages"]
    assert stage["prune"]["method"] == "magnitude"


def test_equal_results_give_equal_folders(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        results, kept = study()
        files = write_folder(
            tmp_path / name, tables(results, kept), title="T", figures=figures_of(results, kept, curves)
        )
        contents.append({file: (tmp_path / name / file).read_bytes() for file in files})
    assert contents[0] == contents[1]


def test_a_report_replaces_a_report_and_nothing_else(tmp_path: Path) -> None:
    results, kept = study()
    destination = tmp_path / "report"
    write_folder(destination, tables(results, kept), title="first", results=results)
    write_folder(destination, tables(results, kept)[:1], title="second")
    assert "second" in (destination / "index.html").read_text()
    assert not (destination / "configs").exists()
    assert list(tmp_path.iterdir()) == [destination]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    with pytest.raises(ReportError, match="holds other files"):
        write_folder(mine, [], title="T")
    with pytest.raises(ReportError, match="is a file"):
        write_folder(mine / "thesis.tex", [], title="T")
    assert (mine / "thesis.tex").read_text() == "x"


def test_a_failure_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, kept = study()
    destination = tmp_path / "report"
    write_folder(destination, tables(results, kept), title="first")

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("prunegpt.report.folder.write_json", fail)
    with pytest.raises(OSError, match="no space"):
        write_folder(destination, tables(results, kept), title="second")
    assert "first" in (destination / "index.html").read_text()
    assert list(tmp_path.iterdir()) == [destination]


def test_table_names_must_differ(tmp_path: Path) -> None:
    results, kept = study()
    twice = [*tables(results, kept), tables(results, kept)[0]]
    with pytest.raises(ReportError, match="different names; main is used twice"):
        write_folder(tmp_path / "report", twice, title="T")
    assert not (tmp_path / "report").exists()
