"""What the hub says of a name: asked once, from the cache where it is silent, and told where it knows better."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from prunegpt.errors import DataError, ModelError
from prunegpt.planning import hub
from prunegpt.root import Root
from prunegpt.stages.counting import Counting
from tests.support.specs import model_folder, only, plan_of, problems_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def answer(kind: type[Exception]) -> Exception:
    response = httpx.Response(404, request=httpx.Request("GET", "https://example.org"))
    return kind("no", response=response)  # type: ignore[call-arg]


class Hub:
    """A hub that answers with a commit or an exception, and counts."""

    def __init__(self, says: str | Exception) -> None:
        self.says = says
        self.asked: list[tuple[str, str | None, str]] = []

    def repo_info(self, name: str, *, revision: str | None, repo_type: str, timeout: float) -> Any:
        self.asked.append((name, revision, repo_type))
        if isinstance(self.says, Exception):
            raise self.says
        return SimpleNamespace(sha=self.says)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str | Exception], Hub]]:
    """Sets what the hub says; its cache is an empty folder."""

    def says(what: str | Exception) -> Hub:
        found = Hub(what)
        monkeypatch.setattr("huggingface_hub.HfApi", type("HfApi", (), {"__new__": lambda _: found}))
        return found

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_silence", [])
    monkeypatch.setattr(hub, "_commits", set())
    hub.commit.cache_clear()
    yield says
    hub.commit.cache_clear()


def test_a_name_stands_for_a_commit_and_is_asked_once(online: Callable[[str | Exception], Hub]) -> None:
    found = online(COMMIT)
    assert [hub.commit("a/b", "main") for _ in range(3)] == [COMMIT] * 3
    assert hub.commit("a/b", None, "dataset") == COMMIT
    assert found.asked == [("a/b", "main", "model"), ("a/b", None, "dataset")]


def test_a_silent_hub_is_asked_once_by_a_process_and_its_cache_answers(
    online: Callable[[str | Exception], Hub], tmp_path: Path
) -> None:
    found = online(httpx.ConnectError("no network"))
    reference = tmp_path / "models--a--b" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text(COMMIT + "\n")
    (tmp_path / "models--a--b" / "snapshots" / "v1").mkdir(parents=True)
    assert hub.commit("a/b", None) == COMMIT
    assert hub.commit("a/b", "v1") == "v1"
    with pytest.raises(hub.Unreachable, match=r"model a/c: the hub cannot be reached \(no network\) and its cache"):
        hub.commit("a/c", None)
    assert len(found.asked) == 1


REFUSALS = {
    "no such name": (RepositoryNotFoundError, ModelError, "a/b is not: the hub does not show one of that name"),
    "no such revision": (RevisionNotFoundError, ModelError, "it has no revision 'v9'"),
}
assert REFUSALS


@pytest.mark.parametrize(("says", "raised", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_the_hub_denies_is_an_error_and_not_silence(
    says: type[Exception],
    raised: type[Exception],
    message: str,
    online: Callable[[str | Exception], Hub],
) -> None:
    online(answer(says))
    with pytest.raises(raised, match=message):
        hub.commit("a/b", "v9")
    assert not hub._silent()


def test_a_dataset_that_the_hub_denies_is_a_data_error(online: Callable[[str | Exception], Hub]) -> None:
    online(answer(RepositoryNotFoundError))
    with pytest.raises(DataError, match="a dataset must be on the hub or on this machine; a/b is not"):
        hub.commit("a/b", None, "dataset")


def test_what_is_denied_is_a_problem_of_the_spec_even_where_it_is_only_checked(
    online: Callable[[str | Exception], Hub],
) -> None:
    online(answer(RepositoryNotFoundError))
    base = {"model": "gpt22", "data": {"path": "builtin:text", "block_size": 64}}
    assert (
        "a model must be on the hub or on this machine; gpt22 is not"
        in only(problems_of({"name": "a"}, base=base)).message
    )


def test_what_is_no_hub_name_at_all(online: Callable[[str | Exception], Hub]) -> None:
    online(HFValidationError("bad"))
    with pytest.raises(ModelError, match="that is no hub name"):
        hub.commit("a b", None)
    for name in ("x" * 999, "\0", "a b"):
        with pytest.raises(ModelError, match="that is no hub name"):
            hub.commit(name, "\0")
        assert hub.cached_file(name, None, "config.json") is None


def test_a_plan_names_the_commits_that_its_keys_stand_for(
    online: Callable[[str | Exception], Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a branch moves on between planning and a trial, the trial still loads what was planned."""
    found = online(COMMIT)
    monkeypatch.setattr(hub, "cached_file", lambda *_: None)
    base = {"model": "a/b", "data": {"path": "c/d", "revision": "main"}}
    (trial,) = plan_of({"name": "a", "stages": ["finetune"]}, base=base).trials
    assert [stage.model.revision for stage in trial.stages] == [COMMIT] * 2
    assert trial.stages[1].data.revision == COMMIT  # type: ignore[union-attr]
    assert trial.evaluate.data.revision == COMMIT  # type: ignore[union-attr]
    assert sorted(found.asked) == [("a/b", None, "model"), ("c/d", "main", "dataset")]


def test_costs_of_what_the_hub_does_not_give_are_unknown_at_once(
    online: Callable[[str | Exception], Hub], tmp_path: Path
) -> None:
    """Libraries would wait for each file of each model and text, for minutes."""
    found = online(httpx.ConnectError("no network"))
    base = {"model": "a/b", "data": {"path": "c/d", "block_size": 32}}
    trials = plan_of({"name": "a", "stages": ["finetune"]}, base=base).trials
    report = Counting(Root(tmp_path / "runs")).costs(trials)
    assert (report.train_tokens, report.evaluation_tokens, report.unchecked) == (None, None, ())
    assert len(found.asked) == 1


# -- code from elsewhere: what auto_map names ------------------------------------------------------------------

CODE: dict[str, tuple[str | Exception, str, str]] = {  # what the hub says, the name in auto_map, what is told
    "a folder": (COMMIT, "/some/folder--own.Own", "names the folder /some/folder, which is no part of the model"),
    "a relative folder": (COMMIT, "./code--own.Own", "names the folder ./code, which is no part of the model"),
    "no such repository": (
        answer(RepositoryNotFoundError),
        "a/b--own.Own",
        "as its auto_map says: a model must be on the hub or on this machine; a/b is not: the hub does not show",
    ),
    "no name of the hub": (COMMIT, "a b--own.Own", "a b is not: that is no hub name"),
    "no such file": (COMMIT, "own.Own", "names own.Own and holds no own.py. Copy the code there"),
    "a list": (COMMIT, "./code--own.Own", "names the folder ./code"),
}
assert CODE


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("case", CODE)
def test_code_that_is_not_there_is_told_for_what_it_is(
    case: str,
    offline: bool,
    online: Callable[[str | Exception], Hub],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    says, named, message = CODE[case]
    online(says)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    auto_map = {"AutoModelForCausalLM": [named, None] if case == "a list" else named}
    folder = model_folder(tmp_path / "model", auto_map=auto_map)
    base = {
        "model": {"source": str(folder), "trust_remote_code": True},
        "data": {"path": "builtin:text", "block_size": 16},
    }
    if offline and case == "no such repository":  # nobody can know
        plan = plan_of({"name": "a"}, base=base)
        assert plan.unchecked == (
            f"the code of {folder}: model a/b: HF_HUB_OFFLINE is set and its cache holds no copy",
        )
        return
    assert message in only(problems_of({"name": "a"}, base=base)).message
