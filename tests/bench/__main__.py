"""Measures PruneGPT beside what people use now.

python -m tests.bench                          # all rows, on a quiet machine: results/latest.json, history.jsonl
python -m tests.bench --only startup points    # some of them
python -m tests.bench --quick --out FOLDER     # tiny shapes, to see that it works
python -m tests.bench --device cuda            # the rows that need a GPU
python -m tests.bench --peers                  # beside llm-compressor and others: installs each for itself
python -m tests.bench --check                  # fails where a row is missing, or 15 % worse than wanted or before
python -m tests.bench --model M --text FOLDER  # a real model and its text: without them, some rows are not measured
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

from tests.bench.harness import Settings, quiet
from tests.bench.history import RESULTS, Place, last_rows, write
from tests.bench.peers import PEERS
from tests.bench.peers.environments import default_folder
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
        "owncosts",
        "startup",
        "points",
        "dashboard",
    )
}
ON_CUDA = {"gpu": "tests.bench.gpu"}
EVERY = {**BENCHMARKS, **ON_CUDA, **PEERS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(EVERY), help="these alone")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, one round")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="of torch and of what is beside it; all cores where left out")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall", help="processor: on a busy machine")
    parser.add_argument("--out", type=Path, help="folder of latest.json and history.jsonl")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a real model, for the rows that need one")
    parser.add_argument("--text", type=Path, metavar="FOLDER", help="validation.txt and test.txt to go with it")
    parser.add_argument("--peers", action="store_true", help="the rows beside tools that have to be installed")
    parser.add_argument(
        "--environments", type=Path, metavar="FOLDER", default=default_folder(), help="where peers are installed"
    )
    parser.add_argument("--machine", default="", help="what to call this machine (default: its processor)")
    parser.add_argument("--check", action="store_true", help="fail where a figure is worse than wanted or than before")
    arguments = parser.parse_args()
    if arguments.quick and arguments.out is None:
        parser.error("quick figures mean nothing, so they need an --out of their own.")
    for name, needed in (("model", "config.json"), ("text", "validation.txt"), ("text", "test.txt")):
        given: Path | None = getattr(arguments, name)
        if given is not None and not (given / needed).is_file():
            parser.error(f"--{name} must be a folder with {needed}, got {given}.")
    is_of_peers = arguments.only is not None and set(arguments.only) <= set(PEERS)
    kind = "cuda" if arguments.device == "cuda" else "peers" if arguments.peers or is_of_peers else ""
    out = arguments.out or RESULTS / kind
    threads = arguments.threads or len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported, and for processes that are started

    quiet()

    chosen = {"cuda": ON_CUDA, "peers": PEERS}.get(kind, BENCHMARKS)
    names = arguments.only or list(chosen)
    rows: list[Row] = []
    failed = []
    with tempfile.TemporaryDirectory(prefix="prunegpt-bench-") as work:
        for name in names:
            folder = Path(work, name)
            folder.mkdir()
            settings = Settings(
                arguments.quick, arguments.device, threads, arguments.clock, folder, arguments.model, arguments.text,
                arguments.environments,
            )  # fmt: skip
            started = time.perf_counter()
            print(f"{name} …", flush=True)
            try:
                module, *way = EVERY[name].split(":", maxsplit=1)
                for row in import_module(module).measure(settings, *way):
                    print(f"  {described(row)}", flush=True)
                    rows.append(row)
            except Exception:
                traceback.print_exc()
                failed.append(name)
            print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)
        place = Place.here(settings, arguments.machine)
    before = last_rows(place, out)
    if any(not row.skipped for row in rows):
        write(rows, place, out)
    problems = [problem for row in rows for problem in row.problems(before.get(row.name))]
    for problem in problems:
        print(f"worse: {problem}", file=sys.stderr)
    print(summary(rows))
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed or (arguments.check and problems) else 0


def summary(rows: Sequence[Row]) -> str:
    """How many rows are met, and which are not: what was not measured is not met."""
    asked = [row for row in rows if row.is_met is not None]
    short = ", ".join(f"{row.name} ({row.verdict})" for row in asked if not row.is_met)
    met = sum(row.is_met is True for row in asked)
    return f"{met} of {len(asked)} rows are met" + (f"; not: {short}" if short else "")


def described(row: Row) -> str:
    """A row on a line, and what it was made of."""
    if row.skipped:
        return f"{row.name}: not measured: {row.skipped}"
    wanted = "" if row.wanted is None else f", wanted {'≤' if row.better == 'lower' else '≥'} {row.wanted:g}"
    made = "; ".join(f"{name} {value:.4g}" for name, value in row.figures.items())
    return f"{row.name}: {row.shown} [{row.low:.3g}, {row.high:.3g}]{wanted}: {row.verdict}. {made}"


if __name__ == "__main__":
    sys.exit(main())
