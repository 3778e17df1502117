"""The file that `charrnn report` writes, opened in a browser as it is."""

from __future__ import annotations

import pytest

from charrnn.report import report
from tests.browser.conftest import WIDTHS, Opened, fits, serious
from tests.test_seeing import run
from tests.web.playing import HOSTILE

SHOWN = HOSTILE.replace("\u202e", "\\u202e").replace("\u202c", "\\u202c").replace("\0", "\\x00")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a report about two runs, one of which wrote what would be obeyed."""
    folder = tmp_path_factory.mktemp("report")
    runs = [run(folder / "calm", samples="=== step 40 ===\nOh, the\n\n"), run(folder / "evil", samples=f"=== step 40 ===\n{HOSTILE}\n\n")]
    (folder / "report.html").write_text(report(runs), encoding="utf-8")
    return (folder / "report.html").as_uri()


def test_a_hostile_run_is_text(opened: Opened, address: str) -> None:
    watched = opened(address)
    page = watched.page
    assert SHOWN in page.inner_text("main")
    assert page.locator("main script, main img").count() == 0
    assert not watched.complaints


def test_curves_tell_their_values(opened: Opened, address: str) -> None:
    """Under the pointer, and under the arrow keys."""
    watched = opened(address)
    page = watched.page
    cursor = page.locator(".chart .cursor").first
    cursor.scroll_into_view_if_needed()
    page.locator(".chart svg:visible").first.hover()
    pointed = page.locator(".chart").first.inner_text()
    slider = page.locator(".chart [tabindex], .chart input, .chart [role=slider]").first
    slider.focus()
    page.keyboard.press("Home")
    first = page.locator(".chart").first.inner_text()
    page.keyboard.press("End")
    last = page.locator(".chart").first.inner_text()
    assert len({pointed, first, last}) == 3
    assert not watched.complaints


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_everyone_can_read_it(opened: Opened, address: str, width: int, dark: bool) -> None:
    watched = opened(address, width, dark)
    for summary in watched.page.locator("summary").all():
        summary.click()
    assert serious(watched.page) == [] and fits(watched.page)
    assert not watched.complaints
