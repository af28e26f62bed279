"""Bounded chaos: workers and the coordinator are killed at random instants; many trials; two sweeps on one root."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prunegpt.launch.local import LocalLauncher
from prunegpt.root import Root
from prunegpt.spec.execution import RETRIES, FailureSpec
from prunegpt.spec.plan import SweepPlan
from prunegpt.store import Store
from prunegpt.sweep.events import TrialFinished
from tests.support.fake_worker import COMMAND as WORKER
from tests.support.sweep_plans import make_plan, make_trial
from tests.support.waiting import ends
from tests.sweep.coordinators import start

TRIALS = 30


def plan() -> SweepPlan:
    """Baselines that several share, students of some, and chains of every length."""
    ways: dict[str, Any] = {"seconds": 0.15, "steps": 6, "checkpoint": True}
    trials = []
    for index in range(TRIALS):
        chain = f"load ft{index % 3}" + (f" p{index}" if index % 2 else "") + (f" q{index}" if index % 5 == 0 else "")
        needs = f"ft{(index + 1) % 3}" if index % 7 == 3 else ""
        trials.append(make_trial(f"t{index}", f"{chain} end{index}", needs=needs, **ways))
    policy = FailureSpec(retries=dict.fromkeys(RETRIES, 50))  # every kill is the test's own
    return make_plan(*trials).model_copy(update={"failures": policy})


def figures(store: Store) -> dict[str, Any]:
    """What tables would show."""
    return {
        result.name: (result.state, [(one.key, one.evaluation, one.sparsity) for one in result.stages])
        for result in store.results("words")
    }


def children(process: subprocess.Popen[str]) -> list[int]:
    try:
        text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    except OSError:
        return []
    return [int(pid) for pid in text.split()]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.realtime
def test_thirty_trials_under_fire_finish_once_with_the_same_figures(bench: Any, seed: int, tmp_path: Path) -> None:
    given = plan()
    undisturbed = Root(tmp_path / "undisturbed")
    process = start(undisturbed, given, slots=3)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err

    draw = random.Random(seed)
    killed: set[int] = set()
    seen: set[int] = set()
    coordinators = 0
    end = time.monotonic() + 300
    process = start(bench.root, given, slots=3)
    after = time.monotonic() + draw.uniform(2.0, 5.0)
    while process.poll() is None or process.returncode != 0:
        assert time.monotonic() < end, "it does not come to an end"
        time.sleep(draw.uniform(0.1, 0.6))
        workers = children(process)
        seen |= set(workers)
        if coordinators < 2 and time.monotonic() > after:
            process.kill()
            process.communicate()
            coordinators += 1
            process = start(bench.root, given, slots=3)
            after = time.monotonic() + draw.uniform(2.0, 5.0)
        elif workers and len(killed) < 15:
            victim = draw.choice(workers)
            killed.add(victim)
            os.kill(victim, signal.SIGKILL)
    process.communicate()
    assert coordinators == 2
    assert len(killed) >= 5

    assert bench.store.running_attempts() == []
    with Store.open(undisturbed) as other:
        assert figures(bench.store) == figures(other)
    assert Counter(bench.states().values()) == {"finished": TRIALS}
    for trial in given.trials:
        ended = [attempt.state for attempt in bench.store.attempts(f"words/{trial.name}")]
        assert ended.count("finished") == 1
        assert ended[-1] == "finished"
    published = {stage.key for trial in given.trials for stage in trial.stages}
    computed = Counter(bench.noted("computed"))  # a worker may die between publishing and saying so
    assert set(computed) <= published
    assert max(computed.values()) == 1
    assert {stage.key: stage.computations for stage in bench.store.stages()} == dict.fromkeys(published, 1)
    assert {path.name for path in bench.root.stages.iterdir() if not path.name.startswith(".")} == published
    for pid in seen:
        ends(pid)


@pytest.mark.realtime
def test_fifty_trials_on_two_warm_slots_cost_little_each(bench: Any) -> None:
    count = 50
    launcher = LocalLauncher(bench.root, 2, command=WORKER)
    started = time.monotonic()
    outcome = bench.run(*(make_trial(f"t{index}", f"load t{index}") for index in range(count)), launcher=launcher)
    overhead = (time.monotonic() - started) / count
    print(f"{overhead * 1000:.0f} ms a trial")
    assert outcome.ok
    assert len(bench.heard(TrialFinished)) == count
    assert overhead < 0.5


def test_two_sweeps_share_a_baseline_on_one_root(bench: Any) -> None:
    first = [make_trial(f"a{index}", f"load ft a{index}") for index in range(2)]
    second = [make_trial(f"b{index}", f"load ft b{index}", sweep="books") for index in range(2)]
    assert bench.run(*first, slots=2).ok
    assert bench.run(*second, slots=2, name="books").ok
    assert Counter(bench.noted("computed")) == Counter(["load", "ft", "a0", "a1", "b0", "b1"])
    uses = {stage.key: (stage.computations, stage.uses, stage.computed_by) for stage in bench.store.stages()}
    assert uses["ft"] == (1, 3, "words/a0/attempt-1")
    for result in bench.store.results("books"):
        assert [stage.cached for stage in result.stages] == [True, True, False]
