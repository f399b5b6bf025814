"""A board that is served, and pages of it in a real Chromium."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import playwright.sync_api
import pytest
import uvicorn

from moonlet.tracker.server import following, make_app


@contextlib.contextmanager
def served(root: Path, scan: bool = True, made: Any = None) -> Iterator[str]:
    """The address of a board over `root`. Without `scan` it shows what its index holds; `made`: of an app that is."""
    app, board = made or make_app(root, scan=scan)
    board.index.scanning, scan = False, scan and made is None
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    with following(board) if scan else contextlib.nullcontext():
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


@pytest.fixture(scope="session")
def serving() -> Callable[..., Any]:
    return served


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts boards that run until the test's pages are closed."""
    with contextlib.ExitStack() as stack:
        yield lambda root, **more: stack.enter_context(served(root, **more))


class Tab:
    """One page and what it said. Waiting is by asking again: the page's policy forbids scripts made of text."""

    def __init__(self, page: Any) -> None:
        self.page, self.said, self.asked = page, [], []
        page.on(
            "console", lambda message: self.said.append(f"{message.type}: {message.text} {message.location['url']}")
        )
        page.on("pageerror", lambda error: self.said.append(f"{error} {error.stack}"))
        page.on("dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.asked.append(request.url))

    def until(self, expression: str, seconds: float = 15.0) -> Any:
        """The first value of a JavaScript expression that is true there; of what is not there yet, nothing is true."""
        end, why = time.monotonic() + seconds, ""
        while True:
            try:
                if value := self.page.evaluate(expression):
                    return value
            except playwright.sync_api.Error as error:
                if "TypeError" not in error.message:
                    raise
                why = error.message
            assert time.monotonic() < end, f"never true: {expression}\n{why}\n{self.said}\n{self.text('body')[:2000]}"
            time.sleep(0.03)

    def run(self, expression: str) -> Any:
        return self.page.evaluate(expression)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()


@contextlib.contextmanager
def opening(chromium: Any) -> Iterator[Callable[..., Tab]]:
    """Opens pages. What one said (console, error, dialog) is an AssertionError at the end."""
    contexts, tabs = [], []

    def open_page(address: str, width: int = 1400, height: int = 900, **more: Any) -> Tab:
        context = chromium.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **more)
        context.set_default_timeout(15_000)
        contexts.append(context)
        tab = Tab(context.new_page())
        tabs.append(tab)
        tab.page.goto(address)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert [tab.said for tab in tabs if tab.said] == []


@pytest.fixture
def opened(chromium: Any, serve: Any) -> Iterator[Callable[..., Tab]]:
    with opening(chromium) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def opened_once(chromium: Any) -> Iterator[Callable[..., Tab]]:
    """Pages that the tests of a file share."""
    with opening(chromium) as open_page:
        yield open_page
