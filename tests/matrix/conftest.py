"""The model of the matrix, and what all of its cases share."""

from pathlib import Path

import pytest

from prunegpt.root import Root
from tests.matrix.cases import GATE, plans_of
from tests.support.running import run_attempt
from tests.support.small import make_model


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of two layers of width 16, with dropout, so that random numbers matter."""
    return make_model(tmp_path_factory.mktemp("matrix") / "model", layers=2, width=16, positions=32)


@pytest.fixture(scope="session")
def prepared(small_model: Path, text_files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which the teacher of all cases and what they begin with are published, and the text is packed.

    A whole case is run once too, elsewhere, so that the processes that are forked for the others find it imported.
    """
    case = next(case for case in GATE if case["kind"] != "finetune" and case["before"] == "pruned")
    folder = tmp_path_factory.mktemp("prepared")
    for name in ("root", "imports"):
        root = Root(folder / name)
        teacher, trial = plans_of(case, small_model, text_files, root)
        begun = trial.model_copy(update={"name": "begun", "stages": trial.stages[:2]})
        for plan in (teacher, begun if name == "root" else trial):
            assert run_attempt(root, plan).state == "finished"
    return folder / "root"
