"""The scripts that make recordings and pictures: what they write follows from the seed, and is what its text says it is."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from PIL import Image

from charrnn.config import DataConfig
from charrnn.data import captions
from charrnn.data.files import sources
from charrnn.data.utterances import Utterance, manifest

ROOT = Path(__file__).parent.parent
TONES = ROOT / "data/sample/tones"
SHAPES = ROOT / "data/sample/shapes"
SPOKEN = {"zero": 300, "one": 700, "two": 1500}  # Hz
Ran = Callable[..., tuple[int, str]]
SPEAKERS = ("ann", "van_der_berg")


@pytest.fixture(scope="module")
def tones() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts/make_tones.py"))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ran:
    """Runs a script with arguments, in this process, which has imported all that it needs: its exit status and what it complained of."""

    def run(script: str, *arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


def rows(path: Path) -> list[Utterance]:
    found = [row for row in manifest(DataConfig(path=str(path)), sources([path]), []) if isinstance(row, Utterance)]
    assert len(found) == len(path.read_text(encoding="utf-8").splitlines()) - 1
    return found


def samples_of(path: Path) -> npt.NDArray[np.int16]:
    """(N,)."""
    return np.asarray(soundfile.read(path, dtype="int16")[0])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_tones_that_ship_are_those_of_the_script(tones: dict[str, Any]) -> None:
    for split, count in (("train", 120), ("val", 20)):
        said = rows(TONES / f"{split}.tsv")
        assert [row.transcript for row in said] == [tones["utterance"](split, number, 1)[0] for number in range(count)]
        for number in (0, 7, count - 1):
            made = tones["utterance"](split, number, 1)[1]
            found = samples_of(said[number].audio)
            # A sine may differ in its last place between two builds of numpy, and then be rounded to the neighbour.
            assert found.shape == made.shape and int(np.abs(found.astype(int) - made).max()) <= 1
    assert {path.suffix for path in TONES.glob("*/*")} == {".flac"} and len(list(TONES.glob("*/*"))) == 140
    assert sum(path.stat().st_size for path in TONES.rglob("*")) < 700_000
    told = (ROOT / "data/README.md").read_text(encoding="utf-8")
    assert "140 recordings" in told and "120 in `train.tsv`, 20 in `val.tsv`" in told


def test_every_letter_can_be_heard_and_no_other(tones: dict[str, Any]) -> None:
    """By ear, as far as one loudest pitch in each fortieth of a second is an ear."""
    pitches = tones["LOWEST"] * tones["STEP"] ** np.arange(8)
    right = 0
    for row in [*rows(TONES / "train.tsv"), *rows(TONES / "val.tsv")]:
        assert set(row.transcript) <= set("abcdefgh ")
        sound = samples_of(row.audio).astype(float)
        frames = np.lib.stride_tricks.sliding_window_view(sound, 200)[::40] * np.hanning(200)
        power = np.abs(np.fft.rfft(frames, 1024)) ** 2  # (T, K)
        loudness = power.sum(1)
        heard = 8000 / 1024 * power[loudness > 0.05 * loudness.max()].argmax(1)
        letters = {"abcdefgh"[int(np.abs(np.log(pitches / hertz)).argmin())] for hertz in heard}
        right += letters == set(row.transcript) - {" "}
    assert right == 140


def test_tones_are_the_same_bytes_each_time_and_others_by_another_seed(ran: Ran, tmp_path: Path) -> None:
    for folder, seed, count in (("a", 3, 2), ("b", 3, 4), ("c", 4, 2)):
        arguments = ("--count", count, "--val-count", 2, "--seed", seed, "--format", "wav", "--out", tmp_path / folder)
        assert ran("make_tones.py", *arguments) == (0, "")
    a, b, c = (contents(tmp_path / folder) for folder in "abc")
    assert sorted(a) == ["train.tsv", "train/000.wav", "train/001.wav", "val.tsv", "val/000.wav", "val/001.wav"]
    assert all(b[name] == content for name, content in a.items() if name != "train.tsv")  # asked for more, the first are the same
    assert not any(c[name] == content for name, content in a.items())
    assert len(rows(tmp_path / "b/train.tsv")) == 4
    info = soundfile.info(tmp_path / "a/train/000.wav")
    assert (info.samplerate, info.channels, info.subtype) == (8000, 1, "PCM_16")


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A manifest of words, each a tone of the word's pitch and of its speaker's loudness, between moments that are nearly quiet."""
    random = np.random.default_rng(1)
    lines = ["audio\ttranscript\n"]
    for loudness, speaker in enumerate(SPEAKERS, start=1):
        for word, hertz in SPOKEN.items():
            for take in range(2):
                sound = 0.2 * loudness * np.sin(2 * np.pi * hertz * np.arange(1600 + 400 * take) / 8000)
                sound = np.concatenate([0.001 * random.standard_normal(200), sound])
                soundfile.write(tmp_path / f"{word}_{speaker}_{take}.wav", sound, 8000)
                lines.append(f"{word}_{speaker}_{take}.wav\t{word}\n")
    (tmp_path / "digits.tsv").write_text("".join(lines))
    return tmp_path / "digits.tsv"


def test_connected_digits_are_recordings_of_one_speaker_between_silences(ran: Ran, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "connected"
    done = ran("make_connected_digits.py", digits, "--out", out, "--count", 30, "--seed", 1, "--min", 2, "--max", 4)
    assert done == (0, "")
    said = rows(out / "manifest.tsv")
    own = {row.audio.stem: samples_of(row.audio) for row in rows(digits)}
    speakers = [line.split("\t")[2] for line in (out / "manifest.tsv").read_text().splitlines()[1:]]
    assert set(speakers) == set(SPEAKERS) and {len(row.transcript.split()) for row in said} == {2, 3, 4}
    for row, speaker in zip(said, speakers):
        sound = samples_of(row.audio)
        at, silences = 0, []
        for word in row.transcript.split():
            places = [(found, found + len(own[name])) for name in own if name.startswith(f"{word}_{speaker}_")
                      for found in [find(sound, own[name], at)] if found >= 0]  # fmt: skip
            assert places, f"{row.audio}: {word} of {speaker} is not in it, whole, behind what was said before"
            start, stop = min(places)
            silences.append(sound[at:start])
            at = stop
        silences.append(sound[at:])
        assert all(0.05 * 8000 - 2 <= len(silence) <= 0.3 * 8000 for silence in silences)
        assert 10 < np.concatenate(silences).std() < 70  # of 0.001, which is 33 of 32768


def find(sound: npt.NDArray[np.int16], part: npt.NDArray[np.int16], start: int) -> int:
    """Where a part begins, at `start` or later, but for rounding; -1 for nowhere."""
    tail = sound[start:].astype(int)
    key = part[200:232].astype(int)  # the beginning of the tone
    windows = np.lib.stride_tricks.sliding_window_view(tail, len(key))
    for found in np.flatnonzero((np.abs(windows - key) <= 1).all(1)):
        at = int(found) - 200
        if at >= 0 and len(tail) >= at + len(part) and np.abs(tail[at : at + len(part)] - part).max() <= 1:
            return start + at
    return -1


def test_connected_digits_follow_from_their_seed(ran: Ran, digits: Path, tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert ran("make_connected_digits.py", digits, "--out", tmp_path / folder, "--count", 3, "--seed", seed) == (0, "")
    a, b, c = (contents(tmp_path / folder) for folder in "abc")
    assert a == b and len(a) == 4 and not any(a[name] == c[name] for name in a)


def test_another_pattern_finds_other_speakers(ran: Ran, digits: Path, tmp_path: Path) -> None:
    arguments = ("--out", tmp_path / "out", "--count", 12, "--speaker-pattern", "one|two|zero")
    assert ran("make_connected_digits.py", digits, *arguments) == (0, "")
    lines = (tmp_path / "out/manifest.tsv").read_text().splitlines()[1:]
    assert all(set(transcript.split()) == {speaker} for _, transcript, speaker in (line.split("\t") for line in lines))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--min", "3", "--max", "2"), "expected --count of at least 1, --seed of at least 0, and 1 <= --min <= --max"),
        (("--speaker-pattern", "("), "--speaker-pattern '(': no regular expression: "),
        (("--speaker-pattern", "^x"), "line 2: no speaker in 'zero_ann_0'; expected --speaker-pattern '^x' to match"),
    ],
)
def test_what_cannot_be_joined_is_said_on_one_line(
    ran: Ran, digits: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, said = ran("make_connected_digits.py", digits, "--out", tmp_path / "out", *arguments)
    assert code == 2 and said.count("\n") == 1 and message in said
    assert said.startswith("make_connected_digits.py: error: ")


def test_recordings_that_do_not_fit_are_named(ran: Ran, digits: Path, tmp_path: Path) -> None:
    odd = tmp_path / "two_van_der_berg_1.wav"
    for write, message in (
        (lambda: soundfile.write(odd, np.zeros(100), 16_000), "Hz, and others have"),
        (lambda: odd.write_bytes(b"no sound"), f"{odd}: not audio that can be read ("),
        (odd.unlink, "record 12 (line 13): 'two_van_der_berg_1.wav': no such file; "),
    ):
        write()
        code, said = ran("make_connected_digits.py", digits, "--out", tmp_path / "out", "--count", 50)
        assert code == 2 and said.count("\n") == 1 and message in said
    (tmp_path / "empty.tsv").write_text("audio\ttranscript\n")
    code, said = ran("make_connected_digits.py", tmp_path / "empty.tsv", "--out", tmp_path / "out")
    assert code == 2 and "names no recordings; expected rows" in said
    (tmp_path / "file").write_text("")
    code, said = ran("make_tones.py", "--out", tmp_path / "file")
    assert code == 2 and said.count("\n") == 1 and "name another folder with --out" in said


@pytest.fixture(scope="module")
def shapes() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts/make_shapes.py"))


def captioned(path: Path) -> list[tuple[Path, str]]:
    """Each picture of a manifest with its one caption."""
    config = DataConfig(path=str(path), field="caption")
    found = [row for row in captions.manifest(config, sources([path]), []) if isinstance(row, captions.Captioned)]
    assert all(len(row.captions) == 1 for row in found) and len(found) == len(path.read_text(encoding="utf-8").splitlines()) - 1
    return [(row.image, row.captions[0]) for row in found]


def pixels_of(path: Path) -> npt.NDArray[np.int64]:
    """(side, side, 3)."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(np.int64)


def test_the_shapes_that_ship_are_those_of_the_script(shapes: dict[str, Any]) -> None:
    english, chinese = captioned(SHAPES / "captions.tsv"), captioned(SHAPES / "captions-zh.tsv")
    assert len(english) == 64 and [image for image, _ in english] == [image for image, _ in chinese]
    for number, ((image, caption), (_, translated)) in enumerate(zip(english, chinese)):
        seen, picture = shapes["example"](number, 1, 64)
        assert (caption, translated) == (seen.english(), seen.chinese())
        # Two versions of Pillow may take a pixel of an edge, four times as fine, for one of the shape and for one of the background.
        difference = np.abs(pixels_of(image) - np.asarray(picture))
        assert float(difference.mean()) < 0.5 and int((difference > 8).any(2).sum()) <= 20
    assert (SHAPES / "val.txt").read_text().split() == [f"pictures/{number:04d}.png" for number in range(48, 64)]
    assert len(list(SHAPES.rglob("*"))) == 64 + 4 and sum(path.stat().st_size for path in SHAPES.rglob("*")) < 150_000
    told = (ROOT / "data/README.md").read_text(encoding="utf-8")
    assert "64 pictures of coloured shapes" in told and "the last 16 in `val.txt`" in told


def test_a_caption_says_what_is_seen_and_in_the_one_order(shapes: dict[str, Any]) -> None:
    """By eye, as far as one that sees which colours there are, how much of each, and where their middles lie, is an eye."""
    colors = {name: np.array(rgb) for name, (_, rgb) in shapes["COLORS"].items()}
    kinds = set(shapes["SHAPES"])
    for image, caption in captioned(SHAPES / "captions.tsv"):
        pixels = pixels_of(image)
        found = []
        for name, color in colors.items():
            y, x = np.nonzero(np.abs(pixels - color).max(2) <= 12)
            if len(x) > 20:  # fewer are of an edge, between one colour and another
                found.append((len(x), name, float(x.mean()), float(y.mean())))
        found.sort(reverse=True)  # the larger first
        words = caption.split(" ")
        assert [word for word in words if word in colors] == [name for _, name, _, _ in found], (image, caption)
        assert sum(word in kinds for word in words) == len(found)
        if len(found) == 1:
            continue
        (_, _, x1, y1), (_, _, x2, y2) = found
        across, down = x1 - x2, y1 - y2
        assert max(abs(across), abs(down)) > 3 * min(abs(across), abs(down)), "beside or above each other without a doubt"
        relation = ("left of" if across < 0 else "right of") if abs(across) > abs(down) else ("above" if down < 0 else "below")
        assert f" {relation} " in caption, (image, caption)


def test_every_kind_of_shape_has_its_outline(shapes: dict[str, Any]) -> None:
    """The areas are one, so that the larger of two is larger whatever they are; and the kinds are as their names say."""
    for kind, corners in (("square", 4), ("triangle", 3), ("star", 10), ("cross", 12)):
        points = np.array(shapes["outline"](kind, 2.0))
        x, y = points.T
        assert len(points) == corners
        assert abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2 == pytest.approx(4 * np.pi)
        assert float(np.abs(points.mean(0)).max()) < 1e-9
    assert shapes["LARGE"][0] ** 2 > 1.9 * shapes["SMALL"][1] ** 2


def test_both_languages_say_the_same(shapes: dict[str, Any]) -> None:
    circle, square = shapes["Shape"]("circle", "red", 0, 0, 0), shapes["Shape"]("square", "orange", 0, 0, 0)
    scene = shapes["Scene"]((circle, square), "left of")
    assert (scene.english(), scene.chinese()) == ("a red circle left of an orange square", "一个红色的圆在一个橙色的方块左边")
    assert (scene._replace(shapes=(square,), relation=None).chinese()) == "一个橙色的方块"
    random = np.random.default_rng(1)
    scenes = [shapes["scene"](random) for _ in range(2000)]
    assert len({scene.english() for scene in scenes}) == len({scene.chinese() for scene in scenes}) > 1000


def test_shapes_are_the_same_bytes_each_time_and_others_by_another_seed(ran: Ran, tmp_path: Path) -> None:
    for folder, seed, count, language in (("a", 3, 3, "both"), ("b", 3, 5, "en"), ("c", 4, 3, "zh")):
        arguments = ("--count", count, "--val-count", 1, "--seed", seed, "--size", 32, "--language", language, "--out", tmp_path / folder)
        assert ran("make_shapes.py", *arguments) == (0, "")
    a, b, c = (contents(tmp_path / folder) for folder in "abc")
    pictures = [f"pictures/{number:04d}.png" for number in range(3)]
    assert sorted(a) == ["captions-zh.tsv", "captions.tsv", *pictures, "val.txt"]
    assert "captions-zh.tsv" not in b and "captions.tsv" not in c
    assert all(a[name] == b[name] and a[name] != c[name] for name in pictures)  # asked for more, the first are the same
    assert a["val.txt"] == b"pictures/0002.png\n" and pixels_of(tmp_path / "a" / pictures[0]).shape == (32, 32, 3)
    code, said = ran("make_shapes.py", "--out", tmp_path / "d", "--count", 4, "--val-count", 4)
    assert code == 2 and said.count("\n") == 1 and "expected 0 <= --val-count < --count" in said
    (tmp_path / "file").write_text("")
    code, said = ran("make_shapes.py", "--out", tmp_path / "file")
    assert code == 2 and said.count("\n") == 1 and "name another folder with --out" in said
