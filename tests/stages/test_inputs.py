"""What a trial reads is what it was planned with: every kind of input, changed in every way, at every time."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunegpt.errors import InputError, ModelError
from prunegpt.lm.models import load_model
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.planning.facts import model_facts
from prunegpt.planning.fingerprint import Files
from prunegpt.planning.inputs import Inputs
from prunegpt.planning.resolve import plan_data
from prunegpt.planning.sources import model_files
from prunegpt.records import AttemptRecord
from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan
from prunegpt.spec.schema import CalibrationSpec, DataSpec, EvaluateSpec, ModelSpec
from prunegpt.stages import cache, text
from tests.support.running import run_attempt

TRAIN = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1}
PRUNE = {"method": "wanda", "sparsity": 0.5, "calibration": {"windows": 2, "length": 16}}


@pytest.fixture
def place(tmp_path: Path, model_folder: Path, text_files: dict[str, str]) -> Path:
    """A project: models, texts and tokenisers that a trial reads, each a file or folder of its own."""
    for name in ("model", "teacher"):
        shutil.copytree(model_folder, tmp_path / name)
    weights = load_file(tmp_path / "teacher" / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, tmp_path / "teacher" / "model.safetensors")
    for split, file in text_files.items():
        shutil.copy(file, tmp_path / f"{split}.txt")
    for name in ("calibration", "own"):
        shutil.copy(text_files["train"], tmp_path / f"{name}.txt")
    rows = (tmp_path / "own.txt").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"{row}\n"}) + "\n" for row in rows if row))
    return tmp_path


def plan_of(place: Path, root: str = "runs") -> TrialPlan:
    return plans_of(place, root)["all"]


def plans_of(place: Path, root: str = "runs") -> dict[str, TrialPlan]:
    files = {"train": str(place / "train.txt"), "validation": str(place / "validation.txt")}
    calibration = {**PRUNE["calibration"], "data": {"path": str(place / "calibration.txt")}}  # type: ignore[dict-item]
    distill = {"teacher": {"model": str(place / "teacher")}, "data": {"path": str(place / "rows.jsonl")}}
    spec = {
        "name": "inputs",
        "base": {
            "model": str(place / "model"),
            "data": {"files": files, "block_size": 32},
            "evaluate": {"max_windows": 2},
            "train": TRAIN,
        },
        "trials": [
            {
                "name": "all",
                "stages": ["finetune", {"prune": {**PRUNE, "calibration": calibration}}, {"distill": distill}],
            }
        ],
    }
    return {trial.name: trial for trial in plan_data(spec, root=Root(place / root)).trials}


def run(place: Path, plan: TrialPlan, root: str = "runs") -> AttemptRecord:
    folders = (place / root / "trials" / plan.sweep / plan.name).glob("attempt-*")
    return run_attempt(Root(place / root), plan, len(list(folders)) + 1)


def figures(record: AttemptRecord) -> list[float | None]:
    return [stage.evaluation.perplexity if stage.evaluation else None for stage in record.stages]


def edited(file: Path) -> None:
    """Another content of the same size and the same times, as far as a program can set them."""
    status, content = file.stat(), bytearray(file.read_bytes())
    if file.suffix == ".safetensors":
        content[-40:-32] = bytes(8)
    else:
        content[-2] = content[-2] ^ 1 if file.suffix == ".txt" else content[-2]
        content = content.replace(b"the", b"not") if file.suffix == ".jsonl" else content
        content = content.replace(b'": ', b'":\t', 1) if file.suffix == ".json" else content
    file.write_bytes(bytes(content))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def planned_files(place: Path) -> list[str]:
    return sorted(str(Path(path).relative_to(place)) for path in plan_of(place).inputs)


INPUTS = [
    "calibration.txt",
    "model/config.json",
    "model/generation_config.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
    "rows.jsonl",
    "teacher/config.json",
    "teacher/generation_config.json",
    "teacher/model.safetensors",
    "teacher/tokenizer.json",
    "teacher/tokenizer_config.json",
    "train.txt",
    "validation.txt",
]


def test_a_plan_names_every_file_that_its_trial_reads(place: Path) -> None:
    assert planned_files(place) == INPUTS


@pytest.mark.parametrize("name", INPUTS)
def test_a_file_that_changed_after_planning_is_refused_and_nothing_is_computed_from_it(place: Path, name: str) -> None:
    plan, kept = plan_of(place), (place / name).read_bytes()
    assert run(place, plans_of(place)["teacher-teacher"]).state == "finished"
    edited(place / name)
    assert (place / name).read_bytes() != kept
    record = run(place, plan)
    assert record.state == "failed"
    assert f"{place / name} has another content now" in record.error
    assert plan_of(place).key != plan.key or name == "validation.txt"


@pytest.mark.parametrize("name", INPUTS)
def test_a_file_that_is_put_back_while_it_is_read_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The reader sees another content between two looks that both find the planned one."""
    plan, kept, file = plan_of(place), (place / name).read_bytes(), place / name
    assert run(place, plans_of(place)["teacher-teacher"]).state == "finished"
    swapped: list[str] = []

    def swapping(read: Callable[..., Any]) -> Callable[..., Any]:
        def around(*args: Any, **options: Any) -> Any:
            if not swapped and _reads(args, options, file):
                swapped.append(name)
                edited(file)
                try:
                    return read(*args, **options)
                finally:
                    file.write_bytes(kept)
            return read(*args, **options)

        return around

    for module, function in (
        (cache, "load_model"),
        (cache, "load_tokenizer"),
        (text, "read_rows"),
        (text, "read_documents"),
        (text.protocols, "read_split"),
    ):
        monkeypatch.setattr(module, function, swapping(getattr(module, function)))
    record = run(place, plan)
    assert swapped == [name]
    assert record.state == "failed"
    assert f"{file} was written to while it was read" in record.error


def _reads(args: tuple[Any, ...], options: dict[str, Any], file: Path) -> bool:
    if "files" in options:
        return str(file) in options["files"][options["split"]]
    return str(file.parent) in map(str, args)


def test_weights_in_memory_do_not_follow_the_file(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    model = load_model(tmp_path / "model", dtype="float32", device="cpu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(bytes(file.stat().st_size // 2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_model_in_the_place_of_a_renamed_one(place: Path) -> None:
    spec = {
        "name": "moved",
        "base": {
            "model": str(place / "model"),
            "data": {"path": str(place / "validation.txt"), "block_size": 32},
            "evaluate": {"split": "validation", "max_windows": 2},
        },
        "trials": [{"name": "pruned", "stages": [{"prune": {"sparsity": 0.5}}]}],
    }

    def trial(source: str) -> TrialPlan:
        spec["base"]["model"] = str(place / source)  # type: ignore[index]
        return plan_data(spec, root=Root(place / "runs")).trials[0]

    first = trial("model")
    load = first.model_copy(update={"stages": first.stages[:1]})
    assert run(place, load).state == "finished"
    (place / "model").rename(place / "renamed")
    shutil.copytree(place / "teacher", place / "model")
    again = trial("renamed")
    assert again.key == first.key
    found = run(place, again)
    assert found.stages[0].cached
    assert figures(found) == figures(run(place, again, root="fresh"))
    assert figures(found)[1] != figures(run(place, trial("model")))[1]


def test_a_project_that_was_moved_goes_on(place: Path) -> None:
    assert run(place, plan_of(place).model_copy(update={"stages": plan_of(place).stages[:2]})).state == "finished"
    moved = place / "elsewhere"
    moved.mkdir()
    for item in [item for item in place.iterdir() if item != moved]:
        item.rename(moved / item.name)
    plan = plan_of(moved)
    record = run(moved, plan.model_copy(update={"stages": plan.stages[:3]}))
    assert record.state == "finished", record.error
    assert [stage.cached for stage in record.stages] == [True, True, False]


@pytest.mark.parametrize(
    "name",
    [
        "model/model.safetensors.index.json",
        "model/tokenizer.4.0.0.json",
        "model/vocab.txt",
        "model/chat_template.jinja",
        "tokenizer/config.json",
        "tokenizer/tokenizer.json",
        "gguf/tokenizer.json",
    ],
)
def test_whatever_transformers_may_open_beside_the_weights_is_in_the_key(place: Path, name: str) -> None:
    """Files of every kind that a model, a tokeniser's own folder or the folder of a .gguf file may hold."""
    for folder in ("tokenizer", "gguf"):
        shutil.copytree(place / "model", place / folder)
    (place / "gguf" / "model.gguf").write_bytes(b"weights")
    file = place / name
    content = {"model/model.safetensors.index.json": '{"weight_map": {"a": "model.safetensors"}}'}.get(name, "{}")
    source = {"gguf": "gguf/model.gguf"}.get(file.parent.name, "model")
    model = ModelSpec(source=str(place / source), tokenizer=str(place / "tokenizer"))
    if file.parent.name != "tokenizer":
        model = model.model_copy(update={"tokenizer": None})
    if not file.exists():
        file.write_text(content)
    before = model_facts(model, Files(None))
    assert file in model_files(model)
    file.write_text(content + " ")
    assert model_facts(model, Files(None)).fingerprint != before.fingerprint


def test_a_plan_of_an_earlier_version_says_so(place: Path) -> None:
    record = run(place, plan_of(place).model_copy(update={"inputs": {}}))
    assert record.state == "failed"
    assert "that of an earlier version does not" in record.error


@pytest.mark.parametrize("what", ["train", "evaluate", "calibration"])
def test_a_folder_that_has_the_name_of_a_hub_dataset_is_not_read_in_its_place(
    place: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """As where `trial run` is called in another folder than the sweep was."""
    plan = plan_of(place)
    inputs, tokenizer = Inputs(plan.inputs), load_tokenizer("builtin:tiny-gpt2")
    monkeypatch.chdir(place)
    (place / "hub" / "name").mkdir(parents=True)
    shutil.copy(place / "own.txt", place / "hub" / "name" / "train.txt")
    data = DataSpec(path="hub/name", revision="0" * 40, block_size=8)
    readers: dict[str, Callable[[], object]] = {
        "train": lambda: text.training_blocks(data, tokenizer, Root(place / "runs"), inputs),
        "evaluate": lambda: text.evaluation_windows(
            EvaluateSpec(data=data, split="train", block_size=8), tokenizer, inputs
        ),
        "calibration": lambda: text.calibration(
            CalibrationSpec(data=data, split="train", length=8, windows=1), tokenizer, inputs, Root(place / "runs")
        ),
    }
    with pytest.raises(InputError, match="was not there then"):
        readers[what]()


def test_a_vocabulary_elsewhere_is_refused(place: Path) -> None:
    """tokenizer_config.json may name files outside of the folder, which are in no key."""
    content = json.loads((place / "model" / "tokenizer.json").read_text())["model"]
    (place / "vocab.json").write_text(json.dumps(content["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["merges"]]
    (place / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    (place / "model" / "tokenizer.json").unlink()
    named = {"vocab": str(place / "vocab.json"), "merges": str(place / "merges.txt")}
    (place / "model" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **named}))
    with pytest.raises(ModelError, match="must be stored in one folder"):
        load_tokenizer(place / "model")
    for file in named.values():
        shutil.copy(file, place / "model")
    (place / "model" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    assert len(load_tokenizer(place / "model")) == len(content["vocab"])
