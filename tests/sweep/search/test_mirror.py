"""ROOT/optuna.db shows the searches, and nothing that happens to it matters."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from prunegpt.sweep.search.mirror import OptunaMirror, Told
from tests.sweep.search.made import SPACE, Run, result_of, search_plan


@pytest.fixture(autouse=True)
def quietly() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(optuna.logging.INFO)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "root" / "optuna.db"


def mirrored(run: Run, path: Path, plan: Any = None) -> OptunaMirror:
    plan = plan or run.plan

    def told(name: str) -> Told | None:
        found = next((one for one in run.store.values() if one.name == name), None)
        return Told({"state": found.state}, 1000.0 + found.id, 1002.0 + found.id) if found else None

    mirror = OptunaMirror(path, "words/s", plan.spec, told)
    run.open(plan, mirror=mirror)
    return mirror


def shown(path: Path) -> optuna.Study:
    return optuna.load_study(study_name="words/s", storage=f"sqlite:///{path}")


def ending(plan: Any) -> tuple[str, dict[str, Any]]:
    if plan.number % 4 == 0:
        return "failed", {"reason": "exception"}
    return ("stopped", {"reason": "early-stop"}) if plan.number % 3 == 0 else ("finished", {})


def same(path: Path, run: Run) -> bool:
    ours, theirs = run.search._study.trials, shown(path).trials
    fields = ("number", "params", "distributions", "state", "values", "constraints", "intermediate_values")
    return [[getattr(one, field) for field in fields] for one in ours] == [
        [getattr(one, field) for field in fields] for one in theirs
    ]


@pytest.mark.parametrize("objectives", [["perplexity"], ["perplexity", "sparsity"]], ids=["one", "two"])
def test_it_shows_states_values_constraints_and_names(objectives: list[str], path: Path) -> None:
    run = Run(search_plan(objectives=objectives, constraints=["sparsity >= 0.7"], space={**SPACE, "n": [1, 2]}), 2)
    mirrored(run, path)
    run.search._curve = lambda _: {10: 9.0, 20: 8.0}
    run.ends = ending
    run.go(12)
    assert same(path, run)
    study = shown(path)
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "FAIL", "PRUNED", "RUNNING"}
    assert study.metric_names == objectives
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"][: len(objectives)]
    first = study.trials[0]
    assert first.user_attrs["trial"] == "s-001"
    assert first.user_attrs["state"] == "finished"
    assert (first.datetime_complete.timestamp() - first.datetime_start.timestamp()) > 0  # type: ignore[union-attr]
    assert not [key for trial in study.trials for key in trial.system_attrs if not key.startswith("constraints")]


def test_the_dashboard_reads_it(path: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    run = Run(search_plan())
    mirrored(run, path)
    run.go(5)
    app = dashboard.wsgi(optuna.storages.RDBStorage(f"sqlite:///{path}"))
    body = b"".join(
        app(
            {
                "REQUEST_METHOD": "GET",
                "PATH_INFO": "/api/studies",
                "SERVER_NAME": "x",
                "SERVER_PORT": "80",
                "wsgi.url_scheme": "http",
            },
            lambda *_: None,
        )
    )
    assert b"words/s" in body


def test_it_is_made_anew_when_it_is_lost(path: Path) -> None:
    run = Run(search_plan(), 2)
    mirrored(run, path)
    run.go(5)
    path.unlink()
    run.go(2)
    assert same(path, run)


def test_a_later_process_goes_on_with_it(path: Path) -> None:
    run = Run(search_plan(), 2)
    mirrored(run, path)
    run.go(5)
    shown(path).set_user_attr("mark", "kept")
    mirrored(run, path)
    run.go(3)
    assert same(path, run)
    assert shown(path).user_attrs["mark"] == "kept"


def test_what_was_not_shown_is_shown_by_the_next_process(path: Path) -> None:
    run = Run(search_plan(), 2)
    mirrored(run, path)
    run.go(3)
    run.open()
    run.go(4)
    mirrored(run, path)
    assert same(path, run)


@pytest.mark.parametrize("change", ["another space", "other objectives", "other trials"])
def test_a_copy_of_something_else_is_replaced(change: str, path: Path) -> None:
    run = Run(search_plan(), 2)
    mirrored(run, path)
    run.go(5)
    if change == "another space":
        plan = search_plan(space={**SPACE, "x": {"low": -9.0, "high": 9.0}})
    elif change == "other objectives":
        plan = search_plan(objectives=["perplexity", "sparsity"])
    else:
        plan = search_plan(seed=77)
        run.store = {}
    mirrored(run, path, plan)
    run.go(4)
    assert same(path, run)
    assert len(optuna.get_all_study_names(f"sqlite:///{path}")) == 1


def test_other_studies_in_it_are_left_alone(path: Path) -> None:
    path.parent.mkdir()
    optuna.create_study(study_name="mine", storage=f"sqlite:///{path}")
    run = Run(search_plan())
    mirrored(run, path)
    run.go(2)
    assert sorted(optuna.get_all_study_names(f"sqlite:///{path}")) == ["mine", "words/s"]


def test_a_locked_copy_stops_nothing_and_catches_up(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(search_plan(), 2)
    mirrored(run, path)
    run.go(2)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        run.go(2)
        other.execute("ROLLBACK")
    assert len(run.store) == 5
    assert caplog.text.count("is not up to date, which stops nothing: database is locked") == 1
    run.go(1)
    assert same(path, run)


def test_a_broken_file_is_put_aside(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all")
    run = Run(search_plan())
    mirrored(run, path)
    run.go(2)
    assert same(path, run)
    assert path.with_name("optuna.db.broken").read_bytes() == b"no database at all"


def test_a_place_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "root").write_text("a file where a folder should be")
    run = Run(search_plan())
    mirrored(run, tmp_path / "root" / "optuna.db")
    assert len(run.go(3)) == 3
    assert "is not up to date" in caplog.text


def test_a_truncated_database_stops_nothing(path: Path) -> None:
    run = Run(search_plan(), 2)
    mirrored(run, path)
    run.go(3)
    path.write_bytes(path.read_bytes()[:5000])
    run.go(2)
    mirrored(run, path)
    assert len(run.go(2)) == 8


def test_a_finished_trial_may_be_shown_late(path: Path) -> None:
    """It ended while the copy did not show it running."""
    run = Run(search_plan())
    plan = run.search.suggest()
    assert plan is not None
    run.search.tell(result_of(plan))
    mirror = OptunaMirror(path, "words/s", run.plan.spec)
    mirror.show(run.search._study.trials)
    assert same(path, run)
