import subprocess
from pathlib import Path

from prunegpt.records import TrialResult
from prunegpt.report.provenance import gather, spec_commit
from tests.support.results import evaluation, make_trial


def test_the_line_is_made_from_the_records() -> None:
    results = [
        make_trial("a", measured=evaluation(), ended=1_700_000_000.0),
        make_trial("b", measured=evaluation(protocol="stride"), ended=1_600_000_000.0, sweep="other"),
        make_trial("c", state="waiting"),
    ]
    found = gather(results, commit="abc1234")
    assert found.sweeps == ("other", "wikitext2")
    assert found.date == "2023-11-14 22:13 UTC"
    for part in (
        "sweep other, wikitext2",
        "spec at abc1234",
        "torch 2.13.0",
        "protocol blocks/",
        "stride",
        "evaluation",
    ):
        assert part in found.line
    assert gather(results).line == gather(results[::-1]).line
    assert gather(results) == gather(results)


def test_no_results_are_said_so() -> None:
    assert gather([]).line == "no results"


def test_numbers_of_threads_are_told_where_they_differ() -> None:
    first, second = make_trial("a"), make_trial("b")

    def computed(trial: TrialResult, threads: int, device: str = "cpu") -> TrialResult:
        stages = [stage.model_copy(update={"threads": threads, "device": device}) for stage in trial.stages]
        return trial.model_copy(update={"stages": tuple(stages)})

    assert "threads" not in gather([first, second]).line  # of earlier versions: it is not known
    assert "threads" not in gather([computed(first, 2), computed(second, 2)]).line
    assert "threads" not in gather([computed(first, 2), computed(second, 1, "NVIDIA A100")]).line
    found = gather([computed(first, 2), computed(second, 1)])
    assert found.threads == (1, 2)
    assert "computed with 1 and 2 CPU threads" in found.line
    assert gather([]).date is None


def test_a_spec_in_a_checkout_is_named_by_its_commit(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    spec = tmp_path / "spec.yaml"
    spec.write_text("name: a\n")
    assert spec_commit(spec) is None
    git("init")
    git("add", "spec.yaml")
    git("commit", "-m", "spec")
    first = spec_commit(spec)
    assert first
    (tmp_path / "README.md").write_text("x")
    git("add", "README.md")
    git("commit", "-m", "other")
    assert spec_commit(spec) == first  # a commit that leaves the spec alone changes nothing
    spec.write_text("name: b\n")
    assert spec_commit(spec) == f"{first} (changed since)"


def test_a_spec_that_is_nowhere_has_no_commit(tmp_path: Path) -> None:
    assert spec_commit(tmp_path / "gone" / "spec.yaml") is None
