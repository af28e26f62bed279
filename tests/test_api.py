"""PruneGPT from Python gives what the command line gives."""

import sys
from pathlib import Path
from typing import Any

import pytest

import prunegpt
from prunegpt import Sweep, run, table
from prunegpt.errors import ReportError, SpecError, StoreError
from prunegpt.records import TrialResult
from tests.support.study import make_root


def spec(**changes: Any) -> dict[str, Any]:
    """Two trials that need no training but that of the tiny model, which has a few steps."""
    return {
        "name": "notebook",
        "base": {
            "model": "builtin:tiny-gpt2",
            "data": {"path": "builtin:text", "block_size": 128},
            "evaluate": {"max_windows": 4},
        },
        "trials": [
            {"name": "dense"},
            {
                "name": "pruned-{sparsity}",
                "stages": [{"prune": {"sparsity": 0.5}}],
                "vary": {"stages.0.prune.sparsity": [0.5, 0.9]},
            },
        ],
        "tables": [{"title": "T", "rows": ["*"], "columns": ["trial", "sparsity", "perplexity"]}],
        **changes,
    }


def test_the_public_names() -> None:
    assert set(prunegpt.__all__) == {"Sweep", "run", "table", "__version__"}
    assert all(getattr(prunegpt, name) for name in prunegpt.__all__)
    assert set(prunegpt.__all__) <= set(dir(prunegpt))
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = prunegpt.runn


def test_a_plan_needs_nothing_to_have_run(tmp_path: Path) -> None:
    sweep = Sweep(spec(), root=tmp_path)
    assert [trial.name for trial in sweep.plan.trials] == ["dense", "pruned-0.5", "pruned-0.9"]
    assert sweep.results() == []
    assert sweep.frame().empty
    with pytest.raises(StoreError, match="nothing has run"):
        table("notebook", root=tmp_path)


def test_problems_are_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"unknown key 'modle'"):
        run(spec(base={"modle": "builtin:tiny-gpt2"}), root=tmp_path)
    assert not (tmp_path / "trials").exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the sweep `study`, of which nothing was computed."""
    return make_root(tmp_path_factory.mktemp("made") / "runs").path


def test_a_stored_sweep_is_opened_by_its_name(made: Path) -> None:
    sweep = Sweep("study", root=made)
    assert len(sweep.results()) == 23
    assert repr(sweep) == f"<Sweep study in {made}: 19 finished, 1 failed, 1 diverged, 1 running, 1 waiting>"
    with pytest.raises(StoreError, match="overrides change a spec; study is a stored sweep"):
        Sweep("study", root=made, overrides=["base.seeds=1"])


def test_what_is_neither_a_file_nor_a_sweep_or_both_is_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=r"'studdy' is no spec file here, and unknown sweep .* Did you mean 'study'"):
        Sweep("studdy", root=made)
    with pytest.raises(StoreError, match=r"'study' is no spec file here, and no stored sweep: .*nothing has run"):
        Sweep("study", root=tmp_path)
    Path("study").write_text("name: other\ntrials: [{name: a}]\n", encoding="utf-8")
    with pytest.raises(StoreError, match=r"'study' is a file here and a stored sweep: write \./study for the file"):
        Sweep("study", root=made)
    assert Sweep("./study", root=made).name == "other"
    assert Sweep("study", root=tmp_path).name == "other"
    with pytest.raises(StoreError, match="is a file here and a stored sweep"):
        table("study", root=made)


def test_a_frame_has_groups_methods_and_intervals(made: Path) -> None:
    frame = Sweep("study", root=made).frame().set_index("trial")
    pruned = frame.loc["wanda-0.9"]
    assert (pruned["group"], pruned["method"], pruned["seed"]) == ("wanda-0.9", "wanda", 42)
    assert pruned["perplexity_low"] < pruned["perplexity"] < pruned["perplexity_high"]
    assert frame.loc["recovered", "teacher"] == "finetuned"
    assert frame.loc["later", ["perplexity", "perplexity_low", "teacher"]].isna().all()
    assert Sweep("study", root=made).frame(intervals=False)["perplexity_low"].isna().all()


def test_names_that_are_not_there_raise_with_the_nearest(made: Path) -> None:
    sweep = Sweep("study", root=made)
    assert list(sweep.curves("finetuned", "loss")["value"])
    with pytest.raises(StoreError, match=r"unknown curve of finetuned 'los'. Did you mean 'loss'"):
        sweep.curves("finetuned", "los")
    with pytest.raises(StoreError, match=r"unknown trial of study 'finetund'. Did you mean 'finetuned'"):
        sweep.curves("finetund")
    with pytest.raises(StoreError, match=r"unknown trial of study 'finetund'"):
        sweep.model("finetund")
    with pytest.raises(ReportError, match=r"unknown figure 'paretto'. Did you mean 'pareto'"):
        sweep.figure("paretto")


def test_one_table_is_styled_as_on_the_command_line(made: Path) -> None:
    shown = Sweep("study", root=made).table("latex", only=["one-layer-at-80"], decimals=1, provenance=False)
    assert shown.count(r"\begin{table}") == 1
    assert "60.5 [54.8, 66.7]" in shown
    with pytest.raises(ReportError, match="unknown table of study 'layers'"):
        table("study", root=made, only=["layers"])
    assert table("study", root=made, only="one-layer-at-80") == table("study", root=made, only=["one-layer-at-80"])
    with pytest.raises(ReportError, match=r"unknown style of tables 'decimal'. Did you mean 'decimals'\?"):
        table("study", root=made, decimal=1)


def test_a_notebook_shows_sweeps_and_figures_without_pandas(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    sweep = Sweep("study", root=made)
    shown = sweep._repr_html_()
    assert "19 finished" in shown
    assert shown.startswith("<p>Sweep study in ")
    assert shown.count("<tr") == 24
    assert {"sparsity", "pareto", "layers", "training", "sparsity-wanda-0.9"} <= set(sweep.figures)
    figure = sweep.figure("pareto")
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert (
        repr(figure)
        == "<figure pareto: Sparsity against perplexity, and the front that no configuration beats in both>"
    )
    figure.save(tmp_path / "pareto.svg")
    assert (tmp_path / "pareto.svg").stat().st_size > 1000
    with pytest.raises(ReportError, match=r"unknown figure format"):
        figure.save(tmp_path / "pareto.gif")


@pytest.mark.slow
def test_a_sweep_from_a_notebook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []
    sweep = run(spec(), root=tmp_path, on_event=lambda event: heard.append(type(event).__name__), progress=True)
    assert "notebook/dense: finished" in capsys.readouterr().err
    assert {"SweepStarted", "TrialFinished"} <= set(heard)
    frame = sweep.frame()
    assert list(frame["state"]) == ["finished"] * 3
    assert list(frame["sparsity"].round(3)) == [0.0, 0.5, 0.9]
    assert frame["perplexity"][2] > frame["perplexity"][0]
    stored: TrialResult = sweep.results()[2]
    assert stored.evaluation is not None
    assert frame["perplexity"][2] == stored.evaluation.perplexity
    assert "pruned-0.9" in sweep.table()
    assert sweep.table("csv") == table("notebook", format="csv", root=tmp_path)
    assert sweep.run().unchanged == ("notebook/dense", "notebook/pruned-0.5", "notebook/pruned-0.9")
    assert set(sweep.curves("dense")["name"]) >= {"loss"}
