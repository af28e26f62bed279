"""Pages of a store that grows while they are watched, and what they can do to it."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.lock import coordinating
from prunegpt.sweep.queue import Ticket
from tests.support.served import TOKEN
from tests.support.serving import becomes, expect, served, settled, until
from tests.support.study import grow, make_root, many
from tests.web.browser import axe

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
_LAST_STEP = (
    "Math.max(...[...document.querySelectorAll('.js-plotly-plot')]"
    ".flatMap((plot) => plot.data ?? []).map((trace) => trace.x.at(-1) ?? 0))"
)

_ASCENDING = """(() => {
    const cells = document.querySelectorAll('tr[data-place] td:nth-child(3)');
    const values = [...cells].map((one) => Number(one.textContent));
    return values.length > 15 && values.every((value, place) => place === 0 || value >= values[place - 1]);
})()"""


@pytest.fixture
def growing(tmp_path: Path) -> Root:
    return make_root(tmp_path / "runs")


@pytest.fixture
def live(page: "Page", growing: Root) -> Iterator[str]:
    with served(growing) as address:
        yield address
        page.goto("about:blank")  # before the server goes, which the page would log


def test_a_curve_grows_while_it_is_watched(page: "Page", live: str, growing: Root) -> None:
    page.goto(f"{live}/trials/study/going")
    page.wait_for_selector(".live[data-state=live]")
    until(page, f"document.querySelectorAll('.js-plotly-plot').length === 4 && {_LAST_STEP} === 58")
    grow(growing, start=60, until=120)
    until(page, f"{_LAST_STEP} === 118")


def test_a_sweep_shows_what_runs_and_what_ends(page: "Page", live: str, growing: Root) -> None:
    page.goto(f"{live}/sweeps/study")
    page.wait_for_selector(".live[data-state=live]")
    page.wait_for_selector("#running:has-text('step 58 of 200')")
    grow(growing, start=60, until=120)
    page.wait_for_selector("#running:has-text('step 118 of 200')")
    with Store.open(growing) as store:
        later = next(trial for trial in store.results("study") if trial.name == "later")
        store.conclude(later.id, "failed", reason="teacher", error="its teacher failed")
    page.wait_for_selector("#trials tr[data-trial=later] .state.failed")


def test_the_stream_comes_back_after_the_server_was_away(open_page: "Callable[..., Page]", growing: Root) -> None:
    page = open_page()
    with served(growing) as address:
        page.goto(f"{address}/sweeps/study")
        page.wait_for_selector(".live[data-state=live]")
    page.wait_for_selector(".live[data-state=reconnecting]")
    grow(growing, start=60, until=120)
    with served(growing, port=int(address.rpartition(":")[2])):
        page.wait_for_selector(".live[data-state=live]")
        page.wait_for_selector("#running:has-text('step 118 of 200')")
        page.goto("about:blank")


def test_retry_asks_first_and_then_lets_the_trial_wait(page: "Page", live: str, growing: Root) -> None:
    page.goto(f"{live}/login?next=/trials/study/too-big#{TOKEN}")
    page.click("button:has-text('Retry')")
    expect(page.locator("dialog")).to_contain_text("runs in a new attempt")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    with Store.open(growing) as store:
        assert store.result("study/too-big").state == "failed"
    page.click("button:has-text('Retry')")
    page.click("dialog button:has-text('Retry the trial')")
    page.wait_for_selector("#messages div")
    page.wait_for_selector("#head .state.waiting")
    with Store.open(growing) as store:
        assert store.result("study/too-big").state == "waiting"


def test_stop_asks_first_and_needs_the_token(open_page: "Callable[..., Page]", live: str, growing: Root) -> None:
    page = open_page()  # a refusal is logged by the browser as an error
    with coordinating(growing, "study"):
        for way, told in (
            ("trials/study/going", "log in at /login"),
            (f"login?next=/trials/study/going#{TOKEN}", "going is stopping"),
        ):
            page.goto(f"{live}/{way}")
            page.click("#head button:has-text('Stop')")
            page.click("dialog button:has-text('Stop the trial')")
            page.wait_for_selector(f"#messages div:has-text('{told}')")
        page.goto("about:blank")


def test_the_queue_is_shown_and_left(page: "Page", live: str, growing: Root) -> None:
    """A sweep that has run before leads to its page, one that has not has none yet; both can be taken out."""
    with coordinating(growing, "other"):
        tickets = {name: Ticket(growing, name, priority) for name, priority in (("study", 3), ("new", 0))}
        page.goto(f"{live}/login?next=/#{TOKEN}")
        queue = page.locator("section:has(h2:text-is('Queue'))")
        expect(queue).to_contain_text("other runs")
        rows = [re.compile(r"^\s*study\s*priority 3,"), re.compile(r"^\s*new\s*priority 0,")]
        expect(queue.locator("li")).to_have_text(rows)
        expect(queue.locator("a")).to_have_text(["study"])
        page.wait_for_selector("article.sweep-card .state:has-text('place 1 in the queue')")
        assert axe.everywhere(page, axe.script(), lambda: settled(page)) == []
        page.get_by_role("button", name="Take new out of the queue").click()
        page.click("dialog button:has-text('Leave the queue')")
        page.wait_for_selector("#messages:has-text('new has left the queue')")
        queue.locator("li").nth(1).wait_for(state="detached")
        queue.locator("a").click()
        page.click("#head button:has-text('Leave the queue')")
        page.click("dialog button:has-text('Leave the queue')")
        page.wait_for_selector("#head .state:not(:has-text('queue'))")
        assert not any(ticket.valid for ticket in tickets.values())
        for ticket in tickets.values():
            ticket.give_back()


def test_a_trial_that_nobody_runs_is_shown_as_interrupted(page: "Page", live: str, growing: Root) -> None:
    with coordinating(growing, "study"):
        page.goto(f"{live}/trials/study/going")
        page.wait_for_selector("#head .state.running")
        page.wait_for_selector("#head button:has-text('Stop')")
    page.wait_for_selector("#head .state:has-text('interrupted: nothing runs it')")
    expect(page.locator("#head button:has-text('Stop')")).to_have_count(0)
    page.goto(f"{live}/sweeps/study")
    page.wait_for_selector("#running h2:text-is('Interrupted')")


def test_hundreds_of_trials_scroll_and_sort(page: "Page", tmp_path: Path) -> None:
    root = make_root(tmp_path / "many", many(300), name="big", windows=False)
    with served(root) as address:
        page.goto(f"{address}/sweeps/big")
        page.wait_for_selector("tr[data-place='0']")
        expect(page.locator("tr[data-place]").nth(15)).to_be_attached()
        expect(page.locator("tr[data-place]").nth(99)).to_have_count(0)
        page.evaluate("document.querySelector('.trials').scrollTop = 1e6")
        page.wait_for_selector("tr[data-trial=trial-00299]")
        page.evaluate("document.querySelector('.trials').scrollTop = 0")
        page.click(".trials thead button:has-text('prune.sparsity')")
        page.wait_for_selector(".trials th[aria-sort=ascending]")
        page.wait_for_selector("tr[data-place='0']")
        until(page, _ASCENDING)
        page.goto("about:blank")


def test_a_root_where_nothing_has_run_says_what_to_do(page: "Page", tmp_path: Path) -> None:
    with served(Root(tmp_path / "no thing's here")) as address:
        page.goto(address)
        page.wait_for_selector(".empty:has-text('No sweeps yet')")
        commands = [["prunegpt", "quickstart", "--root", str(tmp_path / "no thing's here")], ["prunegpt", "init"]]
        becomes(lambda: [shlex.split(line) for line in page.inner_text("main pre").splitlines()], commands)
        page.goto("about:blank")


def test_a_token_is_asked_for_once(page: "Page", growing: Root) -> None:
    token = "correct-horse-battery-staple"
    with served(growing, token=token) as address:
        page.goto(f"{address}/login?next=/sweeps/study#{token[:-1]}")
        page.wait_for_selector(".problem:has-text('not the token')")
        page.goto(f"{address}/sweeps/study")
        page.fill("#token", "wrong")
        page.click("button:has-text('Sign in')")
        page.wait_for_selector(".problem:has-text('not the token')")
        page.fill("#token", token)
        page.click("button:has-text('Sign in')")
        page.wait_for_url("**/sweeps/study")
        page.wait_for_selector("tr[data-place]")
        page.goto("about:blank")
