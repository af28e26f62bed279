"""Thousands of trials and long curves: fast enough to look at, measured as processor time, as machines are shared."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from prunegpt.records import TrialResult
from prunegpt.report.config import resolved
from prunegpt.root import Root
from prunegpt.store import Store
from tests.bench import dashboard
from tests.bench.harness import Settings
from tests.support.many_trials import make_long, make_many
from tests.support.served import ORIGIN, open_app
from tests.support.waiting import Clock


def settings(work: Path) -> Settings:
    return Settings(quick=False, device="cpu", threads=1, clock="processor", work=work)


@pytest.mark.slow
def test_the_first_page_of_5000_trials_comes_within_a_second(tmp_path: Path) -> None:
    root = Root(tmp_path / "runs")
    make_many(root, 5000)
    assert min(dashboard.pages(settings(tmp_path), root, dashboard.FIRST, 3)) < 1.0


def test_a_trial_with_100_000_points_comes_within_a_second(tmp_path: Path) -> None:
    root = Root(tmp_path / "runs")
    make_long(root, 100_000)
    assert min(dashboard.pages(settings(tmp_path), root, dashboard.LONG, 2)) < 1.0


def test_work_grows_with_what_has_changed_and_not_with_what_is_there(tmp_path: Path) -> None:
    from prunegpt.web.source import RootSource

    root = Root(tmp_path / "runs")
    make_many(root, 500)
    clock = Clock()
    source = RootSource(root, clock)
    source.refresh()
    first = source.revision
    with Store.open(root) as store:
        changed = store.result("many/trial-00007")
        store.set_note(changed.id, "x")
    clock.now += 1
    source.refresh()
    assert [trial.name for trial in source.changed_trials(first)] == ["trial-00007"]
    clock.now += 1
    second = source.refresh()
    clock.now += 1
    assert source.refresh() == second
    source.close()


def test_a_configuration_is_resolved_once_and_again_where_its_trial_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By filters, columns, groups and panels alike: with thousands of trials each time takes a second."""
    make_many(root := Root(tmp_path / "runs"), 30)
    asked: list[str] = []

    def counted(trial: TrialResult) -> Mapping[str, Any]:
        asked.append(trial.name)
        return resolved(trial)

    monkeypatch.setattr("prunegpt.report.fields.resolved", counted)
    with TestClient(open_app(root), base_url=ORIGIN) as client:

        def ask() -> None:
            for path in (
                "fields",
                "trials?where=finetune.train.max_steps == 200",
                "trials?columns=model.source&sort=model.source",
                "groups?by=model.source&columns=perplexity",
                "panels",
                "panel?kind=scatter&x=finetune.train.max_steps&y=perplexity&where=model.source != 'x'",
            ):
                answer = client.get(f"/api/v1/sweeps/many/{path}")
                assert answer.status_code == 200, answer.text

        ask()
        assert sorted(asked) == [f"trial-{index:05}" for index in range(30)]
        with Store.open(root) as store:
            store.set_note(store.result("many/trial-00007").id, "x")
        while not client.get("/api/v1/sweeps/many/trials?where=note == 'x'").json()["total"]:
            time.sleep(0.05)
        ask()
        assert asked[30:] == ["trial-00007"]
