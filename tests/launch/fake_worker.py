"""A worker for launcher tests. What an attempt does stands in its folder, in `do.txt`, as words of Python's own.

Without an argument it serves one attempt after another; with a folder it runs that attempt alone.
"""

import os
import sys
import time
from pathlib import Path

from prunegpt.launch.worker import die_with_parent, serve_attempts


def run(folder: Path) -> str:
    scope = {"folder": folder, "os": os, "sys": sys, "time": time, "state": "finished"}
    exec((folder / "do.txt").read_text(), scope)
    return str(scope["state"])


if __name__ == "__main__":
    if sys.argv[1:]:
        die_with_parent()
        sys.exit(run(Path(sys.argv[1])) != "finished")
    print("a worker that begins", file=sys.stderr, flush=True)
    serve_attempts(run)
