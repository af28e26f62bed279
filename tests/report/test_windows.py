from pathlib import Path

import numpy as np
import pytest

from prunegpt.errors import ReportError
from prunegpt.report.measure import check_belongs, stored_windows
from prunegpt.root import Root
from tests.support.results import draw_windows, evaluation, make_trial


def test_finds_what_an_evaluation_left(tmp_path: Path) -> None:
    root, windows = Root(tmp_path), draw_windows(3.0)
    trial = make_trial("a", measured=evaluation(windows), stages=[{"kind": "finetune"}])
    find = stored_windows(root)
    assert find(trial) is None
    folder = root.evaluation(trial.stages[-1].key, "evaluation-of-blocks/validation/1024/gpt2")
    folder.mkdir(parents=True)
    np.save(folder / "windows.npy", windows)
    found = find(trial)
    assert found is not None
    assert np.array_equal(found, windows)


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    root, trial = Root(tmp_path), make_trial("a", measured=evaluation())
    folder = root.evaluation(trial.stages[-1].key, trial.evaluation.key)  # type: ignore[union-attr]
    folder.mkdir(parents=True)
    np.save(folder / "windows.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert stored_windows(root)(trial) is None


def test_a_trial_that_was_not_measured_has_none(tmp_path: Path) -> None:
    find = stored_windows(Root(tmp_path))
    assert find(make_trial("a", state="waiting")) is None
    assert find(make_trial("a", measured=None)) is None


def test_windows_of_another_evaluation_are_refused() -> None:
    windows = draw_windows(3.0)
    check_belongs(windows, evaluation(windows))
    with pytest.raises(ReportError, match="must give its recorded loss; they give 3"):
        check_belongs(windows + 0.01, evaluation(windows))
