"""Scores of tasks beside one another: which is best, and which are not significantly different from it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from prunegpt.records import Evaluation, TaskScore, TrialResult, main_scores, task_scores
from prunegpt.report.measure import ALPHA
from prunegpt.report.rows import Row
from prunegpt.report.statistics import holm
from prunegpt.root import Root, damage
from prunegpt.spec.metrics import MEAN, TASK, is_task

Documents: TypeAlias = Mapping[str, NDArray[np.float64]]  # TASK/METRIC/FILTER -> [documents]
DocumentsOf = Callable[[TrialResult], Documents]


@dataclass(frozen=True)
class ScoreStanding:
    """A row's score beside the best of its column."""

    best: bool
    stderr: float | None = None  # the harness's, of one run
    tied: bool = False  # not significantly different from the best
    p_value: float | None = None  # paired over documents, adjusted for the number of rows (Holm)


def no_documents(_: TrialResult) -> Documents:
    """Where nothing is kept of single documents."""
    return {}


def stored_documents(root: Root) -> DocumentsOf:
    """A function from a trial to what each document counts in its scores; empty where that is not in the root."""

    @cache  # a table asks for the best row beside every other one, in every column
    def read(stage: str, evaluation: str) -> Documents:
        folder = root.evaluation(stage, evaluation)
        if damage(folder, deep=True):
            return {}
        with np.load(folder / "documents.npz", allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name], dtype=np.float64) for name in arrays.files}

    def find(trial: TrialResult) -> Documents:
        return {name: values for one in _scored(trial) for name, values in read(trial.stages[-1].key, one.key).items()}

    return find


def _scored(trial: TrialResult) -> list[Evaluation]:
    return [found for found in trial.final.also.values() if found.scores] if trial.final else []


def score_of(trial: TrialResult, column: str) -> TaskScore | None:
    """The score that a column `task:NAME` or `task:NAME/METRIC` shows of a trial."""
    task, _, metric = column.removeprefix(f"{TASK}:").partition("/")
    if not metric:
        return main_scores(trial.scores).get(task)
    return next((one for one in trial.scores if (one.task, one.metric) == (task, metric)), None)


def standings_of(column: str, rows: Sequence[Row], documents: DocumentsOf) -> list[ScoreStanding | None]:
    """For each row its standing in one column; None where it has no score or nothing beside it.

    Scores are compared where task, version, shots, metric and number of documents are equal, and means where those of
    all their tasks are. The test is of the differences of documents that both rows have: exact (McNemar) where each
    counts 0 or 1, else a paired t-test.
    """
    values = [_mean([task_scores(trial.scores).get(column) for trial in row.finished]) for row in rows]
    single = [score_of(row.finished[0], column) if len(row.finished) == 1 else None for row in rows]
    kinds = {alike for row in rows for trial in row.finished if (alike := _measured_as(trial, column))}
    known = [place for place, value in enumerate(values) if value is not None]
    found: list[ScoreStanding | None] = [
        None if value is None else ScoreStanding(best=False, stderr=score.stderr if score else None)
        for value, score in zip(values, single, strict=True)
    ]
    if len(known) < 2 or len(kinds) > 1:
        return found
    up = all(score.higher_is_better for score in single if score)
    best = max(known, key=lambda place: (values[place] or 0.0) * (1 if up else -1))
    tested = {
        place: p_value
        for place in known
        if place != best and (p_value := _compared(rows[place], rows[best], single[place], documents)) is not None
    }
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    for place in known:
        standing = found[place]
        assert standing is not None
        equal = place != best and values[place] == values[best]
        p_value = adjusted.get(place)
        tied = equal or (p_value is not None and p_value >= ALPHA)
        found[place] = replace(standing, best=place == best, tied=tied, p_value=p_value)
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _measured_as(trial: TrialResult, column: str) -> frozenset[tuple[object, ...]]:
    """What the score of a column was measured by, and of a mean the scores that it is of; empty without any."""
    if column == MEAN:
        found = list(main_scores(score for score in trial.scores if score.asked).values())
    else:
        found = [score] if (score := score_of(trial, column)) else []
    return frozenset((one.task, one.version, one.shots, one.metric, one.filter, one.documents) for one in found)


def _compared(row: Row, best: Row, score: TaskScore | None, documents: DocumentsOf) -> float | None:
    if score is None or len(best.finished) != 1:
        return None
    name = f"{score.task}/{score.metric}/{score.filter}"
    one, two = (documents(side.finished[0]).get(name) for side in (row, best))
    return paired(one, two) if one is not None and two is not None and len(one) == len(two) else None


def paired(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    """The two-sided p-value of the difference of two models over the same documents, [documents] each."""
    from scipy import stats

    difference = one - two
    if not difference.any():
        return 1.0
    if np.isin(one, (0.0, 1.0)).all() and np.isin(two, (0.0, 1.0)).all():
        won, lost = int((difference > 0).sum()), int((difference < 0).sum())
        return float(stats.binomtest(won, won + lost).pvalue)
    return float(stats.ttest_rel(one, two).pvalue)


def score_notes(trials: Sequence[TrialResult], columns: Sequence[str]) -> Iterator[str]:
    """What readers of a table must know of its scores: metric, shots, version, and what a mean is of."""
    shown = [name for name in columns if is_task(name) and name != MEAN]
    means = main_scores(score for trial in trials for score in trial.scores if score.asked)
    scores = [score for name in shown for trial in trials if (score := score_of(trial, name))]
    if MEAN in columns:
        scores += means.values()
    if not scores:
        return
    by_metric: dict[str, dict[str, None]] = {}
    for score in scores:
        by_metric.setdefault(score.metric, {})[score.task] = None
    if len(by_metric) == 1:
        yield f"Tasks: {next(iter(by_metric))}, percent; {_harness(trials)}"
    else:
        mixed = "; ".join(f"{metric} of {', '.join(tasks)}" for metric, tasks in by_metric.items())
        yield f"Tasks mix metrics: {mixed}; percent; {_harness(trials)}"
    if MEAN in columns:
        yield f"Mean: of {', '.join(f'{one.task} ({one.metric})' for one in means.values())}"


def _harness(trials: Sequence[TrialResult]) -> str:
    protocols = dict.fromkeys(one.protocol for trial in trials for one in _scored(trial))
    shots = sorted({score.shots for trial in trials for score in trial.scores if score.shots is not None})
    return f"{', '.join(protocols)}; {', '.join(map(str, shots))} shots"
