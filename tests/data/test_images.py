"""Pictures of every kind become squares of one size; what cannot is named on one line, and what changes them is drawn."""

from __future__ import annotations

import builtins
import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from charrnn.config import ImagesConfig
from charrnn.data.images import Shelf, augmented, load, load_features, load_image, plain, require_pillow, thumbnail
from charrnn.errors import DataError, UserError

RED, GREEN, BLUE, WHITE = (230, 20, 30), (20, 200, 40), (10, 30, 220), (255, 255, 255)
Pixels = npt.NDArray[np.uint8]


def settings(**images: Any) -> ImagesConfig:
    return ImagesConfig.model_validate({"size": 16} | images)


def quarters(width: int = 40, height: int = 40) -> Image.Image:
    """Red, green above blue, white."""
    picture = Image.new("RGB", (width, height), WHITE)
    picture.paste(RED, (0, 0, width // 2, height // 2))
    picture.paste(GREEN, (width // 2, 0, width, height // 2))
    picture.paste(BLUE, (0, height // 2, width // 2, height))
    return picture


def corners(square: Pixels) -> list[tuple[int, ...]]:
    """Left above, right above, left below, right below, a little inside."""
    edge = square.shape[1] // 8
    return [tuple(square[:, y, x].tolist()) for y in (edge, -1 - edge) for x in (edge, -1 - edge)]


def alike(one: Any, other: Any, tolerance: int) -> bool:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other)).max()) <= tolerance


def refused(work: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims so many pixels, and holds none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name, tolerance", [("a.png", 0), ("a.jpg", 6), ("a.JPEG", 6), ("a.webp", 12), ("a.bmp", 0), ("picture", 0)])
def test_every_format_shows_the_same(tmp_path: Path, name: str, tolerance: int) -> None:
    quarters().save(tmp_path / name, quality=95, subsampling=0, format=None if "." in name else "PNG")
    square = load_image(tmp_path / name, 16)
    assert square.shape == (3, 16, 16) and square.dtype == np.uint8
    assert alike(corners(square), [RED, GREEN, BLUE, WHITE], tolerance)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_that_was_turned_takes_upright_pictures(tmp_path: Path, orientation: int) -> None:
    upright = quarters(48, 32)
    # How the camera's pixels lie, for the picture to be upright once it is turned as its EXIF says.
    lying = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }.get(orientation)  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    (upright if lying is None else upright.transpose(lying)).save(tmp_path / "a.png", exif=exif)
    assert alike(corners(load_image(tmp_path / "a.png", 16)), [RED, GREEN, BLUE, WHITE], 0)


def test_a_damaged_exif_does_no_harm(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.jpg", quality=95, subsampling=0, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert alike(corners(load_image(tmp_path / "a.jpg", 16)), [RED, GREEN, BLUE, WHITE], 6)


def test_grey_palette_cmyk_and_16_bits_become_rgb(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65_535, 64 * 64).reshape(64, 64)
    for name, picture in (
        ("grey.png", Image.fromarray((ramp / 257).round().astype(np.uint8))),
        ("16.png", Image.fromarray(ramp.round().astype(np.uint16))),
        ("grey.jpg", Image.fromarray((ramp / 257).round().astype(np.uint8))),
    ):
        picture.save(tmp_path / name)
        square = load_image(tmp_path / name, 64)
        assert alike(square, (ramp / 257)[None], 5) and (square[0] == square[1]).all()
    quarters().quantize(4).save(tmp_path / "palette.png")
    quarters().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    quarters().convert("1").save(tmp_path / "bits.png")
    assert alike(corners(load_image(tmp_path / "palette.png", 16)), [RED, GREEN, BLUE, WHITE], 2)
    assert alike(corners(load_image(tmp_path / "cmyk.jpg", 16)), [RED, GREEN, BLUE, WHITE], 8)
    assert set(np.unique(load_image(tmp_path / "bits.png", 40))) <= {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    picture.paste((100, 100, 100, 255), (0, 0, 16, 32))
    picture.convert(mode).save(tmp_path / "a.png")
    square = load_image(tmp_path / "a.png", 8)
    assert alike(square[:, :, :3], 100, 1) and alike(square[:, :, 5:], 255, 1)
    picture.putalpha(128)  # half of white over what is black
    picture.convert(mode if mode != "P" else "RGBA").save(tmp_path / "a.png")
    assert alike(load_image(tmp_path / "a.png", 8)[:, :, 5:], 127, 1)


def test_the_shorter_side_is_fitted_and_the_middle_kept(tmp_path: Path) -> None:
    for width, height in ((90, 30), (30, 90)):
        picture = Image.new("RGB", (width, height), RED)
        picture.paste(GREEN, (width // 2 - 15, height // 2 - 15, width // 2 + 15, height // 2 + 15))
        picture.save(tmp_path / "a.png")
        square = load_image(tmp_path / "a.png", 10)  # whose edges are of pixels on both sides of them
        assert alike(square[:, 2:-2, 2:-2], np.reshape(GREEN, (3, 1, 1)), 0) and alike(square, np.reshape(GREEN, (3, 1, 1)), 20)
    Image.new("RGB", (2, 2), BLUE).save(tmp_path / "dot.png")
    Image.new("RGB", (2000, 2), BLUE).save(tmp_path / "line.png")
    for name in ("dot.png", "line.png"):
        assert alike(load_image(tmp_path / name, 7), np.reshape(BLUE, (3, 1, 1)), 0)


def test_a_large_photograph_is_as_smooth_as_a_small_one(tmp_path: Path) -> None:
    """Stripes too fine to be seen are grey, and no pattern: also where JPEG is decoded smaller."""
    stripes = np.zeros((1600, 1600), dtype=np.uint8)
    stripes[:, ::2] = 255
    for name in ("a.jpg", "a.png"):
        Image.fromarray(stripes).save(tmp_path / name)
        assert alike(load_image(tmp_path / name, 50)[:, 5:-5, 5:-5], 127, 3)


def test_of_several_frames_the_first_is_seen(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in (RED, GREEN, BLUE)]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], quality=100)
        assert alike(load_image(tmp_path / name, 4), np.reshape(RED, (3, 1, 1)), 12)


def test_what_is_not_a_picture_is_named(tmp_path: Path) -> None:
    stream = io.BytesIO()
    quarters(300, 300).save(stream, "JPEG")
    jpeg = stream.getvalue()
    too_many = "pixels, by its header; expected at most 100,000,000, so make it smaller"
    no_picture = "not a picture that can be read; expected a picture, as JPEG, PNG or WebP"
    damaged = "expected a whole picture, so fetch it again"
    for name, content, begins, ends in (
        ("empty.png", b"", no_picture, ""),
        ("text.jpg", "不是图片\n".encode() * 50, no_picture, ""),
        ("short.jpg", jpeg[:20], "not a picture that can be read", ""),
        ("half.jpg", jpeg[: len(jpeg) // 2], "breaks off, or is damaged (image file is truncated", damaged),
        ("no pixels.png", png_header(0, 5), "", "expected a picture, as JPEG, PNG or WebP"),
        ("no rows.png", png_header(5, 5), "breaks off, or is damaged (", damaged),
        ("huge.png", png_header(30_000, 30_000), f"900,000,000 {too_many}", ""),
        ("large.png", png_header(10_001, 10_000), f"100,010,000 {too_many}", ""),
        ("dot.png", png_header(1, 1), "1 x 1 pixels; expected at least 2 a side, or there is nothing to see", ""),
        ("line.png", png_header(2000, 1), "2000 x 1 pixels; expected at least 2 a side, or there is nothing to see", ""),
        ("page.tiff", b"II*\0\x08\0\0\0", no_picture, ""),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        message = refused(lambda: load_image(path, 8))  # noqa: B023 - called here
        assert message.startswith(f"{path}: {begins}") and message.endswith(ends)
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert refused(lambda: load_image(tmp_path / "folder.png", 8)) == f"{tmp_path / 'folder.png'}: is a directory; expected a picture"
    assert refused(lambda: load_image(tmp_path / "none.png", 8)) == f"{tmp_path / 'none.png'}: no such file; expected a picture"
    assert refused(lambda: load_image(tmp_path / "pipe.png", 8)) == f"{tmp_path / 'pipe.png'}: not an ordinary file; expected a picture"


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif"])
def test_damage_anywhere_is_an_error_on_one_line_or_a_picture(tmp_path: Path, name: str) -> None:
    quarters(64, 48).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    random = np.random.default_rng(1)
    path = tmp_path / f"b{name}"
    for _ in range(150):
        content = bytearray(whole[: random.integers(1, len(whole) + 1)])
        for at in random.integers(0, len(content), random.integers(1, 6)):
            content[at] = random.integers(256)
        path.write_bytes(content)
        try:
            assert load_image(path, 8).shape == (3, 8, 8)
        except DataError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


def test_pixels_of_just_the_limit_are_decoded_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # of which Pillow warns, and from twice as many on refuses
    quarters().save(tmp_path / "a.png")
    monkeypatch.setattr("charrnn.data.images.MOST_PIXELS", 1600)
    assert load_image(tmp_path / "a.png", 8).shape == (3, 8, 8)  # a warning would be an error here


def test_a_thumbnail_is_the_whole_picture_upright_and_small_and_tells_nothing_else(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera of mine"
    picture = Image.new("RGBA", (300, 100), (*BLUE, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 100, 100))  # its left third is clear, and what is left becomes the top
    picture.save(tmp_path / "a.png", exif=exif)
    small = Image.open(io.BytesIO(thumbnail(tmp_path / "a.png", 60)))
    assert small.format == "JPEG" and small.size == (20, 60) and not small.getexif()
    pixels = np.asarray(small).transpose(2, 0, 1)
    assert alike(pixels[:, :16], np.reshape(WHITE, (3, 1, 1)), 25) and alike(pixels[:, 24:], np.reshape(BLUE, (3, 1, 1)), 25)
    picture.crop((100, 0, 130, 20)).save(tmp_path / "b.png")
    assert Image.open(io.BytesIO(thumbnail(tmp_path / "b.png", 60))).size == (30, 20)  # none is made larger
    (tmp_path / "c.png").write_bytes(png_header(30_000, 30_000))
    assert refused(lambda: thumbnail(tmp_path / "c.png", 60)).startswith(f"{tmp_path / 'c.png'}: 900,000,000 pixels, by its header")


def test_for_evaluation_the_middle_is_seen() -> None:
    pictures = torch.randint(256, (2, 3, 20, 20), dtype=torch.uint8)
    assert settings(augment={"crop": 0.2}).side == 20
    assert plain(pictures, settings(augment={"crop": 0.2})).equal(pictures[..., 2:18, 2:18].float() / 255)
    assert plain(pictures, settings(size=20)).equal(pictures.float() / 255)


def test_what_is_not_asked_for_changes_nothing() -> None:
    pictures = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    assert augmented(pictures, settings(), torch.Generator()).equal(plain(pictures, settings()))


def test_augmentation_follows_from_its_generator_and_stays_in_range() -> None:
    config = settings(augment={"crop": 0.2, "flip": True, "color": 0.9})
    pictures = torch.randint(256, (8, 3, config.side, config.side), dtype=torch.uint8)
    one, again, other = (augmented(pictures, config, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == (8, 3, 16, 16) and one.dtype == torch.float32
    assert one.equal(again) and not one.equal(other)
    assert float(one.min()) >= 0 and float(one.max()) <= 1


def test_every_crop_is_one_of_the_picture_and_all_of_them_come() -> None:
    config = settings(augment={"crop": 0.2})  # 16 of 20
    place = torch.arange(400).view(20, 20)
    pictures = torch.stack([place // 20, place % 20, torch.zeros_like(place)]).to(torch.uint8).expand(300, 3, 20, 20)
    seen = (augmented(pictures, config, torch.Generator().manual_seed(1)) * 255).round()
    corner = seen[:, :2, 0, 0]  # (300, 2)
    assert len(set(map(tuple, corner.tolist()))) == 25
    assert (seen[:, :2] - corner[:, :, None, None]).equal(pictures[:, :2, :16, :16].float())


def test_half_of_the_pictures_are_flipped() -> None:
    pictures = torch.randint(256, (200, 3, 16, 16), dtype=torch.uint8)
    seen = augmented(pictures, settings(augment={"flip": True}), torch.Generator().manual_seed(1))
    same = (seen == pictures / 255).all(3).all(2).all(1)  # (200,)
    swapped = (seen == pictures.flip(-1) / 255).all(3).all(2).all(1)
    assert bool((same ^ swapped).all()) and 70 < int(same.sum()) < 130


def test_color_changes_brightness_contrast_and_saturation_within_bounds() -> None:
    grey = torch.full((100, 3, 16, 16), 100, dtype=torch.uint8)
    seen = augmented(grey, settings(augment={"color": 0.3}), torch.Generator().manual_seed(1)) * 255
    assert float(seen.std((1, 2, 3)).max()) < 1e-3  # grey without contrast stays so, and is darker or lighter
    assert 70 - 1e-3 <= float(seen.min()) < 75 and 125 < float(seen.max()) <= 130 + 1e-3
    pure = torch.tensor(RED, dtype=torch.uint8)[None, :, None, None].expand(100, 3, 16, 16)
    seen = augmented(pure, settings(augment={"color": 0.3}), torch.Generator().manual_seed(1))
    ratio = (seen[:, 0] - seen[:, 1]) / seen[:, 0]
    assert float(ratio.std()) > 0.02 and bool((seen[:, 0] > seen[:, 1]).all())  # more and less red, and never another colour


def test_ready_features_are_taken_as_they_are(tmp_path: Path) -> None:
    features = np.random.default_rng(1).standard_normal(13)
    np.save(tmp_path / "a.npy", features.astype(np.float16))
    np.save(tmp_path / "row.npy", features[None])
    save_file({"fc7": features.astype(np.float32)}, tmp_path / "a.safetensors")
    for name, tolerance in (("a.npy", 2e-3), ("row.npy", 1e-7), ("a.safetensors", 1e-6)):
        found = load(tmp_path / name, settings(features=13))
        assert found.shape == (13,) and found.dtype == np.float32 and np.allclose(found, features, atol=tolerance)


def test_features_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    save_file({"a": np.zeros(13), "b": np.zeros(13)}, tmp_path / "two.safetensors")
    save_file({"a": np.zeros(13, dtype=np.int64)}, tmp_path / "whole.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name, array in (
        ("wide", np.zeros(14)), ("ints", np.zeros(13, int)), ("many", np.zeros((2, 13))), ("nan", np.array([0] * 12 + [np.nan])),
    ):  # fmt: skip
        np.save(tmp_path / f"{name}.npy", array)
    for name, message in (
        ("wide.npy", "14 features of a picture; expected 13, which is data.images.features: make them so, or train with another"),
        ("ints.npy", "holds int64; expected features of a picture as (13,), in floats"),
        ("many.npy", "shape (2, 13); expected features of a picture as (13,)"),
        ("nan.npy", "feature 12: nan is no number of 32 bits; expected finite features, so make them again"),
        ("none.npy", "no such file; expected features of a picture"),
        ("none.safetensors", "no such file; expected features of a picture"),
        ("two.safetensors", "2 tensors; expected one, features of a picture"),
        ("whole.safetensors", "holds int64; expected features of a picture, in floats"),
    ):
        path = tmp_path / name
        assert refused(lambda: load_features(path, 13)) == f"{path}: {message}"  # noqa: B023 - called here
    assert refused(lambda: load_features(tmp_path / "text.safetensors", 13)).startswith(
        f"{tmp_path / 'text.safetensors'}: not a whole .safetensors file ("
    )
    message = "not named as features; expected .npy or .safetensors, for data.images.features is 13"
    assert refused(lambda: load(tmp_path / "a.png", settings(features=13))) == f"{tmp_path / 'a.png'}: {message}"


@pytest.mark.parametrize(
    "index, text", [("f.json", '["a.jpg", "b/c.jpg"]'), ("f.tsv", "image\tmore\na.jpg\tx\nb/c.jpg\ty\n"), ("f.txt", "a.jpg\nb/c.jpg\n")]
)
def test_an_array_with_an_index_is_a_shelf_of_pictures(tmp_path: Path, index: str, text: str) -> None:
    np.save(tmp_path / "f.npy", np.arange(6.0).reshape(2, 3))
    (tmp_path / index).write_text(text)
    shelf = Shelf(tmp_path / "f.npy", settings(features=3))
    assert shelf.load(shelf.locate("b/c.jpg")).tolist() == [3, 4, 5] and shelf.load(shelf.locate("a.jpg")).tolist() == [0, 1, 2]
    assert refused(lambda: shelf.locate("a.jpeg")) == f"no such name in {tmp_path / index}; expected one of its 2; did you mean 'a.jpg'?"


def test_an_array_and_an_index_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    np.save(path, np.zeros((2, 3)))
    none = refused(lambda: Shelf(path, settings(features=3)))
    assert none == f"{path}: no index of its pictures beside it; expected one of f.json, f.tsv, f.txt, their names in its order"
    for text, message in (
        ('["a"]', "1 name, and f.npy has 2 rows; expected a name for each row, in its order"),
        ('["a", "a"]', "'a' stands there twice; expected each picture once"),
        ('{"a": 1}', "holds {'a': 1}; expected a list of the names of pictures"),
        ("[", "not valid JSON: Expecting value: line 1 column 2 (char 1); expected a list of the names of pictures"),
    ):
        (tmp_path / "f.json").write_text(text)
        assert refused(lambda: Shelf(path, settings(features=3))) == f"{tmp_path / 'f.json'}: {message}"
    wide = "3 features of a picture; expected 4, which is data.images.features: make them so, or train with another"
    assert refused(lambda: Shelf(path, settings(features=4))) == f"{path}: {wide}"


def test_augmentation_of_ready_features_is_refused() -> None:
    with pytest.raises(ValueError, match="augment changes pixels, and features says that others have made features of them"):
        settings(features=3, augment={"flip": True})


def test_without_pillow_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_pillow("caption")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("PIL"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    np.save(tmp_path / "a.npy", np.zeros(3))
    for work, asker in ((lambda: require_pillow("caption"), "caption"), (lambda: load_image(tmp_path / "a.png", 8), tmp_path / "a.png")):
        with pytest.raises(UserError) as caught:
            work()
        assert str(caught.value) == f"{asker}: needs Pillow, which is not installed; pip install 'charrnn[images]'"
    assert load(tmp_path / "a.npy", settings(features=3)).shape == (3,)  # which does not need it


def test_nothing_is_imported_before_it_is_needed() -> None:
    """A process that decodes begins at once: it has no use for torch."""
    code = "import sys, charrnn.data.images; sys.exit(bool({'PIL', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
