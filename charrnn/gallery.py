"""A page of pictures with what was written of them, and where the model looked: HTML that needs nothing but itself.

Axes: L characters, Y places of a side of the grid, M pixels of a side of a map, H pixels of a side of what the model saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from charrnn.captioning import Caption, Described
from charrnn.data.images import Pixels, as_jpeg, as_png
from charrnn.errors import counted, glyph, printable
from charrnn.page import data_url, escape
from charrnn.page import page as framed

MAP = 24  # pixels of a side
DARKEST = 0.82  # opacity of the shade over what was not looked at
STYLE = """
main { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); align-items: start; }
main.attended { grid-template-columns: repeat(auto-fill, minmax(min(100%, 32rem), 1fr)); }
figure { margin: 0; overflow: hidden; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
figure > img { display: block; width: 100%; height: 16rem; object-fit: contain; background: var(--line); }
figcaption { padding: .75rem 1rem 1rem; }
ol { margin: 0; padding: 0; list-style: none; }
li { display: grid; grid-template-columns: 1fr auto; column-gap: .75rem; padding: .3rem 0; }
li > span:first-child { overflow-wrap: anywhere; }
li:first-child > span:first-child { font-weight: 600; }
li > span:last-child { color: var(--quiet); font-variant-numeric: tabular-nums; }
meter { grid-column: 1 / -1; width: 100%; height: .3rem; appearance: none; border: 0; background: var(--line); border-radius: .15rem; }
meter::-webkit-meter-bar { height: .3rem; border: 0; background: var(--line); border-radius: .15rem; }
meter::-webkit-meter-optimum-value { background: var(--bar); border-radius: .15rem; }
meter::-moz-meter-bar { background: var(--bar); border-radius: .15rem; }
.name { margin: .5rem 0 0; color: var(--quiet); font-size: .85rem; overflow-wrap: anywhere; }
details { margin-top: .6rem; }
summary { color: var(--quiet); font-size: .85rem; cursor: pointer; }
.maps { display: flex; flex-wrap: wrap; gap: .25rem; margin-top: .5rem; }
.maps span { width: 3rem; font: .8rem/1.3 ui-monospace, monospace; text-align: center; }
.maps img { display: block; width: 3rem; height: 3rem; border-radius: .2rem; background-size: cover; }
.faults li { display: list-item; overflow-wrap: anywhere; }
"""


class Figure(NamedTuple):
    """A picture with what was written of it."""

    html: str
    style: str = ""  # what of it can only be said in the style of the page


def page(figures: Sequence[Figure], model: str, faults: Iterable[object], attended: bool) -> str:
    """The whole of it. `figures`: made by `figure`; `faults`: what cannot be used; `attended`: there are maps."""
    told = printable(f"{counted(len(figures), 'picture')}, told of by {model}")
    wrong = "".join(f"<li>{escape(str(fault))}</li>\n" for fault in faults)
    wide = ' class="attended"' if attended else ""
    body = (
        f"<header><h1>Captions</h1><p>{escape(told)}; beside each caption, how sure the model is of its characters.</p></header>\n"
        f"<main{wide}>\n{''.join(one.html for one in figures)}</main>\n"
        + (f'<footer class="faults"><p>Could not be used:</p>\n<ol>\n{wrong}</ol></footer>\n' if wrong else "")
    )
    return framed(told, body, style=STYLE + "".join(dict.fromkeys(one.style for one in figures)))


def figure(described: Described) -> Figure:
    """A picture, its captions, and where the model looked for the first of them."""
    name = escape(printable(str(described.path)))
    first = described.captions[0]
    seen = described.thumbnail
    shown = f'<img src="{data_url("jpeg", seen)}" alt="{_text(first)}">\n' if seen is not None else ""
    captions = "".join(map(_item, described.captions))
    maps, style = _maps(described, first) if described.reduction and described.seen is not None and first.text else ("", "")
    caption = f'<figcaption>\n<ol>\n{captions}</ol>\n{maps}<p class="name">{name}</p>\n</figcaption>'
    return Figure(f"<figure>\n{shown}{caption}\n</figure>\n", style)


def _text(caption: Caption) -> str:
    return escape(printable(caption.text)) + ("" if caption.hypothesis.finished else "…")


def _item(caption: Caption) -> str:
    sure = caption.hypothesis.confidence
    bar = f'<meter value="{sure:.4f}" aria-hidden="true"></meter>'
    return f'<li><span lang="" dir="auto">{_text(caption)}</span><span>{sure:.1%}</span>{bar}</li>\n'


def _maps(described: Described, caption: Caption) -> tuple[str, str]:
    """What the model saw, once for each character: bright where it looked before it wrote that. And the style that shows it."""
    assert described.seen is not None
    weights = caption.hypothesis.alignment.numpy()  # (L, Y²)
    tiles = "".join(
        f'<span><img src="{data_url("png", shade(where, described.seen.shape[-1], described.reduction))}" alt="">{escape(letter)}</span>'
        for where, letter in zip(weights, map(glyph, caption.text))
    )
    seen = data_url("jpeg", as_jpeg(described.seen))
    name = f"seen-{hashlib.sha256(seen.encode()).hexdigest()[:16]}"
    told = "Where the model looked before it wrote each character: there the picture is bright"
    return (
        f'<details open><summary>{told}</summary>\n<div class="maps {name}" role="img" aria-label="{told}">{tiles}</div></details>\n',
        f".{name} img {{ background-image: url({seen}); }}\n",
    )


def shade(weights: npt.NDArray[np.float32], side: int, reduction: int) -> bytes:
    """A PNG to lie over what the model saw, H = `side`: the darker, the less of its look went there, and clear where most did.

    A place of the grid, weights (Y²,), is centred on pixel `reduction` times its number: convolutions with a stride of 2 and one pixel
    around begin in the corner. Between the centres weights change evenly.
    """
    places = round(len(weights) ** 0.5)
    at = (np.arange(MAP) + 0.5) * side / MAP / reduction  # (M,) in places
    near = np.clip(1 - np.abs(at.clip(0, places - 1)[:, None] - np.arange(places)), 0, 1)  # (M, Y)
    looked = near @ weights.reshape(places, places).astype(np.float64) @ near.T  # (M, M)
    opacity = DARKEST * (1 - looked / max(looked.max(), 1e-12))
    pixels: Pixels = np.zeros((4, MAP, MAP), dtype=np.uint8)
    pixels[3] = (255 * opacity).round()
    return as_png(pixels)
