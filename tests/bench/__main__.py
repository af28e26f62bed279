"""Measures PruneGPT beside what people use now.

python -m tests.bench                          # all rows, on a quiet machine: results/latest.json, history.jsonl
python -m tests.bench --only startup points    # some of them
python -m tests.bench --quick --out FOLDER     # tiny shapes, to see that it works
python -m tests.bench --device cuda            # the rows that need a GPU
python -m tests.bench --check                  # fails where a figure is 15 % worse than wanted, or than before
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

from tests.bench.harness import Settings, quiet
from tests.bench.history import RESULTS, Place, last_rows, write
from tests.bench.rows import Row

# Name -> what measures it, in the order of the table. Those of a GPU run with --device cuda.
BENCHMARKS = {
    name: f"tests.bench.{name}"
    for name in (
        "finetuning",
        "evaluation",
        "distillation",
        "memory",
        "sparsegpt",
        "threshold",
        "quickstart",
        "study",
        "overhead",
        "startup",
        "points",
        "dashboard",
    )
}
ON_CUDA = {"gpu": "tests.bench.gpu"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*BENCHMARKS, *ON_CUDA], help="these alone")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, one round")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="of torch and of what is beside it; all cores where left out")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall", help="processor: on a busy machine")
    parser.add_argument("--out", type=Path, help="folder of latest.json and history.jsonl")
    parser.add_argument("--check", action="store_true", help="fail where a figure is worse than wanted or than before")
    arguments = parser.parse_args()
    if arguments.quick and arguments.out is None:
        parser.error("quick figures mean nothing, so they need an --out of their own.")
    out = arguments.out or (RESULTS / "cuda" if arguments.device == "cuda" else RESULTS)
    threads = arguments.threads or len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported, and for processes that are started

    quiet()

    chosen = ON_CUDA if arguments.device == "cuda" else BENCHMARKS
    names = arguments.only or list(chosen)
    rows: list[Row] = []
    failed = []
    with tempfile.TemporaryDirectory(prefix="prunegpt-bench-") as work:
        for name in names:
            folder = Path(work, name)
            folder.mkdir()
            settings = Settings(arguments.quick, arguments.device, threads, arguments.clock, folder)
            started = time.perf_counter()
            print(f"{name} …", flush=True)
            try:
                for row in import_module({**BENCHMARKS, **ON_CUDA}[name]).measure(settings):
                    print(f"  {described(row)}", flush=True)
                    rows.append(row)
            except Exception:
                traceback.print_exc()
                failed.append(name)
            print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)
        place = Place.here(settings)
    before = last_rows(place, out)
    if any(not row.skipped for row in rows):
        write(rows, place, out)
    problems = [problem for row in rows for problem in row.problems(before.get(row.name))]
    for problem in problems:
        print(f"worse: {problem}", file=sys.stderr)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed or (arguments.check and problems) else 0


def described(row: Row) -> str:
    """A row on a line, and what it was made of."""
    if row.skipped:
        return f"{row.name}: not measured: {row.skipped}"
    wanted = "" if row.wanted is None else f", wanted {'≤' if row.better == 'lower' else '≥'} {row.wanted:g}"
    made = "; ".join(f"{name} {value:.4g}" for name, value in row.figures.items())
    return f"{row.name}: {row.shown} [{row.low:.3g}, {row.high:.3g}]{wanted}: {row.verdict}. {made}"


if __name__ == "__main__":
    sys.exit(main())
