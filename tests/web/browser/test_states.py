"""Pages that wait, that could not be had, and that have nothing to show; stages in every state; a hostile note."""

import re
from typing import TYPE_CHECKING

import pytest

from prunegpt.points import Point
from prunegpt.root import Root
from prunegpt.store import Store
from tests.support.served import TOKEN
from tests.support.serving import becomes, expect, served
from tests.support.study import TOKENS, Wanted, load, make_root, prune

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
_SHOWN = {
    "/": "article.sweep-card",
    "/sweeps/study": "tr[data-place]",
    "/trials/study/recovered": ".chain .box",
    "/sweeps/study/tables": ".report table",
    "/api": "article.endpoint",
}
_HOSTILE = """\
**Kept** <script>console.error("script")</script>
<img src="x" onerror="console.error('image')">
<a href="javascript:console.error('html')" onclick="console.error('click')">html</a>
[markdown](javascript:console.error('link')) [coded](java&#115;cript:console.error('entity'))
[data](data:text/html,<script>console.error('data')</script>) ![picture](https://evil.example/x.png)
<svg onload="console.error('svg')"><iframe src="https://evil.example"></iframe>
[good](https://good.example "onmouseover=console.error(1)")
"""

_LEADS = "links => links.map((link) => link.href)"
_HANDLERS = """note => [...note.querySelectorAll("*")].flatMap((one) => one.getAttributeNames())
    .filter((name) => name.startsWith("on") || name === "style")"""


@pytest.mark.parametrize("path", _SHOWN)
def test_a_page_says_that_it_loads_what_went_wrong_and_tries_again(
    open_page: "Callable[..., Page]", address: str, path: str
) -> None:
    from playwright.sync_api import Route

    page = open_page()  # a request that fails is logged by the browser as an error
    held: list[Route] = []
    answers: Callable[[Route], object] = held.append
    page.route("**/api/v1/**", lambda route: answers(route))
    page.goto(address + path)
    page.wait_for_selector("main .loading:has-text('Loading')")
    expect(page.locator("h1")).to_have_count(1)
    while not held:
        page.wait_for_timeout(20)
    answers = Route.abort
    for route in held:
        route.abort()
    page.wait_for_selector("main .problem[role=alert]:has-text('The server does not answer')")
    answers = Route.continue_
    page.locator("main .problem button:has-text('Try again')").first.click()
    page.wait_for_selector(_SHOWN[path])


def test_a_sweep_without_results_says_what_will_be_there(page: "Page", tmp_path: "Path") -> None:
    root = make_root(tmp_path / "runs", [Wanted("later", (load(),), 0, state="waiting")])
    with served(root) as address:
        page.goto(f"{address}/sweeps/study")
        page.wait_for_selector("#figures .empty:has-text('Nothing to draw yet')")
        page.goto(f"{address}/sweeps/study/tables")
        page.wait_for_selector(".report td:has-text('later')")
        page.wait_for_selector(".empty:has-text('No figures yet')")
        page.goto(f"{address}/trials/study/later")
        page.wait_for_selector(".empty:has-text('They appear here while the trial runs')")
        page.goto("about:blank")


def test_stages_show_what_is_shared_cached_running_waiting_and_failed(page: "Page", address: str, study: Root) -> None:
    page.goto(f"{address}/sweeps/study")
    page.wait_for_selector("tr[data-place]")
    page.locator("#stages").scroll_into_view_if_needed()
    for state in ("published", "running", "waiting", "failed", "diverged"):
        expect(page.locator(f"#stages g.node.{state}").first).to_have_attribute("aria-label", re.compile(state))
    expect(page.locator("#stages g.node:has-text('shared by 23')")).to_have_count(1)
    expect(page.locator("#stages g.node:has-text('cached')")).to_have_count(0)
    page.click("#stages g.node.failed")
    expect(page.locator(".graph-detail")).to_contain_text("too-big")


def test_a_stage_of_another_sweep_is_shown_as_cached(page: "Page", tmp_path: "Path") -> None:
    root = make_root(tmp_path / "runs", [Wanted("zero-shot", (load(),), 63.4)])
    make_root(tmp_path / "runs", [Wanted("same", (load(),), 63.4)], name="again", windows=False, cached=True)
    with served(root) as address:
        page.goto(f"{address}/sweeps/again")
        page.locator("#stages").scroll_into_view_if_needed()
        page.wait_for_selector("#stages g.node.published:has-text('cached')")
        page.click("#stages g.node")
        page.wait_for_selector(".graph-detail:has-text('found computed')")
        page.goto(f"{address}/trials/again/same")
        page.wait_for_selector(".chain .box:has-text('found computed')")
        page.goto("about:blank")


def test_a_trial_shows_what_it_takes_of_the_machine(page: "Page", tmp_path: "Path") -> None:
    root = make_root(tmp_path / "runs")
    names = ("processor_percent", "gpu_percent", "memory_mib", "gpu_memory_mib")
    with Store.open(root) as store:
        attempt = store.attempts(store.result("study/going").id)[-1]
        store.add_points(
            attempt.id,
            (
                Point(
                    stage=1, step=step, epoch=0.0, name=f"system/{name}", value=40.0 + step * (place + 1),
                    time=attempt.started + step, tokens=step * TOKENS,
                )
                for step in range(60)
                for place, name in enumerate(names)
            ),
        )  # fmt: skip
    with served(root) as address:
        page.goto(f"{address}/trials/study/going")
        for title, unit in (("Processor and GPU in use", "percent"), ("Memory in use", "MiB")):
            panel = page.locator(".figure", has=page.locator(f"h3:text-is('{title}')"))
            panel.scroll_into_view_if_needed()
            panel.locator(f".ytitle:has-text('{unit}')").wait_for()
            expect(panel.locator(".scatterlayer .trace")).to_have_count(2)
            expect(panel.locator(".scatterlayer .trace path.js-line").first).to_have_attribute("d", re.compile("."))
        drawn = (
            "Object.fromEntries([...document.querySelectorAll('.js-plotly-plot')].flatMap((plot) => plot.data)"
            ".filter((trace) => trace.name.startsWith('system/')).map((trace) => [trace.name, trace.y.at(-1)]))"
        )
        expected = {f"system/{name}": 40.0 + 59 * (place + 1) for place, name in enumerate(names)}
        becomes(lambda: page.evaluate(drawn), expected)
        page.goto("about:blank")


def test_what_each_stage_measured_once_makes_one_line(page: "Page", tmp_path: "Path") -> None:
    base = load()
    root = make_root(tmp_path / "runs", [Wanted("once", (base, prune(base, "0ce", sparsity=0.5)), 70.0, 0.5)])
    with Store.open(root) as store:
        trial = store.result("study/once")
        store.add_points(
            store.attempts(trial.id)[-1].id,
            (
                Point(stage=stage, step=step, epoch=0.0, name="perplexity", value=value, time=1e9 + step, tokens=step)
                for stage, step, value in ((0, 100, 60.0), (1, 40, 70.0))
            ),
        )
    with served(root) as address:
        page.goto(f"{address}/trials/study/once")
        page.wait_for_selector(".js-plotly-plot .main-svg")
        traces = "[...document.querySelector('.js-plotly-plot').data].map(({ x, y, mode }) => ({ x, y, mode }))"
        becomes(lambda: page.evaluate(traces), [{"x": [100, 140], "y": [60, 70], "mode": "lines+markers"}])
        page.goto("about:blank")


def test_a_hostile_note_is_text(page: "Page", tmp_path: "Path") -> None:
    root = make_root(tmp_path / "runs")
    with served(root) as address:
        page.goto(f"{address}/login?next=/trials/study/recovered#{TOKEN}")
        page.click("button:has-text('Write a note')")
        page.fill("textarea", _HOSTILE)
        page.click("button:has-text('Save')")
        note = page.locator(".note-text")
        for _ in range(2):  # as it is saved, and as it is when the page is loaded
            page.wait_for_selector(".note-text strong:has-text('Kept')")
            for words in ("script", "onerror", "markdown", "coded"):
                expect(note).to_contain_text(words)
            expect(note.locator("script, img, svg, iframe, object, style, form")).to_have_count(0)
            becomes(lambda: note.locator("a").evaluate_all(_LEADS), ["https://good.example/"])
            becomes(lambda: note.evaluate(_HANDLERS), [])
            note.locator("p").first.click(position={"x": 5, "y": 5})
            page.reload()
        page.goto("about:blank")  # the page fixture has seen no line in the console and no request to another host
