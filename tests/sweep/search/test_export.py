"""A sweep's searches in a file of Optuna's."""

import ast
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from typer.testing import CliRunner

import prunegpt
from prunegpt.cli import app
from prunegpt.errors import StoreError
from prunegpt.spec.search import searches_of
from prunegpt.store import Store
from prunegpt.sweep.search.export import write_studies
from tests.support.study import make_root, study

SEARCH = {
    "space": {"stages.1.prune.sparsity": {"low": 0.0, "high": 1.0}},
    "objectives": ["perplexity", "sparsity"],
    "n_trials": 30,
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """The study, in which a search has suggested all that were pruned at some sparsity."""
    searches = [{"name": "found", "search": {**SEARCH, "constraints": ["sparsity >= 0.7"]}}]
    root = make_root(tmp_path / "runs", study(), searches=searches)
    with Store.open(root) as store:
        yield store


def suggested(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the trials that then count as the search's."""
    results = []
    for one in store.results("study"):
        path = "stages.1.prune.sparsity"
        if path in one.swept:
            plan = one.plan.model_copy(
                update={"search": "found", "number": len(results) + 1, "swept": {path: one.swept[path]}}
            )
            results.append(one.model_copy(update={"plan": plan}))
    monkeypatch.setattr(store, "results", lambda _: results)
    return [one.name for one in results]


def written(path: Path) -> optuna.Study:
    return optuna.load_study(study_name="study/found", storage=f"sqlite:///{path}")


def test_a_study_has_choices_values_constraints_names_and_times(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = suggested(store, monkeypatch)
    results = {one.name: one for one in store.results("study")}
    assert write_studies(tmp_path / "study.db", store, "study") == {"study/found": len(names)}
    found = written(tmp_path / "study.db")
    assert [trial.user_attrs["trial"] for trial in found.trials] == names
    assert found.metric_names == ["perplexity", "sparsity"]
    assert [direction.name for direction in found.directions] == ["MINIMIZE", "MAXIMIZE"]
    states = {"finished": "COMPLETE", "running": "RUNNING", "waiting": "RUNNING"}
    for trial in found.trials:
        ours = results[trial.user_attrs["trial"]]
        assert dict(trial.params) == dict(ours.swept)
        assert trial.state.name == states.get(ours.state, "FAIL")
        assert trial.user_attrs["state"] == ours.state
        if ours.state == "finished":
            assert ours.measured is not None
            assert ours.sparsity is not None
            assert trial.values == [ours.measured.perplexity, ours.sparsity.pruned]
            assert trial.constraints == {"sparsity >= 0.7": pytest.approx(0.7 - ours.sparsity.pruned)}
            assert ours.started is not None
            assert ours.ended is not None
            assert trial.duration is not None
            assert trial.duration.total_seconds() == pytest.approx(ours.ended - ours.started, abs=1e-3)
    assert {trial.state.name for trial in found.trials} >= {"COMPLETE"}


def test_it_is_written_again_and_leaves_other_studies_alone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a ?name.db"
    optuna.create_study(study_name="mine", storage=optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/a ?name.db"))
    (tmp_path / "a ").replace(path)  # Optuna takes what stands after ? for options
    names = suggested(store, monkeypatch)
    for _ in range(2):
        assert write_studies(path, store, "study") == {"study/found": len(names)}
    with closing(sqlite3.connect(path)) as file:
        assert {name for (name,) in file.execute("SELECT study_name FROM studies")} == {"mine", "study/found"}
        assert file.execute("SELECT count(*) FROM trials").fetchone() == (len(names),)


@pytest.mark.parametrize("other", [b"notes", b"", None])
def test_another_file_is_not_written_into(store: Store, tmp_path: Path, other: bytes | None) -> None:
    path = tmp_path / "runs" / "prunegpt.db"
    if other is not None:
        path = tmp_path / "other"
        path.write_bytes(other)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"an Optuna storage; .* is neither"):
        write_studies(path, store, "study")
    assert path.read_bytes() == before


def test_what_cannot_be_written_is_told(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot: .*unable to open"):
        write_studies(tmp_path / "none" / "study.db", store, "study")


def test_the_command_prints_what_opens_it(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["sweep", "study", "study", "--out", "s.db", "--root", str(tmp_path / "runs")])
    assert done.exit_code == 0, done.output
    assert "optuna-dashboard sqlite:///s.db" in done.stdout
    assert (tmp_path / "s.db").is_file()


def test_a_sweep_without_a_search_has_none(tmp_path: Path) -> None:
    root = make_root(tmp_path / "plain")
    with Store.open(root) as store, pytest.raises(StoreError, match=r"study has none. Its spec needs a trial"):
        write_studies(tmp_path / "study.db", store, "study")
    assert not (tmp_path / "study.db").exists()
    assert searches_of({"trials": [None, {"name": "x"}, {"name": "broken", "search": {"space": 3}}]}) == {}


def test_nothing_of_optunas_is_used_that_is_not_public() -> None:
    """No attribute or module with an underscore in front, in any file that imports Optuna."""
    package = Path(prunegpt.__file__).parent
    files = [path for path in package.rglob("*.py") if "optuna" in path.read_text(encoding="utf-8")]
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optuna"):
                names = [*(node.module or "").split("."), *(one.name for one in node.names)]
                assert not any(name.startswith("_") for name in names), f"{path}:{node.lineno}"
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                owner = node.value
                assert isinstance(owner, ast.Name), f"{path}:{node.lineno}: {ast.unparse(node)}"
                assert owner.id in ("self", "cls", "other"), f"{path}:{node.lineno}: {ast.unparse(node)}"
