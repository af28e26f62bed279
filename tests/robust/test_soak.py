"""Long runs: nothing grows with the number of trials but the database."""

from pathlib import Path

import pytest

from prunegpt.root import Root
from tests.robust.soak import Process, soak

KILOBYTES_A_TRIAL = 30.0  # of resident memory; 3 MiB every 100 trials
HANDLES_A_TRIAL = 0.01


def test_a_leak_would_be_seen() -> None:
    trials = list(range(100))
    leaky = Process("leaky", 0, trials, [1000 + 50 * i for i in trials], [10 + i // 10 for i in trials])
    memory, handles = leaky.growth()
    assert memory == pytest.approx(50)
    assert handles == pytest.approx(0.1, rel=0.1)
    flat = Process("flat", 0, trials, [*range(30), *[1000] * 70], [5] * 100)
    assert flat.growth() == pytest.approx((0, 0), abs=1e-6)


@pytest.mark.slow
def test_memory_and_handles_stay_flat_while_trials_come_and_go(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    if not Path("/proc/self/status").exists():
        pytest.skip("memory of processes is read from /proc")
    outcome = soak(Root(tmp_path / "runs"), seconds=110, trials=400)
    print("\n".join(outcome.lines()))
    assert outcome.trials > 50
    assert {process.name for process in outcome.processes} == {"coordinator", "worker", "dashboard"}
    for process in outcome.processes:
        memory, handles = process.growth()
        assert len(process.trials) > 10, process.name
        assert memory < KILOBYTES_A_TRIAL, process.name
        assert handles < HANDLES_A_TRIAL, process.name
    assert outcome.database < 20_000 * outcome.trials  # bytes a trial of ten points, and what SQLite keeps ready
