"""The table of trials: filters, columns, groups, and what was asked of a trial."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prunegpt.records import Evaluation, TaskScore
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.lock import coordinating
from prunegpt.tracking.foreign import Keeper
from prunegpt.tracking.run_path import RunPath
from tests.support.served import TOKEN
from tests.support.serving import becomes, expect, served, settled, until
from tests.support.study import Wanted, load, make_root, prune
from tests.support.timed import speed, timed_evaluation
from tests.web.browser import axe

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
_NAMES = "[...document.querySelectorAll('tr[data-place] th a')].map((one) => one.textContent).join()"


def test_a_filter_is_an_expression_and_stays_in_the_address(page: "Page", address: str) -> None:
    page.goto(f"{address}/sweeps/study")
    page.wait_for_selector("tr[data-place]")
    page.fill("#search", "sparsity > 0.85 and perplexity < 400")
    until(page, f"{_NAMES} === 'wanda-0.9,recovered'")
    expect(page.locator(".toolbar .count")).to_contain_text("2 of 23 trials")
    page.reload()
    until(page, f"{_NAMES} === 'wanda-0.9,recovered'")
    with page.expect_download() as started:
        page.click(".toolbar a:has-text('CSV')")
    assert len(Path(started.value.path()).read_text(encoding="utf-8").splitlines()) == 3


def test_what_is_wrong_with_a_filter_is_said_beside_it(open_page: "Callable[..., Page]", address: str) -> None:
    page = open_page()  # a refusal is logged by the browser as an error
    page.goto(f"{address}/sweeps/study")
    page.wait_for_selector("tr[data-place]")
    page.fill("#search", "perplexty < 3")
    page.wait_for_selector(".search-hint:has-text(\"Did you mean 'perplexity'\")")
    expect(page.locator("#search")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("tr[data-place]").nth(10)).to_be_attached()  # the rows stay
    page.fill("#search", "perplexity < 61")
    until(page, f"{_NAMES} === 'finetuned'")
    expect(page.locator(".search-hint")).to_be_hidden()


def test_any_configuration_value_is_a_column_and_sorts(page: "Page", address: str) -> None:
    page.goto(f"{address}/sweeps/study")
    page.wait_for_selector("tr[data-place]")
    page.click("summary:has-text('Columns')")
    page.fill("[aria-label='Find a column']", "hardness")
    page.get_by_label("distill.hardness").first.check()
    page.click("h2:has-text('Trials')")
    page.click(".trials thead button:has-text('distill.hardness')")
    until(page, "document.querySelector('tr[data-place] th a')?.textContent === 'recovered'")
    page.reload()
    until(page, "document.querySelector('tr[data-place] th a')?.textContent === 'recovered'")


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_groups_open_to_their_trials(open_page: "Callable[..., Page]", address: str, width: int, scheme: str) -> None:
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    page.goto(f"{address}/sweeps/study")
    page.wait_for_selector("tr[data-place]")
    page.click("summary:has-text('Group')")
    page.get_by_label("Method", exact=True).check()
    page.wait_for_selector("tr.group:has-text('70.0% ± 15.8%')")
    page.click("h2:has-text('Trials')")
    page.click("tr.group:has-text('wanda') button")
    page.wait_for_selector("tr.member[data-trial='wanda-0.5']")
    expect(page.locator("tr.member")).to_have_count(5)
    settled(page)
    assert axe.findings(page, axe.script()) == []
    until(page, f"document.documentElement.scrollWidth <= {width}")
    page.reload()
    page.wait_for_selector("tr.group:has-text('wanda')")


@pytest.mark.parametrize("menu", ["Columns", "Group", "?"])
def test_menus_of_the_table_are_accessible(open_page: "Callable[..., Page]", address: str, menu: str) -> None:
    page = open_page(viewport={"width": 1024, "height": 900})
    page.goto(f"{address}/sweeps/study#trials")
    page.wait_for_selector("tr[data-place]")
    page.click(f".toolbar summary:has-text('{menu}')")
    page.wait_for_selector(".toolbar details[open] h3")
    settled(page)
    assert axe.findings(page, axe.script()) == []


def test_an_address_with_a_section_shows_it_when_all_is_loaded(page: "Page", address: str) -> None:
    page.goto(f"{address}/sweeps/study#stages")
    page.wait_for_selector("#stages g.node")
    settled(page)
    top = "document.querySelector('#stages').getBoundingClientRect().top"
    until(page, f"{top} < innerHeight && {top} > -1")


def test_the_bar_names_the_root_and_leads_to_comparing(page: "Page", address: str, study: Root) -> None:
    page.goto(address)
    expect(page.locator(".bar .root")).to_have_text(str(study.path))
    page.click(".bar a:has-text('Compare')")
    page.wait_for_selector("h1:has-text('Compare trials')")
    expect(page.locator(".bar a[aria-current]")).to_have_attribute("href", "/compare")


def test_a_trial_that_was_asked_to_stop_says_so_at_once(page: "Page", tmp_path: Path) -> None:
    root = make_root(tmp_path / "runs")
    with served(root) as address, coordinating(root, "study"):
        page.goto(f"{address}/login?next=/trials/study/going#{TOKEN}")
        page.click("#head button:has-text('Stop')")
        page.click("dialog button:has-text('Stop the trial')")
        page.wait_for_selector("#head button:disabled:has-text('Stopping …')")
        page.reload()  # nobody has handled it yet
        page.wait_for_selector("#head .state.stopping")
        page.goto(f"{address}/sweeps/study")
        page.wait_for_selector("tr[data-trial=going] .state.stopping")
        page.click("#head button:has-text('Stop')")
        page.click("dialog button:has-text('Stop the sweep')")
        page.wait_for_selector("#head button:disabled:has-text('Stopping …')")
        page.wait_for_selector("#head .state.stopping")
        page.goto("about:blank")


def test_runs_of_a_client_go_by_their_names_with_every_metric_as_a_column(page: "Page", tmp_path: Path) -> None:
    root = Root(tmp_path / "runs")
    with Store.open(root) as store:
        for place, name in enumerate(("aa11", "bb22")):
            keeper = Keeper(root, store, RunPath("me", "kd", name))
            keeper.update(label=f"run {place}", config={"lr": 0.1 * (place + 1)}, summary={"val/acc": 0.5 + place / 10})
            keeper.update(tags=("baseline",), notes="the first")
            keeper.end("finished")
    with served(root) as address:
        page.goto(f"{address}/sweeps/wandb-kd")
        page.wait_for_selector("tr[data-place] a:has-text('run 1')")
        shown = {"Tags": "baseline", "Note": "the first", "lr": "0.2", "val/acc": "0.6"}

        def cells() -> dict[str, str]:
            heads = [head.strip() for head in page.locator(".trials thead th").all_inner_texts()]
            row = page.locator("tr[data-place] >> nth=1").locator("th, td").all_inner_texts()
            return {head: cell for head, cell in zip(heads, row, strict=False) if head in shown}

        becomes(cells, shown)
        page.fill("#search", "val/acc > 0.55 and 'baseline' in tags")
        until(page, f"{_NAMES} === 'run 1'")
        page.click("tr[data-place] a")
        page.wait_for_selector("h1:has-text('run 1')")
        page.goto("about:blank")


def further_evaluations() -> dict[str, Evaluation]:
    """A perplexity on another text, one that is not finite, scores of tasks, and a speed."""
    measured = {"word_perplexity": None, "loss": 3.5, "bits_per_byte": 1.0, "tokens": 2560, "windows": 20}
    unmeasured = {"loss": None, "perplexity": None, "bits_per_byte": None, "word_perplexity": None}
    scores = (
        TaskScore(task="arc_easy", metric="acc", value=0.4321, stderr=0.0123, documents=100, shots=0),
        TaskScore(task="arc_easy", metric="acc_norm", value=0.4, stderr=None, documents=100, shots=0),
    )
    return {
        "c4": Evaluation(protocol="stream/validation/128", split="validation", perplexity=33.115, **measured),
        "odd": Evaluation(protocol="stream/test/128", finite=False, tokens=2560, windows=20, **unmeasured),
        "tasks": Evaluation(protocol="lm-eval 0.4", tokens=0, windows=0, scores=scores, **unmeasured),
        "speed": timed_evaluation(speed()),
    }


def test_a_trial_shows_its_further_evaluations(page: "Page", tmp_path: Path) -> None:
    base = load()
    chain = (base, prune(base, "0dd", sparsity=0.5))
    wanted = [Wanted("several", chain, 70.0, 0.5, also=further_evaluations()), Wanted("one", (base,), 60.5)]
    with served(make_root(tmp_path / "runs", wanted)) as address:
        page.goto(f"{address}/trials/study/several")
        table = page.locator("section:has(> h2:text-is('Evaluations')) tbody")
        expected = [
            ["Perplexity, validation", "70.00"],
            ["Perplexity, c4", "33.12"],
            ["Perplexity, odd", "not finite"],
            ["arc_easy (acc)", "0.4321 ± 0.0123"],
            ["arc_easy (acc_norm)", "0.4000"],
            ["Speed-up", "× 1.200 [1.180, 1.220]"],
            ["Prefill speed-up", "× 1.200 [1.180, 1.220]"],
            ["Decode", "24 tokens/s"],
            ["Prefill", "24 tokens/s"],
            ["First token", "0.5 s"],
            ["Memory", "5 MB"],
        ]
        becomes(lambda: [row.split("\t")[:2] for row in table.inner_text().splitlines()], expected)
        page.goto(f"{address}/trials/study/one")
        page.wait_for_selector("h2:text-is('Chain')")
        expect(page.locator("h2:text-is('Evaluations')")).to_have_count(0)
        page.goto("about:blank")
