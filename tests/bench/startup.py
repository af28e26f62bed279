"""What a user waits for: `prunegpt --help` and `prunegpt sweep status`, each a process of its own, without torch."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from prunegpt.root import Root
from prunegpt.store import Store
from tests.bench.harness import Settings, environment
from tests.bench.rows import Row
from tests.support.sweep_plans import make_plan, make_trial

TRIALS = 50


def measure(settings: Settings) -> Iterator[Row]:
    root = Root(settings.work / "runs")
    with Store.open(root) as store:
        store.save_sweep(make_plan(*(make_trial(f"t{index}", f"load ft p{index}") for index in range(TRIALS))))
    status = ["sweep", "status", "words", "--root", str(root.path)]
    bare = _seconds(settings, ["-c", "pass"])
    for name, what, arguments, wanted in (
        ("help", "`prunegpt --help`", ["--help"], 0.3),
        ("status", f"`prunegpt sweep status`, {TRIALS} trials", status, 0.5),
    ):
        _check_imports(settings, arguments)
        taken = _seconds(settings, ["-m", "prunegpt", *arguments])
        quartiles = statistics.quantiles(taken, n=4, method="inclusive")
        yield Row(
            f"startup-{name}", what, "", statistics.median(taken), quartiles[0], quartiles[2], len(taken),
            wanted=wanted, unit="s", figures={"seconds of an empty Python": statistics.median(bare)},
        )  # fmt: skip


def _seconds(settings: Settings, arguments: list[str]) -> list[float]:
    taken = []
    for _ in range(settings.pick(9, 3) + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment(settings.threads))
        taken.append(time.perf_counter() - started)
    return taken[1:]  # the first one reads files from disk


def _check_imports(settings: Settings, arguments: list[str]) -> None:
    """Fails where the command imports torch."""
    code = (
        "import sys\nfrom prunegpt.cli import main\nsys.argv[1:] = "
        f"{arguments!r}\ntry:\n    main()\nexcept SystemExit:\n    pass\nsys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(settings.threads))
    if run.returncode:
        raise AssertionError(f"prunegpt {' '.join(arguments)} must run without torch; it does not. {run.stderr}")
