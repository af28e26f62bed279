"""Intervals come at once while there is time, later otherwise, and everyone is told."""

from starlette.testclient import TestClient

from prunegpt.report.measure import measure, stored_windows
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.web.dashboard import Intervals
from tests.support.waiting import until


def test_what_there_is_no_time_for_is_told_later(kept: Root) -> None:
    windows = stored_windows(kept)
    with Store.open(kept, create=False) as store:
        trials = store.results("study")
    told: list[int] = []
    intervals = Intervals(windows, told.append)
    assert set(intervals.find(trials, seconds=0).values()) == {None}
    measured = {trial.id: found.interval for trial in trials if (found := measure([trial], windows)) is not None}
    until(lambda: set(told) == set(measured), "the intervals")
    now = intervals.find(trials, seconds=0)
    for trial in trials:
        interval = measured.get(trial.id)
        assert now[trial.id] == ((interval.low, interval.high) if interval else None)
    intervals.close()


def test_without_windows_there_is_no_interval(kept: Root) -> None:
    with Store.open(kept, create=False) as store:
        trials = store.results("study")
    intervals = Intervals(lambda trial: None, lambda told: None)
    assert set(intervals.find(trials, seconds=5).values()) == {None}
    intervals.close()


def test_an_interval_that_comes_late_is_an_event_for_who_has_seen_the_row_without(own: TestClient) -> None:
    dashboard = own.app.state.dashboard
    dashboard.intervals.find(dashboard.source.trials("study"), seconds=60)  # so that no other comes late
    seen = own.get("/api/v1/sweeps/study/trials").json()["revision"]
    running = dashboard.source.trial("study", "finetuned")
    dashboard.source.touch(running.id)
    since = dashboard.source.after(seen)
    assert since is not None
    assert [trial.name for trial in dashboard.source.changed_trials(since)] == ["finetuned"]
    assert dashboard.source.after("else-1") is None
    assert dashboard.source.after(f"{dashboard.source.session}-999999") is None
