"""The frame of every HTML page that charrnn writes: text that stays text, a policy that lets nothing else run, one style in light and dark.

A page needs nothing but itself: nothing is fetched from anywhere, and only the one style and the one script that it was made with count.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import unicodedata

SURPRISAL_STEPS = 8  # classes s0 to s7 of surprisal_colour: one for each bit, and all above in the last

# What some scripts and emoji are joined or kept apart by, which no one is deceived with.
_JOINERS = "\u200c\u200d"
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")

# Backgrounds of surprisal: one hue, so that it reads alike to eyes that see no red or no green, and text upon each is at least 7:1.
SURPRISAL_LIGHT = ("#ffffff", "#fff4e3", "#ffe8c7", "#ffdaa8", "#ffcb88", "#fcba68", "#f5a94c", "#ec9937")
SURPRISAL_DARK = ("#1f1f1e", "#2a2418", "#342916", "#3f2e13", "#4a3310", "#55380d", "#613d0a", "#6d4206")

STYLE = """
:root { color-scheme: light dark; --page: #f4f4f1; --card: #fff; --text: #1b1b1a; --quiet: #5c5c57; --line: #dcdcd6; --bar: #2f6f97;
  --focus: #0b57d0;
  --c0: #0072b2; --c1: #b34700; --c2: #00735c; --c3: #a3477f; --c4: #7a5c00; --c5: #3b6db5; --c6: #444; --c7: #8a2f1d; }
@media (prefers-color-scheme: dark) {
  :root { --page: #151515; --card: #1f1f1e; --text: #ecece8; --quiet: #a8a8a1; --line: #373734; --bar: #6db3dd; --focus: #9ecbff;
    --c0: #56b4e9; --c1: #f0a04b; --c2: #3fc79f; --c3: #dd9ac4; --c4: #e6d35c; --c5: #9db8f2; --c6: #cfcfca; --c7: #f08a72; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; padding: 1.25rem; background: var(--page); color: var(--text); font: 1rem/1.45 system-ui, sans-serif; }
header, main, footer, body > nav { max-width: 84rem; margin: 0 auto 1.25rem; }
h1, h2, h3 { line-height: 1.25; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.35rem; }
h2 { margin: 0 0 .75rem; font-size: 1.15rem; }
h3 { margin: 1rem 0 .5rem; font-size: 1rem; }
header p, footer p, .quiet { color: var(--quiet); }
header p, footer p { margin: .25rem 0 0; overflow-wrap: anywhere; }
a { color: var(--bar); }
:focus-visible { outline: .18rem solid var(--focus); outline-offset: .12rem; }
img, svg { max-width: 100%; }
.card { margin: 0 0 1.25rem; padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.scroll { overflow: auto; max-width: 100%; }
pre { margin: 0; font: .875rem/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
table { border-collapse: collapse; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; }
""" + "\n".join(
    [
        *(f".s{step} {{ background: {colour}; }}" for step, colour in enumerate(SURPRISAL_LIGHT)),
        "@media (prefers-color-scheme: dark) {",
        *(f"  .s{step} {{ background: {colour}; }}" for step, colour in enumerate(SURPRISAL_DARK)),
        "}",
        "",
    ]
)


def escape(text: str) -> str:
    """Text as HTML shows it, in an element or in a quoted attribute: never a tag, and nothing hidden in it.

    Control characters, bidirectional marks, lone surrogates and what else has no shape stand there as escapes such as `\\u202e`. Line ends,
    tabs, spaces of all widths and the joiners of scripts and emoji stay.
    """
    return html.escape("".join(c if c.isprintable() or c in "\n\t" or not _hides(c) else ascii(c)[1:-1] for c in text), quote=True)


def _hides(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN and character not in _JOINERS


def page(title: str, body: str, *, style: str = "", script: str = "", lang: str = "en", policy: str = "") -> str:
    """A whole page. `title` and `lang` are text; `body`, `style` (after the one of all pages) and `script` are HTML, CSS and JavaScript.

    The body brings its landmarks (header, nav, main, footer). The policy of the page lets this style and this script count, by their
    hashes, and pictures that are in it: no attribute `style` or `onclick`, nothing from elsewhere, no form. `policy`: further directives,
    such as `connect-src 'self'` for a page that is served. Raises ValueError where style or script would end their element.
    """
    sheet = STYLE + style
    for content, element in ((sheet, "style"), (script, "script")):
        if f"</{element}" in content.lower() or (element == "script" and "<!--" in content):
            raise ValueError(f"the page's {element} holds what ends its element")
    rules = ["default-src 'none'", "img-src data:", f"style-src {_hash(sheet)}", f"script-src {_hash(script)}" if script else ""]
    rules += ["base-uri 'none'", "form-action 'none'", policy]
    return (
        f'<!DOCTYPE html>\n<html lang="{escape(lang)}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(filter(None, rules))}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{sheet}</style>\n</head>\n<body>\n{body}"
        + (f"<script>{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )


def _hash(content: str) -> str:
    """As a policy names what stands in the page: the bytes between the tags."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode('ascii')}'"


def surprisal_colour(bits: float) -> str:
    """The CSS class, of STYLE, for a character that cost so many bits: `s0` below 1, `s1` below 2, … `s7` from 7, or where it is no number.

    In JavaScript: `"s" + Math.min(7, Math.max(0, Math.floor(bits)))`.
    """
    return f"s{SURPRISAL_STEPS - 1 if math.isnan(bits) else int(min(SURPRISAL_STEPS - 1, max(0.0, bits)))}"


def data_url(kind: str, content: bytes) -> str:
    """Of a picture in the page; `kind`: png, jpeg or svg+xml."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
