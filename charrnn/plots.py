"""Pictures, as PNG or SVG: drawn without a screen, by matplotlib, which is asked for only here.

Axes: K labels, L characters, S encoder steps.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from charrnn.chart import ALONG, DOTTED, Course, placed, reach, short_number, shortened, span, spread, told, words
from charrnn.errors import UserError, printable
from charrnn.ranking import less_is_better

if TYPE_CHECKING:
    from torch import Tensor

    from charrnn.metrics import Confusion

NUMBERED = 40  # labels: in the cells of more of them a number could not be read
DARK = 0.5  # share of its row above which a cell's number is white
LONGEST = 16  # characters of a label on an axis
# Told apart by who sees no red, no green or no blue, on white (Okabe & Ito 2008; their yellow is darker here, for it was too faint).
HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#000000", "#8a2f1d")
DASHES = ("solid", "dashed", "dotted", "dashdot")  # of runs beyond these colours
NAMED = 12  # runs: the names of more stand in a legend
BOXES = "Last Resort"  # begins the names of fonts that have a box for every character


def require_matplotlib(asker: str) -> None:
    """Raises UserError where it is not installed. To be asked before the work whose result is to be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(f"{asker}: needs matplotlib, which is not installed; pip install 'charrnn[plots]'") from None


def has_matplotlib() -> bool:
    """Whether pictures can be drawn. Matplotlib no longer tells on standard error that it lists this machine's fonts the first time."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    return True


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


def curves_picture(found: Sequence[Course], metric: str, by: str, kind: str = "png") -> tuple[bytes, str | None]:
    """Training (thin) and validation (thick) of runs along `by`, each best evaluation starred; and what there is to say of it.

    `kind`: png or svg. The same curves make the same bytes.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [shortened(course.name, 32) for course in found]
    fonts, missing = _fonts(names)
    note = f"no font here has {missing[0]!r}; install one such as Noto Sans CJK" if missing else None
    style: Any = {"font.family": fonts, "text.parse_math": False, "text.usetex": False, "svg.fonttype": "none", "svg.hashsalt": "charrnn"}
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8.4, 4.8), dpi=144, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        low, high = span(found)
        axes.set(xlim=reach(found), ylim=(low, high), xlabel=ALONG[by], ylabel=words(metric))
        axes.xaxis.set_major_formatter(lambda value, place: short_number(value))
        axes.yaxis.set_major_formatter(lambda value, place: short_number(round(value, 12)))
        axes.grid(axis="y", color="#dcdcd6", linewidth=0.7)
        ends: list[tuple[float, str, str]] = []  # where a name belongs
        for i, (course, name) in enumerate(zip(found, names)):
            ends += _draw(axes, course, by, name, HUES[i % len(HUES)], DASHES[i // len(HUES) % len(DASHES)], alone=len(found) == 1)
        if len(found) > NAMED:
            axes.legend(handles=[line for line in axes.lines if not str(line.get_label()).startswith("_")], fontsize="small", ncols=2)
        else:
            places = spread([(min(max(y, low), high) - low) / (high - low) for y, _, _ in ends], 0.055, 0.0, 1.0)
            for place, (_, text, colour) in zip(places, ends):
                axes.annotate(
                    text, (1.0, place), (6, 0), "axes fraction", "offset points", color=colour, va="center", fontsize="small",
                    annotation_clip=False,
                )  # fmt: skip
        if len(found) > 1:
            lines = (("thin", "training"), ("thick", "validation"))
            kinds = [f"{which}: {what}" for which, what in lines if any(getattr(one, what).x for one in found)]
            best = [f"★ the best, the {'low' if less_is_better(metric) else 'high'}est"] if any(one.best for one in found) else []
            axes.set_title("; ".join(kinds + best), fontsize="small", loc="left", color="#5c5c57")
        picture = io.BytesIO()
        figure.savefig(picture, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return picture.getvalue(), note


def _draw(axes: Any, course: Course, by: str, name: str, colour: str, dash: str, *, alone: bool) -> list[tuple[float, str, str]]:
    """One run's curves; and what is to stand beside their ends, each with its height and its colour."""
    ends: list[tuple[float, str, str]] = []
    training, validation = course.training.thinned(1200), course.validation.thinned(1200)
    dots: Any = {"marker": "o", "markersize": 3.2}
    line: Any = {"color": colour, "linestyle": dash}
    axes.plot(*training, **line, linewidth=0.9, alpha=0.55, **(dots if len(training.finite().x) == 1 else {}))
    # A legend leaves out what begins with an underscore.
    axes.plot(*validation, **line, linewidth=2.0, label=f" {name}", **(dots if len(validation.x) <= DOTTED else {}))
    if course.best:
        star: Any = {"marker": "*", "markersize": 13, "markeredgecolor": "white", "zorder": 5, "clip_on": False}
        axes.plot(*([part] for part in course.best), color=colour, **star)
    best = f" {told(course.best[1])}" if course.best else ""
    if alone:
        where = f"validation\n★ {told(course.best[1])} at {placed(course.best[0], by)}" if course.best else "validation"
        kinds = (("training", training.finite().y), (where, validation.finite().y))
        ends += [(values[-1], text, colour) for text, values in kinds if values]
        axes.set_title(name, fontsize="medium", loc="left")
    elif values := validation.finite().y or training.finite().y:
        ends.append((values[-1], f"{name}{best}", colour))
    return [end for end in ends if math.isfinite(end[0])]


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
