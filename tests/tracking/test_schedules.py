"""No row of a run is lost and none is doubled, whatever dies: random schedules with the real client."""

from pathlib import Path

import pytest

from tests.tracking.schedules import Schedule

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(4))
def test_what_clients_have_written_is_at_the_server_once(seed: int, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the W&B client")
    pytest.importorskip("psutil", reason="kills what clients have started")
    schedule = Schedule(tmp_path, seed)
    try:
        schedule.run(4)
    finally:
        schedule.close()
    written, kept = schedule.written(), schedule.kept()
    assert written, schedule.done
    assert kept == written, schedule.done
    assert set(kept.values()) == {1}
