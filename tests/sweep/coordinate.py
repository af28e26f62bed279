"""Runs a plan on fake workers, as a process that a test can kill: coordinate.py PLAN.json ROOT SLOTS."""

import json
import sys
from pathlib import Path

from prunegpt.errors import PruneGPTError
from prunegpt.launch.local import LocalLauncher
from prunegpt.root import Root
from prunegpt.spec.plan import SweepPlan
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep
from tests.support.fake_worker import COMMAND

if __name__ == "__main__":
    plan = SweepPlan.model_validate_json(Path(sys.argv[1]).read_text())
    root = Root(Path(sys.argv[2]))
    try:
        with Store.open(root) as store:
            launcher = LocalLauncher(root, int(sys.argv[3]), command=COMMAND)
            outcome = run_sweep(plan, root, store, launcher, on_event=lambda event: print(event, flush=True))
    except PruneGPTError as error:
        sys.exit(str(error))
    print(json.dumps({"failed": outcome.failed, "waiting": outcome.waiting, "interrupted": outcome.interrupted}))
