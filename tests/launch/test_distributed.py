"""Several processes that train one trial come to what one process comes to, and end as one."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunegpt.errors import LaunchError
from prunegpt.launch.distributed import environment, run_together
from prunegpt.planning.resolve import plan_data
from prunegpt.points import read_points
from prunegpt.records import AttemptRecord
from prunegpt.root import Root
from prunegpt.trial import run_trial
from tests.support.running import write_attempt
from tests.support.together import check_alike, result_of
from tests.support.waiting import until

GRADUAL = {"sparsity": 0.75, "unit": "steps", "start": 1, "end": 6, "every": 1}
HERE = Path(__file__).parent
PATIENCE = 120.0


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model without dropout: each process draws its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from prunegpt.lm.models import save_model
    from prunegpt.lm.tokenizers import load_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(LlamaForCausalLM(config), load_tokenizer("builtin:tiny-gpt2"), folder)
    return folder


Prepare = Callable[..., dict[str, Path]]


@pytest.fixture
def prepare(tmp_path: Path, model_folder: Path, text_files: dict[str, str]) -> Prepare:
    """Makes the attempt folders of a fine-tuned and pruned teacher and a pruned student under a root of that name."""

    def make(root_name: str, **train: Any) -> dict[str, Path]:
        arguments = {
            "num_train_epochs": 1,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 0.003,
            "logging_steps": 1,
            "optim": "sgd",
            **train,
        }
        base = {
            "model": str(model_folder),
            "data": {"files": text_files, "block_size": 32, "max_train_blocks": 67},
            "evaluate": {"max_windows": 4},
            "train": arguments,
        }
        trials = [
            {"name": "teacher", "stages": [{"finetune": {"prune": GRADUAL}}]},
            {"name": "student", "stages": [{"distill": {"teacher": "teacher", "prune": {**GRADUAL, "sparsity": 0.5}}}]},
        ]
        few = {"teacher": "teacher", "adapter": {"rank": 4}, "on_policy": {"share": 0.5, "new_tokens": 6}}
        trials.append({"name": "few", "stages": [{"prune": {"sparsity": 0.5}}, {"distill": few}]})
        root = Root(tmp_path / root_name)
        folders = {}
        for trial in plan_data({"name": "small", "base": base, "trials": trials}, root=root).trials:
            folders[trial.name] = write_attempt(root, trial)
        return folders

    return make


def curves(folder: Path) -> dict[tuple[str, int], tuple[float | None, int]]:
    points, _ = read_points(folder / "points.jsonl")
    own = [point for point in points if not point.name.startswith("system/")]
    return {(point.name, point.step): (point.value, point.tokens) for point in own}


@pytest.mark.slow
def test_two_processes_come_to_what_one_comes_to(prepare: Prepare) -> None:
    """Pruned while it is trained, and distilled, also by an adapter on text of its own; an epoch of 67 rows ends in the
    middle of a step.
    """
    one, two = (prepare(name, eval_strategy="steps", eval_steps=4) for name in ("one", "two"))
    for name in ("teacher", "student", "few"):
        alone, together = run_trial(one[name]), run_together(two[name], 2)
        assert (alone.state, together.state) == ("finished", "finished"), together.trace
        first, second = alone.stages[-1], together.stages[-1]
        check_alike((one[name], alone), (two[name], together))
        assert first.steps == 9
        assert first.train_tokens == 67 * 32 if name != "few" else first.train_tokens <= (67 - 32) * 32 + 32 * 6
        assert (first.devices, second.devices) == (1, 2)
        points, other_points = curves(one[name]), curves(two[name])
        assert points.keys() == other_points.keys()
        moving = ("kd_own", 8) if name == "few" else ("sparsity", 5)
        assert {("loss", 9), ("ce", 9), ("perplexity", 4), moving} <= points.keys()
        for point, (value, tokens) in points.items():
            assert other_points[point] == (pytest.approx(value, rel=1e-3, abs=1e-6), tokens), point
        assert sorted(path.name for path in two[name].glob("record*")) == ["record-1.json", "record.json"]


@pytest.mark.slow
def test_a_stopped_pair_goes_on_from_its_checkpoint_with_one_process(prepare: Prepare) -> None:
    undisturbed, folders = prepare("one", max_steps=200), prepare("two", max_steps=200)
    alone = run_trial(undisturbed["teacher"])
    folder = folders["teacher"]
    process = subprocess.Popen([sys.executable, "-m", "prunegpt", "trial", "run", "--processes", "2", str(folder)])
    until(lambda: (folder / "points.jsonl").exists() and len(curves(folder)) > 40, "the fortieth step")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 1
    stopped = AttemptRecord.read(folder / "record.json")
    assert (stopped.state, stopped.reason) == ("stopped", "stopped")
    work = Root(folder.parents[3]).work(alone.stages[-1].key)
    (checkpoint,) = work.glob("checkpoint-*")
    files = {path.name for path in checkpoint.iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "prunegpt.json", "masks.safetensors"} <= files
    second = folder.with_name("attempt-2")
    second.mkdir()
    (second / "trial.json").write_text((folder / "trial.json").read_text())
    resumed = run_trial(second)
    assert resumed.state == "finished", resumed.trace
    assert resumed.stages[-1].sparsity == alone.stages[-1].sparsity
    assert resumed.stages[-1].train_tokens == alone.stages[-1].train_tokens
    for tensor, weight in result_of(undisturbed["teacher"], alone)[0].items():
        torch.testing.assert_close(result_of(second, resumed)[0][tensor], weight, rtol=1e-4, atol=1e-6)


@pytest.fixture
def fake(tmp_path: Path) -> Callable[[str], Path]:
    """The folder of an attempt whose processes do as told; `rank`, `leave` and `folder` are there for them."""

    def make(do: str) -> Path:
        folder = tmp_path / "runs" / "trials" / "sweep" / "trial" / "attempt-3"
        folder.mkdir(parents=True)
        (folder / "do.txt").write_text(do)
        return folder

    return make


COMMAND = (sys.executable, str(HERE / "fake_rank.py"))


def test_processes_know_each_other(fake: Callable[[str], Path]) -> None:
    folder = fake("(folder / f'saw-{rank}').write_text(os.environ['WORLD_SIZE'])\nleave('finished')")
    assert run_together(folder, 3, COMMAND).state == "finished"
    assert sorted(path.name for path in folder.glob("saw-*")) == ["saw-0", "saw-1", "saw-2"]
    assert {path.read_text() for path in folder.glob("saw-*")} == {"3"}


def test_the_first_failure_is_the_reason(fake: Callable[[str], Path]) -> None:
    folder = fake(
        "if rank == 1: leave('failed', 'out-of-memory', 'no room on process 1'); sys.exit(1)\n"
        "while not (folder / 'record-1.json').exists(): time.sleep(0.01)\n"
        "leave('failed', 'exception', 'connection closed by peer'); sys.exit(1)"
    )
    record = run_together(folder, 2, COMMAND)
    assert (record.state, record.reason, record.error) == ("failed", "out-of-memory", "no room on process 1")
    assert AttemptRecord.read(folder / "record.json") == record


def test_a_killed_process_ends_the_others(fake: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunegpt.launch.distributed.ALONE", 0.5)
    folder = fake("if rank == 1: os.kill(os.getpid(), 9)\ntime.sleep(600)")
    record = run_together(folder, 2, COMMAND)
    assert (record.state, record.reason, record.attempt) == ("failed", "signal", 3)
    assert record.error == "process 1 of 2 was killed by signal SIGKILL."


def test_an_aborted_process_is_no_reason_where_another_says_why(fake: Callable[[str], Path]) -> None:
    folder = fake("if rank == 0: os.abort()\nleave('failed', 'exception', 'this is why')\nsys.exit(1)")
    assert run_together(folder, 2, COMMAND).error == "this is why"


def test_no_record_is_told(fake: Callable[[str], Path]) -> None:
    with pytest.raises(LaunchError, match="its 2 processes ended with exit codes 0, 0 and left none"):
        run_together(fake("pass"), 2, COMMAND)


def test_processes_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert environment(1, 2, 99)["OMP_NUM_THREADS"] == "4"
    assert environment(1, 16, 99)["OMP_NUM_THREADS"] == "1"
    found = environment(1, 2, 99)
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"], found["MASTER_PORT"]) == ("1", "1", "2", "99")
