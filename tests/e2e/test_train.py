"""The study's own command line: each flag is honoured, and the run is an ordinary trial."""

import json
from pathlib import Path

import pytest

from tests.support.small import Run, status

RECIPE = """
modifiers:
  - !EpochRangeModifier
    start_epoch: 0.0
    end_epoch: 2.0
  - !GMPruningModifier
    init_sparsity: 0.0
    final_sparsity: 0.75
    start_epoch: 0.5
    end_epoch: 1.0
    update_frequency: 0.1
    params: ["re:transformer.h.*.mlp.c_fc.weight"]
"""


def test_the_flags_of_the_study(run: Run, model_folder: Path, text_files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    arguments = (
        *("train", "--model_name_or_path", str(model_folder), "--do_eval", "--do_train"),
        *("--output_dir", "baseline", "--evaluation_strategy", "epoch", "--per_device_train_batch_size=4"),
        *("--per_device_eval_batch_size=1", "--cache_dir", "cache/", "--save_strategy", "epoch", "--seed", "7"),
        *("--recipe", "recipe.yaml", "--train_file", text_files["train"]),
        *("--validation_file", text_files["validation"], "--block-size", "32", "--weight_decay", "0.01"),
        *("--warmup-steps=2", "--max_eval_samples", "9", "--report_to", "none"),
    )
    done = run(*arguments)
    assert "perplexity" in done.stdout
    (trial,) = status(run, "baseline").values()
    assert (trial["name"], trial["state"]) == ("train", "finished")
    assert trial["sparsity"] == pytest.approx(0.75, abs=1e-3)

    out = tmp_path / "baseline"
    assert {"config.json", "model.safetensors", "tokenizer.json", "masks.safetensors"} <= {
        path.name for path in out.iterdir()
    }
    assert len(list(out.glob("checkpoint-*"))) == 2  # one an epoch; the recipe says two
    figures = json.loads((out / "all_results.json").read_text(encoding="utf-8"))
    assert figures["evaluation"]["perplexity"] == trial["perplexity"]

    shown = json.loads(run("trial", "show", "baseline/train", "--json").stdout)
    stage = shown["plan"]["stages"][1]
    assert stage["seed"] == 7
    assert stage["finetune"]["train"]["per_device_train_batch_size"] == 4
    assert stage["finetune"]["train"]["num_train_epochs"] == 2
    assert stage["finetune"]["train"]["weight_decay"] == 0.01
    assert stage["finetune"]["train"]["warmup_steps"] == 2
    assert shown["plan"]["evaluate"]["max_windows"] == 9
    assert shown["plan"]["evaluate"]["batch_size"] == 1
    points = [json.loads(line) for line in _points(tmp_path, shown["folder"])]
    assert sum(point["name"] == "eval_loss" for point in points) == 2  # after each epoch

    refused = run(*arguments, check=False)
    assert refused.returncode == 1
    assert "pass --overwrite_output_dir" in refused.stderr
    run(*arguments, "--overwrite_output_dir")
    assert status(run, "baseline")["train"]["attempts"] == 1  # from the cache


def _points(tmp_path: Path, folder: str) -> list[str]:
    return (tmp_path / "runs" / folder / "points.jsonl").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--do_eval",), "train needs a dataset"),
        ((), "train needs --do_train, --do_eval or both"),
        (("--do_train", "--dataset_name", "x", "--train_file", "y"), "mutually exclusive"),
        (("--do_train", "--fp16"), "--fp16 is not taken: use `precision`. Write --set base.precision=VALUE."),
        (("--do_train", "--weight_decai", "1"), "Did you mean 'weight_decay'"),
    ],
)
def test_train_says_what_is_wrong(run: Run, model_folder: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run("train", "--model_name_or_path", str(model_folder), "--output_dir", "out", *arguments, check=False)
    assert done.returncode == 1
    assert message in done.stderr
