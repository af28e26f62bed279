"""Looks for known holes in what was tested, with pip-audit in an environment of its own.

python -m tests.robust.audit [LOCK]; `make audit` calls it. Exit status 0: none is known; 1: some are; 3: nothing could
be learnt, because the network is not there or does not allow it.
"""

import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.robust.lock import LOCK

NOT_ASKED = 3


@dataclass(frozen=True)
class Verdict:
    """What to say, and the exit status."""

    text: str
    status: int


def judge(output: str, errors: str) -> Verdict:
    """What pip-audit's answer means. Its own exit status is 1 both for holes and for a network that is not there.

    Args:
        output: its JSON.
        errors: what it says beside.
    """
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return unasked("the database of known holes did not answer", errors)
    holes = [
        f"{package['name']} {package['version']}: {hole['id']}, fixed in {', '.join(hole['fix_versions']) or 'none'}"
        for package in packages
        for hole in package.get("vulns", ())
    ]
    skipped = [
        f"{package['name']}: not looked at, {package['skip_reason']}"
        for package in packages
        if "skip_reason" in package
    ]
    if holes:
        return Verdict("\n".join([f"known vulnerabilities: {len(holes)}", *holes, *skipped]), 1)
    if len(skipped) == len(packages):
        return unasked("no package could be looked up", "\n".join(skipped))
    return Verdict("\n".join([f"no known hole in {len(packages) - len(skipped)} packages", *skipped]), 0)


def unasked(why: str, errors: str) -> Verdict:
    """Nothing was learnt."""
    last = (errors.strip().splitlines() or ["it said nothing"])[-1]
    return Verdict(
        f"the audit needs the network; {why}: {last}\nNothing is known about holes now. Run `make audit` where the "
        "package index can be reached.",
        NOT_ASKED,
    )


def audit(lock: Path) -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        made = _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "pip-audit"])
        if made.returncode:
            return unasked("pip-audit cannot be installed", made.stderr)
        options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
        done = _run([python, "-m", "pip_audit", "--requirement", str(lock), *options])
        return judge(done.stdout, done.stderr)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    verdict = audit(Path(sys.argv[1]) if len(sys.argv) > 1 else LOCK)
    print(verdict.text)
    sys.exit(verdict.status)
