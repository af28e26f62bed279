"""A sweep that really runs, in a process of its own, told from the pages what to do."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.control import Action, request
from prunegpt.sweep.lock import coordinator
from tests.support import waiting
from tests.support.served import TOKEN
from tests.support.serving import expect, served
from tests.support.small import make_model

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
_PATIENCE = 600_000  # milliseconds, on a machine that does much else
_ENDLESS = 1_000_000  # steps: what runs goes on until it is told otherwise


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    """Where the sweep runs; whatever runs there in the end, whoever started it, is ended."""
    root = Root(tmp_path / "runs")
    yield root
    if coordinator(root) is not None:
        request(root, Action("kill", "long"))
        waiting.until(lambda: coordinator(root) is None)


@pytest.fixture
def running(root: Root, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`prunegpt sweep run` of two trials that do not end by themselves, one after the other."""
    files = {split: str(tmp_path / f"{split}.txt") for split in ("train", "validation")}
    for file in files.values():
        Path(file).write_text("In the beginning was the word, and the word was kept.\n" * 200)
    spec = {
        "name": "long",
        "title": "A long sweep",
        "base": {
            "model": {"source": str(make_model(tmp_path / "model", layers=1)), "label": "tiny"},
            "data": {"files": files, "block_size": 32},
            "train": {"max_steps": _ENDLESS, "per_device_train_batch_size": 1, "logging_steps": 1},
        },
        "trials": [
            {"name": "first", "stages": ["finetune"]},
            {"name": "second", "stages": [{"finetune": {"train": {"learning_rate": 0.001}}}]},
        ],
    }
    (tmp_path / "long.yaml").write_text(json.dumps(spec))  # JSON is YAML
    command = [sys.executable, "-m", "prunegpt", "sweep", "run", str(tmp_path / "long.yaml"), "--slots", "1"]
    environment = {**os.environ, "PRUNEGPT_ROOT": str(root.path)}
    with (tmp_path / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    yield process
    if process.poll() is None:
        process.terminate()
        process.wait(120)


@pytest.fixture
def live(page: "Page", root: Root, running: subprocess.Popen[bytes]) -> Iterator[str]:
    page.set_default_timeout(_PATIENCE)
    with served(root) as address:
        page.goto(f"{address}/login#{TOKEN}")  # as printed
        page.wait_for_url(f"{address}/")
        yield address
        page.goto("about:blank")


def _tell(page: "Page", button: str, sure: str) -> None:
    """Presses a button of the page's head, and says yes."""
    page.click(f"#head button:has-text('{button}')")
    page.click(f"dialog button:has-text('{sure}')")
    page.wait_for_selector("dialog", state="detached")


def _state(root: Root, name: str) -> str:
    with Store.open(root, create=False) as store:
        return str(store.result(f"long/{name}").state)


def test_a_sweep_is_stopped_resumed_and_killed(
    page: "Page", live: str, root: Root, running: subprocess.Popen[bytes]
) -> None:
    page.goto(live)
    page.click("article.sweep-card a:has-text('A long sweep')")  # it appears by itself
    page.wait_for_selector("#running:has-text('step ')")
    _tell(page, "Stop", "Stop the sweep")
    page.wait_for_selector("#messages:has-text('long: ')")
    assert running.wait(_PATIENCE / 1000) == 1
    page.wait_for_selector("#head button:has-text('Resume')")
    page.wait_for_selector("#head .state.waiting")
    page.wait_for_selector("#running", state="hidden")
    assert _state(root, "first") == "waiting"

    _tell(page, "Resume", "Resume the sweep")
    page.wait_for_selector("#messages:has-text('resumes in process')")
    page.wait_for_selector("#head .state.running")
    page.wait_for_selector("#running:has-text('step ')")
    holder = coordinator(root)
    assert holder is not None
    assert holder.pid != running.pid
    expect(page.locator("#head")).to_contain_text(f"coordinator {holder.pid} ")

    _tell(page, "Kill", "Kill the sweep")
    page.wait_for_selector("#messages:has-text('stops at once')")
    page.wait_for_selector("#head button:has-text('Resume')")
    assert coordinator(root) is None
    assert _state(root, "first") == "waiting"


def test_one_trial_is_stopped_and_tried_again_while_the_sweep_runs(page: "Page", live: str, root: Root) -> None:
    page.goto(live)
    page.click("article.sweep-card a:has-text('A long sweep')")
    page.click("#running a:has-text('first')")
    page.wait_for_selector("#head .state.running")
    page.wait_for_selector(".log-box pre")
    _tell(page, "Stop", "Stop the trial")
    page.wait_for_selector("#messages:has-text('first is stopping')")
    page.wait_for_selector("#head .state.stopped")
    assert _state(root, "first") == "stopped"
    _tell(page, "Retry", "Retry the trial")
    page.wait_for_selector("#messages:has-text('first is requeued')")
    page.wait_for_selector("#head .state.waiting")

    page.keyboard.press("j")  # the other trial has the slot meanwhile
    page.wait_for_url("**/trials/long/second")
    page.wait_for_selector("#head .state.running")
    _tell(page, "Stop", "Stop the trial")
    page.wait_for_selector("#head .state.stopped")
    page.keyboard.press("k")
    page.wait_for_url("**/trials/long/first")
    page.wait_for_selector("#head .state.running")
    page.wait_for_selector("section:has(h2:text-is('Attempts')) tbody tr:nth-child(2)")
    assert coordinator(root) is not None
