"""Manifests of pictures: what is said of which, in every form; and one that cannot be used comes in its place with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from charrnn.config import DataConfig
from charrnn.data.captions import Captioned, manifest
from charrnn.data.files import sources
from charrnn.errors import DataError

ROWS = [("a.jpg", "A dog ."), ("sub/b.png", 'Two "cats", one mat'), ("a.jpg", "一只狗"), ("c.webp", "Nothing"), ("a.jpg", "A dog .")]
GATHERED = [("a.jpg", ("A dog .", "一只狗", "A dog .")), ("sub/b.png", ('Two "cats", one mat',)), ("c.webp", ("Nothing",))]
TSV = "image\tcaption\n" + "".join(f"{image}\t{said}\n" for image, said in ROWS)
CSV = "caption,image\n" + "".join('"{}",{}\n'.format(said.replace('"', '""'), image) for image, said in ROWS)
JSONL = "".join(json.dumps({"image": image, "caption": said, "split": "of my own"}) + "\n" for image, said in ROWS)
TOKEN = "".join(f"{image}#{i}\t{said}\n" for i, (image, said) in enumerate(ROWS))
NEURALTALK = json.dumps([{"file_path": image, "captions": list(said)} for image, said in GATHERED], indent=1)
KARPATHY = {
    "dataset": "three",
    "images": [
        {"filename": image.rpartition("/")[2], **({"filepath": "sub"} if "/" in image else {}), "split": split, "imgid": 1,
         "sentences": [{"raw": caption, "tokens": ["x"]} for caption in said]}
        for (image, said), split in zip(GATHERED, ("restval", "val", "test"))
    ],
}  # fmt: skip

UNKNOWN = (
    "not named .tsv, .csv or .jsonl, and nothing else that is known; expected a manifest with columns image and caption, "
    "a token file of Flickr8k, or the JSON of Karpathy or neuraltalk, so set data.format to tsv, csv or jsonl"
)


def config(**data: Any) -> DataConfig:
    return DataConfig.model_validate({"path": "any", "field": "caption"} | data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the pictures of ROWS."""
    (tmp_path / "sub").mkdir()
    for image, _ in GATHERED:
        Image.new("RGB", (4, 4)).save(tmp_path / image)
    return tmp_path


def read(folder: Path, text: str, name: str = "m.tsv", notes: list[str] | None = None, **data: Any) -> list[Captioned | DataError]:
    (folder / name).write_bytes(text.encode())
    return list(manifest(config(**data), sources([folder / name]), [] if notes is None else notes))


def told(found: Captioned | DataError) -> str:
    assert isinstance(found, DataError) and "\n" not in str(found)
    return str(found)


@pytest.mark.parametrize(
    "name, text, lines",
    [
        ("m.tsv", TSV, (2, 3, 5)), ("m.csv", CSV, (2, 3, 5)), ("m.jsonl", JSONL, (1, 2, 4)),
        ("m.tsv", "\ufeff" + TSV.replace("\n", "\r\n"), (2, 3, 5)), ("captions.txt", CSV, (2, 3, 5)), ("captions.txt", TSV, (2, 3, 5)),
        ("Flickr8k.token.txt", TOKEN, (1, 2, 4)),
        ("results.token", "\n" + TOKEN.replace("\n", "\r\n"), (2, 3, 5)), ("m.tsv", TOKEN, (1, 2, 4)), ("m.json", NEURALTALK, (2, 10, 16)),
    ],
)  # fmt: skip
def test_every_form_of_manifest_gathers_the_captions_of_a_picture(folder: Path, name: str, text: str, lines: tuple[int, ...]) -> None:
    found = read(folder, text, name)
    assert all(isinstance(captioned, Captioned) for captioned in found)
    assert found == [
        Captioned(folder / image, said, str(folder / name), line, None, found[i].record, image)  # type: ignore[union-attr]
        for i, ((image, said), line) in enumerate(zip(GATHERED, lines))
    ]
    assert isinstance(found[1], Captioned) and found[1].place() == f"{folder / name}: line {lines[1]}"


def test_karpathys_json_has_splits(folder: Path) -> None:
    path = str(folder / "dataset_three.json")
    found = read(folder, json.dumps(KARPATHY), "dataset_three.json")
    assert found == [
        Captioned(folder / image, said, path, 0, split, record, image)
        for record, ((image, said), split) in enumerate(zip(GATHERED, ("train", "val", "test")), start=1)
    ]
    assert isinstance(found[2], Captioned) and found[2].place() == f"{path}: record 3"


def test_captions_of_a_picture_are_gathered_from_all_files(folder: Path) -> None:
    (folder / "en.tsv").write_text("image\tcaption\na.jpg\tA dog\nc.webp\tNothing\n", encoding="utf-8")
    (folder / "zh.json").write_text(json.dumps([{"file_path": "c.webp", "captions": ["无"]}]), encoding="utf-8")
    found = list(manifest(config(), sources([folder / "en.tsv", folder / "zh.json"]), []))
    assert [(row.image.name, row.captions) for row in found if isinstance(row, Captioned)] == [
        ("a.jpg", ("A dog",)),
        ("c.webp", ("Nothing", "无")),
    ]


def test_columns_folder_and_script_are_those_of_the_configuration(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere, notes = tmp_path_factory.mktemp("elsewhere"), list[str]()
    settings = {"field": "said", "format": "tsv", "script": "simplified", "images": {"field": "file", "folder": str(folder)}}
    [found] = read(elsewhere, "said\tfile\n  漢語 \tsub/b.png\n", "m.data", notes, **settings)
    assert found == Captioned(folder / "sub/b.png", ("汉语",), str(elsewhere / "m.data"), 2, None, 1, "sub/b.png")
    assert any(note.startswith("converted to simplified characters") for note in notes)
    [wrong] = read(folder, TSV, images={"folder": str(folder / "none")})
    expected = "no such folder; expected the one that the manifest's paths begin in"
    assert told(wrong) == f"data.images.folder {str(folder / 'none')!r}: {expected}"


def test_a_row_that_cannot_be_used_is_named_in_its_place(folder: Path) -> None:
    text = "image\tcaption\na.jpg\tgood\nnone.jpg\tgone\na.jpg\t \n \tno path\nsub\ta folder\na.jpg\tx\ty\na.jpg\tgood too\nc.webp\tgood\n"
    path = folder / "m.tsv"
    found = read(folder, text)
    assert [isinstance(row, Captioned) for row in found] == [True, False, False, False, False, False, True]
    assert isinstance(found[0], Captioned) and found[0].captions == ("good", "good too")
    assert [told(row) for row in found[1:6]] == [
        f"{path}: record 2 (line 3): 'none.jpg': no such file; expected a picture at {folder / 'none.jpg'}, "
        "so mend the path or take the row out",
        f"{path}: record 3 (line 4): field 'caption' is empty; expected text, so fill it or take the row out",
        f"{path}: record 4 (line 5): field 'image' is empty; expected a picture's path, so fill it or take the row out",
        f"{path}: record 5 (line 6): 'sub': is a directory; expected a picture at {folder / 'sub'}, so mend the path or take the row out",
        f"{path}: line 7: 3 fields, and the header has 2; mend the row",
    ]


@pytest.mark.parametrize(
    "text, name, message",
    [
        ("image\ttext\na.jpg\tx\n", "m.tsv", "line 1: no column 'caption', which data.field names; its columns are image, text"),
        ("picture\tcaption\na.jpg\tx\n", "m.tsv", "record 1 (line 2): no field 'image', which data.images.field names; "
         "its fields are picture, caption; set data.images.field to one of them"),
        (TOKEN + "a.jpg A dog\n", "m.token", "line 6: 'a.jpg A dog'; expected a picture's name, # with a number, a tab and a caption"),
        ("a.jpg\nc.webp\n", "m.txt", UNKNOWN),
        ('"image"', "m.json", UNKNOWN),
        ('{"annotations": [], "info": 1}', "m.json", "an object whose fields are annotations, info; "
         "expected `images`, a list, or an array of objects"),
        ('{"images": [{"filename": "a.jpg",', "m.json", "line 1, column 34: not valid JSON: "
         "Expecting property name enclosed in double quotes; mend it there, or fetch the file again"),
        ('{"images": [3]}', "m.json", "record 1: holds 3; expected an object with filename and sentences"),
        ('{"images": [{"filename": "a.jpg", "sentences": []}]}', "m.json", "record 1: 'a.jpg' has no captions that can be read; "
         "expected sentences, a list of objects with raw"),
        ('{"images": [{"filename": "a.jpg", "split": "dev", "sentences": [{"raw": "x"}]}]}', "m.json", "record 1: split 'dev'; "
         "expected train, restval, val, test, or none"),
        ('[\n{"file_path": "a.jpg", "captions": "x"}]', "m.json", "record 1 (line 2): 'a.jpg' has no captions that can be read; "
         "expected captions, a list of text"),
        ('[{"path": "a.jpg"}]', "m.json", "record 1 (line 1): its fields are path; "
         "expected file_path and captions, or filename and sentences"),
        ('[{"file_path": "a.jpg", "captions": ["x", " "]}]', "m.json", "record 1 (line 1): field 'caption' is empty; "
         "expected text, so fill it or take the row out"),
        (r'[{"file_path": "a.jpg", "captions": ["\ud83d"]}]', "m.json", "record 1 (line 1): "),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_used_is_named(folder: Path, text: str, name: str, message: str) -> None:
    assert told(read(folder, text, name)[-1]).startswith(f"{folder / name}: {message}")


def test_of_karpathys_json_only_what_is_wrong_is_left_out(folder: Path) -> None:
    images: list[Any] = [*KARPATHY["images"]]
    images[1] = images[1] | {"filename": "none.png"}
    good, wrong, also = read(folder, json.dumps({"images": images}), "m.json")
    assert isinstance(good, Captioned) and isinstance(also, Captioned)
    missing = f"'sub/none.png': no such file; expected a picture at {folder / 'sub/none.png'}, so mend the path or take the row out"
    assert told(wrong) == f"{folder / 'm.json'}: record 2: {missing}"


def test_the_next_manifest_is_read_where_one_cannot_be(folder: Path) -> None:
    (folder / "1.txt").write_text("nothing of the kind\n")
    (folder / "2.tsv").write_text(TSV, encoding="utf-8")
    found = list(manifest(config(), sources([folder / "1.txt", folder / "2.tsv"]), []))
    assert [type(row) for row in found] == [DataError, Captioned, Captioned, Captioned]


def test_ready_features_go_by_the_name_of_their_picture(folder: Path) -> None:
    made = folder / "made"
    (made / "sub").mkdir(parents=True)
    for name in ("a.npy", "sub/b.png.npy"):
        np.save(made / name, np.zeros(3))
    (made / "c.safetensors").touch()
    found = read(folder, TSV, images={"folder": str(made), "features": 3})
    assert [row.image.relative_to(made).as_posix() for row in found if isinstance(row, Captioned)] == [
        "a.npy",
        "sub/b.png.npy",
        "c.safetensors",
    ]
    (made / "c.safetensors").unlink()
    missing = read(folder, TSV, images={"folder": str(made), "features": 3})[-1]
    expected = f"no such file; expected features of a picture at {made / 'c.npy'} or with .safetensors"
    assert told(missing) == f"{folder / 'm.tsv'}: record 4 (line 5): 'c.webp': {expected}, so mend the path or take the row out"
    [direct] = read(made, "image\tcaption\na.npy\tx\n", images={"features": 3})
    assert isinstance(direct, Captioned) and direct.image == made / "a.npy"


def test_an_array_of_features_is_looked_up_by_name(folder: Path) -> None:
    np.save(folder / "f.npy", np.zeros((2, 3)))
    (folder / "f.json").write_text('["a.jpg", "sub/b.png"]')
    found = read(folder, TSV, images={"folder": str(folder / "f.npy"), "features": 3})
    assert [row.image for row in found if isinstance(row, Captioned)] == [folder / "f.npy/a.jpg", folder / "f.npy/sub/b.png"]
    missing = f"no such name in {folder / 'f.json'}; expected one of its 2, so mend the path or take the row out"
    assert told(found[2]) == f"{folder / 'm.tsv'}: record 4 (line 5): 'c.webp': {missing}"
    [wide] = read(folder, TSV, images={"folder": str(folder / "f.npy"), "features": 4})
    assert told(wide).startswith(f"{folder / 'f.npy'}: 3 features of a picture; expected 4, which is data.images.features")


def test_a_folder_of_pictures_in_the_place_of_a_manifest_is_told_of_once(folder: Path) -> None:
    (folder / "m.tsv").write_text(TSV, encoding="utf-8")
    pictures = [folder / "a.jpg", folder / "c.webp"]
    [wrong, *rest] = manifest(config(), sources([*pictures, folder / "m.tsv"]), [])
    fact = f"{folder / 'a.jpg'} and 1 other: named as pictures are, and what is said of pictures is to be read"
    expected = "expected a manifest with columns, a token file of Flickr8k, or the JSON of Karpathy or neuraltalk"
    assert told(wrong) == f"{fact}; {expected}; name that, and not the folder of the pictures"
    assert len(rest) == len(GATHERED) and all(isinstance(one, Captioned) for one in rest)


@pytest.mark.parametrize("name", ["m.tsv", "m.csv"])
def test_a_table_without_a_column_of_pictures_is_told_of_once(folder: Path, name: str) -> None:
    [wrong] = read(folder, TSV if name == "m.tsv" else CSV, name, images={"field": "imgae"})
    columns = "image, caption" if name == "m.tsv" else "caption, image"
    fact = f"no field 'imgae', which data.images.field names; its fields are {columns}; did you mean 'image'?"
    assert told(wrong) == f"{folder / name}: record 1 (line 2): {fact}"
