"""Pictures, pages and watching of runs: what is in them, what becomes of damaged and hostile ones, and the one line where none can be."""

from __future__ import annotations

import builtins
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from charrnn import chart, watching
from charrnn.chart import Course, courses, short_number, spread, ticks, told
from charrnn.cli import main
from charrnn.cli.train import Terminal
from charrnn.config import build_config
from charrnn.errors import UserError
from charrnn.journal import Curve, Journal
from charrnn.lock import locked
from charrnn.report import Section, read_picture, report
from charrnn.training import Outcome, StepReport
from charrnn.watching import View
from tests.test_page import Elements

PNG = b"\x89PNG\r\n\x1a\n"
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\u202e\u2066\0\x1b[2J</pre></style>&lt;'


def lines(steps: int = 20, bits: float = 4.0) -> Iterator[dict[str, Any]]:
    """A run that learns: its lines of training, every fourth with one of validation."""
    for step in range(1, steps + 1):
        where = {"step": 10 * step, "epoch": step / 10, "seconds": 6.0 * step, "chars": 640 * step}
        yield where | {"bits_per_char": bits / step**0.3, "grad_norm": 0.5, "learning_rate": 1e-3, "chars_per_second": 100.0}
        if step % 4 == 0:
            yield where | {"val_bits_per_char": bits / step**0.25 + (0.3 if step == 20 else 0), "val_accuracy": step / 40}


def run(path: Path, *, config: str = "", samples: str = "", journal: str | None = None, **how: Any) -> Path:
    path.mkdir(parents=True)
    written = "".join(json.dumps(line) + "\n" for line in lines(**how)) if journal is None else journal
    (path / "metrics.jsonl").write_text(written, encoding="utf-8")
    default = "task: lm\nmodel:\n  cell: lstm\ntrain:\n  max_steps: 200\n  max_epochs: null\n"
    (path / "config.yaml").write_text(config or default, encoding="utf-8", errors="surrogatepass")
    (path / "samples.txt").write_text(samples or "=== step 40 ===\nab\n\n=== step 80 ===\nabc\n\n", encoding="utf-8")
    return path


class Said(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def charrnn(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> Said:
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        return Said(end.value.code if isinstance(end.value.code, int) else 0, said.out, said.err)

    return command


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)


class TestChart:
    def test_ticks_are_round_and_within(self) -> None:
        assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10] and ticks(1.97, 2.31, 4) == pytest.approx([2.0, 2.1, 2.2, 2.3])
        assert ticks(3, 3, 5) == [3] and ticks(0, 1e-9, 2) == pytest.approx([0, 5e-10, 1e-9])

    def test_figures_are_short(self) -> None:
        assert [told(value) for value in (0, 2.0113284, 21087.0, 0.00042, -3.0, 1e20)] == [
            "0",
            "2.0113",
            "21,087",
            "4.20e-04",
            "-3",
            "1.000e+20",
        ]
        assert [short_number(value) for value in (0, 2500, 12000, 3.5e6, 0.25)] == ["0", "2,500", "12k", "3.5M", "0.25"]

    @pytest.mark.parametrize("places", [[], [5.0], [1, 1, 1, 9], [0, 0.2, 10, 10], [5.0] * 40])
    def test_names_do_not_lie_over_each_other(self, places: list[float]) -> None:
        moved = spread(places, 1.0, 0.0, 10.0)
        gap = min(1.0, 10 / max(1, len(places) - 1))
        assert all(b - a >= gap - 1e-9 for a, b in pairwise(sorted(moved)))
        assert all(-1e-9 <= place <= 10 + 1e-9 for place in moved)
        assert sorted(range(len(places)), key=moved.__getitem__) == sorted(range(len(places)), key=places.__getitem__)

    def test_a_drawing_shows_the_end_of_a_run_and_not_only_its_first_steps(self) -> None:
        x = [float(i) for i in range(100)]
        low, high = chart.span([Course("a", Curve(x, [100.0, 50.0, *[3.0] * 98]), Curve([99.0], [4.0]), None)])
        assert low < 3 and 4 < high < 5
        assert chart.span([]) == (0.0, 1.0) and chart.reach([]) == (0.0, 1.0)

    def test_the_best_is_where_validation_was(self, tmp_path: Path) -> None:
        journal = Journal.of(run(tmp_path / "a"))
        (minutes,) = courses([journal], ["a"], "bits_per_char", "minutes")
        assert minutes.best == pytest.approx((1.6, 2.0)) and minutes.training.x[-1] == pytest.approx(2.0)
        (scored,) = courses([journal], ["a"], "accuracy", "steps")
        assert scored.best == (200, 0.5) and not scored.training.x
        assert "a: training ends at 1.6284, best validation 2 at minutes of training 1.6" in chart.describe(
            [minutes], "bits_per_char", "minutes"
        )


class TestPlot:
    def test_several_runs_are_drawn_as_png_and_as_svg(self, charrnn: Command, tmp_path: Path) -> None:
        first, second = run(tmp_path / "runs" / "one"), run(tmp_path / "runs" / "two", bits=5.0)
        said = charrnn("plot", first)
        assert said == (0, f"{first / 'curves.png'}: 1 run, bits_per_char by steps\n", "")
        assert (first / "curves.png").read_bytes().startswith(PNG)
        assert charrnn("plot", first, second).out == "curves.png: 2 runs, bits_per_char by steps\n"
        assert charrnn("plot", first, second, "--by", "minutes", "-o", "x.svg").code == 0
        drawn = ElementTree.parse(tmp_path / "x.svg")
        texts = "\n".join(element.text or "" for element in drawn.iter() if element.tag.endswith("text"))
        assert all(part in texts for part in ("one 2", "two 2.5", "minutes of training", "bits per character", "thin: training", "lowest"))
        assert charrnn("plot", "--metric", "accuracy", "-o", "y.svg").code == 0  # the newest run
        assert "accuracy" in (tmp_path / "y.svg").read_text()

    def test_names_and_figures_that_are_strange_are_drawn(self, charrnn: Command, tmp_path: Path) -> None:
        strange = run(tmp_path / "_$x^{\u202e<b>&", journal='{"step": 1, "bits_per_char": 3}\nhalf\n{"step": 2, "bits_per_char": null}\n')
        said = charrnn("plot", strange, "-o", "x.svg")
        assert said.code == 0 and "1 line cannot be read, left out" in said.err
        drawn = ElementTree.parse(tmp_path / "x.svg")  # it is XML, whatever the name holds
        assert any("_$x^{\\u202e<b>&" in (element.text or "") for element in drawn.iter())
        many = [run(tmp_path / f"_many{i}", bits=3 + i / 10) for i in range(14)]
        assert charrnn("plot", *many, "-o", "m.svg") == (0, "m.svg: 14 runs, bits_per_char by steps\n", "")
        assert all(f"_many{i}" in (tmp_path / "m.svg").read_text() for i in range(14))

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["nowhere"], r"nowhere: no such run; name a run directory"),
            (["one", "--metric", "acuracy"], r"--metric acuracy: one is not measured by that; .*did you mean 'accuracy'\?"),
            (["one", "-o", "x.jpg"], r"--out x.jpg: expected a name that ends in .png or .svg; give the picture such a name"),
            (["one", "-o", "no/x.png"], r"--out no/x.png: cannot be written: it is not in a directory"),
            (["empty"], r"empty/metrics.jsonl: holds no figures yet; expected the lines of a run; wait for its first report"),
        ],
    )
    def test_a_mistake_is_one_line(self, charrnn: Command, arguments: list[str], message: str) -> None:
        run(Path("one")), run(Path("empty"), journal="")
        said = charrnn("plot", *arguments)
        assert said.code == 2 and said.err.count("\n") == 1 and re.search(f"^charrnn: error: {message}", said.err), said.err

    def test_without_matplotlib_the_remedy_is_said(self, charrnn: Command, no_matplotlib: None) -> None:
        said = charrnn("plot", run(Path("one")))
        assert said == (2, "", "charrnn: error: charrnn plot: needs matplotlib, which is not installed; pip install 'charrnn[plots]'\n")


class TestReport:
    def test_it_has_curves_samples_configuration_and_what_differs_first(self, tmp_path: Path) -> None:
        one = run(tmp_path / "one")
        two = run(tmp_path / "two", config="task: lm\nmodel:\n  cell: gru\n  extra: {}\ntrain:\n  max_steps: 200\n", bits=5.0)
        (two / "alignment.png").write_bytes(PNG + b"x")
        section = Section("BPTT <1>", "<p class='own'>made elsewhere</p>", ".own { color: red; }\n")
        page = report([one, two], sections=[section])
        read = Elements(page)
        headings = [text for tag, text in texts(page) if tag == "h2"]
        assert headings == ["Curves", "Comparison", "one", "two", "Pictures", "BPTT <1>"]
        links = {attributes.get("href") for tag, attributes in read.found if tag == "a"}
        assert links == {f"#{attributes['id']}" for tag, attributes in read.found if tag == "section"}
        rows = [text for tag, text in texts(page) if tag == "th"]
        different, results, shared = (rows.index(name) for name in ("model.cell", "best validation bits per character", "task"))
        assert rows.index("Settings that differ") < different < results < shared
        assert (
            "Best validation bits per character: 2 of one at step 160." in page
            and "<p class='own'>" in page
            and ".own { color: red; }" in page
        )
        assert 'alt="two: alignment.png"' in page and page.count("data:image/png;base64,") == 1
        assert "step 80" in read.text and "abc" in read.text and "cell: gru" in read.text

    def test_it_is_for_everybody(self, tmp_path: Path) -> None:
        """Language, landmarks, headings in order, tables with scopes, names of pictures and regions, unique ids."""
        page = report([run(tmp_path / "one"), run(tmp_path / "two")])
        found = Elements(page).found
        assert found[0] == ("html", {"lang": "en"}) and [tag for tag, _ in found if tag in ("header", "nav", "main", "h1")] == [
            "header",
            "h1",
            "nav",
            "main",
        ]
        levels = [int(tag[1]) for tag, _ in found if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in pairwise(levels))
        assert all(attributes.get("scope") for tag, attributes in found if tag == "th")
        assert all(attributes.get("alt") for tag, attributes in found if tag == "img")
        drawings = [attributes for tag, attributes in found if tag == "svg" and "data-frame" in attributes]
        assert drawings and all(one["role"] == "img" and "best validation" in str(one["aria-label"]) for one in drawings[:2])
        scrolled = [attributes for _, attributes in found if attributes.get("class") == "scroll"]
        assert scrolled and all(one["tabindex"] == "0" and one["role"] == "region" and one["aria-label"] for one in scrolled)
        ids = [attributes["id"] for _, attributes in found if "id" in attributes]
        assert len(ids) == len(set(ids)) and ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in found
        assert not any("style" in attributes or any(name.startswith("on") for name in attributes) for _, attributes in found)
        assert not any(re.match("https?:|//", str(value)) for _, attributes in found for value in attributes.values())

    def test_a_hostile_run_is_shown_as_text(self, tmp_path: Path) -> None:
        """The elements of its page are those of a harmless one's."""
        bad = HOSTILE.replace("/", "").replace("\0", "")  # what a name of a file can hold
        bad_keys = {f"val_{HOSTILE}": 1.0, HOSTILE: 2.0}
        evil = run(
            tmp_path / bad,
            config=json.dumps({"task": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}, "data": {"path": [HOSTILE]}, "train": {"max_steps": 200}}),
            samples=f"=== step 40, {HOSTILE.replace(chr(10), '')} ===\n{HOSTILE}\n\n=== step 80 ===\n{HOSTILE}\n\n",
            journal="".join(json.dumps(line | bad_keys if "val_accuracy" in line else line) + "\n" for line in lines())
            + f'{HOSTILE}\n',
        )  # fmt: skip
        (evil / f"{bad}.png").write_bytes(PNG)
        calm = run(
            tmp_path / "calm", config=json.dumps({"task": "a", "b": {"c": "d"}, "data": {"path": ["e"]}, "train": {"max_steps": 200}})
        )
        calm_lines = [line | {"val_x": 1.0, "x": 2.0} if "val_accuracy" in line else line for line in lines()]
        (calm / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in calm_lines) + "half\n")
        (calm / "y.png").write_bytes(PNG)
        section = Section(HOSTILE, "")
        for others in ([], [run(tmp_path / "other")]):
            pages = [report([one, *others], sections=[section]) for one in (evil, calm)]
            elements = [[(tag, sorted(attributes)) for tag, attributes in Elements(page).found] for page in pages]
            assert elements[0] == elements[1]
            assert not re.search("[\0\x1b\u202e\u2066]", pages[0]) and "\\u202e\\u2066\\x00\\x1b[2J" in pages[0]
            assert pages[0].count("<script>") == pages[0].count("</script>") == 1
            data = [attributes["data-curves"] for _, attributes in Elements(pages[0]).found if "data-curves" in attributes]
            assert all(json.loads(str(one))["curves"] for one in data)

    def test_what_is_damaged_is_told_of(self, tmp_path: Path) -> None:
        one = run(tmp_path / "one", config="a: [\n", journal='{"step": 1, "bits_per_char": 3}\n{"step"')
        (one / "best.safetensors").write_bytes(b"\x00" * 4)
        (one / "last.safetensors").write_bytes(b"no model")
        (one / "samples.txt").unlink()
        (one / "a.png").write_bytes(b"no picture")
        (one / "b.png").write_bytes(PNG)
        text = Elements(report([one])).text
        for part in (
            "1 line of metrics.jsonl cannot be read and is left out",
            "config.yaml is damaged: ",
            "4 bytes long",
            "a.png: not a picture",
        ):
            assert part in text
        assert "No validation bits per character was measured." in text
        (one / "config.yaml").unlink()
        (one / "metrics.jsonl").write_text('{"step": 0, "val_bits_per_char": 1e300, "bits_per_char": -1e300}\n')
        assert "config.yaml cannot be read: No such file" in Elements(report([one])).text

    def test_a_run_of_many_lines_makes_a_small_page_soon_and_without_torch(self, tmp_path: Path) -> None:
        journal = "".join(json.dumps(line) + "\n" for line in lines(steps=8000))
        samples = "".join(f"=== step {10 * i} ===\n{'诗' * 5000}\n\n" for i in range(300))
        many = run(tmp_path / "many", journal=journal, samples=samples)
        assert journal.count("\n") == 10_000
        out = tmp_path / "report.html"
        code = "import sys; from charrnn.cli import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
        before = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code, "report", many, "--out", out], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("False\n") and time.monotonic() - before < 30  # 3 s on a machine of its own
        assert out.stat().st_size < 3_000_000 and "of 300, the first and the last among them" in out.read_text(encoding="utf-8")

    def test_pictures_are_shown_up_to_a_size(self, charrnn: Command, tmp_path: Path) -> None:
        one = run(tmp_path / "one")
        (tmp_path / "a.png").write_bytes(PNG + b"x" * 1_000_000)
        (tmp_path / "b.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
        (tmp_path / "c.jpg").write_bytes(b"\xff\xd8\xff" + b"x" * 1_000_000)
        said = charrnn("report", one, "--picture", "a.png", "--picture", "b.svg", "--picture", "c.jpg")
        assert said.code == 0 and said.out.startswith("report.html: 1 run, ")
        page = (tmp_path / "report.html").read_text()
        assert page.count('<img src="data:image/') == 2 and "would be too large: c.jpg" in page and "alert(1)" not in page

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["--out", "report.txt"], "--out report.txt: expected a name that ends in .html or .htm; give the page such a name"),
            (["--picture", "text.gif"], "text.gif: expected a picture whose name ends in .png, .jpg, .jpeg, .svg; give it such a name"),
            (["--picture", "no.png"], "no.png: cannot be read: No such file or directory; name a picture that you may read"),
            (["--metric", "f1"], "--metric f1: one is not measured by that; expected one of accuracy, bits_per_char, "),
        ],
    )
    def test_a_mistake_is_one_line(self, charrnn: Command, arguments: list[str], message: str) -> None:
        said = charrnn("report", run(Path("one")), *arguments)
        assert said.code == 2 and said.err.startswith(f"charrnn: error: {message}") and said.err.count("\n") == 1, said.err

    def test_a_picture_too_large_for_any_report(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(PNG + b"x" * 2_000_000)
        with pytest.raises(UserError, match=r"a.png: 2,000,008 bytes; expected at most 1,500,000"):
            read_picture(tmp_path / "a.png")


def texts(page: str) -> list[tuple[str, str]]:
    """Elements without others in them, and their text."""
    import html

    return [(tag, html.unescape(text)) for tag, text in re.findall(r"<(\w+)[^>]*>([^<]*)</\1>", page)]


class TestWatch:
    def test_once_shows_how_a_run_stands(self, charrnn: Command, tmp_path: Path) -> None:
        said = charrnn("watch", run(tmp_path / "one"), "--once")
        assert said.code == 0 and said.out.split("\n")[1:-1] == [
            "████████████████████  step 200/200 (100%)  2 min",
            "train █▆▅▄▃▃▃▂▂▂▂▁▁▁▁▁▁▁▁▁      1.628 bits/char  grad 0.50  lr 1.0e-03  100 chars/s",
            "val   █▄▂▁▂                     2.191 bits/char, lowest 2.000 at step 160",
        ]
        assert said.out.startswith(f"{tmp_path / 'one'}: finished\n")

    def test_a_run_that_nobody_holds_any_more_has_ended(self, tmp_path: Path) -> None:
        one = run(tmp_path / "one", steps=8)
        now = time.time()
        assert View.of(one).ending(now) == "" and View.of(one).ending(now + 1000) == "no job is at work on it"
        with locked(one / ".lock"):
            view = View.of(one)
            assert view.ending(now + 1000) == "" and view.block(now + 1000)[-1] == "no news for 17 min"
            assert view.block(now + 1000)[0].endswith(f": at work: process {os.getpid()} on {platform.node()}")
            (one / "heartbeat.json").write_text('{"state": "interrupted"}')  # of the job before
            assert View.of(one).ending(now) == ""
        (one / "heartbeat.json").unlink()
        (one / ".lock").write_text(f"process {os.getpid()} on {platform.node()}")  # of a job that was killed, and its number given away
        assert View.of(one).ending(now + 1000) == "no job is at work on it"
        (one / ".lock").write_text("process 1 on another-machine")
        assert View.of(one).ending(now + 1000) == ""

    def test_a_heartbeat_is_believed_as_far_as_it_can_be_read(self, tmp_path: Path) -> None:
        one = run(tmp_path / "one", steps=8)
        beat = {"time": time.time() + 500, "host": "h", "pid": 1, "step": 80, "progress": 0.5, "state": "running", "why": "\x1b[2J"}
        (one / "heartbeat.json").write_text(json.dumps(beat))
        view = View.of(one)
        assert view.progress() == 0.5 and view.ending(time.time() + 550) == "" and view.block(time.time())[0].endswith("at work (\\x1b[2J)")
        assert view.line().endswith("  48 s, 72 s to go")  # by the last report
        (one / "heartbeat.json").write_text(json.dumps(beat | {"progress": 0.1}))  # older than the last report
        assert View.of(one).progress() == pytest.approx(0.4)
        (one / "heartbeat.json").write_text(
            json.dumps(beat | {"state": "early_stopped", "why": "patience", "time": "2031-05-01T10:00:00Z"})
        )
        assert View.of(one).ending(0) == "early stopped: patience"
        for bad in ("", "[", "[]", '{"state": 5, "progress": "x", "time": "soon", "why": null}', '{"time": 1e999, "progress": null}'):
            (one / "heartbeat.json").write_text(bad)
            assert View.of(one).progress() == pytest.approx(0.4) and View.of(one).ending(time.time()) == ""

    def test_a_config_that_is_not_whole_limits_nothing(self, tmp_path: Path) -> None:
        one = run(tmp_path / "one", config="train: 5")
        assert math.isnan(View.of(one).progress()) and "(" not in View.of(one).line().partition("bits")[0]
        (one / "config.yaml").write_text("train: {max_steps: many, max_epochs: .inf, max_minutes: -3}")
        assert not any(View.of(one).limits)
        (one / "config.yaml").write_text("train: [")
        assert not any(View.of(one).limits)

    def test_a_journal_is_read_again_only_when_it_has_changed(self, tmp_path: Path) -> None:
        one = run(tmp_path / "one", steps=4)
        first = View.of(one)
        assert View.of(one, first).journal is first.journal
        with open(one / "metrics.jsonl", "a") as file:
            file.write('{"step": 999, "bits_per_char": 1.0}\n')
        second = View.of(one, first)
        assert second.journal is not first.journal and second.line().startswith("step 999/200 (100%)  1.000 bits/char")

    def test_it_follows_a_run_from_before_its_beginning_to_its_end(self, tmp_path: Path) -> None:
        """Of another process: it waits for the run, tells of each report, and ends with it."""
        watcher = subprocess.Popen(
            [sys.executable, "-c", "from charrnn.cli import main, seeing; seeing.EVERY = 0.05; main(['watch', 'runs/a'])"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONUTF8": "1"},
        )  # fmt: skip
        assert watcher.stdout and watcher.stderr
        assert watcher.stderr.readline() == "runs/a: is not there yet; waiting for it, Ctrl-C ends that\n"
        one = run(tmp_path / "runs" / "a", steps=4)
        assert "step 40/200 (20%)  2.639 bits/char" in watcher.stdout.readline()
        with open(one / "metrics.jsonl", "a") as file:
            file.write('{"step": 200, "seconds": 30, "bits_per_char": 1.5}\n{"step": 21')
        rest, errors = watcher.communicate(timeout=60)
        assert watcher.returncode == 0 and errors == ""
        assert "step 200/200 (100%)  1.500 bits/char" in rest and rest.endswith("runs/a: finished\n")

    def test_on_a_terminal_it_is_one_block(self, charrnn: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        one = run(tmp_path / ("long" * 30), steps=8)
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "60")

        def wait(seconds: float) -> None:
            (one / "heartbeat.json").write_text('{"state": "interrupted"}')

        monkeypatch.setattr(time, "sleep", wait)
        said = charrnn("watch", one)
        assert said.code == 0 and said.out.count("\x1b[4A") == 1 and said.out.count("\x1b[2K") == 8
        assert max(len(line) for line in re.sub("\x1b\\[[0-9]*[AKJ]", "", said.out).split("\n")) <= 59

    def test_what_cannot_be_watched_is_one_line(self, charrnn: Command, tmp_path: Path) -> None:
        assert charrnn("watch", "nowhere", "--once") == (2, "", "charrnn: error: nowhere: no such run; name a run directory\n")
        said = charrnn("watch")
        assert said.code == 2 and said.err.startswith("charrnn: error: no run is named, and none under ") and said.err.count("\n") == 1

    def test_ctrl_c_leaves_without_a_word(self, charrnn: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(seconds: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(time, "sleep", interrupted)
        said = charrnn("watch", run(tmp_path / "one", steps=4))
        assert said.code == 130 and said.err == ""

    def test_states_of_training_are_ends(self) -> None:
        assert {"finished", "early_stopped", "interrupted", "terminated", "diverged", "failed"} == set(watching.ENDED)


class TestTerminal:
    @pytest.fixture
    def terminal(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
        monkeypatch.setattr("charrnn.cli.train.REPORT_SECONDS", -1.0)
        return Terminal(build_config({"run": str(tmp_path / "run"), "data": {"path": "a.txt"}, "train": {"max_steps": 1000}}, "test"))

    def step(self, at: int) -> StepReport:
        return StepReport(at, 1.0, 60.0, 1000, {"nats_per_char": 1.4, "bits_per_char": 2.0}, 0.5, 1e-3, 100.0, at / 1000)

    def test_a_line_tells_how_validation_went_the_best_of_it_and_the_time_to_go(
        self, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        clock = [time.monotonic()]
        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        terminal.stepped(0, 0.0)
        for best, bits in ((True, 4.0), (True, 2.0), (False, 3.0)):
            terminal.evaluated({"val_nats_per_char": bits, "val_bits_per_char": bits}, "x", best)
        clock[0] += 60
        capsys.readouterr()
        terminal.step(self.step(100))
        out = capsys.readouterr().out
        assert out[20:] == "step 100/1000  2.000 bits/char (val 3.000 █▁▅, best 2.000)  grad 0.50  lr 1.0e-03  100 chars/s  9 min to go\n"

    def test_a_resumed_run_goes_on_with_its_curve_and_its_best(
        self, terminal: Terminal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(tmp_path / "run")
        terminal.evaluated({"val_nats_per_char": 2.0, "val_bits_per_char": 2.191}, "x", False)
        terminal.step(self.step(400))
        assert "(val 2.191 █▄▂▁▂, best 2.000)" in capsys.readouterr().out

    def ended(self, terminal: Terminal, path: Path) -> None:
        terminal.done(Outcome({}, 0, {}, 200, 60.0, path, "finished"))

    def test_the_curves_lie_in_the_run_directory_at_the_end(self, terminal: Terminal, tmp_path: Path) -> None:
        one = run(tmp_path / "run")
        self.ended(terminal, one)
        assert (one / "curves.png").read_bytes().startswith(PNG)
        nothing = run(tmp_path / "nothing", journal="")
        self.ended(terminal, nothing)
        assert not (nothing / "curves.png").exists()

    def test_without_matplotlib_there_are_none_and_nothing_is_said_of_it(
        self, terminal: Terminal, tmp_path: Path, no_matplotlib: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        one = run(tmp_path / "run")
        self.ended(terminal, one)
        said = capsys.readouterr()
        assert not (one / "curves.png").exists() and said.err == "" and said.out.count("\n") == 1

    def test_where_they_cannot_be_written_the_run_is_none_the_worse(
        self, terminal: Terminal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        one = run(tmp_path / "run")
        (one / "curves.png").mkdir()
        self.ended(terminal, one)
        assert "curves.png: cannot be written: Is a directory" in capsys.readouterr().err


def test_another_run_in_its_place_takes_the_curves_away(charrnn: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    sizes = ["model.hidden_size=8", "model.embedding_size=4", "train.batch_size=2", "train.tbptt_window=8", "train.max_steps=4"]
    Path("config.yaml").write_text("run: runs/a\ndevice: cpu\ndata: {path: text.txt}\ntrain: {evaluate_every: 2, log_every: 1}\n")
    train = ["train", "-c", "config.yaml", *(part for size in sizes for part in ("--set", size))]
    assert charrnn(*train).code == 0 and Path("runs/a/curves.png").is_file()
    monkeypatch.setattr("charrnn.plots.has_matplotlib", lambda: False)
    assert charrnn(*train, "--overwrite").code == 0 and not Path("runs/a/curves.png").exists()
