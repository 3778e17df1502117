from __future__ import annotations

import pytest

from charrnn.data.forms import Form, form_of, parse_form
from charrnn.errors import UserError


@pytest.mark.parametrize(
    "text, form",
    [
        ("五绝", Form(4, 5)),
        ("七言絕句", Form(4, 7)),
        ("五言律诗", Form(8, 5)),
        ("七律", Form(8, 7)),
        ("3x9", Form(3, 9)),
        (" 4×7 ", Form(4, 7)),
    ],
)
def test_a_form_by_its_name(text: str, form: Form) -> None:
    assert parse_form(text) == form


@pytest.mark.parametrize("text", ["", "六绝", "4x", "0x7", "x", "4x7x9"])
def test_an_unknown_form_is_named(text: str) -> None:
    with pytest.raises(UserError, match="expected 五绝, 七绝, 五律, 七律 or lines x characters as 4x7"):
        parse_form(text)


@pytest.mark.parametrize(
    "text, name",
    [
        ("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。", "五绝"),
        ("春眠不觉晓\n处处闻啼鸟\n夜来风雨声\n花落知多少\n", "五绝"),
        ("山中，水上。", "2x2"),
    ],
)
def test_the_form_of_a_verse(text: str, name: str) -> None:
    form = form_of(text)
    assert form is not None and form.name == name


@pytest.mark.parametrize("text", ["", "春眠不觉晓", "春眠不觉晓，处处闻啼。"])
def test_what_is_no_regular_verse(text: str) -> None:
    assert form_of(text) is None
