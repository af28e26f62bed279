"""Sweeps through Slurm's launcher while sbatch refuses. Scripts play Slurm here, and start what they take."""

import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from prunegpt.launch.slurm import SlurmLauncher
from prunegpt.spec.execution import SlurmOptions
from prunegpt.sweep import patience
from prunegpt.sweep.events import LauncherTrouble
from tests.support.sweep_plans import make_trial

pytest.importorskip("submitit", reason="submitit is not installed")

JOB = """\
import sys
from prunegpt.launch.job import run_job
worker = "import sys; from pathlib import Path; from tests.support.fake_worker import run; run(Path(sys.argv[1]))"
run_job(sys.argv[1], (sys.executable, "-c", worker))
"""
SBATCH = """\
folder=$(dirname $(dirname $1))
echo $folder >> {here}/sbatch.txt
if [ -f {here}/refuse-$(basename $(dirname $folder)) ]; then
    words=$(cat {here}/refuse-$(basename $(dirname $folder)))
    {then}
    echo "$words" >&2
    exit 1
fi
{python} {here}/job.py $folder < /dev/null > /dev/null 2>&1 &
echo Submitted batch job $!
"""
SQUEUE = """\
echo $* | sed -n 's/.*--jobs=\\([0-9,]*\\).*/\\1/p' | tr , '\\n' | sed 's/$/|RUNNING/'
case "$*" in *--format=%i*) cat {here}/taken 2> /dev/null;; esac
exit 0
"""
POLICY = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy"
LIMIT = f"sbatch: error: QOSMaxSubmitJobPerUserLimit\n{POLICY}"
AWAY = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
PARTITION = "sbatch: error: Batch job submission failed: Invalid partition name specified"
ONCE = "rm {here}/refuse-$(basename $(dirname $folder))"
TAKEN = ONCE + "\n{python} {here}/job.py $folder < /dev/null > /dev/null 2>&1 &\necho $! > {here}/taken"


@pytest.fixture
def slurm(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a launcher whose sbatch refuses the trial `a` with these words."""
    monkeypatch.setattr(patience, "FIRST", 0.05)
    here = tmp_path / "bin"
    here.mkdir()
    monkeypatch.setenv("PATH", f"{here}:/usr/bin:/bin")
    (here / "job.py").write_text(JOB)

    def make(words: str, then: str = "") -> SlurmLauncher:
        (here / "refuse-a").write_text(words)
        given = {"here": here, "python": sys.executable}
        for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": "", "srun": ""}.items():
            program = here / name
            program.write_text("#!/bin/sh\n" + text.format(**given, then=then.format(**given)))
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return SlurmLauncher(bench.root, 2, options=SlurmOptions(poll=0.3), settle=1.0)

    return make


def submitted(tmp_path: Path, trial: str) -> int:
    lines = (tmp_path / "bin" / "sbatch.txt").read_text().splitlines()
    return sum(f"/{trial}/attempt-" in line for line in lines)


@pytest.mark.parametrize("words", [LIMIT, AWAY])
def test_a_full_or_absent_slurm_holds_up_one_trial(bench: Any, slurm: Any, tmp_path: Path, words: str) -> None:
    outcome = bench.run(*(make_trial(name, f"load-{name} {name}") for name in "abc"), launcher=slurm(words, ONCE))
    assert outcome.ok
    assert [attempt.state for attempt in bench.store.attempts("words/a")] == ["finished"]
    assert [submitted(tmp_path, name) for name in "abc"] == [2, 1, 1]
    (heard,) = bench.heard(LauncherTrouble)
    assert (heard.trial, heard.call) == ("words/a", "submit")
    assert words.splitlines()[0].removeprefix("sbatch: error: ") in heard.error


def test_a_job_that_slurm_took_without_saying_so_is_not_submitted_again(bench: Any, slurm: Any, tmp_path: Path) -> None:
    outcome = bench.run(make_trial("a", "load a"), make_trial("b", "other b"), launcher=slurm(AWAY, TAKEN))
    assert outcome.ok
    assert submitted(tmp_path, "a") == 1
    assert list((bench.root.path / "launch" / "slurm").glob("*.json")) == []


def test_what_slurm_will_never_take_fails_by_itself(bench: Any, slurm: Any, tmp_path: Path) -> None:
    trials = [make_trial(name, f"load-{name} {name}", seconds=0.5) for name in "bac"]
    outcome = bench.run(*trials, launcher=slurm(PARTITION))
    assert (outcome.failed, outcome.finished) == (("words/a",), ("words/b", "words/c"))
    (attempt,) = bench.store.attempts("words/a")
    assert (attempt.state, attempt.reason) == ("failed", "refused")
    assert "Slurm refused the job" in attempt.error
    assert "Invalid partition name specified" in attempt.error
    (tmp_path / "bin" / "refuse-a").unlink()
    assert bench.run(*trials, launcher=SlurmLauncher(bench.root, 2, settle=1.0)).finished == ("words/a",)
