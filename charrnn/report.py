"""One HTML file about runs: how they learned, what they wrote meanwhile, what they were set to, and in what they differ. Without torch.

It is read from what lies in the run directories, and trusts none of it: text is shown as text, a file that is damaged is told of.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from charrnn import chart
from charrnn.errors import UserError, counted, printable, short
from charrnn.journal import MAX_SAMPLES, Curve, Journal, Written, common_metric, names_of, samples_of
from charrnn.model_file import read_header
from charrnn.page import data_url, escape, page
from charrnn.plain_yaml import parse_yaml
from charrnn.ranking import less_is_better
from charrnn.run_files import CURVES, MODELS, SAMPLES

SHOWN = 60  # samples of a run, at most
SAMPLE = 4000  # characters of one
LETTERS = 600_000  # characters of all samples together
CONFIG = 200_000  # characters of a config.yaml
VALUE = 200  # characters of one setting in a table
PICTURES = 1_500_000  # bytes of all pictures together
KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".svg": "svg+xml"}
BESIDE = ("learning_rate", "grad_norm", "chars_per_second")  # of training, beside the metrics
UNTOLD = ("nats_per_", "perplexity")  # begin the metrics that say the same as the cost
MOST_CHARTS = 6  # of further metrics


class Section(NamedTuple):
    """A part of the report that something else has made."""

    title: str  # text
    html: str  # its content below the heading, without attributes `style` or `onclick`, which the page's policy stops
    style: str = ""  # CSS for it


class Picture(NamedTuple):
    """A picture of a file."""

    name: str
    kind: str  # of its data URL
    content: bytes


@dataclass(frozen=True)
class Run:
    """What is known of a run from its directory."""

    name: str
    journal: Journal
    config: str  # config.yaml as it stands there
    settings: dict[str, Any]  # its keys with dots; none where it cannot be read
    model: dict[str, str]  # the metadata of its best model, or its last
    parameters: int | None
    samples: list[Written]
    pictures: list[Picture]
    faults: list[str]  # what could not be read

    @classmethod
    def of(cls, path: Path, name: str, journal: Journal) -> Run:
        """Raises UserError where the samples cannot be read."""
        faults = []
        if journal.foreign:
            faults.append(
                f"{counted(journal.foreign, 'line')} of {journal.path.name} cannot be read and {_is_are(journal.foreign)} left out"
            )
        if (size := _size(path / SAMPLES)) > MAX_SAMPLES:
            faults.append(f"{SAMPLES} is {size:,} bytes long, and its middle is left out")
        config, settings = "", {}
        try:
            with open(path / "config.yaml", encoding="utf-8", errors="replace") as file:
                config = file.read(CONFIG)
            settings = flat(parse_yaml(config))
        except OSError as error:
            faults.append(f"config.yaml cannot be read: {error.strerror or error}")
        except UserError as error:
            faults.append(f"config.yaml is damaged: {error}")
        metadata: dict[str, str] = {}
        parameters = None
        for model in (path / name for name in MODELS):
            if model.exists():
                try:
                    metadata, tensors = read_header(model)[:2]
                    parameters = _parameters(tensors)
                    break
                except UserError as error:
                    faults.append(str(error))
        return cls(name, journal, config, settings, metadata, parameters, samples_of(path), pictures_in(path, faults), faults)


def flat(values: Any, before: str = "") -> dict[str, Any]:
    """A configuration's keys with dots; none of what is no mapping."""
    found: dict[str, Any] = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) and value else {f"{before}{key}": value}
    return found


def pictures_in(path: Path, faults: list[str]) -> list[Picture]:
    """The pictures that lie in a run's directory, such as alignments, but for its curves, which are drawn anew."""
    try:
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in KINDS and file.name != CURVES and file.is_file())
    except OSError as error:
        faults.append(f"{path}: cannot be read: {error.strerror or error}")
        return []
    found = []
    for file in files:
        try:
            found.append(read_picture(file))
        except UserError as error:
            faults.append(str(error))
    return found


def read_picture(path: Path) -> Picture:
    """A PNG, JPEG or SVG file for the report. Raises UserError where it is none, or larger than the report may be."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{printable(str(path))}: expected a picture whose name ends in {', '.join(KINDS)}; give it such a name")
    try:
        size = path.stat().st_size
        if size > PICTURES:
            raise UserError(
                f"{printable(str(path))}: {size:,} bytes; expected at most {PICTURES:,}, for a report stays small; make it smaller"
            )
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{printable(str(path))}: cannot be read: {error.strerror or error}; name a picture that you may read") from None
    begins = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff"}.get(kind, b"")
    if not content.startswith(begins) or (kind == "svg+xml" and b"<svg" not in content):
        raise UserError(f"{printable(str(path))}: not a picture as its name says; expected a PNG, JPEG or SVG file; draw it again")
    return Picture(path.name, kind, content)


def report(
    paths: Sequence[Path],
    *,
    metric: str | None = None,
    by: str = "steps",
    pictures: Sequence[Picture] = (),
    sections: Sequence[Section] = (),
) -> str:
    """The whole page. `metric` and `by`: of the first curves; `pictures` and `sections`: what else it is to show, behind the runs.

    Raises UserError where the runs have no figures, or none in common.
    """
    journals = [Journal.of(path) for path in paths]
    metric = common_metric(journals, metric)
    runs = [Run.of(path, name, journal) for path, name, journal in zip(paths, names_of(paths), journals)]
    parts = [("curves", "Curves", _curves(runs, metric, by))]
    if len(runs) > 1:
        parts.append(("comparison", "Comparison", _comparison(runs, metric)))
    budget = LETTERS // len(runs)
    parts += [(f"run-{i}", run.name if len(runs) > 1 else "The run", _run(run, f"run-{i}", metric, budget)) for i, run in enumerate(runs)]
    owned = [
        picture._replace(name=f"{run.name}: {picture.name}" if len(runs) > 1 else picture.name) for run in runs for picture in run.pictures
    ]
    if owned or pictures:
        parts.append(("pictures", "Pictures", _pictures([*pictures, *owned])))
    parts += [(f"section-{i}", section.title, section.html) for i, section in enumerate(sections)]
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs[:4])}{', …' if runs[4:] else ''}"
    links = "".join(f'<li><a href="#{ident}" dir="auto">{_line(heading)}</a></li>' for ident, heading, _ in parts)
    body = (
        f'<header><h1 dir="auto">{_line(title)}</h1><p>{_line(_outcome(runs, metric))}</p></header>\n'
        f'<nav aria-label="Sections"><ul class="links">{links}</ul></nav>\n<main>\n'
        + "".join(_section(ident, heading, content) for ident, heading, content in parts)
        + "</main>\n"
    )
    style = chart.STYLE + STYLE + "".join(dict.fromkeys(section.style for section in sections))
    return page(f"{title}: a report", body, style=style, script=chart.SCRIPT)


def _section(ident: str, heading: str, content: str) -> str:
    title = f'<h2 id="{ident}-h" dir="auto">{_line(heading)}</h2>'
    return f'<section id="{ident}" class="card" aria-labelledby="{ident}-h">{title}\n{content}</section>\n'


def _curves(runs: Sequence[Run], metric: str, by: str) -> str:
    journals, names = [run.journal for run in runs], [run.name for run in runs]
    further = dict.fromkeys(
        name for journal in journals for name in journal.metrics(True) if not name.startswith(UNTOLD) and name != metric
    )
    wanted = [metric, *list(further)[:MOST_CHARTS], *BESIDE]
    made = []
    for i, name in enumerate(wanted):
        found = chart.courses(journals, names, name, by)
        if any(one.training.finite().x or one.validation.finite().x for one in found):
            drawn = chart.chart(found, name, by, f"chart-{i}")
            heading = escape(printable(chart.words(name).capitalize()))
            made.append(f"<h3>{heading}</h3>\n{drawn}" if i == 0 else f"<details><summary>{heading}</summary>\n{drawn}</details>\n")
    return "".join(made)


def _comparison(runs: Sequence[Run], metric: str) -> str:
    """What differs between the runs, what came of it, and what they have in common."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != "run")
    rows = {key: [_setting(run.settings[key]) if key in run.settings else "—" for run in runs] for key in keys}
    different = {key: cells for key, cells in rows.items() if len(set(cells)) > 1}
    common = {key: cells[:1] for key, cells in rows.items() if key not in different}
    results: dict[str, list[str]] = {}
    for run in runs:
        for name, value in _results(run, metric).items():
            results.setdefault(name, ["—"] * len(runs))[runs.index(run)] = value
    head = "".join(f'<th scope="col" dir="auto">{escape(chart.shortened(run.name, 40))}</th>' for run in runs)
    wide = len(runs) + 1
    table = _rows("Settings that differ", different, wide) if different else _rows("All settings are the same", {}, wide)
    table += _rows("Results", results, wide)
    label = "The runs side by side: settings that differ, then results"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table class="compared">'
        f'<caption class="quiet">{label}</caption>\n<thead><tr><td></td>{head}</tr></thead>\n{table}</table></div>\n'
        f"<details><summary>{counted(len(common), 'setting')} that all of them share</summary>\n"
        f'<div class="scroll" tabindex="0" role="region" aria-label="Shared settings"><table>'
        f'<caption class="quiet">Shared settings</caption>\n{_rows("", common, 2)}</table></div></details>\n'
    )


def _rows(heading: str, rows: Mapping[str, Sequence[str]], wide: int) -> str:
    made = "".join(
        f'<tr><th scope="row">{_line(key)}</th>{"".join(f"<td>{_line(cell)}</td>" for cell in cells)}</tr>\n' for key, cells in rows.items()
    )
    group = f'<tr><th scope="rowgroup" colspan="{wide}" class="group">{heading}</th></tr>\n' if heading else ""
    return f"<tbody>\n{group}{made}</tbody>\n"


def _results(run: Run, metric: str) -> dict[str, str]:
    """What a run has come to, by name."""
    journal, end, words = run.journal, run.journal.at_end(), chart.words(metric)
    found: dict[str, str] = {}
    if best := journal.best(metric):
        found[f"best validation {words}"] = chart.told(best[f"val_{metric}"])
        found["at step"] = f"{best['step']:,.0f}"
    if last := journal.last(f"val_{metric}"):
        found[f"last validation {words}"] = chart.told(last[f"val_{metric}"])
    if trained := journal.last(metric):
        found[f"last training {words}"] = chart.told(trained[metric])
    found |= {"steps": f"{end['step']:,.0f}"} if "step" in end else {}
    found |= {"characters read": f"{end['chars']:,.0f}"} if "chars" in end else {}
    found |= {"passes over the data": f"{end['epoch']:,.2f}"} if "epoch" in end else {}
    found |= {"minutes of training": f"{end['seconds'] / 60:,.1f}"} if "seconds" in end else {}
    if pace := _middle(journal.curve("chars_per_second").finite()):
        found["characters a second (median)"] = f"{pace:,.0f}"
    if run.parameters is not None:
        found["parameters"] = f"{run.parameters:,}"
    return found


def _outcome(runs: Sequence[Run], metric: str) -> str:
    """The first line of the report: who learned best."""
    found = [(run, best) for run in runs if (best := run.journal.best(metric))]
    words = chart.words(metric)
    if not found:
        return f"No validation {words} was measured."
    less = less_is_better(metric)
    run, best = min(found, key=lambda one: one[1][f"val_{metric}"] if less else -one[1][f"val_{metric}"])
    whose = f" of {run.name}" if len(runs) > 1 else ""
    return f"Best validation {words}: {chart.told(best[f'val_{metric}'])}{whose} at step {best['step']:,.0f}."


def _run(run: Run, ident: str, metric: str, budget: int) -> str:
    faults = "".join(f"<li>{_line(fault)}</li>" for fault in run.faults)
    facts = _facts(run) | ({} if not run.journal.lines else _results(run, metric))
    terms = "".join(f"<div><dt>{_line(name)}</dt><dd>{_line(value)}</dd></div>\n" for name, value in facts.items())
    config = (
        f"<h3>Configuration</h3>\n<details><summary>config.yaml, with all defaults</summary>\n<pre>{escape(run.config)}</pre></details>\n"
    )
    return (
        (f'<ul class="faults">{faults}</ul>\n' if faults else "")
        + f'<h3>Data, model and training</h3>\n<dl class="facts">\n{terms}</dl>\n'
        + _samples(run.samples, budget)
        + (config if run.config else "")
    )


def _facts(run: Run) -> dict[str, str]:
    """Of the data and the model, as far as the files say."""
    settings, facts = run.settings, dict[str, str]()

    def add(name: str, *keys: str) -> None:
        values = [_setting(settings[key]) for key in keys if settings.get(key) is not None]
        if values:
            facts[name] = " ".join(values)

    add("task", "task")
    add("data", "data.path") if settings.get("data.path") else add("data", "data.source")
    add("documents", "data.documents")
    end = run.journal.at_end()
    if end.get("epoch", 0) > 0 and "chars" in end:
        facts["characters in one pass (about)"] = f"{end['chars'] / end['epoch']:,.0f}"
    add("held out for validation", "data.val_path") if settings.get("data.val_path") else add(
        "held out for validation", "data.val_fraction"
    )
    try:
        vocabulary = json.loads(run.model.get("vocabulary", "null"))
        labels = json.loads(run.model.get("labels", "null"))
    except (ValueError, RecursionError):
        vocabulary = labels = None
    if isinstance(vocabulary, dict) and isinstance(characters := vocabulary.get("characters"), str):
        begun = json.dumps(characters[:80], ensure_ascii=False) + ("…" if len(characters) > 80 else "")
        facts["vocabulary"] = f"{counted(len(characters), 'character')}: {begun}"
    if isinstance(labels, list) and labels:
        facts["labels"] = f"{len(labels):,}: {', '.join(str(label)[:40] for label in labels[:20])}{', …' if labels[20:] else ''}"
    add("cell", "model.cell")
    add("layers", "model.num_layers")
    add("units of a layer", "model.hidden_size")
    if version := run.model.get("charrnn_version"):
        facts["written by"] = f"charrnn {version}"
    return facts


def _samples(samples: Sequence[Written], budget: int) -> str:
    """What was written at the beginning, in between, and at the end."""
    if not samples:
        return ""
    most = max(1, min(SHOWN, budget // SAMPLE))
    kept = sorted({round(i * (len(samples) - 1) / max(1, most - 1)) for i in range(most)} | {len(samples) - 1})
    opened = {kept[0], kept[len(kept) // 2], kept[-1]}
    items = []
    for i in kept:
        heading, text = samples[i]
        cut = f'<p class="quiet">… {len(text) - SAMPLE:,} more characters</p>' if len(text) > SAMPLE else ""
        shown = f'<pre lang="" dir="auto">{escape(text[:SAMPLE])}</pre>{cut}'
        items.append(f"<li><details{' open' if i in opened else ''}><summary>{_line(heading)}</summary>\n{shown}</details></li>\n")
    which = f"{len(kept)} of {len(samples):,}, the first and the last among them" if len(kept) < len(samples) else f"all {len(samples):,}"
    return f'<h3>What it wrote while it learned</h3>\n<p class="quiet">{which}</p>\n<ol class="samples">\n{"".join(items)}</ol>\n'


def _pictures(pictures: Sequence[Picture]) -> str:
    """As many as a report may hold; the others by name."""
    shown, left = [], []
    size = 0
    for picture in pictures:
        name = _line(picture.name)
        if size + len(picture.content) > PICTURES:
            left.append(name)
            continue
        size += len(picture.content)
        url = data_url(picture.kind, picture.content)
        shown.append(f'<figure class="picture"><img src="{url}" alt="{name}"><figcaption dir="auto">{name}</figcaption></figure>\n')
    more = f'<p class="quiet">Left out, for the report would be too large: {", ".join(left)}</p>\n' if left else ""
    return "".join(shown) + more


def _parameters(tensors: Mapping[str, Any]) -> int | None:
    """How many numbers a model file says it holds; None where it says nothing that could be so."""
    shapes = [entry.get("shape") if isinstance(entry, dict) else None for entry in tensors.values()]
    if not all(isinstance(shape, list) and all(type(size) is int and 0 <= size < 1 << 40 for size in shape) for shape in shapes):
        return None
    return sum(math.prod(shape) for shape in shapes if shape is not None)


def _middle(curve: Curve) -> float | None:
    return sorted(curve.y)[len(curve.y) // 2] if curve.y else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _setting(value: Any) -> str:
    """A setting on one line, as YAML has it, its beginning where it is long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=short)
    return text if len(text) <= VALUE else f"{text[:VALUE]}…"


def _line(text: str) -> str:
    """Text that stays on its line."""
    return escape(printable(text))


def _is_are(number: int) -> str:
    return "is" if number == 1 else "are"


STYLE = """
.links { margin: 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
.links a { overflow-wrap: anywhere; }
section { scroll-margin-top: .5rem; }
.card { min-width: 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: .6rem 1.2rem; margin: 0; }
.facts dt { color: var(--quiet); font-size: .875rem; }
.facts dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.samples { margin: 0; padding: 0; list-style: none; }
.samples li { padding: .35rem 0; border-bottom: 1px solid var(--line); }
.samples pre, .card > details > pre { margin-top: .4rem; padding: .6rem .8rem; background: var(--page); border-radius: .4rem; }
.card > details { margin: .5rem 0; }
.compared th, .compared td { overflow-wrap: anywhere; min-width: 8.5rem; max-width: 22rem; }
.compared td { font-variant-numeric: tabular-nums; }
.group { padding-top: .9rem; color: var(--quiet); }
caption { text-align: left; padding-bottom: .3rem; }
.picture { margin: 0 0 1rem; }
.picture img { display: block; background: #fff; border-radius: .4rem; }
.faults { overflow-wrap: anywhere; }
"""
