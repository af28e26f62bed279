"""Trivial trials under Ray Tune with its Optuna search, one at a time, in an environment of its own.

    python tune_trials.py MODEL TEXT RESULTS --trials 10 [--reuse-actors]

Its last line of output has the time when each trial was over, in seconds by both clocks, as JSON.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune.search.optuna import OptunaSearch

sys.path.insert(0, str(Path(__file__).parents[1]))
import plain_trial
from spent import MARK, Spent

cloudpickle.register_pickle_by_value(plain_trial)  # actors do not have its folder on their path

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("text", type=Path)
parser.add_argument("results")
parser.add_argument("--trials", type=int, required=True)
parser.add_argument("--reuse-actors", action="store_true")
arguments = parser.parse_args()
model, text = arguments.model, arguments.text


class Ends(tune.Callback):
    """When each trial was over."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []
        self._spent = Spent(os.environ[MARK])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.wall.append(time.perf_counter())
        self.processor.append(self._spent())


def objective(config: dict[str, Any]) -> dict[str, float]:
    return {"perplexity": plain_trial.trial(model, text, config["sparsity"])}


ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
ends = Ends()
tune.Tuner(
    objective,
    tune_config=tune.TuneConfig(
        search_alg=OptunaSearch({"sparsity": tune.uniform(0.1, 0.9)}, metric="perplexity", mode="min", seed=0),
        num_samples=arguments.trials,
        max_concurrent_trials=1,
        reuse_actors=arguments.reuse_actors,
    ),
    run_config=tune.RunConfig(storage_path=arguments.results, callbacks=[ends], verbose=0),
).fit()
ray.shutdown()
print(json.dumps({"wall": ends.wall, "processor": ends.processor}))
