"""`sweep check`: what is known once blocks are counted is told at its trial; a search says what it will run."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.errors import SpecError
from prunegpt.planning.budget import job_problems
from prunegpt.planning.resolve import plan_file
from prunegpt.registry import CALIBRATION_MODES
from prunegpt.root import Root
from prunegpt.store import Store
from tests.support.specs import text_folder, trial_of

HEADER = """\
name: words
base:
  model: builtin:tiny-gpt2
  data: {path: "builtin:text", block_size: 128, tokens: 12800}
trials:
"""
# A stage of 100 blocks -> its field, what is said. Each is well formed, and fails once steps are counted.
COUNTED = {
    "a batch that is never full": (
        "finetune: {train: {per_device_train_batch_size: 128, dataloader_drop_last: true}}",
        "finetune.train.dataloader_drop_last",
        "100 blocks make none of 128",
    ),
    "too few blocks are taken": (
        "finetune: {train: {dataloader_drop_last: true}, data: {path: builtin:text, tokens: 999, max_train_blocks: 7}}",
        "finetune.train.dataloader_drop_last",
        "7 blocks make none of 8",
    ),
    "an end after training": (
        "finetune: {train: {num_train_epochs: 1}, prune: {sparsity: 0.5, unit: steps, end: 13}}",
        "finetune.prune",
        "its end is step 13 and the stage has 13 steps",
    ),
    "an end that is rounded to the last step": (
        "finetune: {train: {num_train_epochs: 1}, prune: {sparsity: 0.5, end: 0.99}}",
        "finetune.prune",
        "pruning must end before training does",
    ),
    "a start that is rounded to step 0": (
        "finetune: {prune: {method: taylor, sparsity: 0.5, initial: 0.1, start: 0.01}}",
        "finetune.prune.start",
        "taylor must see at least one optimizer step",
    ),
    "phases that are rounded together": (
        "finetune: {prune: {sparsity: 0.5, schedule: acdc, start: 0, end: 0.15, every: 0.12}}",
        "finetune.prune.every",
        "acdc needs a dense and a compressed phase",
    ),
    "no step in which the student writes": (
        "distill: {teacher: good, on_policy: 0.001, train: {max_steps: 120}}",
        "distill.on_policy.share",
        "at least one of the 120 optimizer steps, got share 0.001. Set it to 0.0083 or more",
    ),
    "calibration of more tokens than there are": (
        "prune: {method: wanda, sparsity: 0.5, calibration: {windows: 100000, mode: first}}",
        "prune.calibration",
        "100000 calibration windows of 128 tokens, which takes 12800000 tokens",
    ),
}  # fmt: skip
assert COUNTED


def check(path: Path, root: Path, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["sweep", "check", str(path), "--root", str(root), *arguments])


def assert_run_refuses(path: Path, told: str, counted: Path, folder: Path) -> None:
    """A run refuses what the check refuses, in the same words, and has begun nothing."""
    root = Path(shutil.copytree(counted, folder / "runs"))
    with pytest.raises(SpecError) as refused:
        CliRunner().invoke(app, ["sweep", "run", str(path), "--root", str(root)], catch_exceptions=False)
    assert str(refused.value) == told
    assert not [name for name in ("prunegpt.db", "stages", "trials") if (root / name).exists()]


@pytest.mark.parametrize(("stage", "field", "message"), COUNTED.values(), ids=COUNTED.keys())
def test_what_counting_shows_is_told_at_the_trial(
    stage: str, field: str, message: str, tmp_path: Path, counted: Path
) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(
        f"{HEADER}  - name: good\n    stages: [finetune]\n  - name: bad\n    stages: [finetune, {{{stage}}}]\n"
    )
    found = check(path, counted)
    assert found.exit_code == 1
    told = str(found.exception)
    assert f"line 9: trials.1.stages.1.{field}: " in told
    assert message in told
    assert "1 problem\n" in told
    assert_run_refuses(path, told, counted, tmp_path)


@pytest.mark.parametrize("mode", CALIBRATION_MODES.names())
def test_calibration_windows_that_are_longer_than_the_text_are_refused(
    mode: str, tmp_path: Path, counted: Path
) -> None:
    text = text_folder(tmp_path / "text", train="It was late.", validation="It was late, and all of them slept.")
    path = tmp_path / "long.yaml"
    head = f"name: long\nbase: {{model: builtin:tiny-gpt2, data: {{path: {text}, block_size: 2}}}}\ntrials:\n"
    trials = "".join(
        f"  - name: of-{length}\n    stages: [{{prune: {{method: wanda, sparsity: 0.5, calibration: "
        f"{{windows: 1, length: {length}, mode: {mode}}}}}}}]\n"
        for length in (2, 99)
    )
    path.write_text(head + trials)
    found = check(path, counted)
    assert isinstance(found.exception, SpecError)
    (problem,) = found.exception.problems
    assert (problem.where, problem.line) == ("trials.1.stages.0.prune.calibration", 7)
    assert re.search(r"(99|100) tokens", problem.message)
    assert re.search(r"a smaller (calibration\.)?length", problem.message)


def test_the_steps_in_which_a_student_writes_are_named(tmp_path: Path, counted: Path) -> None:
    path = tmp_path / "own.yaml"
    stage = "distill: {teacher: t, on_policy: 0.4, train: {max_steps: 30}}"
    path.write_text(f"{HEADER}  - name: t\n  - name: own\n    stages: [{{{stage}}}]\n")
    output = " ".join(check(path, counted).output.split())
    assert "note: own: on_policy: the student writes the text of 12 of 30 optimizer steps" in output


def test_a_dataset_or_tokenizer_that_changed_is_counted_again(tmp_path: Path, model_folder: Path) -> None:
    words = "It was late, and all of them slept. "
    text = text_folder(tmp_path / "text", train=words * 40, validation=words * 9)
    model = shutil.copytree(model_folder, tmp_path / "model")
    path = tmp_path / "words.yaml"
    path.write_text(
        f"name: words\nbase: {{model: {model}, data: {{path: {text}, block_size: 8}}}}\n"
        "trials: [{name: a, stages: [finetune]}]\n"
    )

    def tokens() -> tuple[int, int]:
        found = json.loads(check(path, tmp_path / "runs", "--json").stdout)
        return found["train_tokens"], found["evaluation_tokens"]

    first = tokens()
    assert tokens() == first
    (text / "train.txt").write_text(words * 80)
    trained, evaluated = tokens()
    assert trained > first[0]
    assert evaluated == first[1]
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert tokens() > (trained, evaluated), "bytes are more tokens than words are"


def test_what_is_not_counted_is_not_judged() -> None:
    trial = trial_of({"finetune": {"train": {"dataloader_drop_last": True}, "prune": {"sparsity": 0.5, "end": 1}}})
    assert not list(job_problems(trial.stages[1], None))
    assert not list(job_problems(trial.stages[1], 100))


SEARCH = """\
  - name: lr
    stages: [{finetune: {train: {max_steps: 10}}}]
    search:
      n_trials: 7
      space: {stages.0.finetune.train.max_steps: {low: 5, high: 10}}
"""


def test_a_search_says_how_many_trials_it_will_run_and_what_each_costs(tmp_path: Path, counted: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(HEADER + SEARCH)
    shown = check(path, counted).output
    assert "search lr: 7 trials" in shown
    assert "0 trials" not in shown
    found = json.loads(check(path, counted, "--json").output)["searches"]
    assert [(item["name"], item["trials"]) for item in found] == [("lr", 7)]
    assert found[0]["sampler"] == "tpe"
    assert set(found[0]["space"].values()) <= {line.partition(": ")[2] for line in shown.splitlines()}
    low, high = found[0]["train_tokens_per_trial"]
    assert high - low == 5 * 8 * 128  # five steps of eight blocks, beside what the built-in model is trained on
    own = 10 * 8 * 128
    shared, most = f"{high - own:,}", f"{7 * own + high - own:,}"
    assert f"and {shared} that all share; at most about {most} in all." in shown, "what is trained once counts once"


def test_a_search_that_ends_by_tokens(tmp_path: Path, counted: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(HEADER + SEARCH.replace("n_trials: 7", "max_tokens: 100000"))
    assert "trials until its time or tokens are used" in check(path, counted).output


def test_early_stopping_of_several_objectives_says_what_it_compares(tmp_path: Path, counted: Path) -> None:
    path = tmp_path / "words.yaml"
    both = SEARCH.replace("n_trials: 7", "n_trials: 7\n      objectives: [perplexity, sparsity]")
    for stop, expected in (("median", True), ("{method: threshold, options: {upper: 500}}", False)):
        path.write_text(f"early_stop: {stop}\n{HEADER}{both}")
        shown = check(path, counted).output
        assert ("compares perplexity alone, so trials that are better in the other objectives" in shown) is expected
        assert "evaluated up to" in shown
    path.write_text(f"early_stop: median\n{HEADER}{SEARCH}")
    assert "alone, so trials" not in check(path, counted).output


def refusal(path: Path, root: Path) -> str:
    done = check(path, root)
    assert isinstance(done.exception, SpecError), done.output
    return str(done.exception)


def test_what_is_counted_and_what_is_not_are_told_in_one_run(tmp_path: Path, counted: Path) -> None:
    path = tmp_path / "words.yaml"
    late = "{sparsity: 0.5, unit: steps, end: 13}"
    path.write_text(
        HEADER
        + "  - {name: sound}\n"
        + f"  - {{name: counted, stages: [{{finetune: {{train: {{num_train_epochs: 1}}, prune: {late}}}}}]}}\n"
        + "  - {name: known, stages: [{finetune: {prune: {sparsity: 0.5, clock: sparseml}}}]}\n"
    )
    told = refusal(path, counted).splitlines()
    assert "line 7: " in told[1]
    assert "its end is step 13 and the stage has 13 steps" in told[1]
    assert "line 8: " in told[2]
    assert "clock sparseml needs the epoch of its last update" in told[2]


def test_a_search_none_of_whose_trials_can_run_is_refused(tmp_path: Path, counted: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(
        HEADER
        + """\
  - name: "found-{number}"
    train: {max_steps: 13}
    stages: [{finetune: {prune: {sparsity: 0.5, end: 1.5}}}]
    search: {space: {train.learning_rate: {values: [0.001, 0.01]}}, n_trials: 2}
"""
    )
    told = refusal(path, counted)
    assert "pruning must end before training does" in told
    assert_run_refuses(path, told, counted, tmp_path)


def test_files_that_are_there_are_counted_whatever_is_declared(tmp_path: Path, counted: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text("In the beginning was the word. " * 200)
    path = tmp_path / "words.yaml"
    stage = "{finetune: {train: {num_train_epochs: 1}, prune: {sparsity: 0.5, unit: steps, end: 12}}}"
    path.write_text(
        HEADER.replace('path: "builtin:text"', f"files: {{train: {text}, validation: {text}}}")
        + f"  - {{name: few, stages: [{stage}]}}\n"
    )
    told = refusal(path, counted)
    assert "its end is step 12 and the stage has" in told
    assert "13 steps" not in told  # of the 100 blocks that are declared


def test_trials_that_another_spec_of_the_name_would_hide_are_named(tmp_path: Path, counted: Path) -> None:
    path, other = tmp_path / "words.yaml", tmp_path / "other.yaml"
    path.write_text(HEADER + "  - {name: one}\n  - {name: two}\n")
    other.write_text(HEADER + "  - {name: two}\n")
    root = Root(shutil.copytree(counted, tmp_path / "runs"))
    with Store.open(root) as store:
        store.save_sweep(plan_file(path, root=root))
    assert "not in the spec" not in check(path, root.path).output
    told = check(other, root.path).output
    assert f"not in the spec: 1 trial of the sweep (one); they came from another spec of its name, {path}" in told
    assert json.loads(check(other, root.path, "--json").output)["not_in_the_spec"] == ["one"]


def test_the_column_that_is_taken_for_the_text_is_named_or_refused(tmp_path: Path) -> None:
    spec = tmp_path / "words.yaml"
    text = tmp_path / "train.jsonl"
    spec.write_text(
        HEADER.replace("builtin:text", str(text)) + "  - {name: t, evaluate: {skip: true}, stages: [finetune]}\n"
    )
    text.write_text("".join(json.dumps({"body": "all the words of one row " * 9}) + "\n" for _ in range(200)))
    found = json.loads(check(spec, tmp_path / "root", "--json").stdout)
    assert found["notes"] == [f"the text of {text} is its column body. Set text_column to it, or to another."]
    text.write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    assert "For chat messages set messages to their column" in refusal(spec, tmp_path / "root")
    text.write_text('{"id": "doc-0", "tokens": ["a", "b"]}\n')
    assert "has 1 columns of strings (id), beside the lists or mappings tokens" in refusal(spec, tmp_path / "root")
