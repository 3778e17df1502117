"""A headless Chromium of the system's, driven by Playwright. Where one is missing they are skipped; scripts/test.sh installs them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (390, 1280)


@pytest.fixture(scope="package")  # behind them, for its event loop is that of this thread
def browser() -> Iterator[Any]:
    """A `playwright.sync_api.Browser`."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: the browser tests are skipped; scripts/test.sh installs it"
    )
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no chromium: the browser tests are skipped; scripts/test.sh installs it where it can")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # which Chromium has none of for root
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


class Watched:
    """A page, and all that it complained of."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", self._asked)

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _asked(self, dialog: Any) -> None:
        self.complaints.append(f"a dialog: {dialog.message}")
        dialog.dismiss()


Opened = Callable[..., Watched]


@pytest.fixture
def opened(browser: Any) -> Iterator[Opened]:
    """A function that opens an address in a fresh context: `width`, and `dark` or not."""
    with ExitStack() as contexts:

        def open_(address: str, width: int = 1280, dark: bool = False) -> Watched:
            scheme = "dark" if dark else "light"
            context = contexts.enter_context(browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme))
            context.set_default_timeout(30_000)
            watched = Watched(context.new_page())
            watched.page.goto(address)
            return watched

        yield open_


def serious(page: Any) -> list[str]:
    """What axe-core finds that is serious or worse, a line each."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response
    assert len(found["passes"]) > 10  # it has looked
    bad = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {one['help']}: {node['html'][:120]} {node['failureSummary'][:200]}" for one in bad for node in one["nodes"]]


def fits(page: Any) -> bool:
    """Whether nothing has to be pushed sideways to be seen."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))
