"""The dashboard of a root on a free port, and Debian's Chromium to look at it."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, overload

import pytest
import uvicorn

from prunegpt.root import Root
from prunegpt.web.app import create_app
from tests.support import waiting
from tests.support.served import TOKEN

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, LocatorAssertions, Page, PageAssertions

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
_STARTS_WITHIN = 20.0  # seconds


def chromium() -> Path | None:
    """The browser's program: PRUNEGPT_CHROMIUM, or what the system has."""
    named = os.environ.get("PRUNEGPT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    return Path(named) if named and Path(named).exists() else None


@contextmanager
def served(root: Root, *, token: str | None = None, port: int = 0) -> Iterator[str]:
    """The address of a server over a root, while the block lasts."""
    app = create_app(root, token=token or TOKEN, open_to_read=token is None, host="127.0.0.1", port=port)
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    waiting.until(lambda: server.started or not thread.is_alive(), "the server")
    assert server.started, "the server ended before it answered"
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=_STARTS_WITHIN)


@overload
def expect(shown: "Page") -> "PageAssertions": ...
@overload
def expect(shown: "Locator") -> "LocatorAssertions": ...
def expect(shown: "Page | Locator") -> "PageAssertions | LocatorAssertions":
    """Playwright's own, which waits until what is expected is there; as long as all that waits here."""
    from playwright.sync_api import expect

    expect.set_options(timeout=1000 * waiting.PATIENCE)
    return expect(shown)


def becomes(read: Callable[[], object], expected: object) -> None:
    """Waits until what is read of a page is what is expected; the failure names what was read last."""
    found: list[object] = []

    def there() -> bool:
        found[:] = [read()]
        return found == [expected]

    try:
        waiting.until(there, repr(expected))
    except pytest.fail.Exception as error:
        raise AssertionError(f"{error}: {found}") from None


def until(page: "Page", holds: str) -> object:
    """Waits until JavaScript gives something true; polled from outside, as the content policy forbids `eval`."""
    return waiting.until(lambda: page.evaluate(holds), holds)


def settled(page: "Page") -> None:
    """Waits until nothing in view is on its way."""
    until(
        page,
        "![...document.querySelectorAll('main .loading')].map((one) => one.getBoundingClientRect())"
        ".some((place) => place.width && place.top < innerHeight && place.bottom > 0)",
    )


@contextmanager
def browser() -> Iterator["Browser"]:
    """A headless Chromium, while the block lasts."""
    from playwright.sync_api import sync_playwright

    program = chromium()
    assert program is not None, "no Chromium on this system"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(program), args=_ARGUMENTS)
        try:
            yield running
        finally:
            running.close()
