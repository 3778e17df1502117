"""The playground in a browser: what a person sees, types and hears."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from charrnn.web.guard import Access
from tests.browser.conftest import WIDTHS, Opened, fits, serious
from tests.web.playing import HOSTILE, SAMPLE, served

# As the page has to show it: what would turn the text round, or be seen nowhere, is written out.
SHOWN = HOSTILE.replace("\u202e", "\\u{202e}").replace("\u202c", "\\u{202c}").replace("\0", "\\u{0000}")
TOKEN = "correct-horse-battery"
FILES = {"picture": SAMPLE / "shapes/pictures/0050.png", "recording": SAMPLE / "tones/val/001.flac"}


@pytest.fixture(scope="module")
def address(models: Path) -> Iterator[str]:
    names = ("writes", "hostile", "fill", "classify", "tag", "marks", "caption", "hear")
    with served(*(models / f"{name}.safetensors" for name in names)) as port:
        yield f"http://localhost:{port}/"


def choose(page: Any, model: str) -> None:
    page.wait_for_selector(f"#model option[value={model}]", state="attached")
    page.select_option("#model", model)


def done(page: Any) -> None:
    page.wait_for_selector("#result[aria-busy=false]")


def slide(page: Any, name: str, value: float) -> None:
    """As a person does it: the arrow keys would take many steps."""
    page.locator(f"#{name}").evaluate("(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value)


def write(page: Any, model: str = "hostile", **values: float) -> str:
    """Have it write, and what stands there then."""
    choose(page, model)
    for name, value in {"pace": 5, **values}.items():
        slide(page, name.replace("_", "-"), value)
    page.click("#form-lm button.main")
    done(page)
    return str(page.inner_text("#output"))


def test_a_prime_is_gone_on_with(opened: Opened, address: str) -> None:
    watched = opened(address)
    page = watched.page
    choose(page, "hostile")
    page.fill("#prime", "gnp")
    slide(page, "length", 300)
    slide(page, "pace", 4)  # 500 a second
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#output span:nth-of-type(40)")  # while it is written
    assert page.get_attribute("#result", "aria-busy") == "true" and page.is_enabled("#form-lm .stop")
    done(page)
    text = page.inner_text("#output")
    assert text.startswith("gnp") and page.locator("#output > span").count() == 300
    assert "300 characters, as long as was asked for" in page.inner_text("#status")
    assert page.locator("#output span.s0[title$=bits]").count() > 100  # it knows its text by heart
    assert page.locator("#spoken p").count() >= 1 and page.inner_text("#spoken").strip()  # told to who cannot see, in few pieces
    assert not watched.complaints


def test_the_command_under_a_text_is_that_of_its_seed(opened: Opened, address: str, models: Path) -> None:
    page = opened(address).page
    write(page, "writes", length=50, temperature=1.2)
    words = shlex.split(page.inner_text("#command"))
    seed = page.inner_text("#seed-used")
    assert words[:3] == ["charrnn", "sample", str(models / "writes.safetensors")] and words[-1] == f"--seed={seed}"
    assert "--temperature=1.2" in words
    before = page.inner_text("#output")
    page.fill("#seed", seed)
    page.click("#form-lm button.main")
    done(page)
    assert page.inner_text("#output") == before


def test_sliders_act(opened: Opened, address: str) -> None:
    page = opened(address).page
    greedy = write(page, length=150, temperature=0)
    assert page.inner_text("#temperature-value") == "0 (greedy)" and page.get_attribute("#temperature", "aria-valuetext") == "0 (greedy)"
    assert write(page, length=150, temperature=0) == greedy
    assert write(page, length=150, temperature=2) != greedy
    assert write(page, length=150, top_k=1) == greedy
    assert page.inner_text("#top-k-value") == "1"
    assert write(page, length=150, top_k=0, top_p=0.05) == greedy
    page.focus("#length")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#length-value") == "200"


def test_an_acrostic_holds(opened: Opened, address: str) -> None:
    page = opened(address).page
    page.click("#verse summary")
    page.fill("#acrostic", "spam")
    page.fill("#max-line", "10")
    text = write(page, temperature=1.5)
    assert [line[0] for line in text.splitlines() if line] == list("spam")


def test_stop_and_escape(opened: Opened, address: str) -> None:
    page = opened(address).page
    choose(page, "hostile")
    for by_key in (False, True):
        slide(page, "length", 5000)
        slide(page, "pace", 0)
        page.click("#form-lm button.main")
        page.wait_for_selector("#output span:nth-of-type(5)")
        if by_key:
            page.keyboard.press("Escape")
        else:
            page.click("#form-lm .stop")
        done(page)
        assert page.inner_text("#status") == "Stopped." and 5 <= page.locator("#output > span").count() < 500
        assert page.is_enabled("#copy") and page.is_disabled("#form-lm .stop")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_hostile_corpus_is_text(opened: Opened, address: str, width: int) -> None:
    watched = opened(address, width)
    page = watched.page
    choose(page, "hostile")
    page.fill("#prime", HOSTILE.replace("\0", ""))
    text = write(page, temperature=0, length=300)
    assert text.count(SHOWN) >= 2 and text.startswith(SHOWN.replace("\\u{0000}", ""))
    assert not set(text) & {"\u202e", "\u202c", "\0"}
    assert page.locator("#output script, #output img").count() == 0 and page.title() == "charrnn playground"
    assert "$'" in page.inner_text("#command")  # what hides is written out for the shell too
    assert fits(page) and not watched.complaints


def test_a_mistake_is_told(opened: Opened, address: str) -> None:
    page = opened(address).page
    choose(page, "writes")
    page.click("#verse summary")
    page.fill("#acrostic", "龍")
    page.click("#form-lm button.main")
    done(page)
    assert page.inner_text("#error").startswith("acrostic: the model does not know '龍'") and page.inner_text("#output") == ""


def test_blanks_are_filled(opened: Opened, address: str) -> None:
    watched = opened(address)
    page = watched.page
    choose(page, "fill")
    page.fill("#fill-text", "th_ s_n")
    page.click("#form-fill button.main")
    done(page)
    assert page.locator("#output li").count() == 5 and page.locator("#output li:first-child .filled").count() == 2
    assert page.locator("#output tbody tr").count() == 2 and "%" in page.inner_text("#output li:first-child")
    assert not watched.complaints


def test_labels(opened: Opened, address: str) -> None:
    watched = opened(address)
    page = watched.page
    choose(page, "classify")
    page.fill("#classify-text", "It broke on the first day.")
    page.click("#form-classify button.main")
    done(page)
    assert {page.inner_text(f"#output tbody tr:nth-child({row}) td:first-child") for row in (1, 2)} == {"good", "bad"}
    choose(page, "marks")
    page.fill("#tag-text", "母亲种了三样东西")
    page.click("#form-tag button.main")
    done(page)
    assert page.inner_text("#output").startswith("母")
    assert not watched.complaints


@pytest.mark.parametrize("model, form, file", [("caption", "caption", "picture"), ("hear", "transcribe", "recording")])
def test_a_file_is_dropped(opened: Opened, address: str, model: str, form: str, file: str) -> None:
    watched = opened(address)
    page = watched.page
    choose(page, model)
    page.evaluate(
        """([id, bytes, name]) => {
            const held = new DataTransfer();
            held.items.add(new File([new Uint8Array(bytes)], name));
            document.getElementById(id).closest(".drop").dispatchEvent(new DragEvent("drop", { dataTransfer: held, bubbles: true }));
        }""",
        [file, list(FILES[file].read_bytes()), FILES[file].name],
    )
    page.wait_for_selector("#status:not(:empty)")
    done(page)
    assert page.inner_text("#error") == "" and page.locator("#output img, #output audio").count() == 1
    assert "seconds" in page.inner_text("#status")
    page.set_input_files(f"#{file}", {"name": "none.png", "mimeType": "image/png", "buffer": b"none"})
    page.wait_for_selector("#error:not(:empty)")
    assert page.inner_text("#error").startswith(f"the {file}: not ")
    assert all("400" in complaint for complaint in watched.complaints)  # Chromium logs an answer that refuses


def test_a_token_in_the_address_is_all_it_needs(opened: Opened, models: Path) -> None:
    with served(models / "writes.safetensors", access=Access(token=TOKEN)) as port:
        watched = opened(f"http://localhost:{port}/?token={TOKEN}")
        assert len(write(watched.page, "writes", length=50)) > 0 and watched.page.context.cookies() == []
        assert not watched.complaints


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_everyone_can_use_it(opened: Opened, address: str, width: int, dark: bool) -> None:
    """axe-core finds nothing serious, in any of the forms and with any of their results; and nothing has to be pushed sideways."""
    page = opened(address, width, dark).page
    page.click("#verse summary")
    write(page, temperature=2, length=400)
    assert serious(page) == [] and fits(page)
    for model, form, text in (("fill", "fill", "th_ s_n"), ("classify", "classify", "good"), ("tag", "tag", "林小雨从苏州")):
        choose(page, model)
        page.fill(f"#{form}-text", text)
        page.click(f"#form-{form} button.main")
        done(page)
        assert serious(page) == [] and fits(page), form
    for model, file in (("caption", "picture"), ("hear", "recording")):
        choose(page, model)
        page.set_input_files(f"#{file}", FILES[file])
        page.wait_for_selector("#status:not(:empty)")
        assert serious(page) == [] and fits(page), model


def test_by_keyboard_alone(opened: Opened, address: str) -> None:
    page = opened(address).page
    choose(page, "hostile")
    page.focus("body")
    order = []
    for _ in range(14):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.className || document.activeElement.tagName"))
    assert order[:9] == ["skip", "model", "prime", "temperature", "top-p", "top-k", "length", "pace", "seed"] and "main" in order
    page.focus("#temperature")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
