"""`charrnn caption`: a line for each caption, a line for each mistake, and the exit code that says so."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from charrnn.config import build_config
from tests.cli.learning import learn, runner
from tests.data.test_images import png_header
from tests.test_cli import Said

SHAPES = Path(__file__).parents[2] / "data/sample/shapes"
COUNT = 12  # pictures that are learned by heart

Run = Callable[..., Said]


def captions(count: int = COUNT) -> dict[str, str]:
    """Of the first of the sample pictures, by their names."""
    rows = (SHAPES / "captions.tsv").read_text(encoding="utf-8").splitlines()[1 : count + 1]
    return {Path(name).name: text for name, text in (row.split("\t") for row in rows)}


def settings(folder: Path, name: str, **images: Any) -> dict[str, Any]:
    return {
        "task": "caption",
        "data": {"path": str(folder / name), "val_fraction": 0.0, "images": images, "cache": str(folder / "cache")},
        "model": {"embedding_size": 12, "hidden_size": 48, "cnn": {"width": 6, "stages": 3}, "decoder": {"attention_size": 12}},
        "train": {"max_steps": 1, "batch_size": COUNT, "precision": "fp32"},
    }


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sample pictures, a model that knows them by heart, and two that have looked at little."""
    folder = tmp_path_factory.mktemp("learned")
    (folder / "pictures").mkdir()
    for name in captions():
        shutil.copy(SHAPES / "pictures" / name, folder / "pictures" / name)
    rows = "".join(f"pictures/{name}\t{text}\n" for name, text in captions().items())
    (folder / "train.tsv").write_text(f"image\tcaption\n{rows}", encoding="utf-8")
    seen = settings(folder, "train.tsv", size=32)
    learn(build_config(seen, "test"), folder / "model.safetensors", 250, 1e-2)
    attending = seen | {"model": seen["model"] | {"image_as": "attention"}}
    learn(build_config(attending, "test"), folder / "attending.safetensors", 12)
    (folder / "features").mkdir()
    for at, name in enumerate(captions()):
        np.save(folder / "features" / f"{name}.npy", np.eye(COUNT, dtype=np.float32)[at])
    (folder / "features.tsv").write_text(rows.replace("pictures/", "features/").join(["image\tcaption\n", ""]), encoding="utf-8")
    ready = settings(folder, "features.tsv", features=COUNT)
    ready["model"].pop("cnn")
    learn(build_config(ready, "test"), folder / "ready.safetensors", 120, 1e-2)
    return folder


@pytest.fixture
def run(learned: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(learned, "caption", capsys, tmp_path, monkeypatch)


def told(said: Said) -> list[tuple[str, str]]:
    """File and caption of each line."""
    return [tuple(line.split("%  ", 1)[1].split("  ", 1)) for line in said.out.splitlines()]  # type: ignore[misc]


def test_each_picture_of_a_folder_gets_a_line(run: Run) -> None:
    Path("pictures/notes.txt").write_text("not a picture")
    for beam in ([], ["--beam", "3"], ["--beam", "1"]):
        said = run("model.safetensors", "pictures", *beam)
        assert said.code == 0 and told(said) == [(f"pictures/{name}", text) for name, text in captions().items()]
        assert f"{COUNT} pictures in " in said.err and " a second\n" in said.err
        assert "charrnn: warning: pictures: 1 file left out, by their names no pictures\n" in said.err


def test_json_tells_all(run: Run) -> None:
    said = run("model.safetensors", "pictures/0003.png", "--num", "3", "--json")
    (one,) = map(json.loads, said.out.splitlines())
    assert said.code == 0 and one["file"] == "pictures/0003.png" and one["seconds"] > 0
    texts = [caption["text"] for caption in one["captions"]]
    assert texts[0] == captions()["0003.png"] and len(set(texts)) == 3
    for caption in one["captions"]:
        assert set(caption) == {"text", "confidence", "nats", "finished"} and 0 < caption["confidence"] <= 1
        if caption["finished"]:
            assert caption["confidence"] == pytest.approx(np.exp(-caption["nats"] / (len(caption["text"]) + 1)))


def test_a_file_name_that_is_no_text_is_told_in_json_as_it_is(run: Run) -> None:
    name = b"\xe9\xff-\xc3\xa9.png"
    shutil.copy(b"pictures/0003.png", name)
    said = run("model.safetensors", os.fsdecode(name), "--json")
    assert said.code == 0 and said.out.isascii()
    assert os.fsencode(json.loads(said.out)["file"]) == name
    line = run("model.safetensors", os.fsdecode(name))
    assert told(line) == [("\\udce9\\udcff-é.png", captions()["0003.png"])]
    Path("狗.png").write_bytes(Path("pictures/0003.png").read_bytes())
    assert '"file": "狗.png"' in run("model.safetensors", "狗.png", "--json").out


def test_what_is_drawn_follows_from_the_seed_and_not_from_what_stands_beside_it(run: Run) -> None:
    drawing = ("--num", "4", "--temperature", "2.5", "--seed")
    alone = told(run("model.safetensors", "pictures/0005.png", *drawing, 3))
    assert len({text for _, text in alone}) == 4
    together = told(run("model.safetensors", "pictures", *drawing, 3))
    assert len(together) == 4 * COUNT and [one for one in together if one[0] == "pictures/0005.png"] == alone
    assert told(run("model.safetensors", "pictures/0005.png", "--num", "2", *drawing[2:], 3)) == alone[:2]
    assert told(run("model.safetensors", "pictures/0005.png", *drawing, 4)) != alone
    unseeded = [told(run("model.safetensors", "pictures/0005.png", *drawing[:-1])) for _ in range(2)]
    assert unseeded[0] != unseeded[1]


@pytest.mark.parametrize("narrow", [["-t", "0"], ["-t", "9", "--top-k", "1"], ["-t", "3", "--top-p", "1e-9"]])
def test_a_draw_of_the_likeliest_alone_is_greedy(run: Run, narrow: list[str]) -> None:
    said = run("attending.safetensors", "pictures", *narrow)
    assert said.code == 0 and told(said) == told(run("attending.safetensors", "pictures", "--beam", "1"))


def test_a_text_without_an_end_is_marked(run: Run) -> None:
    short = ("--set", "decoding.max_length=5")
    for search in (["--beam", "1"], ["--num", "2"], ["-t", "0.5"]):
        said = run("model.safetensors", "pictures/0003.png", *search, *short)
        assert said.code == 0 and told(said)[0] == ("pictures/0003.png", captions()["0003.png"][:5] + "…")


def test_what_cannot_be_used_is_named_and_the_others_are_told_of(run: Run) -> None:
    """In their order, and on the page too."""
    Path("text.jpg").write_text("this is no picture")
    stream = io.BytesIO()
    Image.open("pictures/0000.png").convert("RGB").resize((300, 300)).save(stream, "JPEG")
    Path("half.jpg").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    Image.new("RGB", (1, 1)).save("dot.png")
    Path("huge.png").write_bytes(png_header(30_000, 30_000))
    Path("empty").mkdir()
    faulty = ["text.jpg", "half.jpg", "dot.png", "huge.png", "missing.png", "features/0000.png.npy", "empty"]
    said = run("model.safetensors", *faulty[:3], "pictures/0000.png", *faulty[3:], "pictures/0001.png", "--html", "page.html")
    assert said.code == 2 and told(said) == [(f"pictures/{name}", captions()[name]) for name in ("0000.png", "0001.png")]
    faults = [line for line in said.err.splitlines() if line.startswith("charrnn: error: ")]
    assert len(faults) == len(faulty) and said.err.endswith("7 of 9 could not be used\n")
    for name, fact in zip(
        faulty, ("not a picture", "breaks off", "1 x 1 pixels", "900,000,000 pixels", "no such file", "named as features")
    ):
        assert sum(line.startswith(f"charrnn: error: {name}: {fact}") for line in faults) == 1, name
    page = html.unescape(Path("page.html").read_text(encoding="utf-8"))
    assert all(line.removeprefix("charrnn: error: ") in page for line in faults)


def test_however_a_picture_is_kept_its_caption_is_the_same(run: Run) -> None:
    picture, text = Image.open("pictures/0002.png").convert("RGB"), captions()["0002.png"]
    large = picture.resize((256, 256), Image.Resampling.BICUBIC)
    large.save("a.jpg", quality=95)
    large.save("a.webp", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save("turned.png", exif=exif)
    clear = picture.convert("RGBA")
    clear.putalpha(255)
    clear.save("clear.png")
    names = ["a.jpg", "a.webp", "turned.png", "clear.png"]
    assert told(run("model.safetensors", *names)) == [(name, text) for name in names]
    picture.convert("L").save("grey.png")
    assert run("model.safetensors", "grey.png").code == 0


def test_ready_features_are_told_of_and_other_files_are_not(run: Run) -> None:
    every = [(f"features/{name}.npy", text) for name, text in captions().items()]
    assert told(run("ready.safetensors", "features")) == every
    save_file({"fc7": np.eye(COUNT, dtype=np.float32)[4]}, "four.safetensors")
    np.save("wide.npy", np.zeros(COUNT + 1, dtype=np.float32))
    np.save("all.npy", np.eye(COUNT, dtype=np.float32))
    Path("all.json").write_text(json.dumps(list(captions())))
    said = run("ready.safetensors", "four.safetensors", "wide.npy", "pictures/0001.png", "all.npy", "--html", "page.html")
    assert told(said) == [("four.safetensors", captions()["0004.png"]), *((f"all.npy/{name}", text) for name, text in captions().items())]
    assert said.code == 2 and "charrnn: error: wide.npy: 13 features of a picture; expected 12, which is data.images.features" in said.err
    assert "charrnn: error: pictures/0001.png: not named as features; expected .npy or .safetensors" in said.err
    assert "<img" not in Path("page.html").read_text(encoding="utf-8")


def test_one_picture_of_an_array_of_features_is_named_as_it_is_told(run: Run) -> None:
    np.save("all.npy", np.eye(COUNT, dtype=np.float32))
    names = [f"/from/./the root/{name}" for name in captions()]
    Path("all.json").write_text(json.dumps(names))
    every = told(run("ready.safetensors", "all.npy"))
    assert every[3][0] == "all.npy/from/the root/0003.png"
    chosen = [every[3], every[1]]
    said = run("ready.safetensors", *(name for name, _ in chosen))
    assert said.code == 0 and told(said) == chosen
    missing = run("ready.safetensors", "all.npy/from/the root/0003.pgn", "all.npy/from/the root/0001.png")
    assert missing.code == 2 and told(missing) == [every[1]]
    fact = "no such name in all.json; expected one of its 12; did you mean 'from/the root/0003.png'?"
    assert f"charrnn: error: all.npy/from/the root/0003.pgn: {fact}\n" in missing.err
    assert "no model is named, and no run under" in run(every[0][0]).err
    Path("all.json").write_text(json.dumps(["a", "", *names[2:]]))
    assert (
        "charrnn: error: all.json: name 2 is empty; expected that of the picture in this row\n" in run("ready.safetensors", "all.npy").err
    )


def test_features_in_the_place_of_the_model_are_told_of(run: Run) -> None:
    save_file({"fc7": np.eye(COUNT, dtype=np.float32)[4]}, "four.safetensors")
    expected = "four.safetensors: stands first, where such a file is a model, and it holds something else; if it is features, name the run"
    for names in (["four.safetensors"], ["four.safetensors", "features"], ["four.safetensors", "ready.safetensors"]):
        said = run(*names)
        assert said == Said(2, "", f"charrnn: error: {expected} or the model before it\n")


def test_a_model_that_does_not_look_is_told_of(run: Run) -> None:
    """Of different pictures, and of enough of them."""
    warned = "12 of 12 different pictures are told of alike, 'a': the model has not learned to look; charrnn eval measures it\n"
    blind = ("--set", "decoding.max_length=1")  # every caption begins with a
    assert run("model.safetensors", "pictures", *blind).err.endswith(f"charrnn: warning: {warned}")
    assert "alike" not in run("model.safetensors", "pictures").err
    few = [f"pictures/000{n}.png" for n in range(5)]
    assert "alike" not in run("model.safetensors", *few, *few, *few, *blind).err


def images(page: str) -> list[tuple[str, Image.Image]]:
    found = re.findall(r"data:image/(jpeg|png);base64,([A-Za-z0-9+/=]+)", page)
    return [(kind, Image.open(io.BytesIO(base64.b64decode(content)))) for kind, content in found]


def test_the_page_holds_all_that_it_shows(run: Run) -> None:
    name = "<script>alert(1)</script> & \"b\" 'c'.png".replace("/", "\u2215")
    exif = Image.Exif()
    exif[0x010F] = "a camera of mine"
    Image.open("pictures/0001.png").convert("RGB").resize((900, 1200)).save(name, exif=exif)
    said = run("model.safetensors", name, "pictures/0002.png", "--num", "2", "--html", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    assert said.code == 0 and "<script" not in page and html.escape(name) in page
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;' in page
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in page and "prefers-color-scheme: dark" in page
    assert not re.search(r"https?:|src=\"(?!data:)|url\((?!data:)|@import", page)
    (kind, large), (_, small) = images(page)
    assert kind == "jpeg" and large.size == (360, 480) and small.size == (64, 64) and not large.getexif()
    assert page.count("<li>") == 4 and f'alt="{captions()["0002.png"]}"' in page


def test_the_page_of_a_model_that_attends_shows_where_it_looked(run: Run) -> None:
    said = run(
        "attending.safetensors", "pictures/0001.png", "--html", "page.html", "--set", "decoding.max_length=6", "--num", "2", "--json"
    )
    text = json.loads(said.out)["captions"][0]["text"]
    page = Path("page.html").read_text(encoding="utf-8")
    shades = [picture for kind, picture in images(page) if kind == "png"]
    assert len(shades) == len(text) > 0 and all(picture.mode in ("RGBA", "LA") for picture in shades)
    assert [label for label in re.findall(r'alt="">([^<]+)</span>', page)] == ["␣" if c == " " else html.escape(c) for c in text]
    assert "Where the model looked" in page and "data:image/png" not in told_page(run)


def told_page(run: Run) -> str:
    run("model.safetensors", "pictures/0001.png", "--html", "plain.html")
    return Path("plain.html").read_text(encoding="utf-8")


def test_a_page_is_written_whole_or_not_at_all(run: Run) -> None:
    Path("page.html").write_text("as it was")
    said = run("model.safetensors", "missing.png", "--html", "page.html")
    assert said.code == 2 and "charrnn: warning: --html page.html: not written, for no picture could be used\n" in said.err
    assert Path("page.html").read_text() == "as it was"


@pytest.mark.parametrize("target", ["pictures/0000.png", "pictures/0001.png", "model.safetensors"])
def test_a_page_never_takes_the_place_of_a_picture_or_a_model(run: Run, target: str) -> None:
    """As where the page's name was forgotten before a list of pictures."""
    before = Path(target).read_bytes()
    said = run("model.safetensors", "pictures/0001.png", "--html", target)
    assert said == Said(2, "", f"charrnn: error: --html {target}: expected a name that ends in .html or .htm; give the page such a name\n")
    assert Path(target).read_bytes() == before


def test_a_page_never_takes_the_place_of_what_a_link_leads_to(run: Run) -> None:
    for target in ("pictures/0001.png", "model.safetensors"):
        Path("page.html").unlink(missing_ok=True)
        Path("page.html").symlink_to(target)
        before = Path(target).read_bytes()
        said = run("model.safetensors", "pictures", "--html", "page.html")
        assert (said.code, said.out) == (2, "") and f"--html page.html: the same file as {target}, which " in said.err
        assert Path(target).read_bytes() == before


def test_the_newest_run_is_taken_and_named(run: Run) -> None:
    for at, name in enumerate(("old", "new")):
        Path("runs", name).mkdir(parents=True)
        shutil.copy("model.safetensors", f"runs/{name}/best.safetensors")
        os.utime(f"runs/{name}/best.safetensors", (at, at))
    said = run("pictures/0001.png")
    assert told(said) == [("pictures/0001.png", captions()["0001.png"])]
    assert said.err.startswith("charrnn: no model is named, so the newest run is taken: runs/new/best.safetensors\n")


P = "pictures/0000.png"
MISTAKES = {
    "nothing to tell of": (
        ["model.safetensors"],
        "model.safetensors: a model, and nothing to tell of; expected pictures or folders of them",
    ),
    "no beam": (["model.safetensors", P, "--beam", "0"], "--beam 0: expected 1 to 1,000 hypotheses; 1 is greedy"),
    "too wide": (["model.safetensors", P, "--beam", "100000"], "--beam 100000: expected 1 to 1,000 hypotheses; 1 is greedy"),
    "model behind": (
        [P, "model.safetensors"],
        "model.safetensors: a model, behind what it shall read; expected it to stand first, or no model for the newest run",
    ),
    "no caption": (["model.safetensors", P, "--num", "0"], "--num 0: expected 1 to 1,000 captions of each picture"),
    "too many": (
        ["model.safetensors", P, "--num", "3", "--beam", "2"],
        "--num 3: a beam of 2 has no more than that; raise --beam, or draw",
    ),
    "far too many": (["model.safetensors", P, "--num", "2000"], "--num 2000: expected 1 to 1,000 captions of each picture"),
    "both": (["model.safetensors", P, "--beam", "2", "-t", "1"], "--beam and --temperature are both given; expected one of them"),
    "all the same": (["model.safetensors", P, "--num", "2", "-t", "0"], "--num 2 with --temperature 0: expected a temperature above 0"),
    "top-k alone": (["model.safetensors", P, "--top-k", "3"], "--top-k 3: of captions that are drawn, and none are; add --temperature"),
    "seed alone": (["model.safetensors", P, "--seed", "3"], "--seed 3: of captions that are drawn, and none are; add --temperature"),
    "seed": (["model.safetensors", P, "-t", "1", "--seed", "-3"], "--seed -3: expected a whole number from 0 to"),
    "temperature": (["model.safetensors", P, "-t", "-1"], "--temperature -1.0: expected a number from 0 up; 0 is greedy"),
    "top-p": (["model.safetensors", P, "-t", "1", "--top-p", "2"], "--top-p 2.0: expected a share above 0 and at most 1"),
    "no run": ([P], "no model is named, and no run under"),
    "no model": (["runs/none", P], "runs/none: neither a model nor a picture; expected a run directory, a model file or pictures"),
    "size": (["model.safetensors", P, "--set", "data.images.size=48"], "data.images.size is 32, and --set makes it 48; expected"),
    "ctc": (["model.safetensors", P, "--set", "decoding.ctc_weight=0.3"], "decoding.ctc_weight"),
    "place": (["model.safetensors", P, "--html", "no/where.html"], "--html no/where.html: cannot be written"),
    "no features": (["ready.safetensors", "pictures"], "pictures: the folder holds no feature files; expected some such as .npy or .saf"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(run: Run, mistake: str) -> None:
    arguments, line = MISTAKES[mistake]
    said = run(*arguments)
    assert (said.code, said.out) == (2, "") and line in said.err
    assert said.err.count("\n") == 1 or said.err.endswith("\n1 of 1 could not be used\n")


def test_a_model_of_another_task_names_its_command(run: Run) -> None:
    said = run("model.safetensors", P, command="transcribe")
    assert said.code == 2 and "a model of task caption; charrnn transcribe needs one of task transcribe; use charrnn caption" in said.err


FAULTY = {  # name: what is wrong with it, by what is said of it
    "text.jpg": "not a picture that can be read; expected a picture, as JPEG, PNG or WebP",
    "half.jpg": "breaks off, or is damaged (",
    "dot.png": "1 x 1 pixels; expected at least 2 a side, or there is nothing to see",
    "huge.png": "900,000,000 pixels, by its header; expected at most 100,000,000, so make it smaller",
    "missing.png": "no such file; expected a picture at missing.png, so mend the path or take the row out",
}


def faulty(path: str) -> list[int]:
    """A manifest with two pictures that are known, and between them all that cannot be used and one without a caption: their lines."""
    Path("text.jpg").write_text("this is no picture")
    stream = io.BytesIO()
    Image.open(P).convert("RGB").resize((300, 300)).save(stream, "JPEG")
    Path("half.jpg").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    Image.new("RGB", (1, 1)).save("dot.png")
    Path("huge.png").write_bytes(png_header(30_000, 30_000))
    known = [(f"pictures/{name}", text) for name, text in captions(2).items()]
    mixed = [known[0], *((name, "a red circle") for name in FAULTY), ("pictures/0003.png", " "), known[1]]
    if path.endswith("tsv"):
        lines = ["image\tcaption", *("\t".join(row) for row in mixed)]
    else:
        lines = [json.dumps({"image": image, "caption": text}) for image, text in mixed]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    first = len(lines) - len(mixed) + 2
    return list(range(first, first + len(FAULTY) + 1))


def assert_each_is_told(told: list[str], manifest: str, lines: list[int]) -> None:
    """On a line of its own, with its line in the manifest."""
    assert len(told) == len(lines) == len(FAULTY) + 1 and all(line.startswith(f"charrnn: error: {manifest}: ") for line in told)
    for (name, fact), number in zip(FAULTY.items(), lines):
        (one,) = (line for line in told if name in line)
        assert f"line {number}" in one and fact in one
    assert sum(f"line {lines[-1]}): field 'caption' is empty; expected text, so fill it or take the row out" in line for line in told) == 1


@pytest.mark.parametrize("manifest", ["another.tsv", "another.jsonl"])
def test_eval_names_each_picture_that_cannot_be_used_and_measures_the_others(run: Run, manifest: str) -> None:
    lines = faulty(manifest)
    said = run("model.safetensors", "--file", manifest, command="eval")
    assert said.code == 2 and "2 of 2 pictures have what was written among their captions" in said.out
    *told, last = said.err.splitlines()
    assert_each_is_told(told, manifest, lines)
    assert last == f"6 rows of {manifest} could not be used as expected"
    figures = run("model.safetensors", "--file", manifest, "--json", command="eval")
    found = json.loads(figures.out)
    assert figures.code == 2 and figures.err == said.err
    assert (found["caption_accuracy"], found["count"]) == (1.0, sum(len(text) + 1 for text in captions(2).values()))


@pytest.mark.parametrize("dry", [True, False])
def test_training_names_all_pictures_that_cannot_be_used_and_does_not_begin(run: Run, dry: bool) -> None:
    lines = faulty("another.tsv")
    wanted = settings(Path(), "train.tsv", size=32)
    Path("config.yaml").write_text(build_config(wanted | {"run": "run"}, "test").to_yaml(), encoding="utf-8")
    for broken, sound in (("another.tsv", "train.tsv"), ("train.tsv", "another.tsv")):
        names = ("--set", f"data.path={broken}", "--set", f"data.val_path={sound}", "--set", "data.cache=own-cache")
        said = run("--config", "config.yaml", *names, *(["--dry-run"] if dry else []), command="train")
        assert (said.code, said.out) == (2, "")
        assert_each_is_told(said.err.splitlines(), "another.tsv", lines)
        assert not Path("run/last.safetensors").exists() and not list(Path("own-cache").glob("pictures-*"))


def test_eval_names_captions_that_the_model_cannot_write_and_measures_the_rest_of_them(run: Run) -> None:
    name, text = next(iter(captions().items()))
    Path("another.tsv").write_text(f"image\tcaption\npictures/{name}\t{text} 雪ß\npictures/{name}\t{text}\n", encoding="utf-8")
    said = run("model.safetensors", "--file", "another.tsv", command="eval")
    fact = "the model does not know '雪' (U+96EA), 'ß' (U+00DF); expected characters that it has learned, so mend the caption"
    assert said.code == 2 and f"charrnn: error: another.tsv: line 2: {fact}; it is measured, all but these\n" in said.err
    assert f" on another.tsv: {2 * len(text) + 3} chars\n" in said.out  # with the space, and both ends
    assert "1 of 1 picture has what was written among its captions" in said.out
    assert f"{2 / (2 * len(text) + 5):.2%} of the characters are unknown to the model, and were read as unknown" in said.out


def test_eval_names_features_that_cannot_be_used_and_measures_the_others(run: Run) -> None:
    np.save("wide.npy", np.zeros(COUNT + 1, dtype=np.float32))
    np.save("whole.npy", np.zeros(COUNT, dtype=np.int64))
    np.save("endless.npy", np.full(COUNT, np.inf, dtype=np.float32))
    Path("text.npy").write_text("no array")
    names = {
        "wide.npy": "13 features of a picture; expected 12, which is data.images.features: make them so, or train with another",
        "whole.npy": "holds int64; expected features of a picture as (12,), in floats",
        "endless.npy": "feature 0: inf is no number of 32 bits; expected finite features, so make them again",
        "text.npy": "not a whole .npy file of numbers (",
        "none.npy": "no such file; expected features of a picture at none.npy",
    }
    known = "".join(f"features/{name}.npy\t{text}\n" for name, text in captions(2).items())
    rows = "".join(f"{name}\ta\n" for name in names)
    Path("another.tsv").write_text(f"image\tcaption\n{rows}{known}", encoding="utf-8")
    said = run("ready.safetensors", "--file", "another.tsv", command="eval")
    assert said.code == 2 and "2 of 2 pictures have what was written among their captions" in said.out
    *told, last = said.err.splitlines()
    assert len(told) == len(names) and last == "5 rows of another.tsv could not be used as expected"
    for number, (name, fact) in enumerate(names.items(), start=2):
        (one,) = (line for line in told if name in line)
        assert one.startswith("charrnn: error: another.tsv: ") and f"line {number}" in one and fact in one


def test_eval_of_nothing_but_faults_names_them(run: Run) -> None:
    Path("another.tsv").write_text("image\tcaption\nnone.png\ta\ntext.jpg\ta\n", encoding="utf-8")
    Path("text.jpg").write_text("this is no picture")
    said = run("model.safetensors", "--file", "another.tsv", command="eval")
    assert (said.code, said.out) == (2, "") and [line.split(": ")[3] for line in said.err.splitlines()] == ["record 1 (line 2)", "line 3"]


def test_eval_does_not_look_otherwise_than_the_model_has_learned(run: Run) -> None:
    said = run("model.safetensors", "--file", "train.tsv", "--set", "data.images.size=48", command="eval")
    assert said.code == 2 and said.err.startswith("charrnn: error: model.safetensors: data.images.size is 32, and --set makes it 48; exp")


def test_eval_tells_whether_the_model_looks(run: Run) -> None:
    said = run("model.safetensors", "--file", "train.tsv", command="eval")
    assert said.code == 0 and f"{COUNT} of {COUNT} pictures have what was written among their captions" in said.out
    for row in ("their own picture", "another picture, shuffled", "no picture", f"the right picture among {COUNT}, by a caption's"):
        assert row in said.out
    assert "BLEU-1 to -4: 100.0, 100.0, 100.0, 100.0 (" in said.out
    found = json.loads(run("model.safetensors", "--file", "train.tsv", "--json", command="eval").out)
    assert found["right_nats_per_char"] == pytest.approx(found["nats_per_char"], rel=1e-4)
    assert found["right_nats_per_char"] < min(found["shuffled_nats_per_char"], found["no_picture_nats_per_char"])
    assert found["recall_1"] > 0.5 and found["bleu_4"] == pytest.approx(100)


def test_eval_of_one_picture_tells_of_no_spread(run: Run) -> None:
    name, text = next(iter(captions().items()))
    Path("one.tsv").write_text(f"image\tcaption\npictures/{name}\t{text}\n", encoding="utf-8")
    said = run("model.safetensors", "--file", "one.tsv", command="eval")
    assert said.code == 0 and "1 of 1 picture has what was written among its captions" in said.out
    assert "no picture " in said.out and "nan" not in said.out and "±" not in said.out and "standard error" not in said.out


def test_eval_tells_how_many_pictures_the_controls_leave_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run("model.safetensors", "--file", "train.tsv", command="eval")
    assert "left out" not in whole.out
    monkeypatch.setattr("charrnn.tasks.caption.MEASURED", 5)
    said = run("model.safetensors", "--file", "train.tsv", command="eval")
    assert "that is of 5 of the 12 pictures, drawn by the seed; the other 7 are left out here\n" in said.out
    found = json.loads(run("model.safetensors", "--file", "train.tsv", "--json", command="eval").out)
    assert (found["control_pictures"], found["control_left_out"]) == (5, 7)
