"""The quickstart at a share of its steps: as one sweep, or each trial alone in a root of its own under Ray Tune.

    python tune_grid.py --scale 40 --root FOLDER [--tune RESULTS]

Its last line of output has the seconds that it took, by both clocks, as JSON.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from tests.bench.quickstart import run, scaled
from tests.bench.spent import MARK, Spent
from tests.bench.study import own

parser = argparse.ArgumentParser()
parser.add_argument("--scale", type=int, required=True)
parser.add_argument("--root", type=Path, required=True)
parser.add_argument("--tune", help="where Ray Tune writes its results")
arguments = parser.parse_args()
scale, root = arguments.scale, arguments.root
spent = Spent(os.environ[MARK])


def clocks() -> dict[str, float]:
    return {"wall": time.perf_counter(), "processor": spent()}


if arguments.tune is None:
    started = clocks()
    with scaled(scale, root / "plan") as plan:
        run(plan, root / "runs")
    ended = clocks()
else:
    import ray
    from ray import tune

    class Looks(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            spent()  # while its actor is there

    def objective(config: dict[str, Any]) -> dict[str, float]:
        with scaled(scale, root / "plan") as plan:
            run(plan, root / config["trial"], only=config["trial"])
        return {"done": 1.0}

    with scaled(scale, root / "plan") as plan:
        names = own(plan)
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    started = clocks()
    results = tune.Tuner(
        objective,
        param_space={"trial": tune.grid_search(names)},
        tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=arguments.tune, callbacks=[Looks()], verbose=0),
    ).fit()
    ended = clocks()
    if results.errors:
        raise RuntimeError(f"every trial must finish; {len(results.errors)} did not: {results.errors[0]}")
print(json.dumps({name: ended[name] - started[name] for name in ended}))
