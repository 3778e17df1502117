"""Curves of runs as inline SVG: one drawing for wide screens and one for phones, values under the pointer and under the arrow keys.

Colours and marks are told apart without seeing red or green, and never by colour alone: names stand at the ends of the curves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from charrnn.journal import AXES, Curve, Journal
from charrnn.page import escape
from charrnn.ranking import less_is_better

HUES = 8  # colours of the page, --c0 to --c7; more runs are told apart by dashes
DASHES = ("", "6 3", "2 3", "8 3 2 3")
POINTS = 40_000  # of all curves of a drawing together, at most: a page of many runs stays small
BEGINNING, SEVERAL = 0.05, 20  # the share of a run that may leave the drawing, where training has so many points
LABEL = 22  # characters of a name beside its curve
ROWS = 40  # of the table of evaluations
DOTTED = 120  # evaluations, of which each is a dot
ALONG = {"steps": "step", "chars": "characters read", "minutes": "minutes of training"}


class Course(NamedTuple):
    """A metric along a run."""

    name: str
    training: Curve
    validation: Curve
    best: tuple[float, float] | None  # where validation was at its best, and how good; None where there is none

    def outlined(self, columns: int) -> Course:
        return self._replace(training=self.training.thinned(columns), validation=self.validation.thinned(columns))


def courses(journals: Sequence[Journal], names: Sequence[str], metric: str, by: str) -> list[Course]:
    """Of runs under their names, along `steps`, `chars` or `minutes`."""

    def along(journal: Journal, key: str) -> Curve:
        curve = journal.curve(key, AXES[by])
        return Curve([x / 60 for x in curve.x], curve.y) if by == "minutes" else curve

    found: list[Course] = []
    for journal, name in zip(journals, names):
        validation = along(journal, f"val_{metric}")
        points = zip(*validation.finite())
        best = min(points, key=lambda point: point[1] if less_is_better(metric) else -point[1], default=None)
        found.append(Course(name, along(journal, metric), validation, best))
    return found


def words(metric: str) -> str:
    """A metric as an axis names it: `bits per character`."""
    return metric.replace("_per_char", "_per_character").replace("_", " ")


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, 1, 2 or 5 times a power of ten apart, about `most` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def told(value: float) -> str:
    """A figure as a person reads it: 4 digits, more of a large one, which has commas."""
    if value == 0:
        return "0"
    if abs(value) >= 1e15:
        return f"{value:.3e}"
    if abs(value) >= 1000 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) >= 0.001 else f"{value:.2e}"


def placed(x: float, by: str) -> str:
    """A place along a run: minutes to a tenth, else a whole number."""
    return f"{x:,.1f}" if by == "minutes" else f"{x:,.0f}"


def short_number(value: float) -> str:
    """Of a tick: 2,500, 12k, 3.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:,g}" if abs(value) >= 1000 else f"{value:.6g}"


def span(courses: Sequence[Course]) -> tuple[float, float]:
    """The values that a drawing shows. Training may leave it in the first twentieth of a run, which would else press the rest flat."""
    values: list[float] = []
    for course in courses:
        training = course.training.finite()
        begun = training.x[-1] * BEGINNING if len(training.x) >= SEVERAL else 0.0
        values += [*course.validation.finite().y, *(y for x, y in zip(*training) if x >= begun)]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = (high - low) * 0.04 or max(abs(high) * 0.05, 0.01)
    return low - room, high + room


def reach(courses: Sequence[Course]) -> tuple[float, float]:
    """From 0 to where the longest run has come."""
    last = max((x for course in courses for x in chain(course.training.x[-1:], course.validation.x[-1:])), default=1.0)
    return 0.0, last or 1.0


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places moved to be `gap` apart between `low` and `high`, each group about where it was; nearer where there is no room."""
    gap = min(gap, (high - low) / max(1, len(places) - 1))
    order = sorted(range(len(places)), key=places.__getitem__)

    def upwards(values: Sequence[float], at: float) -> list[float]:
        return [at := max(value, at + gap) for value in values]

    def downwards(values: Sequence[float], at: float) -> list[float]:
        return [at := min(value, at - gap) for value in reversed(values)][::-1]

    sought = [places[i] for i in order]
    # Pushed up and pushed down, the places are `gap` apart, so they are in the middle of both too.
    middle = [(up + down) / 2 for up, down in zip(upwards(sought, -math.inf), downwards(sought, math.inf))]
    fitted = upwards(downwards(middle, high + gap), low - gap)
    return [place for _, place in sorted(zip(order, fitted))]


def shortened(name: str, most: int = LABEL) -> str:
    """A long name without its middle, for its ends tell runs apart."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"


class _Frame(NamedTuple):
    """Where in a drawing of `width` by `height` the curves are, and what they span there."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x: tuple[float, float]
    y: tuple[float, float]

    def at_x(self, x: float) -> float:
        return self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)

    def at_y(self, y: float) -> float:
        return self.bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - self.top)


def chart(found: Sequence[Course], metric: str, by: str, ident: str) -> str:
    """A figure of HTML: the drawings, their legend, and a table of the evaluations. `ident`: of this figure alone in its page.

    The script of the page, SCRIPT, shows the values of where the pointer is, and of where a slider is that the keyboard moves.
    """
    columns = max(8, min(600, POINTS // (8 * max(1, len(found)))))
    shown = [course.outlined(columns) for course in found]
    x, y = reach(found), span(found)
    label = describe(found, metric, by)
    wide = _Frame(760, 380, 62, 610 if len(found) <= 12 else 745, 14, 334, x, y)
    narrow = _Frame(360, 300, 46, 352, 12, 258, x, y)
    data = {
        "along": ALONG[by],
        "curves": [
            {"name": f"{one.name} {kind}" if len(found) > 1 else kind, "hue": i % HUES, "x": _rounded(curve.x), "y": _rounded(curve.y)}
            for i, one in enumerate(shown)
            for kind, curve in (("training", one.training), ("validation", one.validation))
            if curve.finite().x
        ],
    }
    drawings = _drawing(shown, wide, metric, by, label, "wide")
    drawings += _drawing([one.outlined(150) for one in shown], narrow, metric, by, label, "narrow")
    place = escape(f"{words(metric)}: place along the run, {ALONG[by]}")
    return (
        f'<figure class="chart" id="{escape(ident)}" data-curves="{escape(json.dumps(data))}">\n{drawings}'
        f'<div class="cursor" data-label="{place}"></div>\n'
        f"<figcaption>{_legend(shown, by)}</figcaption>\n{_table(found, metric, by)}</figure>\n"
    )


def describe(found: Sequence[Course], metric: str, by: str) -> str:
    """In words what a drawing shows, for who cannot see it."""
    parts = []
    for course in found[:12]:
        last = course.training.finite()
        ends = f"training ends at {told(last.y[-1])}" if last.y else "no training values"
        parts.append(f"{course.name}: {ends}, {_best(course, by) or 'no validation values'}")
    more = f"; and {len(found) - 12} more" if found[12:] else ""
    return f"{words(metric).capitalize()} along {ALONG[by]}. {'; '.join(parts)}{more}"


def _best(course: Course, by: str) -> str:
    return f"best validation {told(course.best[1])} at {ALONG[by]} {placed(course.best[0], by)}" if course.best else ""


def _drawing(found: Sequence[Course], frame: _Frame, metric: str, by: str, label: str, kind: str) -> str:
    wide = kind == "wide"
    parts: list[str] = []
    for value in ticks(*frame.y, 6 if wide else 5):
        at = f"{frame.at_y(value):.1f}"
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{frame.right}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{frame.left - 7}" y="{at}" dy=".35em" text-anchor="end">{short_number(value)}</text>')
    for value in ticks(*frame.x, 6 if wide else 4):
        at = f"{frame.at_x(value):.1f}"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{frame.bottom}" y2="{frame.bottom + 4}"/>')
        anchor = "end" if frame.at_x(value) > frame.width - 16 else "middle"
        parts.append(f'<text x="{at}" y="{frame.bottom + 18}" text-anchor="{anchor}">{short_number(value)}</text>')
    middle = (frame.left + frame.right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{frame.height - 6}" text-anchor="middle">{ALONG[by]}</text>')
    if wide:
        upright = (frame.top + frame.bottom) / 2
        parts.append(f'<text transform="translate(13 {upright:.0f}) rotate(-90)" text-anchor="middle">{escape(words(metric))}</text>')
    clip = f"clip-{kind}"
    inside = f'x="{frame.left}" y="{frame.top}" width="{frame.right - frame.left}" height="{frame.bottom - frame.top}"'
    # A nested svg cuts off what leaves it, without an id that would have to be one of its kind in the page.
    view = f"{frame.left} {frame.top} {frame.right - frame.left} {frame.bottom - frame.top}"
    parts.append(f'<svg class="{clip}" {inside} viewBox="{view}">')
    for i, course in enumerate(found):
        parts.append(f'<g class="k{i % HUES}"{_dash(i)}>{_line(course.training, frame, "training")}')
        parts.append(f"{_line(course.validation, frame, 'validation')}{_dots(course, frame)}</g>")
    parts.append("</svg>")
    for i, course in enumerate(found):
        if course.best:
            x, y = frame.at_x(course.best[0]), frame.at_y(course.best[1])
            title = f"<title>{escape(f'{course.name}: {_best(course, by)}')}</title>"
            parts.append(f'<g class="k{i % HUES}"><path class="best" d="{_star(x, y)}">{title}</path></g>')
    if wide and len(found) <= 12:
        parts += _names(found, frame)
    parts.append(f'<line class="here" x1="0" x2="0" y1="{frame.top}" y2="{frame.bottom}" visibility="hidden"/>')
    where = " ".join(f"{value:.10g}" for value in (*frame.x, frame.left, frame.right, frame.width))
    head = f'<svg class="{kind}" viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(label)}" data-frame="{where}">'
    return head + "".join(parts) + "</svg>\n"


def _names(found: Sequence[Course], frame: _Frame) -> list[str]:
    """Each curve's name, at its end."""
    ends: list[tuple[float, int, str]] = []
    for i, course in enumerate(found):
        named = {"training": course.training.finite(), "validation": course.validation.finite()} if len(found) == 1 else {}
        named = named or {course.name: course.validation.finite() if course.validation.finite().y else course.training.finite()}
        ends += [(frame.at_y(curve.y[-1]), i, name) for name, curve in named.items() if curve.y]
    inside = [min(max(y, frame.top), frame.bottom) for y, _, _ in ends]
    return [
        f'<text class="name k{i % HUES}" x="{frame.right + 8}" y="{y:.1f}" dy=".35em">{escape(shortened(name, 20))}</text>'
        for y, (_, i, name) in zip(spread(inside, 15, frame.top, frame.bottom), ends)
    ]


def _line(curve: Curve, frame: _Frame, kind: str) -> str:
    steps: list[str] = []
    pen = "M"
    for x, y in zip(*curve):
        if math.isfinite(y):
            # Far outside nothing is seen, and no number is so long that a browser would not draw it.
            steps.append(f"{pen}{frame.at_x(x):.1f} {min(max(frame.at_y(y), -1e4), 1e4):.1f}")
            pen = "L"
        else:
            pen = "M"
    return f'<path class="{kind}" d="{"".join(steps)}"/>' if steps else ""


def _dots(course: Course, frame: _Frame) -> str:
    """A dot for each evaluation, and for the only value of a curve, which has no line."""
    evaluations, training = course.validation.finite(), course.training.finite()
    dots = [*(zip(*evaluations) if len(evaluations.x) <= DOTTED else ()), *(zip(*training) if len(training.x) == 1 else ())]
    return "".join(f'<circle cx="{frame.at_x(x):.1f}" cy="{frame.at_y(y):.1f}" r="2.4"/>' for x, y in dots)


def _star(x: float, y: float, radius: float = 7.5) -> str:
    corners = [
        f"{x + r * math.sin(i * math.pi / 5):.1f} {y - r * math.cos(i * math.pi / 5):.1f}"
        for i, r in enumerate([radius, radius * 0.42] * 5)
    ]
    return f"M{'L'.join(corners)}Z"


def _dash(i: int) -> str:
    pattern = DASHES[i // HUES % len(DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def _legend(found: Sequence[Course], by: str) -> str:
    """Which curve is whose, with the best value of each, and what thin and thick lines are."""

    def key(inner: str) -> str:
        return f'<svg class="key" viewBox="0 0 28 12" width="28" height="12" aria-hidden="true">{inner}</svg>'

    items = []
    for i, course in enumerate(found):
        best = f", best {told(course.best[1])} at {placed(course.best[0], by)}" if course.best else ""
        inner = f'<g class="k{i % HUES}"{_dash(i)}><path class="validation" d="M1 6L27 6"/></g>'
        items.append(f'<li>{key(inner)} <span dir="auto">{escape(course.name)}</span>{best}</li>')
    thin = key('<path class="training" d="M1 6L27 6"/>')
    thick = key('<path class="validation" d="M1 6L27 6"/><circle cx="14" cy="6" r="2.4"/>')
    star = key(f'<path class="best" d="{_star(14, 6, 6)}"/>')
    kinds = f"{thin} training, {thick} validation, {star} the best"
    return f'<ul class="legend">{"".join(items)}<li class="quiet">{kinds}</li></ul>'


def _table(found: Sequence[Course], metric: str, by: str) -> str:
    """The evaluations, or so many of them that a page can hold, and each run's best."""
    places = sorted({x for course in found for x, _ in zip(*course.validation.finite())})
    if not places:
        return ""
    every = math.ceil(len(places) / ROWS)
    kept = sorted({*places[::every], places[-1], *(course.best[0] for course in found if course.best)})
    values = [dict(zip(*course.validation.finite())) for course in found]
    head = "".join(f'<th scope="col" class="number">{escape(shortened(course.name, 40))}</th>' for course in found)
    rows = "".join(
        f'<tr><th scope="row" class="number">{placed(x, by)}</th>'
        + "".join(f'<td class="number">{told(one[x]) if x in one else ""}</td>' for one in values)
        + "</tr>\n"
        for x in kept
    )
    which = f"{len(kept)} of {len(places):,} evaluations" if len(kept) < len(places) else "All evaluations"
    caption = escape(f"{which}: validation {words(metric)}")
    return (
        f"<details><summary>{caption}, as a table</summary>\n"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table><caption class="quiet">{caption}</caption>\n'
        f'<thead><tr><th scope="col" class="number">{ALONG[by]}</th>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div></details>\n'
    )


def _rounded(values: Sequence[float]) -> list[float | int | None]:
    """As JSON has them, in few bytes; null for a gap."""
    short = [float(f"{value:.6g}") if abs(value) < 1e5 else round(value, 1) for value in values]
    return [None if not math.isfinite(value) else int(value) if value == int(value) else value for value in short]


STYLE = """
.chart { margin: 0; }
.chart svg { display: block; width: 100%; height: auto; }
.chart svg text { fill: var(--quiet); font: 12px system-ui, sans-serif; }
.chart svg .name { fill: var(--k); font-weight: 600; }
.chart .wide { max-width: 60rem; }
.chart .narrow { display: none; }
.chart .grid { stroke: var(--line); }
.chart .here { stroke: var(--text); stroke-dasharray: 3 3; }
.training, .validation { fill: none; stroke: var(--k, var(--text)); stroke-linejoin: round; }
.training { stroke-width: 1; opacity: .6; }
.validation { stroke-width: 2.2; }
.chart circle { fill: var(--k, var(--text)); }
.best { fill: var(--k, var(--text)); stroke: var(--card); stroke-width: 1.2; }
.chart svg.key { display: inline-block; width: 28px; height: 12px; vertical-align: middle; }
.legend { margin: .5rem 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .875rem; }
.legend li { overflow-wrap: anywhere; }
.cursor input { display: block; width: 100%; margin: .3rem 0; accent-color: var(--bar); }
.cursor output { display: flex; flex-wrap: wrap; gap: .1rem 1rem; min-height: 1.5rem; }
.cursor output { font-size: .875rem; font-variant-numeric: tabular-nums; }
.cursor span { color: var(--k, inherit); overflow-wrap: anywhere; }
.chart caption { text-align: left; padding-bottom: .3rem; }
.chart details { margin-top: .5rem; }
.chart .scroll { max-height: 24rem; }
@media (max-width: 40rem) { .chart .wide { display: none; } .chart .narrow { display: block; } }
""" + "".join(f".k{i} {{ --k: var(--c{i}); }}\n" for i in range(HUES))

# Everything that is shown comes as text from the figure's own attributes, and goes in as text.
SCRIPT = """
"use strict";
for (const figure of document.querySelectorAll("figure.chart")) {
  const data = JSON.parse(figure.dataset.curves);
  const places = [...new Set(data.curves.flatMap((curve) => curve.x))].sort((a, b) => a - b);
  const holder = figure.querySelector(".cursor");
  if (!places.length) continue;
  const slider = document.createElement("input"), output = document.createElement("output");
  Object.assign(slider, { type: "range", min: 0, max: places.length - 1, step: 1, value: places.length - 1 });
  slider.setAttribute("aria-label", holder.dataset.label);
  output.setAttribute("aria-live", "off");
  holder.append(slider, output);
  const digits = (size) => size >= 1000 ? 0 : size < 0.001 ? 8 : 4;
  const number = (value) => value.toLocaleString("en", { maximumFractionDigits: digits(Math.abs(value)) });
  const nearest = (values, wanted) => {
    let low = 0, high = values.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (values[middle] <= wanted) low = middle; else high = middle; }
    return Math.abs(values[low] - wanted) <= Math.abs(values[high] - wanted) ? low : high;
  };
  const show = (index) => {
    const place = places[index], told = [`${data.along} ${number(place)}`];
    output.replaceChildren();
    const add = (text, hue) => {
      const part = document.createElement("span");
      part.textContent = text;
      if (hue !== undefined) part.className = "k" + hue;
      output.append(part);
    };
    add(told[0]);
    for (const curve of data.curves) {
      if (place < curve.x[0] || place > curve.x[curve.x.length - 1]) continue;
      const value = curve.y[nearest(curve.x, place)];
      const text = `${curve.name} ${value === null ? "not finite" : number(value)}`;
      told.push(text);
      add(text, curve.hue);
    }
    slider.setAttribute("aria-valuetext", told.join(", "));
    for (const drawing of figure.querySelectorAll("svg[data-frame]")) {
      const [low, high, left, right] = drawing.dataset.frame.split(" ").map(Number);
      const line = drawing.querySelector(".here"), x = left + (place - low) / (high - low) * (right - left);
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
      line.setAttribute("visibility", "visible");
    }
  };
  show(places.length - 1);
  slider.addEventListener("input", () => show(Number(slider.value)));
  for (const drawing of figure.querySelectorAll("svg[data-frame]")) {
    drawing.addEventListener("pointermove", (event) => {
      const [low, high, left, right, width] = drawing.dataset.frame.split(" ").map(Number), box = drawing.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * width;
      const index = nearest(places, low + (x - left) / (right - left) * (high - low));
      slider.value = index;
      show(index);
    });
  }
}
"""
