"""eval, prune and masks on one model from the shell."""

import json
import math
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from prunegpt import Sweep
from prunegpt.cli import app
from prunegpt.cli.measure import text_of
from prunegpt.errors import ModelError
from prunegpt.pruning import evidence
from tests.support.choices import NAME, write_task
from tests.support.small import Invoke

EVALUATE = ("--protocol", "stream", "--block-size", "32", "--max-windows", "6")


def reference(folder: Path, text: str, windows: int = 6, size: int = 32) -> float:
    """The stream protocol in plain torch."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer(Path(text).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"])
    total = 0.0
    for window in ids[: windows * size].view(windows, size):
        with torch.no_grad():
            total += float(model(window[None], labels=window[None]).loss) * (size - 1)
    return math.exp(total / (windows * (size - 1)))


def test_eval_is_the_plain_computation(invoke: Invoke, model_folder: Path, text_files: dict[str, str]) -> None:
    text = text_files["validation"]
    found = json.loads(invoke("eval", model_folder, "--data", text, *EVALUATE, "--json"))
    assert found["perplexity"] == pytest.approx(reference(model_folder, text), rel=1e-6)
    assert (found["tokens"], found["windows"]) == (6 * 31, 6)
    assert found["interval"][0] < found["perplexity"] < found["interval"][1]
    assert found["bits_per_byte"] > 0
    assert found["protocol"].startswith("stream/32")


def test_prune_saves_an_ordinary_folder_that_holds_its_masks(
    invoke: Invoke, model_folder: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    text, out = text_files["validation"], tmp_path / "pruned"
    arguments = ("prune", model_folder, out, "--method", "magnitude", "--sparsity", "0.5", "--data", text, *EVALUATE)
    found: dict[str, Any] = json.loads(invoke(*arguments, "--json"))
    assert found["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert found["sparsity_of_all_parameters"] < found["sparsity"]
    assert len(found["by_layer"]) == 8
    assert found["perplexity_before"] == pytest.approx(reference(model_folder, text), rel=1e-6)
    assert found["perplexity_after"] == pytest.approx(reference(out, text), rel=1e-6)
    assert json.loads(invoke("masks", "check", out, "--json"))["ok"]

    assert "exists already" in invoke(*arguments, fails=True)
    invoke(*arguments, "--overwrite", "--json")

    model = AutoModelForCausalLM.from_pretrained(out)
    model.transformer.h[1].mlp.c_fc.weight.data.fill_(0.25)
    model.save_pretrained(out)
    compared = json.loads(invoke("masks", "compare", out, out, "--json"))
    assert compared["agreement"] == 1.0 == min(compared["by_tensor"].values())
    assert "the masks agree in 100.0000% of the weights" in invoke("masks", "compare", out, out)
    assert "transformer.h.1.mlp.c_fc.weight has" in invoke("masks", "check", out, fails=True)


def test_single_gradients_are_beside_the_output(
    invoke: Invoke, model_folder: Path, text_files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the system's folder for temporary files was asked for")

    monkeypatch.setattr(evidence, "TemporaryDirectory", refused)
    asked = (
        "--sparsity",
        "0.5",
        "--calibration",
        text_files["train"],
        "--calibration-windows",
        "2",
        "--block-size",
        "16",
    )
    invoke("prune", model_folder, tmp_path / "new" / "out", "--method", "obert", *asked)
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["out"]


def test_shrink_saves_an_ordinary_folder_of_a_smaller_model(
    invoke: Invoke, model_folder: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    text, out = text_files["validation"], tmp_path / "small"
    calibration = ("--calibration", text_files["train"], "--calibration-windows", "2")
    arguments = ("shrink", model_folder, out, "--layers", "1", *calibration, "--data", text, *EVALUATE)
    found: dict[str, Any] = json.loads(invoke(*arguments, "--json"))
    assert found["perplexity_before"] == pytest.approx(reference(model_folder, text), rel=1e-6)
    assert found["perplexity_after"] == pytest.approx(reference(out, text), rel=1e-6)
    assert found["parameters"] < found["parameters_before"]
    assert [row["dropped"] for row in found["rows"]].count(True) == 1
    printed = invoke(
        "shrink", model_folder, tmp_path / "named", "--layers", "1", "--choice", "perplexity", *calibration
    )
    assert "What could go" in printed
    assert "Pass --calibration FILE" in invoke("shrink", model_folder, tmp_path / "x", "--ffn", "0.5", fails=True)
    assert "a size must be a number" in invoke("shrink", model_folder, tmp_path / "x", "--ffn", "half", fails=True)
    assert "a shrink must say" in invoke("shrink", model_folder, tmp_path / "x", fails=True)
    for given, told in (
        (("--by", "ffn"), "--by, --prompt, --generate and --threads go with --parameters or --latency, got --by alone"),
        (("--layers", "1", "--importance", "taylor"), "--importance would have no effect here: it goes with --ffn,"),
        (("--by", "width", "--parameters", "0.5"), "--by must be 'layers' or 'ffn', got 'width'"),
        (("--multiple-of", "32", "--parameters", "2.5"), "--parameters a size must be a share"),
        (("--latency", "0.9", "--threads", "1000", "--prompt", "8", "--generate", "3"), "threads must be at most the"),
    ):
        assert told in invoke("shrink", model_folder, tmp_path / "x", *given, *calibration, fails=True)
    rounded = ("--ffn", "0.71", "--multiple-of", "32", "--importance", "activation", *calibration)
    assert "0.71 of 128 is 91, rounded by multiple_of" in invoke("shrink", model_folder, tmp_path / "thin", *rounded)


@pytest.mark.parametrize("strange", ["notes.txt", "results.json", "sub/config.json", "model.py", ".git/HEAD"])
@pytest.mark.parametrize("ours", [True, False])
def test_overwrite_replaces_nothing_but_a_model_of_ours(
    invoke: Invoke, model_folder: Path, tmp_path: Path, strange: str, ours: bool
) -> None:
    out = tmp_path / "out"
    arguments = ("prune", model_folder, out, "--method", "magnitude", "--sparsity", "0.5")
    if ours:
        invoke(*arguments)
    (out / strange).parent.mkdir(parents=True, exist_ok=True)
    (out / strange).write_text("mine")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refusal = invoke(*arguments, "--overwrite", fails=True)
    assert f"{out} holds {strange.partition('/')[0]}. Choose another folder" in refusal
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


OVERWRITING = {"prune": ("--method", "magnitude", "--sparsity", "0.5"), "shrink": ("--drop", "0"), "export": ()}


@pytest.mark.parametrize("command", OVERWRITING)
def test_what_a_command_wrote_it_replaces(invoke: Invoke, model_folder: Path, tmp_path: Path, command: str) -> None:
    arguments = (command, model_folder, tmp_path / "out", *OVERWRITING[command])
    invoke(*arguments)
    assert "exists already" in invoke(*arguments, fails=True)
    invoke(*arguments, "--overwrite")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_every_command_that_overwrites_is_called() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = {name for name, command in commands.items() if {"out", "overwrite"} <= {one.name for one in command.params}}
    assert found == {*OVERWRITING}


def test_overwrite_does_not_touch_where_one_stands_or_a_model_of_others(
    invoke: Invoke, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ("--method", "magnitude", "--sparsity", "0.5", "--overwrite")
    shutil.copytree(model_folder, out)
    assert "is none. Choose another folder" in invoke("prune", model_folder, out, *arguments, fails=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "OUT must not be the current folder" in invoke("prune", model_folder, ".", *arguments, fails=True)
    monkeypatch.chdir(tmp_path)
    invoke("prune", model_folder, "empty", *arguments)
    assert (tmp_path / "empty" / "masks.safetensors").exists()


def test_a_model_is_replaced_when_the_new_one_is_whole(
    invoke: Invoke, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunegpt.lm import models

    out = tmp_path / "out"
    invoke("prune", model_folder, out, "--method", "magnitude", "--sparsity", "0.5")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "save_model", full)
    invoke("prune", model_folder, out, "--method", "magnitude", "--sparsity", "0.75", "--overwrite", fails=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.undo()
    monkeypatch.setenv("PRUNEGPT_ROOT", str(tmp_path / "runs"))
    invoke("prune", model_folder, out, "--method", "magnitude", "--sparsity", "0.75", "--overwrite")
    assert json.loads(invoke("masks", "check", out, "--json"))["sparsity"] == pytest.approx(0.75, abs=1e-3)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


def test_prune_with_calibration_keeps_two_of_four(
    invoke: Invoke, model_folder: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    calibration = ("--calibration", text_files["train"], "--calibration-windows", "4", "--block-size", "32")
    arguments = ("prune", model_folder, tmp_path / "out", "--method", "sparsegpt", "--pattern", "2:4", *calibration)
    found = json.loads(invoke(*arguments, "--json"))
    assert found["sparsity"] == pytest.approx(0.5)
    assert found["perplexity_before"] is None
    weight = AutoModelForCausalLM.from_pretrained(tmp_path / "out").transformer.h[0].attn.c_attn.weight  # [in, out]
    assert int((weight.t().reshape(-1, 4) != 0).sum(1).max()) <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--method", "magnitude", "--sparsity", "50"),
            "--sparsity must be at least 0 and below 1, got 50. Did you mean 0.5?",
        ),
        (("--method", "magnitud", "--sparsity", "0.5"), "Did you mean 'magnitude'?"),
        (("--method", "magnitude"), "pruning needs a sparsity"),
        (("--method", "wanda", "--sparsity", "0.5"), "Pass --calibration FILE"),
        (("--method", "magnitude", "--sparsity", "0.5", "--target", "nothing.*"), "'nothing.*' matches none"),
        (("--method", "magnitude", "--pattern", "4:2"), "0 < N < M"),
    ],
)
def test_prune_says_what_is_wrong(
    invoke: Invoke, model_folder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert message in invoke("prune", model_folder, tmp_path / "out", *arguments, fails=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "eval needs a dataset or tasks"),
        (("--data", "missing.txt"), "missing.txt is not there"),
        (("--protocol", "strem"), "Did you mean 'stream'?"),
        (("--block-size", "128"), "64 positions"),
        (("--stride", "16"), "stride must go with protocol sliding; protocol blocks has none."),
    ],
)
def test_eval_says_what_is_wrong(
    invoke: Invoke, model_folder: Path, text_files: dict[str, str], arguments: tuple[str, ...], message: str
) -> None:
    data = () if not arguments or "--data" in arguments else ("--data", text_files["validation"])
    assert message in invoke("eval", model_folder, *data, *arguments, fails=True)


@pytest.mark.parametrize(
    ("source", "split"), [("builtin:text", "validation"), ("nobody/nothing", "validation"), ("train.txt", "validation")]
)
def test_the_usual_split_is_one_that_is_there(
    source: str, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text("a single file serves any split")
    evaluate = text_of(source, None, None, 16, None)(16)
    assert evaluate.split == split


def test_eval_measures_on_a_split_that_is_there(invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"body": "one of the rows " * 20, "title": "a"}) for _ in range(20)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "validation.jsonl").write_text("\n".join(lines))
    small = ("--block-size", "16", "--max-windows", "2", "--json")
    column = ("--text-column", "body")
    assert json.loads(invoke("eval", model_folder, "--data", tmp_path, *column, *small))["windows"] == 2
    refused = invoke("eval", model_folder, "--data", tmp_path, *small, fails=True)
    assert "Set text_column to one of body, title" in refused


@pytest.mark.usefixtures("forked")
def test_the_command_line_has_the_defaults_of_a_spec(
    invoke: Invoke, model_folder: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    """The same model has one perplexity, whichever way it is asked for."""
    for split in ("validation", "test"):
        shutil.copy(text_files["validation" if split == "validation" else "train"], tmp_path / f"{split}.txt")
    shutil.copy(text_files["train"], tmp_path / "train.txt")
    stage = {"prune": {"method": "wanda", "sparsity": 0.5, "calibration": {"windows": 8, "length": 32}}}
    spec = {
        "name": "same",
        "base": {"model": str(model_folder), "data": {"path": str(tmp_path), "block_size": 32}},
        "trials": [{"name": "dense"}, {"name": "half", "stages": [stage]}],
    }
    (tmp_path / "spec.yaml").write_text(json.dumps(spec), encoding="utf-8")
    invoke("sweep", "run", tmp_path / "spec.yaml")
    found = {one["name"]: one for one in json.loads(invoke("sweep", "status", "same", "--json"))["trials"]}
    measured = ("--data", tmp_path, "--block-size", "32", "--json")
    assert json.loads(invoke("eval", model_folder, *measured))["perplexity"] == found["dense"]["perplexity"]
    calibrated = ("--calibration", tmp_path / "train.txt", "--calibration-windows", "8")
    pruned = invoke("prune", model_folder, tmp_path / "o", "-m", "wanda", "-s", "0.5", *calibrated, *measured)
    assert json.loads(pruned)["perplexity_after"] == found["half"]["perplexity"]


@pytest.mark.usefixtures("forked")
def test_the_model_of_a_trial_is_exported_as_it_was_measured(
    invoke: Invoke, model_folder: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    spec = {
        "name": "made",
        "base": {"model": str(model_folder), "data": {"files": text_files, "block_size": 32}},
        "trials": [{"name": "half", "stages": [{"prune": {"sparsity": 0.5}}]}],
    }
    (tmp_path / "spec.yaml").write_text(json.dumps(spec), encoding="utf-8")
    invoke("sweep", "run", tmp_path / "spec.yaml")
    assert "prunegpt export made/half ./half" in invoke("trial", "show", "made/half")
    (found,) = json.loads(invoke("sweep", "status", "made", "--json"))["trials"]
    invoke("export", "made/half", tmp_path / "out")
    assert json.loads(invoke("masks", "check", tmp_path / "out", "--json"))["ok"]
    again = invoke("eval", tmp_path / "out", "--data", text_files["validation"], "--block-size", "32", "--json")
    assert json.loads(again)["perplexity"] == found["perplexity"]
    sweep = Sweep("made", root=tmp_path / "runs")
    assert [trial.name for trial in sweep.plan.trials] == ["half"]
    model, _ = sweep.model("half")
    assert float((model.transformer.h[0].mlp.c_fc.weight == 0).float().mean()) == 0.5
    assert "exists already" in invoke("export", "made/half", tmp_path / "out", fails=True)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| half | finished | prune | 50 |" in card
    assert all(f"key `{stage.key}`" in card for stage in sweep.plan.trials[0].stages)
    assert str(model_folder.parent) not in card + (tmp_path / "out" / "export.json").read_text(encoding="utf-8")
    for command in (
        ("eval", "made/hafl", "--data", "builtin:text"),
        ("export", "made/hafl", tmp_path / "other"),
    ):  # the hub is not asked
        assert "unknown trial of made 'hafl'. Did you mean 'half'?" in invoke(*command, fails=True)
    message = invoke("eval", "maed/half", "--data", "builtin:text", fails=True)
    assert "unknown sweep 'maed'. Did you mean 'made/half'?" in message
    invoke("gc", "--keep", "none", "--yes")
    again = "To compute it again: prunegpt sweep retry made half && prunegpt sweep resume made"
    for words in (("eval", "made/half", "--data", "builtin:text"), ("export", "made/half", tmp_path / "other")):
        assert again in invoke(*words, fails=True)
    shown = " ".join(invoke("trial", "show", "made/half").split())
    assert "To compute it again: prunegpt sweep retry made half" in shown
    assert "prunegpt export" not in shown
    with pytest.raises(ModelError, match="sweep retry made half"):
        sweep.model("half")


@pytest.mark.usefixtures("forked")
def test_a_trial_that_has_not_finished_has_no_model(
    invoke: Invoke, model_folder: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    """What an earlier stage made is not taken for it."""
    train = {"max_steps": 2, "learning_rate": 1e30, "max_grad_norm": 0.0, "per_device_train_batch_size": 2}
    spec = {
        "name": "broken",
        "base": {"model": str(model_folder), "data": {"files": text_files, "block_size": 32}},
        "trials": [{"name": "off", "stages": [{"finetune": {"train": train}}]}],
        "failures": {"retries": {}},
    }
    (tmp_path / "spec.yaml").write_text(json.dumps(spec), encoding="utf-8")
    invoke("sweep", "run", tmp_path / "spec.yaml", fails=True)
    message = "a trial must have finished before its model is there; broken/off is "
    assert message in invoke("eval", "broken/off", "--data", text_files["validation"], fails=True)
    told = invoke("export", "broken/off", tmp_path / "out", fails=True)
    assert message in told
    assert "To run it: prunegpt sweep retry broken off && prunegpt sweep resume broken --only off" in told


def test_a_sweep_that_was_never_run_is_not_looked_for_on_the_hub_alone(invoke: Invoke, tmp_path: Path) -> None:
    told = invoke("export", "study/pruned90", tmp_path / "out", fails=True)
    assert "It is no trial either: " in told
    assert "has no sweep 'study'. Run its spec with `prunegpt sweep run`, or name its --root." in told


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_eval_scores_tasks(model_folder: Path, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "tasks", "one two three four five six seven eight nine ten " * 8, documents=4)
    given = ["eval", str(model_folder), "--include-path", str(folder), "--json", "--limit", "2"]
    done = CliRunner().invoke(app, [*given, "--tasks", NAME])
    assert done.exit_code == 0, done.output
    scores = json.loads(done.stdout)["scores"]
    assert {(one["task"], one["metric"], one["documents"]) for one in scores} == {
        (NAME, "acc", 2),
        (NAME, "acc_norm", 2),
    }
    assert "--limit is of tasks" in str(CliRunner().invoke(app, given).exception)
