"""Pictures beside their captions: in splits that share none, decoded once, by any number of processes, and found again by content."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from charrnn.config import DataConfig
from charrnn.data import pictures as module
from charrnn.data.images import load_image
from charrnn.data.pictures import Pictures, load_pictures, load_pictures_file
from charrnn.errors import DataError, Faults

COUNT = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of one grey each, with one to three captions that say which."""
    there = tmp_path / "seen"
    there.mkdir()
    rows = ["image\tcaption\n"]
    for i in range(COUNT):
        Image.new("RGB", (10 + i, 12), (20 * i,) * 3).save(there / f"{i}.png")
        rows += [f"{i}.png\tgrey {i}, for the {which}\n" for which in ("first", "second", "third")[: 1 + i % 3]]
    (there / "m.tsv").write_text("".join(rows), encoding="utf-8")
    return there


def config(folder: Path, name: str = "m.tsv", **data: Any) -> DataConfig:
    images = {"size": 8, "workers": 1} | data.pop("images", {})
    defaults: dict[str, Any] = {"path": str(folder / name), "field": "caption", "val_fraction": 0.25, "cache": str(folder.parent / "cache")}
    defaults["vocabulary"] = {"include": "0123456789"}
    return DataConfig.model_validate(defaults | data | {"images": images})


def said(found: Pictures, caption: int) -> str:
    *ids, end = found.caption(caption).tolist()
    assert end == found.corpus.vocabulary.end
    return found.corpus.vocabulary.decode(ids)


def greys(found: Pictures, places: Any) -> list[int]:
    """Which pictures they are, by their pixels."""
    pixels = found.pictures(places)
    assert pixels.dtype == torch.uint8 and pixels.shape[1:] == (3, 8, 8)
    return [int(value) // 20 for value in pixels.amax((1, 2, 3))]


def refused(settings: DataConfig) -> str:
    with pytest.raises(DataError) as caught:
        load_pictures(settings, 1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_caption_is_beside_its_picture(folder: Path) -> None:
    found = load_pictures(config(folder), 1)
    assert found.counts == {"train": 9, "test": 0, "val": 3} and found.corpus.documents == 24
    for i, captioned in enumerate(found.captioned):
        captions = found.captions_of(i)
        assert [said(found, caption) for caption in captions] == list(captioned.captions)
        [grey] = greys(found, [i])
        assert all(said(found, caption).startswith(f"grey {grey}, ") for caption in captions)
        assert found.picture_of[list(captions)].tolist() == [i] * len(captions)
    assert greys(found, [3, 0, 3])[0] == greys(found, [3])[0]


def test_a_split_is_one_of_pictures_with_all_their_captions(folder: Path) -> None:
    found = load_pictures(config(folder, test_fraction=0.25), 7)
    assert sorted(greys(found, range(COUNT))) == list(range(COUNT))
    for split in ("train", "val", "test"):
        captions = found.captions(split)
        assert sorted(set(found.picture_of[list(captions)].tolist())) == list(found.split(split))
        assert len(captions) == sum(len(found.captioned[i].captions) for i in found.split(split))
        ids = np.concatenate([found.caption(caption) for caption in captions])
        assert ids.tolist() == found.corpus.split(split).tolist()
        assert found.lengths(split).tolist() == [len(found.caption(caption)) for caption in captions]
    again, other = load_pictures(config(folder, test_fraction=0.25), 7), load_pictures(config(folder, test_fraction=0.25), 8)
    assert again.captioned == found.captioned and other.captioned != found.captioned


def test_it_is_decoded_once_whatever_the_seed_the_captions_or_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_pictures(config(folder), 1)
    monkeypatch.setattr(module, "_compute", None)  # what would decode
    assert greys(load_pictures(config(folder), 2), range(COUNT)) != greys(first, range(COUNT))
    moved = folder.rename(folder.with_name("moved"))
    again = load_pictures(config(moved), 1)
    assert greys(again, range(COUNT)) == greys(first, range(COUNT)) and again.corpus.contents == first.corpus.contents
    (moved / "m.tsv").write_text((moved / "m.tsv").read_text().replace("grey", "gray"))
    assert load_pictures(config(moved), 1).corpus.contents != first.corpus.contents
    monkeypatch.setattr(module, "_hash_file", None)  # what would read the files
    load_pictures(config(moved), 1)


def test_what_decides_the_pixels_is_decoded_anew(folder: Path) -> None:
    first = load_pictures(config(folder), 1)
    assert load_pictures(config(folder, images={"size": 9}), 1).kept.shape == (COUNT, 3, 9, 9)
    assert load_pictures(config(folder, images={"augment": {"crop": 0.2}}), 1).kept.shape == (COUNT, 3, 10, 10)
    assert load_pictures(config(folder, images={"augment": {"flip": True}}), 1).kept.shape == (COUNT, 3, 8, 8)
    Image.new("RGB", (30, 30), (255, 0, 0)).save(folder / "5.png")
    changed = load_pictures(config(folder), 1)
    place = next(i for i, captioned in enumerate(changed.captioned) if captioned.image.name == "5.png")
    assert changed.pictures([place])[0, :, 0, 0].tolist() == [255, 0, 0] and changed.corpus.contents != first.corpus.contents


def test_what_lies_damaged_in_the_cache_is_made_anew(folder: Path) -> None:
    first = greys(load_pictures(config(folder), 1), range(COUNT))
    for name, content in (("pictures.bin", b"short"), ("hashes.json", b"[")):
        [kept] = (folder.parent / "cache").glob(f"*/{name}")
        kept.write_bytes(content)
        assert greys(load_pictures(config(folder), 1), range(COUNT)) == first


def test_the_same_content_under_two_names_is_kept_once_and_told_of(folder: Path) -> None:
    shutil.copy(folder / "1.png", folder / "copy.png")
    (folder / "val.tsv").write_text("image\tcaption\ncopy.png\tgrey 1\n")
    found = load_pictures(config(folder, val_path=str(folder / "val.tsv")), 1)
    assert len(found.captioned) == COUNT + 1 and len(found.kept) == COUNT
    assert greys(found, found.split("val")) == [1]
    assert "1 picture of val is in train too, by content, so what is measured there is too good" in found.corpus.notes


def test_two_processes_make_the_same_as_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = load_pictures(config(folder), 1)
    monkeypatch.setattr(module, "CHUNK", 2)
    monkeypatch.setattr(module, "WORTH", 1)
    heard: list[tuple[int, int]] = []
    two = load_pictures(config(folder, images={"workers": 2}, cache=str(folder / "cache2")), 1, lambda *told: heard.append(told))
    assert np.array_equal(one.kept, two.kept) and np.array_equal(one.rows, two.rows)
    total = sum(path.stat().st_size for path in folder.glob("*.png"))
    assert len(heard) == 6 and heard == sorted(heard) and heard[-1] == (total, total)
    for picture in ("2.png", "7.png"):
        (folder / picture).write_bytes(b"no picture")
    order = [captioned.image.name for captioned in one.captioned if captioned.image.name in ("2.png", "7.png")]
    for workers in (1, 2):
        message = refused(config(folder, images={"workers": workers}))
        assert f": {folder / order[0]}: not a picture that can be read; " in message and message.startswith(f"{folder / 'm.tsv'}: line ")
    assert not list((folder.parent / "cache").glob(".building-*"))


def test_a_script_without_a_guard_is_told_of_it(folder: Path) -> None:
    """Each process would begin it again from its first line."""
    script = folder / "script.py"
    settings = json.dumps(config(folder, images={"workers": 2}).model_dump(mode="json"))
    work = [
        "import json",
        "from charrnn.config import DataConfig",
        "from charrnn.data import pictures",
        "pictures.CHUNK = pictures.WORTH = 6",
        f"print(len(pictures.load_pictures(DataConfig.model_validate(json.loads({settings!r})), 1).captioned))",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    script.write_text("\n".join(work))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert "a process that decoded pictures has died; set data.images.workers: 1; a script of your own has to begin its" in done.stderr
    script.write_text("if __name__ == '__main__':\n    " + "\n    ".join(work))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert done.stdout == f"{COUNT}\n" and done.stderr == ""


def test_a_picture_that_cannot_be_used_is_named_with_its_line(folder: Path) -> None:
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[: len(whole) - 25])
    line = 2 + sum(1 + i % 3 for i in range(3))
    assert refused(config(folder)).startswith(f"{folder / 'm.tsv'}: line {line}: {folder / '3.png'}: breaks off, or is damaged (")
    (folder / "3.png").unlink()
    assert refused(config(folder)).startswith(f"{folder / 'm.tsv'}: record {line - 1} (line {line}): '3.png': no such file; ")


def test_all_that_cannot_be_used_is_named_before_a_training_begins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH", 1)  # each a process
    (folder / "3.png").write_bytes(b"no picture")
    whole = (folder / "5.png").read_bytes()
    (folder / "5.png").write_bytes(whole[: len(whole) - 25])
    for workers in (1, 2):
        with pytest.raises(Faults) as caught:
            load_pictures(config(folder, images={"workers": workers}), 1)
        assert sorted(Path(line.split(": ")[2]).name for line in caught.value.lines) == ["3.png", "5.png"]
    with (folder / "m.tsv").open("a") as file:
        file.write("absent.png\tgrey\n0.png\t\n")
    with pytest.raises(Faults) as caught:
        load_pictures(config(folder), 1)
    said = "\n".join(caught.value.lines)
    assert len(caught.value.lines) == 4
    for expected in ("'absent.png': no such file", "3.png: not a picture that can be read", "5.png: breaks off", "record 25 (line 26)"):
        assert expected in said


def test_of_a_file_of_ones_own_the_rest_is_read(folder: Path) -> None:
    model = load_pictures(config(folder), 1)
    (folder / "3.png").write_bytes(b"no picture")
    shutil.copy(folder / "3.png", folder / "copied.png")
    rows = ["image\tcaption", "5.png\tgrey 5", "3.png\tgrey 3", "absent.png\tgrey", "2.png\tgrey é", "copied.png\tgrey"]
    (folder / "own.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    found = load_pictures_file(config(folder), folder / "own.tsv", model.corpus.vocabulary)
    assert greys(found, found.split("test")) == [5, 2] and found.corpus.unknown == 1
    absent, three, copied, strange = map(str, found.corpus.faults)
    assert "'absent.png': no such file; expected a picture" in absent and f"line 3: {folder / '3.png'}: not a picture" in three
    assert f"line 6: {folder / 'copied.png'}: not a picture" in copied
    assert strange.endswith(
        "line 5: the model does not know 'é' (U+00E9); expected characters that it has learned, so mend the caption; "
        "it is measured, all but these"
    )
    (folder / "own.tsv").write_text("image\tcaption\n3.png\tgrey 3\n", encoding="utf-8")
    with pytest.raises(Faults, match=r"3\.png: not a picture that can be read"):
        load_pictures_file(config(folder), folder / "own.tsv", model.corpus.vocabulary)


def test_a_picture_that_is_written_to_meanwhile_is_refused(folder: Path) -> None:
    def progress(done: int, total: int) -> None:
        Image.new("RGB", (9, 9)).save(folder / "4.png")

    with pytest.raises(DataError, match=r"4\.png: changed while it was read; start again when nothing writes to it"):
        load_pictures(config(folder), 1, progress)


def test_lists_name_the_pictures_of_a_split(folder: Path) -> None:
    (folder / "val.txt").write_text("3.png\n\nseen/7.png\n")
    (folder / "test.txt").write_text("0.png\n")
    lists = {"val_path": str(folder / "val.txt"), "test_path": str(folder / "test.txt")}
    found = load_pictures(config(folder, **lists), 1)
    assert greys(found, found.split("val")) == [3, 7] and greys(found, found.split("test")) == [0]
    assert found.counts["train"] == 9
    assert "data.path: the splits are those that lists name: 2 val, 1 test" in found.corpus.notes
    assert found.corpus.files == 3  # lists are read too: no file is left out
    (folder / "val.txt").write_text("3.png\n7.jpg\n")
    remedy = "expected names of pictures, one a line, or a manifest with captions; did you mean '7.png'?"
    assert refused(config(folder, **lists)) == f"{folder / 'val.txt'}: line 2: data.path has no picture '7.jpg'; {remedy}"
    (folder / "val.txt").write_text("3.png\n0.png\n")
    both = f"'0.png' is of test, and {folder / 'val.txt'}: line 2 has it too; expected it in one"
    assert refused(config(folder, **lists)) == f"{folder / 'test.txt'}: line 1: {both}"


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_a_list_that_names_no_picture_is_refused(folder: Path, split: str, text: str) -> None:
    """Else a part of data.path would be drawn, and pictures that were meant for it learned from."""
    (folder / "none.txt").write_text(text)
    expected = f"data.{split}_path: {folder / 'none.txt'} names no picture; expected names, one a line, so list some or leave it out"
    assert refused(config(folder, **{f"{split}_path": str(folder / "none.txt")})) == expected


def karpathy(splits: str) -> str:
    names = {"t": "train", "r": "restval", "v": "val", "s": "test"}
    images = [{"filename": f"{i}.png", "split": names[split], "sentences": [{"raw": f"grey {i}"}]} for i, split in enumerate(splits)]
    return json.dumps({"images": images})


def test_karpathys_splits_are_taken_where_no_others_are_given(folder: Path) -> None:
    (folder / "d.json").write_text(karpathy("tttvvsrttsvv"))
    found = load_pictures(config(folder, "d.json", test_fraction=0.5), 1)
    assert [sorted(greys(found, found.split(split))) for split in ("train", "val", "test")] == [[0, 1, 2, 6, 7, 8], [3, 4, 10, 11], [5, 9]]
    assert "data.path: the splits are those that it names: 6 train, 4 val, 2 test" in found.corpus.notes
    other = load_pictures(config(folder, "d.json", val_path=str(folder / "m.tsv")), 1)
    assert other.counts == {"train": 6, "test": 2, "val": COUNT} and len(other.captions("val")) == 24
    note = "6 train, 4 val, 2 test; those of val are left out, for data.val_path names others"
    assert f"data.path: the splits are those that it names: {note}" in other.corpus.notes
    (folder / "d.json").write_text(karpathy("t" * COUNT))
    assert load_pictures(config(folder, "d.json"), 1).counts == {"train": 9, "test": 0, "val": 3}  # of which it says nothing


def test_a_file_of_ones_own_is_measured_in_a_models_vocabulary(folder: Path) -> None:
    model = load_pictures(config(folder), 1)
    (folder / "own.tsv").write_text("image\tcaption\n5.png\tgrey 5 é\n2.png\tgrey\n5.png\tgrey 5\n")
    found = load_pictures_file(config(folder, filters={"min_length": 6}), folder / "own.tsv", model.corpus.vocabulary)
    assert found.counts == {"train": 0, "test": 2, "val": 0} and greys(found, found.split("test")) == [5, 2]
    assert [len(captioned.captions) for captioned in found.captioned] == [2, 1] and found.corpus.unknown == 1
    (folder / "own.tsv").write_text("image\tcaption\n")
    with pytest.raises(DataError, match="holds no picture; expected some to measure on"):
        load_pictures_file(config(folder), folder / "own.tsv", model.corpus.vocabulary)


@pytest.fixture(params=["files", "array"])
def ready(folder: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Where features lie that tell which picture they are of: the value of `data.images.folder`."""
    made = folder.parent / "made"
    made.mkdir()
    features = np.arange(COUNT)[:, None] + np.linspace(0, 0.5, 5, dtype=np.float32)
    for i in range(COUNT):
        np.save(made / f"{i}.npy", features[i])
    np.save(made / "all.npy", features[::-1])
    (made / "all.json").write_text(json.dumps([f"{i}.png" for i in reversed(range(COUNT))]))
    yield str(made if request.param == "files" else made / "all.npy")


def test_ready_features_are_beside_their_captions(folder: Path, ready: str) -> None:
    found = load_pictures(config(folder, images={"folder": ready, "features": 5}), 1)
    batch = found.pictures(range(COUNT))
    assert batch.shape == (COUNT, 5) and batch.dtype == torch.float32
    for i in range(COUNT):
        assert said(found, found.captions_of(i)[0]).startswith(f"grey {int(batch[i, 0])}, ") and float(batch[i, -1]) % 1 == 0.5
    message = refused(config(folder, images={"folder": ready, "features": 6}))
    assert "5 features of a picture; expected 6, which is data.images.features: make them so, or train with another" in message


def test_lists_name_pictures_of_ready_features_as_the_manifest_does(folder: Path, ready: str) -> None:
    (folder / "val.txt").write_text("3.png\n7.png\n")
    settings = config(folder, val_path=str(folder / "val.txt"), images={"folder": ready, "features": 5})
    found = load_pictures(settings, 1)
    assert found.pictures(found.split("val"))[:, 0].tolist() == [3, 7] and found.counts["train"] == COUNT - 2
    wide = config(folder, val_path=str(folder / "val.txt"), images={"folder": ready, "features": 6})
    assert "5 features of a picture; expected 6, which is data.images.features" in refused(wide)
    (folder / "val.txt").write_text("3.pgn\n")
    assert refused(settings).endswith(
        "data.path has no picture '3.pgn'; expected names of pictures, one a line, or a manifest with captions; did you mean '3.png'?"
    )


def test_what_is_kept_is_what_the_file_shows(folder: Path) -> None:
    photograph = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(folder / "6.png")
    found = load_pictures(config(folder), 1)
    place = next(i for i, captioned in enumerate(found.captioned) if captioned.image.name == "6.png")
    assert np.array_equal(found.pictures([place])[0].numpy(), load_image(folder / "6.png", 8))


def test_what_is_interrupted_leaves_no_half_of_the_cache_and_no_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH", 1)
    monkeypatch.setattr(module, "CHUNK", 2)

    def interrupted(done: int, total: int) -> None:
        assert len(multiprocessing.active_children()) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_pictures(config(folder, images={"workers": 2}), 1, interrupted)
    assert not [path.name for path in (folder.parent / "cache").iterdir() if not path.name.startswith("hashes-")]
    assert not multiprocessing.active_children()
    assert sorted(greys(load_pictures(config(folder, images={"workers": 2}), 1), range(COUNT))) == list(range(COUNT))


def test_a_process_that_is_killed_while_it_decodes_is_told_of_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a system that is short of memory."""
    monkeypatch.setattr(module, "WORTH", 1)
    monkeypatch.setattr(module, "CHUNK", 1)
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    for number in range(COUNT):
        Image.fromarray(noise + np.uint8(number)).save(folder / f"{number}.png", compress_level=1)  # each takes a while
    killed: list[int] = []

    def kill() -> None:
        while not (found := multiprocessing.active_children()):
            time.sleep(0.001)
        killed.append(found[0].pid or 0)
        os.kill(killed[0], signal.SIGKILL)

    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        done = beside.submit(kill)
        message = refused(config(folder, images={"workers": 2}))
        done.result()
    assert message.startswith("data.images.workers 2: a process that decoded pictures has died; set data.images.workers: 1; ")
    assert killed and not multiprocessing.active_children()
    assert len(load_pictures(config(folder, images={"workers": 2}), 1).captioned) == COUNT


def test_processes_that_decode_end_with_the_one_that_they_decode_for(tmp_path: Path) -> None:
    """However that ends: by SIGKILL, it can say nothing to them."""
    script = tmp_path / "script.py"
    lines = [
        "import multiprocessing, os, sys, time",
        "from concurrent.futures import ProcessPoolExecutor",
        "from charrnn.data.images import begin_worker",
        "if __name__ == '__main__':",
        "    pool = ProcessPoolExecutor(2, multiprocessing.get_context('spawn'), begin_worker)",
        "    print(pool.submit(os.getpid).result(), flush=True)",
        "    time.sleep(60)",
    ]
    script.write_text("\n".join(lines), encoding="utf-8")
    root = str(Path(__file__).parents[2])
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": root}) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        process.kill()
        assert process.stdout.read() == b""  # at once, for nobody who could write there is left
