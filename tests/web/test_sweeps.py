"""What a sweep says of itself: its state, how far it is, who runs it, and who waits."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from prunegpt.records import EARLY_STOP
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.lock import coordinating
from prunegpt.sweep.queue import Ticket
from prunegpt.sweep.recovery import mark_outside
from tests.support.served import HEADERS, ORIGIN, open_app
from tests.support.study import SEARCH, Wanted, distill, finetune, load, make_root, searching

API = "/api/v1"


def _trial(name: str, state: str = "finished", reason: str = "") -> Wanted:
    return Wanted(name, (load(), finetune(load(), f"{name}5")), 60.0, state=state, reason=reason)


Opened = Callable[[Root], TestClient]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Opens the dashboard of a root that is there."""
    with ExitStack() as held:
        yield lambda root: held.enter_context(TestClient(open_app(root), base_url=ORIGIN, headers=HEADERS))


def _both(client: TestClient) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sweep as the list has it, and as its page does."""
    (listed,) = client.get(f"{API}/sweeps").json()["sweeps"]
    shown: dict[str, Any] = client.get(f"{API}/sweeps/{listed['name']}").json()
    return listed, shown


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ((("finished", ""), ("diverged", "")), "finished"),
        ((("finished", ""), ("stopped", EARLY_STOP)), "finished"),
        ((("finished", ""), ("failed", "exception")), "failed"),
        ((("failed", "exception"), ("waiting", "")), "waiting"),
    ],
)
def test_the_list_and_the_page_agree_on_a_sweep(
    opened: Opened, tmp_path: Path, states: tuple[tuple[str, str], ...], state: str
) -> None:
    root = make_root(tmp_path, [_trial(f"t{place}", *one) for place, one in enumerate(states)], windows=False)
    listed, shown = _both(opened(root))
    assert listed["state"] == shown["state"] == state
    assert listed["total"] == shown["progress"]["total"] == len(states)


def test_trials_that_a_search_is_yet_to_suggest_count(opened: Opened, tmp_path: Path) -> None:
    listed, shown = _both(opened(make_root(tmp_path, searching(3), windows=False, searches=[SEARCH])))
    assert listed["trials"] == 3
    assert listed["total"] == shown["progress"]["total"] == SEARCH["search"]["n_trials"]


def test_who_runs_a_sweep_is_a_coordinator_or_agents(opened: Opened, tmp_path: Path) -> None:
    root = make_root(tmp_path, [_trial("one", "running")], windows=False)
    client = opened(root)

    def runs() -> set[bool]:
        trial = client.get(f"{API}/trials/study/one").json()
        return {one["running_now"] for one in (*_both(client), trial)}

    assert runs() == {False}
    with coordinating(root, "other"):
        assert runs() == {False}
    with coordinating(root, "study"):
        assert runs() == {True}
    with Store.open(root) as store:
        mark_outside(root.path / store.result("study/one").folder)
    assert runs() == {True}


def test_a_sweep_that_was_never_run_leaves_the_queue(opened: Opened, tmp_path: Path) -> None:
    root = make_root(tmp_path, [_trial("one")], windows=False)
    client = opened(root)
    ticket = Ticket(root, "new", 0)
    assert client.post(f"{API}/sweeps/new/actions", json={"action": "resume"}).status_code == 404
    answer = client.post(f"{API}/sweeps/new/actions", json={"action": "stop"})
    assert answer.json()["message"] == "new has left the queue."
    assert not ticket.valid
    ticket.give_back()
    assert client.post(f"{API}/sweeps/new/actions", json={"action": "stop"}).status_code == 404


def test_a_dependency_fails_at_the_stage_that_lacks_its_teacher(opened: Opened, tmp_path: Path) -> None:
    teacher = finetune(load(), "7ea0")
    taught = (load(), finetune(load(), "f1"), distill(finetune(load(), "f1"), teacher, "d1"))
    root = make_root(tmp_path, [Wanted("taught", taught, 0, state="failed", reason="dependency")], windows=False)
    chain = opened(root).get(f"{API}/trials/study/taught").json()["chain"]
    assert [stage["state"] for stage in chain] == ["published", "waiting", "failed"]


def test_a_sweep_without_tables_has_one_of_all_its_trials(opened: Opened, tmp_path: Path) -> None:
    client = opened(make_root(tmp_path, [_trial("one"), _trial("two")], windows=False))
    (table,) = client.get(f"{API}/sweeps/study/tables").json()["tables"]
    assert [row["trial"] for row in table["rows"]] == ["one", "two"]
    assert client.get(f"{API}/sweeps/study").json()["tables"] == []


def test_the_model_of_a_trial_is_named_until_it_is_removed(opened: Opened, tmp_path: Path) -> None:
    root = make_root(tmp_path, [_trial("one"), _trial("two", "waiting")], windows=False)
    client = opened(root)

    def model(trial: str) -> Any:
        return client.get(f"{API}/trials/study/{trial}").json()["model"]

    assert model("two") is None
    with Store.open(root) as store:
        key = store.result("study/one").key
    assert model("one")["source"] == "builtin:tiny-gpt2", "where a stage keeps no weights, where it came from"
    (root.stage(key) / "model").mkdir(parents=True)
    found = model("one")
    assert found["source"] == str(root.stage(key) / "model")
    assert found["export"] == f"prunegpt export study/one ./one --root {root.path}"
    assert f"Sweep('study', root='{root.path}').model('one')" in found["python"]
    assert not found["removed"]
    (root.stage(key) / "removed.json").write_text("{}")
    found = model("one")
    assert not found["source"]
    assert not found["export"]
    assert f"prunegpt sweep retry study one --root {root.path} && prunegpt sweep resume study" in found["removed"]
