"""Two to eight trials side by side."""

import itertools
from typing import Any

from pydantic import Field

from prunegpt.records import TrialResult
from prunegpt.report.compare import compare
from prunegpt.report.config import differing, resolved
from prunegpt.report.measure import stored_windows
from prunegpt.web.api.curves import CurveAnswer, CurvesQuery, drawn
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer, ApiRequest, RequestError, endpoint
from prunegpt.web.rows import TrialRow, rows

_FEWEST, _MOST = 2, 8


class CompareQuery(ApiRequest):
    trial: list[str] = Field([], description="SWEEP/TRIAL, two to eight times")
    name: list[str] = Field([], description="names or globs of curves; default: perplexity, loss, sparsity")
    axis: str = Field("step", max_length=500, description="what x is, as for curves")
    points: int = Field(1000, ge=5, le=20_000, description="points of a curve at most")


class Compared(TrialRow):
    """A trial with the name it goes by here."""

    trial: str


class ComparedSetting(Answer):
    path: str
    values: list[Any] = Field(description="one per trial; null where it has no such setting")


class Test(Answer):
    """The paired test of two trials; its numbers are null where `reason` explains why there is none."""

    a: str
    b: str
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    ratio: float | None
    low: float | None = Field(description="of the ratio")
    high: float | None
    p: float | None
    method: str
    verdict: str
    reason: str


class TrialCurves(Answer):
    trial: str
    curves: list[CurveAnswer]


class ComparisonAnswer(Answer):
    revision: str = Field(description="what /events takes as `since`, to get all that changes from here on")
    trials: list[Compared]
    differences: list[ComparedSetting]
    tests: list[Test]
    axis: str
    curves: list[TrialCurves]


@endpoint("/compare")
def compared(dashboard: Dashboard, asked: CompareQuery) -> ComparisonAnswer:
    """Trials side by side: settings, paired tests, curves."""
    names = list(dict.fromkeys(asked.trial))
    if not _FEWEST <= len(names) <= _MOST:
        raise RequestError(400, f"{_FEWEST} to {_MOST} different trials can be compared, got {len(names)}.")
    with dashboard.source.following():
        mark = dashboard.source.mark
        trials = [dashboard.source.trial(*name.partition("/")[::2]) for name in names]
    wanted = CurvesQuery(name=asked.name or ["perplexity", "loss", "sparsity"], axis=asked.axis, points=asked.points)
    shown = rows(dashboard, trials)
    return ComparisonAnswer(
        revision=mark,
        trials=[Compared(trial=trial.address, **row.model_dump()) for trial, row in zip(trials, shown, strict=True)],
        differences=settings(trials),
        tests=[_test(dashboard, one, two) for one, two in itertools.combinations(trials, 2)],
        axis=asked.axis,
        curves=[TrialCurves(trial=trial.address, curves=drawn(dashboard, trial, wanted)) for trial in trials],
    )


def settings(trials: list[TrialResult]) -> list[ComparedSetting]:
    """Paths of the resolved configurations where not all are alike."""
    found = differing(*(resolved(trial) for trial in trials))
    return [ComparedSetting(path=path, values=values) for path, values in found.items()]


def _test(dashboard: Dashboard, one: TrialResult, two: TrialResult) -> Test:
    state = (one.state, two.state, one.key, two.key, one.evaluation_key, two.evaluation_key)
    windows = stored_windows(dashboard.root)
    found = dashboard.kept.get(("test", one.id, two.id), state, lambda: compare(one, two, windows))
    test = found.test
    return Test(
        a=one.address,
        b=two.address,
        difference=test.difference.value if test else None,
        difference_low=test.difference.low if test else None,
        difference_high=test.difference.high if test else None,
        ratio=test.ratio.value if test else None,
        low=test.ratio.low if test else None,
        high=test.ratio.high if test else None,
        p=test.p_value if test else None,
        method=test.method if test else "",
        verdict=found.verdict,
        reason=found.reason,
    )
