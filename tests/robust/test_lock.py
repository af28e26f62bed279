"""The lock file names all that was tested, and the audit of it says what it has learnt."""

import json
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.robust.audit import NOT_ASKED, judge
from tests.robust.lock import LOCK, direct, read, resolved, text_of


def test_the_lock_satisfies_what_is_asked_for() -> None:
    locked = read(LOCK.read_text(encoding="utf-8"))
    asked = direct()
    assert len(asked) > 30
    for requirement in asked:
        version = locked.get(str(canonicalize_name(requirement.name)))
        assert version, f"{requirement.name} is not in {LOCK.name}: run `make lock`"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}, but locked at {version}"


def test_the_lock_is_complete_and_holds_nothing_but_versions() -> None:
    text = LOCK.read_text(encoding="utf-8")
    locked = read(text)
    assert list(locked) == sorted(locked)
    assert {"numpy", "jinja2", "markupsafe", "alembic", "tokenizers", "sympy"} <= set(locked)  # some are indirect
    assert "prunegpt" not in locked
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)


def test_needs_are_followed_with_their_extras_and_markers() -> None:
    world = {
        "a": ("1.0+cpu", ["b[fast]>=2", "d; python_version < '3'", "e; extra == 'more'"]),
        "b": ("2.1", ["c; extra == 'fast'", "a"]),
        "c": ("3", ["B"]),
    }

    def look(name: str) -> tuple[str, list[Requirement]]:
        version, needs = world[name]
        return version, [Requirement(need) for need in needs]

    found = resolved([Requirement("A")], look)
    assert found == {"a": "1.0", "b": "2.1", "c": "3"}
    assert read(text_of(found)) == found


SOUND = {"name": "a", "version": "1", "vulns": []}
HOLE = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": []}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on the index"}


@pytest.mark.parametrize(
    ("packages", "status", "message"),
    [
        ([SOUND], 0, "no known hole in 1 packages"),
        ([SOUND, SKIPPED], 0, "no known hole in 1 packages\nc: not looked at, Dependency not found"),
        ([SOUND, HOLE], 1, "known vulnerabilities: 1\nb 2: PYSEC-1, fixed in 3"),
        ([SKIPPED], NOT_ASKED, "needs the network; no package could be looked up"),
    ],
)
def test_an_answer_is_told(packages: list[object], status: int, message: str) -> None:
    verdict = judge(json.dumps({"dependencies": packages, "fixes": []}), "")
    assert verdict.status == status
    assert message in verdict.text


@pytest.mark.parametrize("output", ["", "Traceback", "[]", "null"])
def test_no_answer_is_not_a_good_one(output: str) -> None:
    verdict = judge(output, "noise\nConnectionError: the host cannot be reached\n")
    assert verdict.status == NOT_ASKED
    assert "the database of known holes did not answer: ConnectionError: the host cannot" in verdict.text
    assert "Run `make audit` where the package index can be reached." in verdict.text
