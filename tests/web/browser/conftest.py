"""A page of a real browser that fails the test on any console error, and on any request that leaves this host."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from prunegpt.root import Root
from tests.support import serving
from tests.support.study import make_root
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page


@pytest.fixture(scope="session")
def chromium() -> "Iterator[Browser]":
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'prunegpt[dev]'")
    if serving.chromium() is None:
        pytest.skip("no Chromium: apt install chromium, or set PRUNEGPT_CHROMIUM to its program")
    with serving.browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A root with trials of every state; tests must not change it."""
    return make_root(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def address(study: Root) -> Iterator[str]:
    with serving.served(study) as address:
        yield address


class Watched:
    """What a page logged as errors, and where it asked for things."""

    def __init__(self, page: "Page") -> None:
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(f"page error: {error}"))
        page.on("request", lambda request: self._request(request.url))

    def _request(self, url: str) -> None:
        if urlsplit(url).scheme not in ("data", "blob"):
            self.hosts.add(urlsplit(url).hostname or url)

    def _console(self, message: "ConsoleMessage") -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location})")


@pytest.fixture
def open_page(chromium: "Browser") -> "Iterator[Callable[..., Page]]":
    """Opens a page in a context of its own, with the options of one; it may log errors. All are closed at the end."""
    opened: list[BrowserContext] = []

    def new(**options: Any) -> "Page":
        opened.append(chromium.new_context(**options))
        opened[-1].set_default_timeout(1000 * PATIENCE)
        return opened[-1].new_page()

    yield new
    for context in opened:
        context.close()


@pytest.fixture
def page(open_page: "Callable[..., Page]") -> "Iterator[Page]":
    page = open_page(viewport={"width": 1440, "height": 1000}, accept_downloads=True)
    watched = Watched(page)
    yield page
    page.context.close()
    assert watched.errors == []  # a script in a name, a note or a log would have written one
    assert watched.hosts <= {"127.0.0.1"}


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    return tmp_path
