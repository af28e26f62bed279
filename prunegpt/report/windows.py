"""Finds the per-window losses that an evaluation left in a root."""

from collections.abc import Callable

import numpy as np

from prunegpt.records import Evaluation, TrialResult
from prunegpt.report.errors import ReportError
from prunegpt.report.statistics import Windows, mean_loss
from prunegpt.root import Root

WindowsOf = Callable[[TrialResult], Windows | None]

_TOLERANCE = 1e-6  # nats a token, between the record and its windows


def stored_windows(root: Root) -> WindowsOf:
    """A function from a trial to the windows of its last stage, or None where they are not in the root."""

    def find(trial: TrialResult) -> Windows | None:
        if not trial.stages or trial.evaluation is None:
            return None
        path = root.evaluation(trial.stages[-1].key, trial.evaluation.key) / "windows.npy"
        try:
            return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
        except (OSError, ValueError):
            return None

    return find


def check_belongs(windows: Windows, evaluation: Evaluation) -> None:
    """Raises ReportError where the windows are not those that the recorded perplexity was computed from."""
    if evaluation.loss is None or abs(mean_loss(windows) - evaluation.loss) > _TOLERANCE * max(1.0, evaluation.loss):
        raise ReportError(
            f"the windows of an evaluation must give its recorded loss, but they give {mean_loss(windows):.6f} and the "
            f"record says {evaluation.loss}. Remove the stage's evaluations folder and evaluate again."
        )
