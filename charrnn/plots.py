"""Pictures, as PNG or SVG: drawn without a screen, by matplotlib, which is asked for only here.

Axes: K labels, L characters, S encoder steps, T steps of a text.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from charrnn.chart import ALONG, DOTTED, Course, placed, reach, short_number, shortened, span, spread, told, words
from charrnn.errors import UserError, glyph, printable
from charrnn.ranking import less_is_better

if TYPE_CHECKING:
    from torch import Tensor

    from charrnn.bptt import Triangle
    from charrnn.metrics import Confusion

SHADES = "Blues"  # of all that is the darker the more; one hue, so that it reads alike to eyes that see no red or no green
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
        axes.imshow(shares, cmap=SHADES, vmin=0, vmax=1)
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

    names = [glyph(character) for character in text]
    fonts, missing = _fonts(names)
    note = f"no font here has {missing[0]!r}; install one such as Noto Sans CJK" if missing else None
    names = ["□" if missing and set(name) & set(missing) else name for name in names]
    with matplotlib.rc_context({"font.family": fonts, "text.parse_math": False, "text.usetex": False}):
        figure = Figure(figsize=(min(max(4.0, 2.5 * seconds), 40), min(max(2.0, 0.9 + 0.17 * len(names)), 40)), dpi=144)
        axes = figure.subplots()
        if names:
            extent = (0.0, seconds, len(names) - 0.5, -0.5)
            axes.imshow(alignment.cpu().numpy(), cmap=SHADES, vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=extent)
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


LETTERED = 48  # steps: the characters of more would not fit beside a triangle
DECADES = 5  # that shades tell apart
DISTANCES = 100  # characters back, at most, of what falls


def triangles_png(found: Sequence[Triangle], names: Sequence[str], characters: Sequence[str]) -> tuple[bytes, str | None]:
    """What the losses of a text owe to each earlier step, of one model or of several side by side; and what there is to say of it.

    Each has three parts: ‖∂E_t/∂s_k‖, the norms of the terms of ∂E_t/∂W_hh, each by t (down) and k (across) in shades of half a decade,
    and how the first falls with the distance t - k: the median of all losses, half of them in the band, and where it has fallen by the
    halvings that the half-life is the mean of.
    `characters`: the T that are read.
    """
    import matplotlib
    from matplotlib.figure import Figure

    names, letters = [shortened(printable(name), 40) for name in names], [glyph(character) for character in characters]
    fonts, missing = _fonts([*names, *(letters if len(letters) <= LETTERED else [])])
    note = f"no font here has {missing[0]!r}; install one such as Noto Sans CJK" if missing else None
    letters = ["□" if set(letter) & set(missing) else letter for letter in letters]
    alone = len(found) == 1
    with matplotlib.rc_context({"font.family": fonts, "text.parse_math": False, "text.usetex": False}):
        size = (11.4, 3.7) if alone else (1.2 + 3.1 * len(found), 9.2)
        figure = Figure(figsize=size, dpi=100, layout="constrained")
        parts = figure.subplots(1, 3, squeeze=False).T if alone else figure.subplots(3, len(found), squeeze=False)  # by part and model
        for part, (what, label) in enumerate((("state", "‖∂E_t / ∂s_k‖"), ("weight", "‖term k of ∂E_t / ∂W_hh‖"))):
            shades = _triangles(parts[part], [getattr(one, what) for one in found], letters)
            figure.colorbar(shades, ax=list(parts[part]), label=label, shrink=0.85, format=_plainly)
        for axes, one, name in zip(parts[0], found, names):
            axes.set_title(f"{name}, layer {one.layer}\nhalf-life {life_told(one)}", fontsize="medium")
        for axes, one in zip(parts[2], found):
            _fall(axes, one)
        for row in parts[:, 1:] if not alone else []:
            for axes in row:
                axes.set_ylabel("")
        picture = _few_coloured(figure)
    return picture, note


def life_told(found: Triangle) -> str:
    """A half-life for a person."""
    life = found.half_life()
    if math.isnan(life):
        return "unknown, as no gradient flows"
    return f"{life:.1f} characters" if math.isfinite(life) else "beyond the text"


def _triangles(row: Any, norms: Sequence[Tensor], letters: Sequence[str]) -> Any:
    """Side by side, in the same shades. Returns what a colour bar is made of."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    most = max(float(one.max()) for one in norms) or 1.0
    most = 10 ** (math.ceil(2 * math.log10(most)) / 2)
    least = most * 10**-DECADES
    scale = LogNorm(least, most)
    shades: Any = None
    for axes, one in zip(row, norms):
        numbers = one.numpy().clip(least)
        numbers[np.triu_indices(len(numbers), 1)] = np.nan  # no loss owes anything to what is read after it
        shades = axes.imshow(numbers, cmap=colormaps[SHADES].resampled(2 * DECADES), norm=scale, interpolation="nearest")
        axes.set(xlabel="k, the step that is owed to", ylabel="t, the loss")
        if len(letters) <= LETTERED:
            axes.set_xticks(range(len(letters)), letters, fontsize="x-small")
            axes.set_yticks(range(len(letters)), letters, fontsize="x-small")
    return shades


def _fall(axes: Any, found: Triangle) -> None:
    """How ‖∂E_t/∂s_{t-d}‖ falls with d."""
    import numpy as np

    from charrnn.bptt import HALVINGS

    steps = max(2, min(DISTANCES + 1, len(found.state) // 2))
    decay = found.decay().numpy()
    middle = [np.nanquantile(decay[d:, d], (0.25, 0.5, 0.75)) for d in range(min(steps, len(decay)))]
    low, median, high = (np.array(one).clip(1e-12) for one in zip(*middle))
    distances = np.arange(len(median))
    axes.fill_between(distances, low, high, color=HUES[0], alpha=0.2, linewidth=0)
    axes.plot(distances, median, color=HUES[0])
    fallen = found.fallen(HALVINGS)
    if math.isfinite(fallen) and fallen < steps:
        axes.plot([fallen] * 2, [10**-DECADES, 2.0**-HALVINGS], color=HUES[1], linewidth=1.2, linestyle="dashed")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_plainly)
    axes.set(ylim=(10**-DECADES, 10), xlim=(0, steps - 1), xlabel="t - k, characters back", ylabel="‖∂E_t / ∂s_k‖ : ‖∂E_t / ∂s_t‖")
    axes.grid(axis="y", color="#dcdcd6", linewidth=0.7)


def _plainly(value: float, place: int) -> str:
    """A power of ten, which matplotlib would write as mathematics, and the text of users is none."""
    return f"{value:g}"


def _few_coloured(figure: Any) -> bytes:
    """A PNG with a palette: of pictures of few shades and many edges a third of the size."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image  # which matplotlib needs

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    few = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    picture = io.BytesIO()
    few.save(picture, format="png", optimize=True)
    return picture.getvalue()
