"""Every page in a real browser, on a store with trials of every state."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlencode

import pytest
from starlette.routing import Route

from prunegpt.root import Root
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.pages import Pages
from tests.support.serving import expect, settled, until
from tests.web.browser import axe

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

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
slow = pytest.mark.slow


def _open(page: "Page", address: str, path: str) -> None:
    page.goto(address + path)
    if PAGES[path] == _DRAWN:  # near the view alone, and on a phone what is above fills it
        page.locator("main h2:text-is('Curves')").scroll_into_view_if_needed()
    page.wait_for_selector(f"main {PAGES[path]}")


def test_the_start_page_shows_the_sweep(page: "Page", address: str) -> None:
    _open(page, address, "/")
    assert "Pruning study in small" in page.inner_text("article.sweep-card")
    assert "21 of 23 trials" in page.inner_text("article.sweep-card")


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
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("main .problem[role=alert]").count() == 0
    assert page.locator("h1").count() == 1


def test_every_page_of_the_server_is_looked_at(study: Root) -> None:
    """Those of PAGES are all that there are: a new one must be entered."""
    pages = [route for route in Pages(Dashboard.open(study)).routes() if isinstance(route, Route)]
    paths = [path.partition("?")[0] for path in PAGES]
    seen = {route.path for route in pages if any(route.path_regex.match(path) for path in paths)}
    assert seen == {route.path for route in pages} - {"/favicon.ico", "/static/plotly.min.js"}


@slow
@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing_serious(chromium: "Browser", address: str, path: str) -> None:
    file = axe.script()
    context = chromium.new_context(viewport={"width": axe.SIZES[0], "height": 1000})
    page = context.new_page()
    _open(page, address, path)
    found = axe.everywhere(page, file, lambda: settled(page))
    context.close()
    assert found == []


@slow
def test_the_keyboard_comes_by_every_section(page: "Page", address: str) -> None:
    """What is drawn when it comes into view is there once Tab is pressed, though it is not; focus is visible."""
    _open(page, address, "/sweeps/study")
    page.wait_for_selector("#results table")
    page.keyboard.press("Tab")
    for drawn in ("#figures a", "#panels button", "#stages svg"):
        page.wait_for_selector(drawn, state="attached")
    sections: list[str] = []
    for _ in range(150):
        page.keyboard.press("Tab")
        page.wait_for_timeout(20)
        section, outlined = page.evaluate(
            "() => { const at = document.activeElement, style = getComputedStyle(at); return ["
            "at.closest('main > section[id]')?.id ?? '', style.outlineStyle !== 'none' || style.boxShadow !== 'none'] }"
        )
        assert outlined
        sections.append(section)
        if section == "stages":
            break
    passed = list(dict.fromkeys(filter(None, sections)))
    assert passed == ["running", "results", "figures", "panels", "trials", "stages"]
    names = page.locator(".modebar-btn").evaluate_all("buttons => buttons.map((one) => one.dataset.title)")
    assert names
    assert not [name for name in names if "Share" in name], "nothing leaves the machine"


@slow
def test_escape_closes_a_menu_and_gives_the_focus_back(page: "Page", address: str) -> None:
    """Every menu of the page of a sweep, from its opener and from each kind of control inside it."""
    _open(page, address, "/sweeps/study")
    menus = page.locator("details.menu:visible")
    assert menus.count() >= 2
    for place in range(menus.count()):
        menu = menus.nth(place)
        for inside in ("summary", "input[type=search]", "input[type=checkbox]", "button"):
            menu.locator("summary").press("Enter")
            if menu.locator(inside).count():
                menu.locator(inside).first.focus()
                page.keyboard.press("Escape")
            else:
                menu.locator("summary").press("Escape")
            assert menu.get_attribute("open") is None, inside
            assert menu.locator("summary").evaluate("one => one === document.activeElement"), inside


def _names(page: "Page") -> list[str]:
    return page.locator("tr[data-place] th a").all_inner_texts()


def _wait_for_names(page: "Page", meets: Callable[[list[str]], bool]) -> list[str]:
    for _ in range(100):
        if meets(found := _names(page)):
            return found
        page.wait_for_timeout(50)
    raise AssertionError(f"the table shows {_names(page)}")


@slow
def test_sort_and_filter_stay_in_the_address(page: "Page", address: str) -> None:
    _open(page, address, "/sweeps/study")
    assert _names(page)[0] == "zero-shot"
    page.click(".trials thead button:has-text('Perplexity')")
    _wait_for_names(page, lambda names: names[0] == "finetuned")
    page.click(".trials thead button:has-text('Perplexity')")
    _wait_for_names(page, lambda names: names[0] == "magnitude-0.9")
    assert page.get_attribute(".trials th[aria-sort=descending]", "scope") == "col"
    page.keyboard.press("/")
    page.keyboard.type("wanda")
    names = _wait_for_names(page, lambda names: len(names) == 5)
    assert names == ["wanda-0.9", "wanda-0.8", "wanda-0.7", "wanda-0.6", "wanda-0.5"]
    assert "5 of 23 trials" in page.inner_text(".toolbar .count")
    page.reload()
    assert _wait_for_names(page, lambda names: len(names) == 5) == names
    page.fill("#search", "")
    page.click(".chips button[data-state=failed]")
    _wait_for_names(page, lambda names: names == ["too-big"])
    page.fill("#search", "nothing is called this")
    page.wait_for_selector(".trials .empty")


@slow
def test_columns_are_chosen_swept_ones_first(page: "Page", address: str) -> None:
    _open(page, address, "/sweeps/study")
    heads = page.locator(".trials thead th").all_inner_texts()
    assert [head.strip() for head in heads[:5]] == ["Trial", "State", "prune.method", "prune.sparsity", "prune.layers"]
    page.click("summary:has-text('Columns')")
    page.get_by_label("Seed", exact=True).check()
    page.get_by_label("prune.layers", exact=True).uncheck()
    page.reload()
    page.wait_for_selector("tr[data-place]")
    heads = [head.strip() for head in page.locator(".trials thead th").all_inner_texts()]
    assert "Seed" in heads
    assert "prune.layers" not in heads


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
    assert "/compare?trial=study%2Ffinetuned&trial=study%2Fmagnitude-0.5" in page.url
    page.keyboard.press("u")
    page.wait_for_selector("tr[data-place]")
    page.keyboard.press("?")
    assert "Compare the selected trials" in page.inner_text("dialog")
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
    assert page.locator("#stages g.node.running").count() == 1
    assert page.locator("#stages path.edge.teacher").count() == 2
    page.locator("#stages g.node.published").nth(1).focus()
    page.keyboard.press("Enter")
    assert "used by 19 trials" in page.inner_text(".graph-detail")


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
    width = page.locator(".coordinates").evaluate("one => one.clientWidth")
    page.set_viewport_size({"width": 900, "height": 1000})
    until(page, f"document.querySelector('.coordinates').clientWidth !== {width}")
    with page.expect_response("**/figures/parallel**"):
        page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")  # loads all anew
    _shows(page, AXES, SPARSEST)
    expect(page.get_by_role("slider", name="Lowest sparsity shown")).to_be_focused()
    assert held.evaluate("all => all.map((one) => one.isConnected)") == [True] * 4


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
    assert page.get_by_label("Smoothing of kd").input_value() == "0.9"
    assert page.get_attribute("#panels button[aria-label^='Logarithmic axis upwards']", "aria-pressed") == "true"
    page.click("#panels button:has-text('Points')")
    page.wait_for_selector("#panels h3:has-text('perplexity over sparsity')")
    page.wait_for_selector("#panels .xtitle:has-text('Sparsity')")
    page.click("#panels button:has-text('Remove')")
    page.wait_for_selector("#panels .empty")
    assert "panel=" not in page.url


def test_a_point_leads_to_its_trial(page: "Page", address: str) -> None:
    _open(page, address, "/sweeps/study")
    page.locator("#figures").scroll_into_view_if_needed()
    page.wait_for_selector("#figures .js-plotly-plot .scatterlayer .point")
    point = page.locator("#figures .js-plotly-plot >> nth=1 >> .scatterlayer .point").last
    box = point.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#figures .hoverlayer:has-text('recovered')")
    page.mouse.down()
    page.mouse.up()
    page.wait_for_url("**/trials/study/recovered")


@slow
def test_a_trial_shows_what_it_is_made_of(page: "Page", address: str) -> None:
    _open(page, address, "/trials/study/recovered")
    text = page.inner_text("main")
    for shown in (
        "67.20",
        "90.0%",
        "Goes on from",
        "Taught by",
        "prunegpt sweep run sweeps/study.yaml --only recovered",
    ):
        assert shown in text
    titles = page.locator(".figure h3").all_inner_texts()
    assert titles[:4] == ["Perplexity", "Loss terms", "Sparsity, target and achieved", "Learning rate"]
    assert titles[4:] == ["Sparsity by layer over time"]
    for axis, title in (("Tokens", "tokens trained on"), ("Time", "minutes")):
        page.click(f".segmented button:has-text('{axis}')")
        page.wait_for_selector(f".figure .xtitle:has-text('{title}')")
    assert "axis=time" in page.url


@slow
def test_a_failure_is_told_and_its_log_is_text(page: "Page", address: str) -> None:
    _open(page, address, "/trials/study/too-big")
    assert "out-of-memory" in page.inner_text(".problem")
    assert "<script>" in page.inner_text(".problem")
    page.locator(".log-box").scroll_into_view_if_needed()
    page.wait_for_selector(".log-box pre")
    assert "<img src=x onerror=console.error(1)>" in page.inner_text(".log-box pre")


@slow
def test_compare_shows_differences_tests_and_curves(page: "Page", address: str) -> None:
    _open(page, address, _COMPARE)
    text = page.inner_text("main")
    assert "Paired tests" in text
    assert "< 0.001" in text
    assert "stages.2.distill.hardness" in text
    assert "stages.2.distill.options" not in text  # nothing here, and not there in the others
    page.click("button[aria-label='take out study/finetuned']")
    page.wait_for_selector(".compare-table")
    assert page.locator(".compare-table >> nth=0").locator("thead a").all_inner_texts() == [
        "recovered",
        "magnitude-0.9",
    ]


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
def test_the_theme_is_the_systems_until_one_is_chosen(chromium: "Browser", address: str) -> None:
    context = chromium.new_context(color_scheme="dark")
    page = context.new_page()
    _open(page, address, "/")

    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    dark = background()
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    light = background()
    assert light != dark
    page.reload()
    assert background() == light
    page.keyboard.press("t")
    assert background() == dark
    context.close()


@slow
def test_what_is_not_there_is_said_kindly(chromium: "Browser", address: str) -> None:
    context = chromium.new_context()
    page = context.new_page()
    answer = page.goto(f"{address}/sweeps/studdy")
    assert answer is not None
    assert answer.status == 404
    assert "study" in page.inner_text("main")
    assert page.locator("a:has-text('All sweeps')").count() == 1
    context.close()
