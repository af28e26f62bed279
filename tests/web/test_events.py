"""Live updates over a real connection: what is new comes within two seconds, and nothing else comes."""

import json
import time
from collections.abc import Iterator
from urllib.request import urlopen

import pytest

from prunegpt.records import AttemptRecord
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.lock import coordinating
from tests.support.served import Listener, served
from tests.support.study import grow

SOON = 2.0  # seconds, as promised


@pytest.fixture
def address(made: Root) -> Iterator[str]:
    with served(made) as address:
        yield address


@pytest.fixture
def listener(address: str) -> Iterator[Listener]:
    listening = Listener(f"{address}/api/v1/events?sweep=study")
    listening.wait("ready")
    yield listening
    listening.close()


@pytest.mark.realtime
def test_a_new_point_comes_within_two_seconds(made: Root, listener: Listener) -> None:
    grow(made, start=60, until=64)
    written = time.monotonic()
    moment, _, _, data = listener.wait("points")
    assert moment - written < SOON
    assert (data["trial"], data["last"]["loss"]["step"], data["last"]["loss"]["stage"]) == ("study/going", 62, 1)
    assert "loss" in data["names"]
    _, _, _, progress = listener.wait("progress")
    assert [(slot["trial"], slot["step"]) for slot in progress["slots"]] == [("study/going", 62)]
    grow(made, start=64, until=66)
    assert listener.wait("points")[3]["last"]["loss"]["step"] == 64


@pytest.mark.realtime
def test_an_end_comes_with_the_row_and_nothing_else(made: Root, listener: Listener) -> None:
    with Store.open(made) as store:
        store.finish_attempt(
            AttemptRecord(
                sweep="study", trial="going", attempt=1, state="failed", reason="signal", error="<b>killed</b>"
            )
        )
    written = time.monotonic()
    moment, _, _, data = listener.wait("sweep")
    assert moment - written < SOON
    assert data["name"] == "study"
    assert [(row["name"], row["state"], row["error"]) for row in data["changed"]] == [
        ("going", "failed", "<b>killed</b>")
    ]
    assert listener.wait("progress")[3]["slots"] == []
    time.sleep(1.2)
    assert listener.events == []


def test_a_note_of_another_page_comes_too(made: Root, listener: Listener) -> None:
    with Store.open(made) as store:
        store.set_note(store.result("study/later").id, "wait for it")
    assert [row["name"] for row in listener.wait("sweep")[3]["changed"]] == ["later"]


def test_a_coordinator_that_comes_and_goes_is_told(made: Root, listener: Listener) -> None:
    with coordinating(made, "study"):
        assert listener.wait("sweep")[3] == {"name": "study", "changed": [], "more": False}
    assert listener.wait("sweep")[3] == {"name": "study", "changed": [], "more": False}


@pytest.mark.realtime
def test_another_sweep_and_another_trial_are_not_told(made: Root, address: str) -> None:
    other = Listener(f"{address}/api/v1/events?sweep=none")
    single = Listener(f"{address}/api/v1/events?sweep=study&trial=later")
    for one in (other, single):
        one.wait("ready")
    grow(made, until=70)
    assert single.wait("progress")[3]["slots"][0]["step"] == 68
    time.sleep(0.6)
    assert other.events == []
    assert [event[2] for event in single.events if event[2] == "points"] == []
    for one in (other, single):
        one.close()


@pytest.mark.realtime
def test_a_page_that_comes_back_gets_what_it_missed(made: Root, address: str, listener: Listener) -> None:
    grow(made, until=62)
    seen = listener.wait("points")[1]
    listener.close()
    grow(made, start=62, until=80)
    time.sleep(1)
    back = _again(address, seen)
    assert back.wait("points")[3]["last"]["loss"]["step"] == 78
    assert "reload" not in [event[2] for event in back.events]
    back.close()


@pytest.mark.realtime
def test_what_changes_between_fetching_and_listening_is_told(made: Root, address: str) -> None:
    with urlopen(f"{address}/api/v1/sweeps/study/trials") as answer:
        revision = json.load(answer)["revision"]
    grow(made, until=80)
    time.sleep(0.5)
    late = Listener(f"{address}/api/v1/events?sweep=study&since={revision}")
    assert late.wait("points")[3]["last"]["loss"]["step"] == 78
    late.close()


def test_a_page_of_another_server_loads_again(address: str) -> None:
    for last in ("0123456789ab-4", "x", "-", "٣-٣"):
        back = _again(address, last)
        back.wait("reload")
        back.close()


def _again(address: str, last: str) -> Listener:
    return Listener(f"{address}/api/v1/events?sweep=study", last)


@pytest.mark.realtime
def test_the_server_ends_though_pages_listen(made: Root) -> None:
    with served(made) as address:
        listening = Listener(f"{address}/api/v1/events")
        listening.wait("ready")
        assert urlopen(f"{address}/api/v1/health").status == 200
        began = time.monotonic()
    assert time.monotonic() - began < 5
    listening.close()
