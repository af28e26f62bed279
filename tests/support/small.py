"""A model folder, text files and a spec small enough to train in a second, and ways to run the command line on them."""

import gc
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.errors import PruneGPTError
from prunegpt.planning.resolve import plan_data
from prunegpt.root import Root
from tests.support.fork_launcher import ForkLauncher
from tests.support.running import run_attempt

Run = Callable[..., subprocess.CompletedProcess[str]]
Stored = Callable[..., Path]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of two blocks with the built-in tokeniser, as an ordinary transformers folder."""
    return make_model(tmp_path_factory.mktemp("model") / "tiny", layers=2)


@pytest.fixture
def stored(model_folder: Path, tmp_path: Path) -> Stored:
    """Copies the model in a dtype; its config may say another."""

    def make(dtype: str, said: str = "") -> Path:
        import torch
        from transformers import AutoModelForCausalLM

        folder = tmp_path / f"{dtype}{said}"
        AutoModelForCausalLM.from_pretrained(model_folder, dtype=getattr(torch, dtype)).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(model_folder / name, folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, "dtype": said or dtype}), encoding="utf-8")
        return folder

    return make


@pytest.fixture
def still_model(model_folder: Path, tmp_path: Path) -> Path:
    """A model without dropout, whose training does not depend on how a batch is cut."""
    folder = tmp_path / "still"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def make_model(folder: Path, **shape: int) -> Path:
    """A random GPT-2 as a folder, with the built-in tokeniser."""
    from prunegpt.lm.models import save_model
    from prunegpt.lm.tokenizers import load_tokenizer

    save_model(small_gpt2(**shape), load_tokenizer("builtin:tiny-gpt2"), folder)
    return folder


def small_gpt2(*, layers: int, width: int = 32, positions: int = 64, seed: int = 0) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=1024,
            n_positions=positions,
            n_embd=width,
            n_layer=layers,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


@pytest.fixture(scope="session")
def text_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two small text files: split -> path."""
    from prunegpt.builtin.text import rows

    folder = tmp_path_factory.mktemp("text")
    files = {}
    for split, count in (("train", 300), ("validation", 60)):
        path = folder / f"{split}.txt"
        lines = [line for row in rows(split) for line in row.splitlines()][:count]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        files[split] = str(path)
    return files


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root for checks alone: it keeps what datasets come to."""
    return tmp_path_factory.mktemp("counted")


@pytest.fixture
def spec(model_folder: Path, text_files: dict[str, str]) -> dict[str, Any]:
    """A sweep of every kind of stage, as plain data."""
    gradual = {"sparsity": 0.8, "unit": "steps", "start": 2, "end": 6, "every": 1}
    return {
        "name": "small",
        "base": {
            "model": {"source": str(model_folder), "label": "tiny"},
            "data": {"files": text_files, "block_size": 32},
            "train": {"max_steps": 10, "per_device_train_batch_size": 4, "learning_rate": 0.003, "logging_steps": 2},
        },
        "trials": [
            {"name": "zero-shot"},
            {"name": "finetuned", "stages": ["finetune"]},
            {"name": "pruned", "stages": ["finetune", {"prune": {"sparsity": 0.5}}]},
            {"name": "gradual", "stages": [{"finetune": {"prune": gradual}}]},
            {"name": "distilled", "stages": [{"distill": {"teacher": "finetuned", "prune": gradual}}]},
        ],
        "tables": [
            {
                "title": "Small",
                "rows": ["*"],
                "columns": ["trial", "model", "sparsity", "perplexity", "distilled", "teacher", "layer"],
            }
        ],
    }


@pytest.fixture(scope="session")
def imported(model_folder: Path, text_files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """All that a trial imports is in memory, so that processes that are forked from this one need not import it."""
    data = {"files": text_files, "block_size": 32}
    train = {"max_steps": 1, "per_device_train_batch_size": 1}
    base = {"model": str(model_folder), "data": data, "train": train, "evaluate": {"max_windows": 1}}
    stages = [{"distill": {"teacher": {"model": str(model_folder)}, "prune": {"sparsity": 0.5}}}]
    root = Root(tmp_path_factory.mktemp("imported"))
    for trial in plan_data({"name": "imported", "base": base, "trials": [{"name": "a", "stages": stages}]}).trials:
        assert run_attempt(root, trial).state == "finished"


@pytest.fixture
def run(tmp_path: Path, imported: None) -> Run:
    """Runs the command line in an empty folder, with its root below it, in a fork of this process: nothing is imported.

    Attempts are forks too. What is tested of processes themselves asks for `run_program` instead.
    """

    def call(*arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        written = [tmp_path / f".{name}" for name in ("stdout", "stderr")]
        pid = os.fork()
        if pid == 0:
            try:
                gc.freeze()  # what the tests hold is not looked through at every collection
                for descriptor, file in enumerate(written, start=1):
                    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
                sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", encoding="utf-8") for descriptor in (1, 2))
                os.chdir(tmp_path)
                os.environ.update({"PRUNEGPT_ROOT": str(tmp_path / "runs"), **environment})
                _command_line(*arguments)
            finally:
                os._exit(99)
        _, status = os.waitpid(pid, 0)
        out, err = (file.read_text(encoding="utf-8") for file in written)
        return _checked(subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(status), out, err), check)

    return call


def _command_line(*arguments: str) -> NoReturn:
    """The command line, with attempts in forks, to its end."""
    import prunegpt.cli
    from prunegpt.launch import local

    local.LocalLauncher = _forks  # type: ignore[assignment,misc]
    sys.argv = ["prunegpt", *arguments]
    code: object = 0
    try:
        prunegpt.cli.main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _forks(root: Root, slots: int = 1, **_: Any) -> ForkLauncher:
    """What takes the place of `LocalLauncher`."""
    from prunegpt.trial import run_trial

    return ForkLauncher(lambda folder: run_trial(folder).state, slots)


@pytest.fixture
def forked(imported: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts of sweeps that this process runs are forks of it: nothing is imported."""
    monkeypatch.setattr("prunegpt.launch.local.LocalLauncher", _forks)


@pytest.fixture
def run_program(tmp_path: Path) -> Run:
    """Runs the command line as a program, in an empty folder, with its root below it."""

    def call(*arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "prunegpt", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PRUNEGPT_ROOT": str(tmp_path / "runs"), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        return _checked(done, check)

    return call


def _checked(done: subprocess.CompletedProcess[str], check: bool) -> subprocess.CompletedProcess[str]:
    if check and done.returncode:
        pytest.fail(f"prunegpt {' '.join(done.args)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def write_spec(path: Path, spec: dict[str, Any]) -> str:
    """JSON is YAML."""
    path.write_text(json.dumps(spec), encoding="utf-8")
    return str(path)


def status(run: Run, name: str) -> dict[str, dict[str, Any]]:
    """Trial name -> what `sweep status --json` says of it."""
    return {trial["name"]: trial for trial in json.loads(run("sweep", "status", name, "--json").stdout)["trials"]}


Invoke = Callable[..., Any]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs a command; an error meant for the user comes back as the text it is."""
    monkeypatch.setenv("PRUNEGPT_ROOT", str(tmp_path / "runs"))

    def call(*arguments: str, fails: bool = False) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if fails:
            assert result.exit_code != 0
            return str(result.exception) if isinstance(result.exception, PruneGPTError) else result.output
        assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
        return result.stdout

    return call
