"""From a sweep to Optuna's own dashboard and back."""

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from prunegpt.store import Store
from tests.web.browser.serving import served
from tests.web.test_optuna import searched

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow


def test_one_click_leads_to_the_search_and_its_trials_lead_back(chromium: "Browser", tmp_path: Path) -> None:
    root = searched(tmp_path / "runs")
    with Store.open(root) as store:
        store.set_note(store.result("study/recovered").id, "The **best** so far")
    context = chromium.new_context(viewport={"width": 1440, "height": 1000})
    context.set_default_timeout(60_000)
    hosts: set[str | None] = set()
    context.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    page = context.new_page()
    with served(root) as address:
        page.goto(f"{address}/sweeps/study")
        with context.expect_page() as opened:
            page.click("a:has-text('Optuna dashboard')")
        theirs = opened.value
        theirs.wait_for_selector("text=study/sparsities")
        parts = urlsplit(theirs.url)
        assert parts.netloc != urlsplit(address).netloc
        assert parts.path.startswith("/dashboard/studies/1")
        theirs.goto(f"http://{parts.netloc}/dashboard/studies/1/trials?numbers=0")
        link = theirs.locator("a:has-text('recovered in PruneGPT')")
        assert link.get_attribute("href") == f"{address}/trials/study/recovered"
        theirs.wait_for_selector("strong:has-text('best')")
        picture = theirs.locator("img[src*='/artifacts/1/']")
        picture.scroll_into_view_if_needed()
        assert picture.evaluate("async (image) => (await image.decode(), image.naturalWidth)") > 300
        theirs.goto(str(link.get_attribute("href")))
        theirs.wait_for_selector("h1:has-text('recovered')")
        for one in (page, theirs):
            one.goto("about:blank")
    context.close()
    assert {host for host in hosts if host} == {"127.0.0.1"}
