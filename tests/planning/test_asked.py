"""Questions of a plan to a process that knows torch."""

import json
import os
import subprocess
import sys


def test_what_a_library_prints_when_it_is_imported_is_no_answer() -> None:
    asks = "from prunegpt.planning.asked import answer; import json; print(json.dumps(answer('{\"config\": {}}')))"
    env = {**os.environ, "WANDB_MODE": "offline"}  # transformers prints that it is
    done = subprocess.run([sys.executable, "-c", asks], env=env, capture_output=True, text=True, check=True)
    assert "error" in json.loads(done.stdout)
