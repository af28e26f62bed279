"""What processes of a trial agree on; a single process agrees with itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prunegpt.launch.distributed import environment, free_port
from prunegpt.lm import ranks

PROGRAM = """
import json, sys, time
import torch
from pathlib import Path
from prunegpt.lm import ranks
folder = Path(sys.argv[1])
with ranks.joined():
    me = ranks.rank()
    with ranks.first_alone():
        seen = (folder / "first").exists()
        if me == 0:
            time.sleep(0.5)
            (folder / "first").touch()
    shared, turned = torch.full((3,), me > 0), torch.arange(6.0).reshape(2, 3).t() + 10 * me
    ranks.share([shared, turned])
    found = {
        "count": ranks.count(), "leads": ranks.leads(), "seen": seen,
        "agree": ranks.agree([me + 1.5, float("nan") if me else 2.0]),
        "decide": ranks.decide(me == 1), "either": ranks.either(me == 1, False),
        "total": ranks.total([me + 1.0, 10.0]),
        "shared": shared.tolist(), "turned": turned.tolist(),
        "same": ranks.alike("00ff"), "other": ranks.alike("00f" + str(me)),
    }
    ranks.wait()
(folder / f"{me}.json").write_text(json.dumps(found))
assert ranks.count() == 1
"""


def test_one_process_agrees_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks.joined(), ranks.first_alone():
        assert (ranks.rank(), ranks.count(), ranks.leads()) == (0, 1, True)
        assert ranks.agree([1.5, 2.0]) == [1.5, 2.0]
        assert ranks.decide(True)
        assert ranks.either(True, False) == (True, False)
        assert ranks.total([3.0]) == [3.0]
        assert ranks.alike("00ff")
        ranks.wait()


@pytest.mark.slow
def test_two_processes_follow_the_first(tmp_path: Path) -> None:
    words = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    port = free_port()
    processes = [subprocess.Popen(words, env=environment(rank, 2, port)) for rank in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert (first.pop("leads"), second.pop("leads")) == (True, False)
    assert (first.pop("seen"), second.pop("seen")) == (False, True)
    assert first == second
    assert first == {
        "count": 2,
        "agree": [1.5, 2.0],
        "decide": False,
        "either": [True, False],
        "total": [3.0, 20.0],
        "shared": [False] * 3,
        "turned": [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]],
        "same": True,
        "other": False,
    }
