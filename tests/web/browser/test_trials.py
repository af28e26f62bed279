"""The table of trials: filters, columns, groups, and what was asked of a trial."""

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
from tests.support.serving import served, settled, until
from tests.support.study import Wanted, load, make_root, prune
from tests.support.timed import speed, timed_evaluation
from tests.web.browser import axe

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
_NAMES = "[...document.querySelectorAll('tr[data-place] th a')].map((one) => one.textContent).join()"


def test_a_filter_is_an_expression_and_stays_in_the_address(page: "Page", address: str) -> None:
    page.goto(f"{address}/sweeps/study")
    page.wait_for_selector("tr[data-place]")
    page.fill("#search", "sparsity > 0.85 and perplexity < 400")
    until(page, f"{_NAMES} === 'wanda-0.9,recovered'")
    assert "2 of 23 trials" in page.inner_text(".toolbar .count")
    page.reload()
    until(page, f"{_NAMES} === 'wanda-0.9,recovered'")
    with page.expect_download() as started:
        page.click(".toolbar a:has-text('CSV')")
    assert len(Path(started.value.path()).read_text(encoding="utf-8").splitlines()) == 3


def test_what_is_wrong_with_a_filter_is_said_beside_it(chromium: "Browser", address: str) -> None:
    context = chromium.new_context()  # a refusal is logged by the browser as an error
    page = context.new_page()
    page.goto(f"{address}/sweeps/study")
    page.wait_for_selector("tr[data-place]")
    page.fill("#search", "perplexty < 3")
    page.wait_for_selector(".search-hint:has-text(\"Did you mean 'perplexity'\")")
    assert page.get_attribute("#search", "aria-invalid") == "true"
    assert page.locator("tr[data-place]").count() > 10, "the rows stay"
    page.fill("#search", "perplexity < 61")
    until(page, f"{_NAMES} === 'finetuned'")
    assert page.locator(".search-hint").is_hidden()
    context.close()


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
def test_groups_open_to_their_trials(chromium: "Browser", address: str, width: int, scheme: str) -> None:
    context = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{address}/sweeps/study")
    page.wait_for_selector("tr[data-place]")
    page.click("summary:has-text('Group')")
    page.get_by_label("Method", exact=True).check()
    page.wait_for_selector("tr.group:has-text('70.0% ± 15.8%')")
    page.click("h2:has-text('Trials')")
    page.click("tr.group:has-text('wanda') button")
    page.wait_for_selector("tr.member[data-trial='wanda-0.5']")
    assert page.locator("tr.member").count() == 5
    settled(page)
    assert axe.findings(page, axe.script()) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.reload()
    page.wait_for_selector("tr.group:has-text('wanda')")
    context.close()


@pytest.mark.parametrize("menu", ["Columns", "Group", "?"])
def test_menus_of_the_table_are_accessible(chromium: "Browser", address: str, menu: str) -> None:
    context = chromium.new_context(viewport={"width": 1024, "height": 900})
    page = context.new_page()
    page.goto(f"{address}/sweeps/study#trials")
    page.wait_for_selector("tr[data-place]")
    page.click(f".toolbar summary:has-text('{menu}')")
    page.wait_for_selector(".toolbar details[open] h3")
    settled(page)
    assert axe.findings(page, axe.script()) == []
    context.close()


def test_an_address_with_a_section_shows_it_when_all_is_loaded(page: "Page", address: str) -> None:
    page.goto(f"{address}/sweeps/study#stages")
    page.wait_for_selector("#stages g.node")
    settled(page)
    top = "document.querySelector('#stages').getBoundingClientRect().top"
    until(page, f"{top} < innerHeight && {top} > -1")


def test_the_bar_names_the_root_and_leads_to_comparing(page: "Page", address: str, study: Root) -> None:
    page.goto(address)
    assert page.inner_text(".bar .root") == str(study.path)
    page.click(".bar a:has-text('Compare')")
    page.wait_for_selector("h1:has-text('Compare trials')")
    assert page.get_attribute(".bar a[aria-current]", "href") == "/compare"


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
        heads = [head.strip() for head in page.locator(".trials thead th").all_inner_texts()]
        assert {"Tags", "Note", "val/acc", "lr"} <= set(heads)
        cells = dict(
            zip(heads, page.locator("tr[data-place] >> nth=1").locator("th, td").all_inner_texts(), strict=True)
        )
        assert [cells[head] for head in ("Tags", "Note", "lr", "val/acc")] == ["baseline", "the first", "0.2", "0.6"]
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
        table.wait_for()
        assert [row.split("\t")[:2] for row in table.inner_text().splitlines()] == [
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
        page.goto(f"{address}/trials/study/one")
        page.wait_for_selector("h2:text-is('Chain')")
        assert page.locator("h2:text-is('Evaluations')").count() == 0
        page.goto("about:blank")
