"""Pictures, as PNG: drawn without a screen, by matplotlib, which is asked for only here.

Axes: K labels, L characters, S encoder steps.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from torch import Tensor

from charrnn.errors import UserError, printable
from charrnn.metrics import Confusion

NUMBERED = 40  # labels: in the cells of more of them a number could not be read
DARK = 0.5  # share of its row above which a cell's number is white
LONGEST = 16  # characters of a label on an axis
BOXES = "Last Resort"  # begins the names of fonts that have a box for every character


def require_matplotlib(asker: str) -> None:
    """Raises UserError where it is not installed. To be asked before the work whose result is to be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(f"{asker}: needs matplotlib, which is not installed; pip install 'charrnn[plots]'") from None


def confusion_png(confusion: Confusion, labels: Sequence[str]) -> tuple[bytes, str | None]:
    """A picture of what was answered (across) for what (down), the darker the larger a share of its row; and what there is to say of it."""
    import matplotlib
    from matplotlib.figure import Figure

    counts = confusion.counts.cpu().numpy()  # (K, K)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    names = [label if len(label) <= LONGEST else label[: LONGEST - 1] + "…" for label in map(printable, labels)]
    fonts, missing = _fonts(names)
    note = None
    if missing:
        names = [str(number) for number in range(1, len(labels) + 1)]
        note = f"no font here has {missing[0]!r}, so labels are drawn as numbers, in their order; install one such as Noto Sans CJK"
    figures = confusion.as_metrics()
    with matplotlib.rc_context({"font.family": fonts, "text.parse_math": False, "text.usetex": False}):
        across = 2.8 + 0.12 * max(map(len, names)) + min(0.62 * len(labels), 20)
        figure = Figure(figsize=(across, across - 0.6), dpi=144)
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names)
        if max(map(len, names)) > 4:
            axes.tick_params("x", labelrotation=45)
            for tick in axes.get_xticklabels():
                tick.set(ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("answered")
        axes.set_ylabel("truth")
        axes.set_title(
            f"accuracy {figures['accuracy']:.1%}, macro-F1 {figures['macro_f1']:.1%}\n{int(counts.sum()):,} texts", fontsize="medium"
        )
        if len(labels) <= NUMBERED:
            for row, column in ((row, column) for row in range(len(labels)) for column in range(len(labels))):
                color = "white" if shares[row, column] > DARK else "black"
                axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=color, fontsize="small")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", bbox_inches="tight")
    return picture.getvalue(), note


def alignment_png(alignment: Tensor, text: str, seconds: float) -> tuple[bytes, str | None]:
    """A picture of where in a recording of so many seconds the decoder looked, (L, S) the darker the more, before it wrote each character.

    And what there is to say of it.
    """
    import matplotlib
    from matplotlib.figure import Figure

    names = ["␣" if character.isspace() else character for character in map(printable, text)]
    fonts, missing = _fonts(names)
    note = f"no font here has {missing[0]!r}; install one such as Noto Sans CJK" if missing else None
    names = ["□" if missing and set(name) & set(missing) else name for name in names]
    with matplotlib.rc_context({"font.family": fonts, "text.parse_math": False, "text.usetex": False}):
        figure = Figure(figsize=(min(max(4.0, 2.5 * seconds), 40), min(max(2.0, 0.9 + 0.17 * len(names)), 40)), dpi=144)
        axes = figure.subplots()
        if names:
            extent = (0.0, seconds, len(names) - 0.5, -0.5)
            axes.imshow(alignment.cpu().numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=extent)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("seconds")
        axes.set_ylabel("characters, from the top")
        axes.set_title(f"{len(names)} characters in {seconds:.2f} s", fontsize="medium")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", bbox_inches="tight")
    return picture.getvalue(), note


def _fonts(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Fonts of this machine that together have the characters of the names, matplotlib's own first; and what none of them has."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    own = font_manager.FontProperties(family="DejaVu Sans")
    chosen = ["DejaVu Sans"]
    missing = set("".join(names)) - set(map(chr, FT2Font(font_manager.findfont(own)).get_charmap()))
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: entry.name) if missing else []:
        if entry.name.startswith(BOXES):
            continue
        try:
            has = missing.intersection(map(chr, FT2Font(entry.fname).get_charmap()))
        except (OSError, RuntimeError):  # a font file of this machine that is broken is none
            continue
        if has:
            chosen.append(entry.name)
            missing -= has
        if not missing:
            break
    return chosen, sorted(missing)
