"""What a trial costs beyond its work: a model of 60,000 weights is loaded, pruned by magnitude, measured and kept.

Beside it stand a process a trial under Optuna (`plain_trial.py`, its study on SQLite), and `wandb agent` against a
server on the loopback, which runs the same script. Ours runs in warm workers, so what counts is from the end of one
trial to the end of the next; starting the first worker is told apart.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna

from prunegpt.launch.local import LocalLauncher
from prunegpt.planning.resolve import plan_data
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep
from prunegpt.sweep.events import Event, TrialFinished
from tests.bench.harness import Ratio, Settings, environment
from tests.bench.rows import Row
from tests.bench.wandb_server import SWEEP, serving

HERE = Path(__file__).parent


def measure(settings: Settings) -> Iterator[Row]:
    model, text = material(settings.work)
    count = settings.pick(20, 3)
    ours, start = _ours(settings, model, text, count)
    what = "Trial overhead, trivial stage"
    figures = {"seconds a trial": statistics.median(ours), "seconds to start a worker": start}
    others = {
        "trial-overhead-optuna": ("Optuna with a process a trial", _optuna(settings, model, text, settings.pick(5, 1))),
        "trial-overhead-wandb": ("`wandb agent`", _wandb(settings, model, text, settings.pick(4, 1))),
    }
    for name, (beside, theirs) in others.items():
        middle = statistics.median(theirs)
        yield Row.of(
            name,
            what,
            beside,
            Ratio(tuple(each / middle for each in ours)),
            wanted=0.1,
            figures={**figures, "seconds of theirs": middle},
        )


def material(work: Path) -> tuple[Path, Path]:
    """A tiny model as an ordinary transformers folder, and a little text."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from prunegpt.builtin.text import rows
    from prunegpt.lm.models import save_model
    from prunegpt.lm.tokenizers import load_tokenizer

    torch.manual_seed(0)
    shape = {"vocab_size": 1024, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    save_model(model, load_tokenizer("builtin:tiny-gpt2"), work / "model")
    text = work / "validation.txt"
    text.write_text("".join(rows("validation"))[:4000], encoding="utf-8")
    return work / "model", text


def _sparsities(count: int) -> list[float]:
    return [round(0.1 + 0.8 * index / count, 4) for index in range(count)]


def _ours(settings: Settings, model: Path, text: Path, count: int) -> tuple[list[float], float]:
    """Seconds from the end of one trial to the end of the next, and to the end of the first."""
    spec: dict[str, Any] = {
        "name": "overhead",
        "base": {
            "model": {"source": str(model), "label": "tiny"},
            "data": {"files": {"validation": str(text)}, "block_size": 32},
        },
        "trials": [
            {
                "name": "pruned-{sparsity}",
                "stages": [{"prune": {"method": "magnitude", "sparsity": 0.5}}],
                "vary": {"stages.0.prune.sparsity": _sparsities(count + 1)},
            }
        ],
    }
    root = Root(settings.work / "runs")
    plan = plan_data(spec, root=root)
    ends: list[float] = []

    def hear(event: Event) -> None:
        if isinstance(event, TrialFinished):
            ends.append(time.perf_counter())

    started = time.perf_counter()
    with Store.open(root) as store:
        outcome = run_sweep(plan, root, store, LocalLauncher(root, 1), on_event=hear)
    if not outcome.ok:
        raise RuntimeError(f"every trial must finish; {outcome.failed} did not.")
    return [after - before for before, after in pairwise(ends)], ends[0] - started


def _optuna(settings: Settings, model: Path, text: Path, count: int) -> list[float]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{settings.work}/optuna.db",
        sampler=optuna.samplers.GridSampler({"sparsity": _sparsities(count + 1)}),
    )
    seconds: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        sparsity = trial.suggest_float("sparsity", 0.0, 1.0)
        script = [sys.executable, str(HERE / "plain_trial.py"), str(model), str(text), "--sparsity", str(sparsity)]
        done = subprocess.run(script, check=True, capture_output=True, text=True, env=environment(settings.threads))
        return float(done.stdout.splitlines()[-1])

    for _ in range(count + 1):
        started = time.perf_counter()
        study.optimize(objective, n_trials=1)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]  # the first one reads files from disk


def _wandb(settings: Settings, model: Path, text: Path, count: int) -> list[float]:
    """Seconds from one run's start to the next one's."""
    home = settings.work / "home"
    home.mkdir(exist_ok=True)
    config = (
        f"method: grid\nprogram: {HERE / 'plain_trial.py'}\n"
        f"command: ['{sys.executable}', '${{program}}', '{model}', '{text}', '${{args}}']\n"
        f"parameters: {{sparsity: {{values: {_sparsities(count)}}}}}\n"
    )
    with serving(config, str(HERE / "plain_trial.py"), [{"sparsity": value} for value in _sparsities(count)]) as (
        address,
        sweep,
    ):
        own = {
            "HOME": str(home), "WANDB_BASE_URL": address, "WANDB_API_KEY": "x" * 40, "WANDB_MODE": "offline",
            "WANDB_ERROR_REPORTING": "false", "WANDB_AGENT_DISABLE_FLAPPING": "true",
            "BENCH_RESULTS": str(settings.work / "results.txt"),
        }  # fmt: skip
        command = [sys.executable, "-m", "wandb", "agent", f"bench/bench/{SWEEP}"]
        run = subprocess.run(
            command, env={**environment(settings.threads), **own}, cwd=settings.work, capture_output=True, text=True,
            timeout=240, check=False,
        )  # fmt: skip
    results = settings.work / "results.txt"
    done = len(results.read_text().split()) if results.exists() else 0
    if run.returncode or not sweep.ended or done != count:
        raise RuntimeError(
            f"wandb agent must run {count} trials; ran {done} and ended with "
            f"{run.returncode}:\n{run.stdout[-2000:]}{run.stderr[-3000:]}"
        )
    marks = [*sweep.given, sweep.ended]
    return [after - before for before, after in pairwise(marks)]
