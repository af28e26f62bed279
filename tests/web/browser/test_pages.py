"""Every page in a real browser, on a store with trials of every state."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlencode

import pytest
from starlette.routing import Route

from prunegpt.root import Root
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.pages import Pages
from tests.support.serving import becomes, expect, settled, until
from tests.web.browser import axe

if TYPE_CHECKING:
    from playwright.sync_api import Page

_COMPARE = "/compare?trial=study/recovered&trial=study/magnitude-0.9&trial=study/finetuned"
_DRAWN = ".js-plotly-plot .main-svg"
PAGES = {
    "/": "article.sweep-card",
    "/sweeps/study": "tr[data-place]",
    "/trials/study/recovered": _DRAWN,
    "/trials/study/going": _DRAWN,
    "/trials/study/too-big": ".problem",
    "/trials/study/later": "h1",
    _COMPARE: _DRAWN,
    "/compare": ".empty",
    "/sweeps/study/tables": ".stills img",
    "/sweeps/study/search": ".coordinates canvas",
    "/api": "article.endpoint",
    "/login": "form",
}
_FOCUSED = """(() => {
    const at = document.activeElement, style = getComputedStyle(at);
    if (at !== window.focused) return null;
    return [at.closest('main > section[id]')?.id ?? '', style.outlineStyle !== 'none' || style.boxShadow !== 'none'];
})()"""
slow = pytest.mark.slow


def _open(page: "Page", address: str, path: str) -> None:
    page.goto(address + path)
    if PAGES[path] == _DRAWN:  # near the view alone, and on a phone what is above fills it
        page.locator("main h2:text-is('Curves')").scroll_into_view_if_needed()
    page.wait_for_selector(f"main {PAGES[path]}")


def test_the_start_page_shows_the_sweep(page: "Page", address: str) -> None:
    _open(page, address, "/")
    expect(page.locator("article.sweep-card")).to_contain_text("Pruning study in small")
    expect(page.locator("article.sweep-card")).to_contain_text("21 of 23 trials")


@slow
@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_every_page_stands_and_is_no_wider_than_the_window(
    page: "Page", address: str, path: str, width: int, scheme: Literal["light", "dark"]
) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    _open(page, address, path)
    settled(page)
    until(page, f"document.documentElement.scrollWidth <= {width}")
    expect(page.locator("main .problem[role=alert]")).to_have_count(0)
    expect(page.locator("h1")).to_have_count(1)


def test_every_page_of_the_server_is_looked_at(study: Root) -> None:
    """Those of PAGES are all that there are: a new one must be entered."""
    pages = [route for route in Pages(Dashboard.open(study)).routes() if isinstance(route, Route)]
    paths = [path.partition("?")[0] for path in PAGES]
    seen = {route.path for route in pages if any(route.path_regex.match(path) for path in paths)}
    assert seen == {route.path for route in pages} - {"/favicon.ico", "/static/plotly.min.js"}


@slow
@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing_serious(open_page: "Callable[..., Page]", address: str, path: str) -> None:
    file = axe.script()
    page = open_page(viewport={"width": axe.SIZES[0], "height": 1000})
    _open(page, address, path)
    assert axe.everywhere(page, file, lambda: settled(page)) == []


@slow
def test_the_keyboard_comes_by_every_section(page: "Page", address: str) -> None:
    """What is drawn when it comes into view is there once Tab is pressed, though it is not; focus is visible."""
    _open(page, address, "/sweeps/study")
    page.wait_for_selector("#results table")
    page.keyboard.press("Tab")
    for drawn in ("#figures a", "#panels button", "#stages svg"):
        page.wait_for_selector(drawn, state="attached")
    page.evaluate("document.addEventListener('focusin', ({ target }) => { window.focused = target; }, true)")
    sections: list[str] = []
    for _ in range(150):
        page.evaluate("window.focused = null")
        page.keyboard.press("Tab")
        section, outlined = until(page, _FOCUSED)
        assert outlined
        sections.append(section)
        if section == "stages":
            break
    passed = list(dict.fromkeys(filter(None, sections)))
    assert passed == ["running", "results", "figures", "panels", "trials", "stages"]
    expect(page.locator(".modebar-btn").first).to_be_attached()
    expect(page.locator(".modebar-btn[data-title*=Share]")).to_have_count(0)  # nothing leaves the machine


@slow
def test_escape_closes_a_menu_and_gives_the_focus_back(page: "Page", address: str) -> None:
    """Every menu of the page of a sweep, from its opener and from each kind of control inside it."""
    _open(page, address, "/sweeps/study")
    menus = page.locator("details.menu:visible")
    expect(menus).to_have_count(3)
    for place in range(3):
        menu = menus.nth(place)
        for inside in ("summary", "input[type=search]", "input[type=checkbox]", "button"):
            menu.locator("summary").press("Enter")
            expect(menu).to_have_attribute("open", "")
            menu.locator(f"{inside}, summary").last.press("Escape")  # the summary where there is nothing of that kind
            expect(menu).not_to_have_attribute("open", "")
            expect(menu.locator("summary")).to_be_focused()


@slow
def test_sort_and_filter_stay_in_the_address(page: "Page", address: str) -> None:
    _open(page, address, "/sweeps/study")
    names = page.locator("tr[data-place] th a")
    expect(names.first).to_have_text("zero-shot")
    page.click(".trials thead button:has-text('Perplexity')")
    expect(names.first).to_have_text("finetuned")
    page.click(".trials thead button:has-text('Perplexity')")
    expect(names.first).to_have_text("magnitude-0.9")
    expect(page.locator(".trials th[aria-sort=descending]")).to_have_attribute("scope", "col")
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("wanda")
    found = ["wanda-0.9", "wanda-0.8", "wanda-0.7", "wanda-0.6", "wanda-0.5"]
    expect(names).to_have_text(found)
    expect(page.locator(".toolbar .count")).to_contain_text("5 of 23 trials")
    page.reload()
    expect(names).to_have_text(found)
    page.fill("#search", "")
    page.click(".chips button[data-state=failed]")
    expect(names).to_have_text(["too-big"])
    page.fill("#search", "nothing is called this")
    page.wait_for_selector(".trials .empty")


@slow
def test_columns_are_chosen_swept_ones_first(page: "Page", address: str) -> None:
    _open(page, address, "/sweeps/study")
    heads = page.locator(".trials thead th")
    for place, head in enumerate(("Trial", "State", "prune.method", "prune.sparsity", "prune.layers")):
        expect(heads.nth(place)).to_have_text(head)
    page.click("summary:has-text('Columns')")
    page.get_by_label("Seed", exact=True).check()
    page.get_by_label("prune.layers", exact=True).uncheck()
    page.reload()
    page.wait_for_selector("tr[data-place]")
    expect(heads.get_by_text("Seed", exact=True)).to_be_visible()
    expect(heads.get_by_text("prune.layers", exact=True)).to_have_count(0)


@slow
def test_the_keyboard_selects_compares_and_opens(page: "Page", address: str) -> None:
    _open(page, address, "/sweeps/study")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.wait_for_selector("button:has-text('Compare 2')")
    page.keyboard.press("c")
    page.wait_for_selector(".compare-table")
    expect(page).to_have_url(f"{address}/compare?trial=study%2Ffinetuned&trial=study%2Fmagnitude-0.5")
    page.keyboard.press("u")
    page.wait_for_selector("tr[data-place]")
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_contain_text("Compare the selected trials")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/trials/study/zero-shot")
    page.wait_for_selector("h1:has-text('zero-shot')")
    page.wait_for_selector(".chain .box")
    page.keyboard.press("j")
    page.wait_for_url("**/trials/study/finetuned")


@slow
def test_a_sweep_draws_figures_and_stages(page: "Page", address: str) -> None:
    _open(page, address, "/sweeps/study")
    page.locator("#figures").scroll_into_view_if_needed()
    page.wait_for_selector("#figures .js-plotly-plot")
    page.locator("#stages").scroll_into_view_if_needed()
    page.wait_for_selector("#stages g.node")
    expect(page.locator("#stages g.node.running")).to_have_count(1)
    expect(page.locator("#stages path.edge.teacher")).to_have_count(2)
    page.locator("#stages g.node.published").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator(".graph-detail")).to_contain_text("used by 19 trials")


def _shows(page: "Page", axes: list[str], trials: list[str]) -> None:
    """Waits until the coordinates have these axes, and list these trials."""
    expect(page.locator(".coordinates .head")).to_have_text(axes)
    expect(page.locator(".coordinates .shown a")).to_have_text(trials)


AXES = ["method", "sparsity", "layers", "perplexity"]
SPARSEST = ["magnitude-0.9", "wanda-0.9"]


def _most_sparse(page: "Page") -> None:
    """Brushes what is sparser than 0.86, by the keyboard."""
    lowest = page.get_by_role("slider", name="Lowest sparsity shown")
    for value in range(10, 100, 10):
        lowest.press("PageUp")
        expect(lowest).to_have_attribute("aria-valuenow", str(value))


def test_coordinates_are_brushed_and_reordered_by_keyboard_and_pointer(page: "Page", address: str) -> None:
    _open(page, address, "/sweeps/study/search")
    _shows(page, AXES, [])
    page.get_by_role("button", name="sparsity, axis 2 of 4").press("ArrowLeft")
    _shows(page, ["sparsity", "method", "layers", "perplexity"], [])
    expect(page.get_by_role("button", name="sparsity, axis 1 of 4")).to_be_focused()
    expect(page.locator(".coordinates [role=status]")).to_have_text("16 of 16 trials")
    _most_sparse(page)
    expect(page.locator(".coordinates [role=status]")).to_have_text("2 of 16 trials")
    lowest = page.get_by_role("slider", name="Lowest sparsity shown")
    expect(lowest).to_have_attribute("aria-valuetext", "0.86")
    _shows(page, ["sparsity", "method", "layers", "perplexity"], SPARSEST)
    page.click("button:has-text('Clear the brushes')")
    _shows(page, ["sparsity", "method", "layers", "perplexity"], [])
    page.locator(".coordinates .line").last.drag_to(page.locator(".coordinates .head").last)
    _shows(page, ["sparsity", "method", "layers", "perplexity"], SPARSEST)
    page.locator(".coordinates .head").last.drag_to(page.locator(".coordinates .head").first)
    _shows(page, ["perplexity", "sparsity", "method", "layers"], SPARSEST)
    page.locator(".coordinates .shown a").first.click()
    page.wait_for_url("**/trials/study/magnitude-0.9")


def test_who_holds_a_figure_keeps_it_when_it_is_drawn_again(page: "Page", address: str) -> None:
    """An axis by the pointer, a handle by the keyboard, a link: by a change of size and by figures that come anew."""
    _open(page, address, "/sweeps/study/search")
    _most_sparse(page)
    _shows(page, AXES, SPARSEST)
    held = page.evaluate_handle(
        "() => ['.line', '.head', '.handle', '.shown a'].map((one) => document.querySelector(`.coordinates ${one}`))"
    )
    page.set_viewport_size({"width": 900, "height": 1000})
    until(page, "document.querySelector('.coordinates').clientWidth < 900")
    with page.expect_response("**/figures/parallel**"):
        page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")  # loads all anew
    _shows(page, AXES, SPARSEST)
    expect(page.get_by_role("slider", name="Lowest sparsity shown")).to_be_focused()
    becomes(lambda: held.evaluate("all => all.map((one) => one.isConnected)"), [True] * 4)


def _kept(page: "Page", figure: str, text: str) -> None:
    asked = "([key, text]) => new URLSearchParams(location.search).get(`figure.${key}`)?.includes(text)"
    page.wait_for_function(asked, arg=[figure, text])


def test_what_figures_show_is_in_the_address_for_links_and_the_back_button(page: "Page", address: str) -> None:
    turned = urlencode({"x": "stages.1.prune.sparsity", "y": "stages.1.prune.method"})
    page.goto(f"{address}/sweeps/study/search?{urlencode({'figure.contour': turned})}")
    page.get_by_role("button", name="sparsity, axis 2 of 4").press("ArrowLeft")
    _most_sparse(page)
    contour = page.locator(".panel:has(h3:text-is('Objective over two searched values'))")
    _kept(page, "parallel", "brush=sparsity%09")
    _kept(page, "contour", turned)

    def shows(axes: list[str]) -> None:
        _shows(page, axes, SPARSEST)
        expect(contour.get_by_label("Across")).to_have_value("stages.1.prune.sparsity")

    moved = ["sparsity", "method", "layers", "perplexity"]
    shows(moved)
    page.locator(".coordinates .shown a").first.click()
    page.wait_for_url("**/trials/study/magnitude-0.9")
    page.go_back()
    shows(moved)
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    shows(moved)
    page.evaluate("location.hash = '#content'")  # an entry of the history within the page
    page.get_by_role("button", name="layers, axis 3 of 4").press("ArrowRight")
    _kept(page, "parallel", "order=perplexity&order=layers")
    with page.expect_navigation(wait_until="load"):
        page.go_back()
    shows(moved)


def test_a_panel_is_made_and_kept_in_the_address(page: "Page", address: str) -> None:
    _open(page, address, "/sweeps/study")
    page.locator("#panels").scroll_into_view_if_needed()
    page.click("#panels button:has-text('Add a panel')")
    page.wait_for_selector("#panels h3:has-text('loss over step')")
    page.get_by_label("Metric", exact=True).fill("kd")
    page.get_by_label("Metric", exact=True).press("Tab")
    page.wait_for_selector("#panels h3:has-text('kd over step')")
    page.wait_for_selector("#panels .ytitle:has-text('kd')")
    page.get_by_label("Smoothing of").fill("0.9")
    page.click("#panels button[aria-label^='Logarithmic axis upwards']")
    page.wait_for_selector("#panels .js-plotly-plot")
    page.reload()
    page.locator("#panels").scroll_into_view_if_needed()
    page.wait_for_selector("#panels h3:has-text('kd over step')")
    page.locator("#panels .figure").scroll_into_view_if_needed()
    page.wait_for_selector("#panels .ytitle:has-text('kd')")
    expect(page.get_by_label("Smoothing of kd")).to_have_value("0.9")
    expect(page.locator("#panels button[aria-label^='Logarithmic axis upwards']")).to_have_attribute(
        "aria-pressed", "true"
    )
    page.click("#panels button:has-text('Points')")
    page.wait_for_selector("#panels h3:has-text('perplexity over sparsity')")
    page.wait_for_selector("#panels .xtitle:has-text('Sparsity')")
    page.click("#panels button:has-text('Remove')")
    page.wait_for_selector("#panels .empty")
    expect(page).not_to_have_url(re.compile("panel="))


def test_a_point_leads_to_its_trial(page: "Page", address: str) -> None:
    _open(page, address, "/sweeps/study")
    page.locator("#figures").scroll_into_view_if_needed()
    page.wait_for_selector("#figures .js-plotly-plot .scatterlayer .point")
    point = page.locator("#figures .js-plotly-plot >> nth=1 >> .scatterlayer .point").last
    point.hover(force=True)  # what Plotly puts over its points takes the pointer
    page.wait_for_selector("#figures .hoverlayer:has-text('recovered')")
    page.mouse.down()
    page.mouse.up()
    page.wait_for_url("**/trials/study/recovered")


@slow
def test_a_trial_shows_what_it_is_made_of(page: "Page", address: str) -> None:
    _open(page, address, "/trials/study/recovered")
    for shown in (
        "67.20",
        "90.0%",
        "Goes on from",
        "Taught by",
        "prunegpt sweep run sweeps/study.yaml --only recovered",
    ):
        expect(page.locator("main")).to_contain_text(shown)
    titles = [
        "Perplexity",
        "Loss terms",
        "Sparsity, target and achieved",
        "Learning rate",
        "Sparsity by layer over time",
    ]
    expect(page.locator(".figure h3")).to_have_text(titles)
    for axis, title in (("Tokens", "tokens trained on"), ("Time", "minutes")):
        page.click(f".segmented button:has-text('{axis}')")
        page.wait_for_selector(f".figure .xtitle:has-text('{title}')")
    expect(page).to_have_url(re.compile("axis=time"))


@slow
def test_a_failure_is_told_and_its_log_is_text(page: "Page", address: str) -> None:
    _open(page, address, "/trials/study/too-big")
    expect(page.locator(".problem")).to_contain_text("out-of-memory")
    expect(page.locator(".problem")).to_contain_text("<script>")
    page.locator(".log-box").scroll_into_view_if_needed()
    page.wait_for_selector(".log-box pre")
    expect(page.locator(".log-box pre")).to_contain_text("<img src=x onerror=console.error(1)>")


@slow
def test_compare_shows_differences_tests_and_curves(page: "Page", address: str) -> None:
    _open(page, address, _COMPARE)
    for shown in ("Paired tests", "< 0.001", "stages.2.distill.hardness"):
        expect(page.locator("main")).to_contain_text(shown)
    expect(page.locator("main")).not_to_contain_text("stages.2.distill.options")  # empty here, absent in the others
    page.click("button[aria-label='take out study/finetuned']")
    page.wait_for_selector(".compare-table")
    expect(page.locator(".compare-table >> nth=0").locator("thead a")).to_have_text(["recovered", "magnitude-0.9"])


@slow
def test_tables_are_downloaded_in_every_format_and_read_again(page: "Page", address: str, downloads: Path) -> None:
    _open(page, address, "/sweeps/study/tables")

    def fetch(label: str) -> str:
        with page.expect_download() as started:
            page.click(f"a[aria-label='{label}']")
        file = downloads / started.value.suggested_filename
        started.value.save_as(file)
        return file.read_text(encoding="utf-8")

    title = "Download Pruning and distillation as"
    rows = list(csv.DictReader(io.StringIO(fetch(f"{title} CSV"))))
    assert len(rows) == 15
    assert float(rows[0]["perplexity"]) == pytest.approx(63.4)
    assert "60.5" in json.dumps(json.loads(fetch(f"{title} JSON")))
    assert fetch(f"{title} Markdown").count("\n| ") >= 15
    assert "\\begin{tabular}" in fetch(f"{title} LaTeX")
    assert "<table>" in fetch(f"{title} HTML")
    assert fetch("Perplexity over sparsity as SVG").lstrip().startswith(("<svg", "<?xml"))
    with page.expect_download() as started:
        page.click("a[aria-label='Perplexity over sparsity as PNG']")
    assert Path(started.value.path()).read_bytes().startswith(b"\x89PNG")


@slow
def test_every_trial_and_point_can_be_had_as_csv(page: "Page", address: str) -> None:
    _open(page, address, "/sweeps/study")
    with page.expect_download() as started:
        page.click(".toolbar a:has-text('CSV')")
    assert len(_rows(started.value.path())) == 23
    _open(page, address, "/trials/study/recovered")
    with page.expect_download() as started:
        page.click("a:has-text('All points as CSV')")
    points = _rows(started.value.path())
    assert {"loss", "perplexity", "sparsity_target"} <= {point["name"] for point in points}


def _rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(file).read_text(encoding="utf-8"))))


@slow
def test_the_theme_is_the_systems_until_one_is_chosen(open_page: "Callable[..., Page]", address: str) -> None:
    page = open_page(color_scheme="dark")
    _open(page, address, "/")
    body = page.locator("body")
    dark, light = "rgb(18, 21, 24)", "rgb(246, 247, 248)"
    expect(body).to_have_css("background-color", dark)
    page.keyboard.press("t")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    expect(body).to_have_css("background-color", light)
    page.reload()
    expect(body).to_have_css("background-color", light)
    page.keyboard.press("t")
    expect(body).to_have_css("background-color", dark)


@slow
def test_what_is_not_there_is_said_kindly(open_page: "Callable[..., Page]", address: str) -> None:
    page = open_page()
    answer = page.goto(f"{address}/sweeps/studdy")
    assert answer is not None
    assert answer.status == 404
    expect(page.locator("main")).to_contain_text("study")
    expect(page.locator("a:has-text('All sweeps')")).to_have_count(1)
