"""Every file that a finished root holds, cut as by a power failure: nothing wrong is ever told, and a run ends as an
undisturbed one does."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prunegpt.errors import PruneGPTError
from prunegpt.root import Root
from prunegpt.sweep.repair import examine, repair
from tests.support.finished_root import DULL, MORE, Undisturbed, figures, run

STAGES = ["load", "ft", "pa", "pb"]
OF_A_STAGE = [
    "stage.json",
    "plan.json",
    "files.json",
    "model/model.safetensors",
    "evaluations/measured/evaluation.json",
    "evaluations/measured/windows.npy",
    "evaluations/measured/files.json",
]
FILES = [
    "prunegpt.db",
    *(f"stages/{key}/{file}" for key in STAGES for file in OF_A_STAGE),
    *(
        f"trials/words/{name}/attempt-1/{file}"
        for name in "ab"
        for file in ("trial.json", "points.jsonl", "record.json")
    ),
]
MAY_LACK = ("files.json", "points.jsonl", "trial.json", "record.json")  # as those of earlier versions, or in mid-run
WAYS: dict[str, Callable[[Path], object]] = {
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0" * 512),
}
QUICK = {("prunegpt.db", way) for way in WAYS} | {
    (file, "half") for file in FILES if file.startswith(("stages/ft/", "trials/words/a/"))
}
CASES = [
    pytest.param(file, way, id=f"{file}-{way}", marks=() if (file, way) in QUICK else pytest.mark.slow)
    for file in FILES
    for way in WAYS
    if (file, way) != (FILES[0], "grown")  # SQLite knows how long its file is
]


def test_the_list_is_of_every_file_there_is(undisturbed: Undisturbed) -> None:
    found = {path.relative_to(undisturbed.path).as_posix() for path in undisturbed.path.rglob("*") if path.is_file()}
    assert {file for file in found if Path(file).name not in DULL} == set(FILES)
    assert set(undisturbed.figures) == {"a", "b", "c"}
    assert {state for state, _ in undisturbed.figures.values()} == {"finished"}


def test_a_root_that_is_whole_has_nothing_to_mend(broken: Callable[[], Root], undisturbed: Undisturbed) -> None:
    root = broken()
    assert examine(root) == repair(root, lambda _: True) == []
    assert run(root, *MORE).ok
    assert figures(root) == undisturbed.figures


@pytest.mark.parametrize(("file", "way"), CASES)
def test_after_a_cut_and_a_repair_a_run_ends_as_the_undisturbed_one(
    broken: Callable[[], Root], undisturbed: Undisturbed, file: str, way: str
) -> None:
    root = broken()
    WAYS[way](root.path / file)
    done = repair(root, lambda _: True)
    assert done or (way == "missing" and file.endswith(MAY_LACK))
    assert all(fixed or not finding.fix for finding, fixed in done)
    assert all(finding.text and finding.path.is_relative_to(root.path) for finding, _ in done)
    assert run(root, *MORE).ok
    assert figures(root) == undisturbed.figures
    assert [finding for finding in examine(root) if finding.fix and finding.kind != "leftover"] == []


@pytest.mark.parametrize(("file", "way"), CASES)
def test_without_a_repair_a_run_is_right_or_says_what_is_wrong(
    broken: Callable[[], Root], undisturbed: Undisturbed, file: str, way: str
) -> None:
    root = broken()
    WAYS[way](root.path / file)
    if file == FILES[0] and way in ("half", "zeros"):
        with pytest.raises(PruneGPTError, match=r"prunegpt\.db cannot be opened: .*doctor --repair"):
            run(root, *MORE)
        return
    outcome = run(root, *MORE)
    found = figures(root)
    for name, (state, stages) in found.items():
        if state == "finished":
            assert (state, stages) == undisturbed.figures[name]
        else:
            assert f"words/{name}" in outcome.failed
