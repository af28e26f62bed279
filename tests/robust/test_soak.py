"""Long runs: nothing grows with the number of trials but the database."""

from pathlib import Path

import pytest

from prunegpt.root import Root
from tests.robust.soak import Outcome, Process, soak


def test_a_leak_would_be_seen() -> None:
    trials = list(range(100))
    leaky = Process("leaky", 0, trials, [1000 + 50 * i for i in trials], [10 + i // 10 for i in trials])
    memory, handles = leaky.growth()
    assert memory == pytest.approx(50)
    assert handles == pytest.approx(0.1, rel=0.1)
    told = "\n".join(Outcome(100, 1.0, 3_000_000, (leaky, Process("worker", 0))).problems())
    for part in ("no worker was seen", "50 KiB a trial", "0.10 files a trial", "30,000 bytes a trial"):
        assert part in told
    flat = Process("flat", 0, trials, [*range(30), *[1000] * 70], [5] * 100)
    assert flat.growth() == pytest.approx((0, 0), abs=1e-6)
    assert not Outcome(100, 1.0, 1_000_000, (flat,)).problems()


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True], ids=["nothing", "training"])
def test_memory_and_handles_stay_flat_while_trials_come_and_go(real: bool, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    if not Path("/proc/self/status").exists():
        pytest.skip("memory of processes is read from /proc")
    outcome = soak(Root(tmp_path / "runs"), seconds=110, trials=400, real=real)
    print("\n".join(outcome.lines()))
    assert outcome.trials > 50
    assert {process.name for process in outcome.processes} == {"coordinator", "worker", "dashboard"}
    assert not outcome.problems()
