"""The frame of HTML pages: text stays text, only what the page was made with runs, and what is coloured can be read."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.page import STYLE, SURPRISAL_STEPS, data_url, escape, page, surprisal_colour


class Elements(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its text."""

    def __init__(self, whole: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(whole)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(alphabet=st.characters(codec=None)))
def test_no_text_becomes_an_element_or_leaves_its_attribute(text: str) -> None:
    read = Elements(f'<p title="{escape(text)}">{escape(text)}</p>')
    assert [tag for tag, _ in read.found] == ["p"]
    assert read.found[0][1] == {"title": read.text} or text == ""
    escape(text).encode()  # lone surrogates too


def test_what_would_deceive_or_hide_is_shown_as_an_escape() -> None:
    assert escape('"><img onerror=x>') == "&quot;&gt;&lt;img onerror=x&gt;"
    assert escape("a\u202eb\0c\x1b[2J\ufeff\u2028") == "a\\u202eb\\x00c\\x1b[2J\\ufeff\\u2028"
    assert escape("\ud800\u2066\U000e0041") == "\\ud800\\u2066\\U000e0041"
    kept = "诗\u3000歌\n\tnon\u00a0breaking عربى 👩\u200d💻 می\u200cخواهم"
    assert escape(kept) == kept


def test_only_the_style_and_the_script_of_the_page_count() -> None:
    whole = page("a <b> \u202e", "<main>text</main>\n", style="p { color: red; }", script="let a = 1 < 2;", lang="zh")
    read = Elements(whole)
    assert [tag for tag, _ in read.found] == ["html", "head", "meta", "meta", "meta", "title", "style", "body", "main", "script"]
    assert read.found[0][1] == {"lang": "zh"} and "a <b> \\u202e" in read.text
    policy = next(attributes["content"] or "" for _, attributes in read.found if attributes.get("http-equiv") == "Content-Security-Policy")
    assert "unsafe" not in policy and policy.startswith("default-src 'none'; ")
    for element in ("style", "script"):
        content = re.search(f"<{element}>(.*?)</{element}>", whole, re.DOTALL)
        assert content
        digest = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
    without = page("t", "", policy="connect-src 'self'")
    assert "script" not in without and "form-action 'none'; connect-src 'self'\"" in without


@pytest.mark.parametrize("part", [{"style": "</STYLE>"}, {"script": "'</script>'"}, {"script": "<!-- <script>"}])
def test_style_and_script_cannot_end_their_element(part: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="holds what ends its element"):
        page("t", "", **part)


def test_surprisal_has_a_class_for_each_bit() -> None:
    assert [surprisal_colour(bits) for bits in (-1.0, 0.0, 0.99, 1.0, 6.5, 7.0, math.inf, math.nan)] == [
        "s0", "s0", "s0", "s1", "s6", "s7", "s7", "s7",
    ]  # fmt: skip


def luminance(colour: str) -> float:
    """Relative, 0..1, as WCAG 2 has it; `colour`: #rgb or #rrggbb."""
    digits = colour.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """1..21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_everything_can_be_read_in_both_schemes(scheme: int) -> None:
    def value(name: str) -> str:
        return str(re.findall(rf"{name}: (#[0-9a-f]+);", STYLE)[scheme])

    steps = [re.findall(rf"\.s{step} {{ background: (#[0-9a-f]+);", STYLE)[scheme] for step in range(SURPRISAL_STEPS)]
    assert min(contrast(value("--text"), step) for step in steps) >= 7
    brightness = [luminance(step) for step in steps]
    assert brightness == sorted(brightness, reverse=scheme == 0)  # the more surprising the farther from the page, without any hue
    for background in (value("--page"), value("--card")):
        for name in ("--text", "--quiet", "--bar"):
            assert contrast(value(name), background) >= 4.5, name
        for name in ("--focus", *(f"--c{i}" for i in range(8))):
            assert contrast(value(name), background) >= 3, name


def test_a_picture_in_the_page() -> None:
    assert data_url("png", b"\x89PNG") == "data:image/png;base64,iVBORw=="
