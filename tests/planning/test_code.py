"""A criterion in a file: found beside the spec, known by its content, read without being run, run as planned."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunegpt import Sweep
from prunegpt.errors import PruneGPTError, SpecError, UnknownPartError
from prunegpt.planning.resolve import plan_file
from prunegpt.spec.code import CodePart
from prunegpt.spec.plan import SweepPlan
from prunegpt.sweep.reopened import trusting
from tests.support.small import Invoke

SOURCE = """
import torch

open({canary!r}, "a").write("ran")


def score(weight, input_norm, power: float = 2.0):
    return weight.abs() * input_norm**power


def plain(weight):
    return weight.float().square()


def other(matrix):
    return matrix
"""


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., Path]:
    """Writes a spec and its file of code into a folder."""

    def write(method: str = "./mine.py:plain", folder: str = "a", **prune: Any) -> Path:
        where = tmp_path / folder
        where.mkdir(exist_ok=True)
        if not (where / "mine.py").exists():
            (where / "mine.py").write_text(SOURCE.format(canary=str(tmp_path / "canary")), encoding="utf-8")
        spec = {
            "name": "own",
            "base": {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text", "block_size": 128}},
            "trials": [{"name": "a", "stages": [{"prune": {"method": method, "sparsity": 0.5, **prune}}]}],
        }
        (where / "spec.yaml").write_text(json.dumps(spec), encoding="utf-8")
        return where / "spec.yaml"

    return write


def planned(path: Path) -> SweepPlan:
    return plan_file(path, strict=True)


def test_the_key_is_that_of_the_content_wherever_the_file_is(place: Callable[..., Path], tmp_path: Path) -> None:
    one, two = (planned(place(folder=folder)).trials[0] for folder in ("a", "b"))
    assert one.key == two.key
    assert one.trusts == (str(tmp_path / "a" / "mine.py"),)
    assert str(tmp_path / "a" / "mine.py") in one.inputs
    with (tmp_path / "b" / "mine.py").open("a") as file:
        file.write("# changed\n")
    assert planned(place(folder="b")).trials[0].key != one.key
    assert planned(place("./mine.py:score", folder="a")).trials[0].key != one.key
    assert not (tmp_path / "canary").exists()  # planning runs nothing


def test_arguments_are_needs_and_options(place: Callable[..., Path]) -> None:
    (trial,) = planned(place("mine.py:score", options={"power": 3})).trials
    assert trial.stages[1].prune is not None
    assert trial.stages[1].prune.calibration.data is not None  # it needs input_norm
    with pytest.raises(SpecError, match=r"unknown option of mine\.py:score 'pover'"):
        _ = planned(place("mine.py:score", options={"pover": 3}))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("./mine.py:scor", r"unknown function 'scor'. Did you mean 'score'"),
        ("./mine.py:other", "its first argument is `weight` .out, in., got 'matrix'"),
        ("./none.py:score", r"criterion \./none.py:score: \./none.py does not exist"),
        ("./bad.py:score", "bad.py is no Python"),
        ("mine.score", "unknown criterion or solver 'mine.score'"),
    ],
)
def test_what_is_no_criterion_is_refused_by_the_check(
    method: str, message: str, place: Callable[..., Path], tmp_path: Path
) -> None:
    path = place(method)
    (path.parent / "bad.py").write_text("def score(weight:\n", encoding="utf-8")
    with pytest.raises(SpecError, match=message):
        planned(path)
    assert not (tmp_path / "canary").exists()


def test_another_content_than_planned_is_not_run(place: Callable[..., Path], tmp_path: Path) -> None:
    (trial,) = planned(place()).trials
    assert trial.stages[1].prune is not None
    code = CodePart.of(trial.stages[1].prune.method)
    assert code is not None
    Path(code.path).write_text("def plain(weight):\n    raise SystemExit\n", encoding="utf-8")
    with pytest.raises(UnknownPartError, match=r"has another content now\. Run the sweep again"):
        code.function()


def test_what_a_root_names_is_run_with_permission_only() -> None:
    assert trusting({"trials": [{"stages": [{"prune": {"method": "./mine.py:score"}}]}]})
    assert trusting({"search": {"space": {"stages.0.prune.method": ["wanda", "mine.py:score"]}}})
    assert not trusting({"trials": [{"stages": [{"prune": {"method": "wanda"}}]}]})


def test_it_prunes_as_the_built_in_one_does(
    invoke: Invoke, place: Callable[..., Path], model_folder: Path, tmp_path: Path
) -> None:
    place()
    mine = str(tmp_path / "a" / "mine.py:plain")
    invoke("prune", model_folder, tmp_path / "own", "-m", mine, "-s", "0.5")
    invoke("prune", model_folder, tmp_path / "magnitude", "-m", "magnitude", "-s", "0.5")
    assert (tmp_path / "canary").read_text() == "ran"
    name = "model.safetensors"
    assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "magnitude" / name).read_bytes()
    found = json.loads(invoke("masks", "check", tmp_path / "own", "--json"))
    assert found["method"] == "mine.py:plain"  # no folder of this machine


def inline(weight: Any) -> Any:
    return weight.float().square()


def test_a_function_stands_for_its_file(tmp_path: Path) -> None:
    def spec(method: Any) -> dict[str, Any]:
        trial = {"name": "a", "stages": [{"prune": {"method": method, "sparsity": 0.5}}]}
        return {
            "name": "s",
            "base": {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text"}},
            "trials": [trial],
        }

    (trial,) = Sweep(spec(inline), root=tmp_path).plan.trials
    assert trial.stages[1].prune is not None
    assert CodePart.of(trial.stages[1].prune.method) == CodePart(
        str(Path(__file__)), "inline", next(iter(trial.inputs.values()))
    )
    for unfit in (lambda weight: weight, len, eval("lambda weight: weight")):
        with pytest.raises(PruneGPTError, match="a criterion is a function at the top of a file"):
            Sweep(spec(unfit), root=tmp_path)
