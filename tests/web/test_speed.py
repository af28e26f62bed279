"""Thousands of trials and long curves: fast enough to look at, measured as processor time, as machines are shared."""

from pathlib import Path

import pytest

from prunegpt.root import Root
from tests.bench import dashboard
from tests.bench.harness import Settings
from tests.support.many_trials import make_long, make_many
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
    from prunegpt.store import Store
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
