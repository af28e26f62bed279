"""No row of a run is lost and none is doubled, whatever dies: random schedules with the real client.

PRUNEGPT_SCHEDULES=50 runs that many of them, some 25 s each.
"""

import os
from pathlib import Path

import pytest

from tests.tracking.schedules import Schedule

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(int(os.environ.get("PRUNEGPT_SCHEDULES", "4"))))
def test_what_clients_have_written_is_at_the_server_once(seed: int, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the W&B client")
    pytest.importorskip("psutil", reason="kills what clients have started")
    schedule = Schedule(tmp_path, seed)
    try:
        schedule.run(5)
    finally:
        schedule.close()
    written, kept = schedule.written(), schedule.kept()
    assert set(written.values()) <= {1}, schedule.done
    assert set(kept.values()) == {1}, schedule.done
    assert kept.keys() >= written.keys(), schedule.done
    assert set(kept) <= set(range(schedule.rows)), "a killed client may have sent what it has not written, and no more"
