"""Scale: what the study costs on paper, and 10,000 trials through the coordinator with a fake launcher and clock.

    python -m tests.bench.scale                  # both, within a minute or so
    python -m tests.bench.scale --trials 2000    # another number of trials
    python -m tests.bench.scale --update docs/results/scaling.md   # between its markers

On paper: tokens are what `sweep check` counts; a token costs 6 operations a weight that it meets in training, 2 in the
teacher, and 12 · layers · width · length in attention; a card does its bf16 peak times the share that is assumed.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

from prunegpt.launch.base import Exited
from prunegpt.planning.resolve import plan_file
from prunegpt.root import Root
from prunegpt.stages.counting import Counting
from prunegpt.store import Store
from prunegpt.sweep import coordinator
from tests.bench.region import replaced
from tests.bench.study import SPECS, TABLES, tokens
from tests.support import fake_worker
from tests.support.sweep_plans import make_plan, make_trial

PEAK = 989e12  # bf16 operations a second of an H100, dense
SHARE = 0.40  # of the peak that training is assumed to reach
CARD = 80e9  # bytes
STATE = 16  # bytes a weight: float32 weight, gradient and two moments


@dataclass(frozen=True)
class Shape:
    """A model, as far as its costs go."""

    name: str
    weights: float
    layers: int
    width: int
    length: int = 1024

    @property
    def training(self) -> float:
        """Operations a token of a training step."""
        return 6 * self.weights + 12 * self.layers * self.width * self.length


GPT2 = Shape("GPT-2 small", 124e6, 12, 768)
SEVEN = Shape("a 7 B model", 6.7e9, 32, 4096)


@dataclass(frozen=True)
class Simulated:
    """A run of a sweep that computes nothing."""

    trials: int
    done: int  # of them, when the time was over
    seconds: float  # of the coordinator on the processor; the fake workers' own are taken off
    database: float  # MB

    @property
    def a_trial(self) -> float:
        """Milliseconds."""
        return self.seconds / max(self.done, 1) * 1e3


def hours(shape: Shape, count: float, *, cards: int, teacher: float = 0.0) -> float:
    """Hours that training on so many tokens takes.

    Args:
        teacher: share of the tokens that a teacher of the same size sees too.
    """
    operations = count * (shape.training + teacher * shape.training / 3)
    return operations / (cards * PEAK * SHARE) / 3600


def on_paper() -> list[str]:
    """The cost of the study, with what is assumed, as lines of text. The same wherever it is computed."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        root = Root(Path(folder))
        plans = [plan_file(SPECS / f"{name}.yaml", root=root) for name in TABLES]
        together, alone = tokens(plans, root)
        trials = [trial for plan in plans for trial in plan.trials]
        distilled = [[stage for stage in trial.stages if stage.teacher] for trial in trials]
        taught = [
            trial.model_copy(update={"stages": tuple(kept)}) for trial, kept in zip(trials, distilled, strict=True)
        ]
        share = (Counting(root).costs(taught).train_tokens or 0) / together
    lines = [
        f"The study: {together / 1e9:.2f} billion tokens to train as one plan, {sum(alone) / 1e9:.2f} from scratch.",
        f"Assumed: an H100 ({PEAK / 1e12:.0f} Tflop/s in bf16) at {SHARE:.0%} of its peak; {share:.0%} of the tokens "
        f"pass a teacher of the student's size too; evaluation is left out.",
    ]
    for shape, cards in ((GPT2, 1), (SEVEN, 8)):
        state = shape.weights * STATE
        fits = "fits each card" if state < 0.8 * CARD else "does not fit a card beside a copy each, it must be sharded"
        lines.append(
            f"{shape.name} on {cards}: {hours(shape, together, cards=cards, teacher=share):,.0f} hours; weights, "
            f"gradients and moments are {state / 1e9:.0f} GB, which {fits}."
        )
    return lines


def grows() -> list[str]:
    """How cost scales, in words."""
    return [
        "With trials grow tokens and time, less what stages share; models on disk, one per stage; coordinating.",
        "With layers grow training and one-shot solving, linearly; solving holds one layer's statistics, masks one bit "
        "per weight.",
        "With the vocabulary grow the output layer's products, but not the memory of the losses: they run in chunks.",
        "With nodes nothing grows: trials run side by side without talking. A trial on several cards exchanges its "
        "gradients every step.",
    ]


def simulate(trials: int, *, slots: int = 64, sharing: int = 10, limit: float = 50.0) -> Simulated:
    """Runs so many trials through the coordinator with workers that publish at once and a clock that jumps.

    Args:
        sharing: trials that share their first stage of training.
        limit: seconds, by the clock on the wall, after which it is ended.
    """
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a disk's own speed is not what is looked for
    with tempfile.TemporaryDirectory(dir=shared) as folder, _Clock() as clock:
        root = Root(Path(folder))
        plan = make_plan(*(make_trial(f"t{index}", f"load ft{index // sharing} p{index}") for index in range(trials)))
        launcher = _Instant(clock, slots, time.perf_counter() + limit)
        started, done = time.process_time(), 0
        with Store.open(root) as store:
            try:
                done = len(coordinator.run_sweep(plan, root, store, launcher).finished)
                if done != trials:
                    raise AssertionError(f"all {trials} trials must finish, but {done} did.")
            except _TooLong:
                done = launcher.ended
        seconds = time.process_time() - started - launcher.working
        size = sum(path.stat().st_size for path in root.path.glob(root.database.name + "*"))
        return Simulated(trials, done, seconds, size / 1e6)


class _TooLong(Exception):
    """The time that a simulation may take is over."""


class _Clock:
    """Stands for the coordinator's `time`: to sleep is to jump to the next end of an attempt."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ends: dict[str, float] = {}

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now = max(self.now + seconds, min(self.ends.values(), default=0.0))

    @contextmanager
    def _patched(self) -> Iterator[None]:
        with patch.object(coordinator, "time", self):
            yield

    def __enter__(self) -> "_Clock":
        self._patch = self._patched()
        self._patch.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._patch.__exit__(None, None, None)


class _Instant:
    """A launcher whose attempts do their work when submitted, and end when the clock says so."""

    def __init__(self, clock: _Clock, slots: int, deadline: float) -> None:
        self.slots = slots
        self.working = 0.0  # seconds that the fake workers took themselves
        self._clock = clock
        self._deadline = deadline
        self._count = 0
        self.ended = 0

    def submit(self, folder: Path) -> str:
        if time.perf_counter() > self._deadline:
            raise _TooLong
        started = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            fake_worker.Fake(folder).run()
        self.working += time.process_time() - started
        self._count += 1
        handle = str(self._count)
        self._clock.ends[handle] = self._clock.now + 600 + self._count % 97  # seconds of a trial
        return handle

    def poll(self, handle: str) -> Exited | None:
        if self._clock.ends.get(handle, 0.0) > self._clock.now:
            return None
        self.ended += self._clock.ends.pop(handle, None) is not None
        return Exited("ended", 0)

    def cancel(self, handle: str, *, kill: bool = False) -> None:
        """Nothing can be cancelled that has ended."""

    def close(self) -> None:
        """There is nothing to give back."""


def told(count: int, found: Simulated) -> str:
    done = "" if found.done == found.trials else f", of which {found.done:,} were done when the time was over"
    return (
        f"{count:,} trials through the coordinator, 64 at a time{done}: {found.a_trial:.1f} ms of CPU per "
        f"trial; the database has {found.database:.1f} MB."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--limit", type=float, default=50.0, help="seconds for each simulated run")
    parser.add_argument("--json", action="store_true", help="the simulation alone, as JSON")
    parser.add_argument("--update", type=Path, metavar="FILE", help="write it all into this file")
    arguments = parser.parse_args()
    counts = (arguments.trials // 10, arguments.trials)
    simulated = {count: simulate(count, limit=arguments.limit) for count in counts}
    if arguments.json:
        for found in simulated.values():
            print(json.dumps({**asdict(found), "ms_a_trial": found.a_trial}))
        return
    lines = [*on_paper(), *grows(), *(told(count, found) for count, found in simulated.items())]
    if arguments.update:
        text = arguments.update.read_text(encoding="utf-8")
        body = "".join(f"- {line}\n" for line in lines)
        arguments.update.write_text(replaced(text, "scale", body), encoding="utf-8")
    else:
        print(*lines, sep="\n")


if __name__ == "__main__":
    main()
