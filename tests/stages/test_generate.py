"""Text that the trial's own model writes, and mixes of calibration data: exact, seeded, resumed, refused in time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunegpt.lm.calibration import calibration_windows
from prunegpt.lm.data import read_documents
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.planning.inputs import Inputs
from prunegpt.planning.resolve import plan_data
from prunegpt.root import Root
from prunegpt.spec.data import CalibrationSpec, GenerateSpec, ModelSpec
from prunegpt.spec.plan import TrialPlan
from prunegpt.stages import cache, generate, text
from prunegpt.sweep.keep import remove_model
from tests.support.running import RunTrials, run_attempt
from tests.support.specs import problems_of

OWN = {"documents": 20, "tokens": 12, "temperature": 0.9, "top_k": 50}


def wanda(**calibration: Any) -> dict[str, Any]:
    return {"prune": {"method": "wanda", "sparsity": 0.5, "calibration": {"windows": 6, "length": 16, **calibration}}}


def plans(model: Any, files: dict[str, str], *stages: dict[str, Any]) -> list[TrialPlan]:
    trials = [{"name": f"t{number}", "stages": [stage]} for number, stage in enumerate(stages)]
    base = {"model": str(model) if isinstance(model, Path) else model, "data": {"files": files, "block_size": 32}}
    return list(plan_data({"name": "s", "base": base, "trials": trials}).trials)


def test_a_model_writes_once_for_whoever_asks(
    run_trials: RunTrials, text_files: dict[str, str], tmp_path: Path
) -> None:
    own = {"generate": {**OWN, "prompts": {"files": text_files}, "prompt_tokens": 3}}
    records = run_trials(
        {"name": "pruned", "stages": [wanda(data=own)]},
        {"name": "tuned", "stages": [{"finetune": {"data": {**own, "block_size": 16}}}]},
    )
    assert {record.state for record in records.values()} == {"finished"}, [record.trace for record in records.values()]
    (folder,) = (tmp_path / "runs" / "data").glob("generated-*")
    rows = [json.loads(line) for line in (folder / generate.DOCUMENTS).read_text().splitlines()]
    assert len(rows) == 20
    assert all(row["prompt"] and row["text"].startswith(row["prompt"]) for row in rows)
    assert len({row["text"] for row in rows}) > 15
    assert not list((tmp_path / "runs" / "work").glob("generated-*/*"))


def test_a_model_that_was_removed_is_computed_again_to_write(
    model_folder: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    root, first = Root(tmp_path), {"prune": {"method": "magnitude", "sparsity": 0.3}}
    model = {"source": str(model_folder), "weights": "random"}
    base = {"model": model, "data": {"files": text_files, "block_size": 32}}
    chains = {"one": [first], "two": [first, wanda(data={"generate": OWN})]}
    trials = [{"name": name, "stages": stages} for name, stages in chains.items()]
    one, two = plan_data({"name": "s", "base": base, "trials": trials}).trials
    assert run_attempt(root, one).state == "finished"
    remove_model(root, one.stages[0].key)
    record = run_attempt(root, two)
    assert record.state == "finished", record.error


def test_an_interrupted_text_comes_out_the_same(model_folder: Path, tmp_path: Path) -> None:
    settings = GenerateSpec(**OWN, key="k")  # type: ignore[arg-type]
    model, inputs = ModelSpec(source=str(model_folder)), Inputs(None)
    lines: list[str] = []

    def written(root: Root, *stops: bool) -> bool:
        asked = iter(stops)
        state = cache.source(root, model, inputs, device=torch.device("cpu"))
        return generate.ensure(
            settings,
            root,
            inputs,
            lambda: state,
            dtype=torch.float32,
            say=lines.append,
            stop=lambda: next(asked, False),
        )

    whole, broken = Root(tmp_path / "whole"), Root(tmp_path / "broken")
    before = torch.random.get_rng_state()
    assert written(whole)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert lines == [f"  generated {done} of 20 documents" for done in (8, 16, 20)]
    assert not written(broken, False, True)
    with (broken.work("generated-k") / generate.DOCUMENTS).open("a") as file:
        file.write('{"prompt": "", "te')  # a crash while it was written
    assert written(broken)
    one, two = ((generate.folder_of(root, settings) / generate.DOCUMENTS).read_bytes() for root in (whole, broken))
    assert one == two
    lines.clear()
    assert written(whole, True)
    assert not lines


DECISIVE: dict[str, Any] = {
    "documents": 21,
    "tokens": 13,
    "temperature": 1.1,
    "top_k": 0,
    "top_p": 0.5,
    "seed": 1,
    "prompt_tokens": 5,
}


def test_every_setting_of_what_is_written_is_in_the_key(
    model_folder: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    assert {*DECISIVE, "prompts", "split", "key"} == {*GenerateSpec.model_fields}
    other = tmp_path / "other.txt"
    other.write_text("other words\n")
    asked = [
        {},
        *({name: value} for name, value in DECISIVE.items()),
        {"prompts": {"files": text_files}},
        {"prompts": {"files": {"train": str(other)}}},
    ]
    stages = [wanda(data={"generate": {**OWN, **change}}) for change in asked]
    found = [trial.key for trial in plans(model_folder, text_files, *stages, *stages)]
    assert len(set(found)) == len(asked)
    assert found[: len(asked)] == found[len(asked) :]
    random = {"source": str(model_folder), "weights": "random"}
    (scratch,) = plans(random, text_files, stages[0])
    assert scratch.stages[1].prune.calibration.data.generate.key not in found  # type: ignore[union-attr]
    inputs = plans(model_folder, text_files, stages[-2])[0].inputs
    assert text_files["train"] in inputs


# -- mixes -----------------------------------------------------------------------------------------------------------

MIXES: dict[str, tuple[int, list[float] | None, list[int]]] = {
    "equal": (128, None, [43, 43, 42]),
    "exact": (128, [0.5, 0.25, 0.25], [64, 32, 32]),
    "largest remainder": (10, [0.56, 0.27, 0.17], [5, 3, 2]),
    "tenths": (10, [0.1, 0.2, 0.7], [1, 2, 7]),
}


@pytest.mark.parametrize(("windows", "weights", "counts"), MIXES.values(), ids=MIXES.keys())
def test_the_proportions_of_a_mix_are_exact(windows: int, weights: list[float] | None, counts: list[int]) -> None:
    sources = [
        {"data": {"path": "builtin:text"}, **({} if weights is None else {"weight": weights[place]})}
        for place in range(3)
    ]
    found = CalibrationSpec.model_validate({"windows": windows, "sources": sources})
    assert [part.windows for part in found.parts] == counts


def test_a_mix_is_the_windows_of_its_sources(text_files: dict[str, str], tmp_path: Path) -> None:
    tokenizer = load_tokenizer("builtin:tiny-gpt2")
    sources = [
        {"data": {"files": text_files}, "weight": 0.75},
        {"data": {"path": "builtin:text"}, "mode": "document", "weight": 0.25},
    ]
    spec = CalibrationSpec.model_validate({"windows": 8, "length": 16, "seed": 3, "sources": sources})
    found = text.calibration(spec, tokenizer, Inputs(None), Root(tmp_path)).numpy()
    first = read_documents(files={"train": [text_files["train"]]}, split="train")
    second = read_documents("builtin:text", split="train")
    expected = [
        calibration_windows(first, tokenizer, windows=6, length=16, seed=3),
        calibration_windows(second, tokenizer, windows=2, length=16, seed=3, mode="document"),
    ]
    assert np.array_equal(found, np.concatenate(expected))
    assert text.mix_notes(spec) == ("calibrated on 6 windows of train.txt, 2 windows of builtin:text",)


def test_a_mix_decides_and_is_recorded(run_trials: RunTrials, model_folder: Path, text_files: dict[str, str]) -> None:
    def mix(*weights: float, **first: Any) -> dict[str, Any]:
        sources: list[dict[str, Any]] = [{"data": {"files": text_files}, **first}, {"data": {"path": "builtin:text"}}]
        return wanda(sources=[{**one, "weight": weight} for one, weight in zip(sources, weights, strict=True)])

    stages = [mix(0.5, 0.5), mix(0.7, 0.3), mix(0.5, 0.5, mode="document"), mix(0.5, 0.5, split="validation"), wanda()]
    assert len({trial.key for trial in plans(model_folder, text_files, *stages)}) == len(stages)
    record = run_trials({"name": "mixed", "stages": [mix(0.5, 0.5)]})["mixed"]
    assert "calibrated on 3 windows of train.txt, 3 windows of builtin:text" in record.stages[-1].notes


TEXT = {"path": "builtin:text"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "weights that do not sum": (
        {"sources": [{"data": TEXT, "weight": 0.5}, {"data": TEXT, "weight": 0.4}]},
        "the weights of sources must sum to 1, got 0.9",
    ),
    "some weights": ({"sources": [{"data": TEXT, "weight": 0.5}, {"data": TEXT}]}, "belong to all sources or to none"),
    "data beside": ({"data": TEXT, "sources": [{"data": TEXT}]}, "reads either data or sources; it has both"),
    "no window": (
        {"sources": [{"data": TEXT, "weight": 0.99}, {"data": TEXT, "weight": 0.01}]},
        "every source must give at least one of the 6 windows",
    ),
    "two origins": ({"data": {**TEXT, "generate": OWN}}, "data is either generated or read; it has generate and path"),
    "messages without template": (
        {"data": {"generate": {**OWN, "prompts": {"files": {"train": "TRAIN"}, "messages": "messages"}}}},
        "chat messages need a tokeniser with a chat template",
    ),
    "an unknown mode": ({"mode": "documents"}, "Did you mean 'document'?"),
}


@pytest.mark.parametrize(("calibration", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_calibration_that_is_refused_before_anything_runs(
    calibration: dict[str, Any], message: str, tmp_path: Path
) -> None:
    from tests.support.chats import chat_file

    file = str(chat_file(tmp_path / "train.jsonl"))
    given = json.loads(json.dumps(calibration).replace('"TRAIN"', json.dumps(file)))
    found = problems_of({"name": "a", "stages": [wanda(**given)]})
    assert any(message in problem.message for problem in found), [str(problem) for problem in found]


def test_generated_text_is_not_what_is_measured_on(model_folder: Path, text_files: dict[str, str]) -> None:
    own = {"generate": OWN, "block_size": 32}
    read = {"files": text_files, "block_size": 32}
    for data, evaluate in ((own, {}), (read, {"data": own})):
        base = {"model": str(model_folder), "data": data, "evaluate": evaluate}
        found = problems_of({"name": "a"}, base=base)
        assert any("generated text is for training stages and calibration" in problem.message for problem in found)
