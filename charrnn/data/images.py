"""Pictures, and features that others have made of them, as arrays of one size; and what changes pictures while a model learns.

Files are decoded in processes of their own, for which torch is imported by none that does not ask for tensors: that takes longer than a
thousand pictures.

Axes: B pictures, S pixels of a side as kept, H pixels of a side as a model sees it, F features of a picture, N pictures of an array.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from charrnn.config import ImagesConfig
from charrnn.data.arrays import ARRAY, mapped
from charrnn.data.files import why_unreadable
from charrnn.errors import DataError, UserError, counted, did_you_mean, short

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PICTURE = "a picture"  # what a path leads to …
FEATURES = "features of a picture"  # … or this
ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp"})  # of the names of pictures
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # that Pillow is let try
LEAST_SIDE = 2  # pixels
MOST_PIXELS = 100_000_000  # of a file: more would take half a gigabyte to decode
TENSORS = ".safetensors"
QUALITY = 82  # of a JPEG that is written, of 100
READY = (ARRAY, TENSORS)  # end the names of files of ready features
INDEXES = (".json", ".tsv", ".txt")  # of an array of features, beside it and of the same name
ORIENTATION = 0x0112  # the EXIF tag
GREY = (0.299, 0.587, 0.114)  # what red, green and blue count in it (ITU-R BT.601)
# What Pillow's plugins raise for files that are damaged.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, struct.error, zlib.error)

Pixels = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]
Placed = list[tuple[Path, int]]  # pictures with their places in a file
Fault = tuple[int, str]  # the index of a picture, and what is wrong with it
T = TypeVar("T")


def require_pillow(what: str) -> None:
    """Raises UserError where what reads pictures is not installed. To be asked before work begins."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise UserError(f"{what}: needs Pillow, which is not installed; pip install 'charrnn[images]'") from None


def load_image(path: Path, size: int) -> Pixels:
    """(3, size, size), red, green and blue in 0..255: the middle of a picture whose shorter side was made that long.

    JPEG, PNG, WebP, GIF or BMP, turned as its EXIF orientation says; of several frames the first. Greyscale of 8 or 16 bits, palettes
    and CMYK become RGB, and what is transparent shows white. Raises DataError naming the file where it cannot be used, for too many
    pixels before they are decoded, and for a single row or column of them.
    """
    return _read(path, lambda picture: _square(picture, size))


def dimensions(path: Path) -> tuple[int, int]:
    """Width and height in pixels, by a picture's header alone. Raises DataError as `load_image` does."""
    return _read(path, lambda picture: (int(picture.width), int(picture.height)))


def thumbnail(path: Path, most: int) -> bytes:
    """The whole of a picture, read as by `load_image`, as a JPEG of at most so many pixels a side, without what else its file tells.

    Raises DataError as `load_image` does.
    """
    return _read(path, lambda picture: _small(picture, most))


def as_jpeg(pixels: Pixels) -> bytes:
    """(3, Y, X), red, green and blue in 0..255, as a file."""
    from PIL import Image

    return _jpeg(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))))


def as_png(pixels: Pixels) -> bytes:
    """(4, Y, X), red, green, blue and opacity in 0..255, as a file."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(content, "PNG", optimize=True)
    return content.getvalue()


def _read(path: Path, made: Callable[[Any], T]) -> T:
    """What is made of an opened `PIL.Image.Image`, which decodes its pixels. Raises DataError as `load_image` does."""
    require_pillow(str(path))
    from PIL import Image, UnidentifiedImageError

    if reason := why_unreadable(path, PICTURE):
        raise DataError(f"{path}: {reason}")
    expected = "expected a picture, as JPEG, PNG or WebP"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is odd in a file and does no harm, and of many pixels, which are counted here
        try:
            picture = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError:
            raise DataError(f"{path}: not a picture that can be read; {expected}") from None
        except Image.DecompressionBombError as error:
            raise _too_many(path, int(re.findall(r"\d+", str(error))[0])) from None
        except DAMAGED as error:
            raise DataError(f"{path}: not a picture that can be read ({_said(error)}); {expected}") from None
        with picture:
            width, height = picture.size
            if not width * height:
                raise DataError(f"{path}: {width} x {height} pixels, by its header; {expected}")
            if width * height > MOST_PIXELS:
                raise _too_many(path, width * height)
            if min(width, height) < LEAST_SIDE:
                raise DataError(f"{path}: {width} x {height} pixels; expected at least {LEAST_SIDE} a side, or there is nothing to see")
            try:
                return made(picture)
            except DAMAGED as error:
                remedy = "expected a whole picture, so fetch it again"
                raise DataError(f"{path}: breaks off, or is damaged ({_said(error)}); {remedy}") from None


def is_ready(path: Path) -> bool:
    """Whether a file holds features, and not a picture, by its name."""
    return path.suffix.lower() in READY


def load_features(path: Path, width: int) -> Features:
    """(F,): those of one picture, from `.npy` or `.safetensors` with a single tensor, (F,) or (1, F). Raises DataError naming the file."""
    if path.suffix.lower() == TENSORS:
        return _checked(_tensor(path), str(path), width)
    return _checked(mapped(path, FEATURES, f"expected {FEATURES} as ({width:,},), in floats"), str(path), width)


def is_shelf(path: Path) -> bool:
    """Whether a file holds features of several pictures, a row each. Raises DataError naming the file."""
    if path.suffix.lower() != ARRAY:
        return False
    found = mapped(path, FEATURES, f"expected {FEATURES}, in floats")
    return found.ndim == 2 and len(found) != 1


def shelf_above(path: Path) -> Path | None:
    """The array of features that a path leads into, as in `features.npy/name`; None of any other path."""
    return next((above for above in path.parents if above.suffix.lower() == ARRAY and above.is_file()), None)


class Shelf:
    """Features of many pictures in one array, (N, F), with an index of their names beside it, in its order.

    The index of features.npy is features.json, a list; or features.tsv or features.txt, a name a line, of which what stands behind a
    tab is not read. A picture goes by the path `features.npy/name`, as it would be in a folder of that name. Raises DataError, here too,
    where the two cannot be used.
    """

    def __init__(self, path: Path, config: ImagesConfig) -> None:
        self.path = path
        self._width = config.features or 0
        expected = f"expected {FEATURES} in each row, (pictures, {self._width:,}), in floats"
        self._array = mapped(path, FEATURES, expected)
        if self._array.ndim != 2:
            raise DataError(f"{path}: shape {self._array.shape}; {expected}")
        if self._array.shape[1] != self._width:
            raise _wrong_width(str(path), self._array.shape[1], self._width)
        index = next((found for suffix in INDEXES if (found := path.with_suffix(suffix)).is_file()), None)
        if index is None:
            candidates = ", ".join(path.with_suffix(suffix).name for suffix in INDEXES)
            raise DataError(f"{path}: no index of its pictures beside it; expected one of {candidates}, their names in its order")
        names = [_within(name) for name in _index(index, config.field)]
        if len(names) != len(self._array):
            fact = f"{counted(len(names), 'name')}, and {path.name} has {counted(len(self._array), 'row')}"
            raise DataError(f"{index}: {fact}; expected a name for each row, in its order")
        self._index = index
        self._rows = {name: row for row, name in enumerate(names)}
        if "" in self._rows:
            raise DataError(f"{index}: name {self._rows[''] + 1:,} is empty; expected that of the picture in this row")
        if len(self._rows) != len(names):
            twice = next(name for row, name in enumerate(names) if self._rows[name] != row)
            raise DataError(f"{index}: {short(twice)} stands there twice; expected each picture once")

    def paths(self) -> list[Path]:
        """Of all its pictures, in its order."""
        return [self.path / name for name in self._rows]

    def locate(self, name: str) -> Path:
        """Raises DataError, without a place, where the index has no such name."""
        own = _within(name)
        if own not in self._rows:
            raise DataError(f"no such name in {self._index}; expected one of its {len(self._rows):,}{did_you_mean(own, self._rows)}")
        return self.path / own

    def load(self, path: Path) -> Features:
        """(F,)."""
        name = path.relative_to(self.path).as_posix()
        return _checked(self._array[self._rows[name]], f"{self.path}: {name}", self._width)


def load(path: Path, config: ImagesConfig) -> Pixels | Features:
    """A picture as it is kept: (3, S, S), or (F,) where ready features are read. Raises DataError naming the file."""
    if config.features is None:
        if is_ready(path):
            raise DataError(f"{path}: named as features; expected a picture, as JPEG, PNG or WebP, for data.images.features is not set")
        return load_image(path, config.side)
    if not is_ready(path):
        remedy = f"expected {' or '.join(READY)}, for data.images.features is {config.features}"
        raise DataError(f"{path}: not named as features; {remedy}")
    return load_features(path, config.features)


def begin_worker() -> None:
    """In a process that decodes for another: that other hears Ctrl-C and SIGUSR1, and with its end, however it comes, comes this one's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):  # a scheduler sends it to all the processes of a job
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with(sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=end_with, args=(parent.sentinel,), daemon=True).start()


def write_pictures(chunk: Placed, *, load: Callable[[Path], Pixels | Features], into: Path, size: int) -> list[Fault]:
    """Write pictures to their places in a file, of `size` bytes each. What is wrong with those that cannot be used."""
    faults: list[Fault] = []
    with open(into, "rb+") as out:
        for index, (path, place) in enumerate(chunk):
            try:
                picture = load(path)
            except DataError as error:
                faults.append((index, str(error)))
                continue
            out.seek(place * size)
            out.write(picture.tobytes())
    return faults


def plain(pictures: Tensor, config: ImagesConfig) -> Tensor:
    """(B, 3, S, S) uint8 -> (B, 3, H, H) float32 in 0..1: the middle of each, for evaluation."""
    edge = (pictures.size(-1) - config.size) // 2
    return pictures[..., edge : edge + config.size, edge : edge + config.size].float() / 255


def augmented(pictures: Tensor, config: ImagesConfig, generator: torch.Generator) -> Tensor:
    """(B, 3, S, S) uint8 -> (B, 3, H, H) float32 in 0..1: other pictures of the same, as `augment` says, each time other ones.

    In this order: a crop, left and right swapped or not, brightness, contrast (away from the picture's mean grey), saturation (away from
    each pixel's own grey). All is drawn from the generator.
    """
    import torch

    augment, count = config.augment, len(pictures)
    if edge := pictures.size(-1) - config.size:
        corners = torch.randint(edge + 1, (count, 2), generator=generator).tolist()
        crops = [picture[:, y : y + config.size, x : x + config.size] for picture, (y, x) in zip(pictures, corners)]
        pictures = torch.stack(crops)  # (B, 3, H, H)
    if augment.flip:
        flipped = torch.rand(count, generator=generator) < 0.5  # (B,)
        pictures = torch.where(flipped[:, None, None, None], pictures.flip(-1), pictures)
    x = pictures.float() / 255  # (B, 3, H, H)
    if augment.color:
        draws = torch.rand((3, count, 1, 1, 1), generator=generator)
        brightness, contrast, saturation = 1 + augment.color * (2 * draws - 1)  # (B, 1, 1, 1) each
        x = x * brightness
        x = torch.lerp(_grey(x).mean((2, 3), keepdim=True), x, contrast)
        x = torch.lerp(_grey(x), x, saturation).clamp_(0, 1)
    return x


def _grey(x: Tensor) -> Tensor:
    """(B, 3, H, H) -> (B, 1, H, H)."""
    red, green, blue = (weight * channel for weight, channel in zip(GREY, x.unbind(1)))  # (B, H, H) each
    return (red + green + blue).unsqueeze(1)


def _square(picture: Any, size: int) -> Pixels:
    """(3, size, size) of an opened `PIL.Image.Image`, whose pixels are decoded now."""
    from PIL import Image

    orientation = _decode(picture, size)
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    square = _in_color(picture).resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    square = _upright(square, orientation)  # as the picture would have been: its middle stays the middle
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))  # (3, size, size)


def _small(picture: Any, most: int) -> bytes:
    from PIL import Image

    orientation = _decode(picture, most)
    whole = _in_color(picture)
    whole.thumbnail((most, most), Image.Resampling.BICUBIC)
    return _jpeg(_upright(whole, orientation))


def _jpeg(picture: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=QUALITY, optimize=True)
    return content.getvalue()


def _decode(picture: Any, size: int) -> Any:
    """Have an opened picture's pixels read, of a smaller one of `size` and more where that is cheaper; its orientation."""
    picture.draft(None, (2 * size, 2 * size))  # JPEG alone can be decoded smaller, by whole factors: the resizing has the last halving
    picture.load()
    return _orientation(picture)


def _upright(picture: Any, orientation: Any) -> Any:
    """RGB or RGBA, resized, as it is to be seen: on white, and turned."""
    from PIL import Image

    if picture.mode == "RGBA":  # its colours were weighted by their opacity
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return picture if turned is None else picture.transpose(turned)


def _orientation(picture: Any) -> Any:
    """As EXIF says, 1 to 8; 1, as it lies there, where that cannot be read: a picture is no worse for a damaged label."""
    try:
        return picture.getexif().get(ORIENTATION, 1)
    except DAMAGED:
        return 1


def _in_color(picture: Any) -> Any:
    """RGB, or RGBA where there is something transparent."""
    if picture.mode.startswith("I"):  # greyscale of 16 bits, which Pillow would cut off at 255 and not scale
        from PIL import Image

        return Image.fromarray((np.asarray(picture).clip(0, 65_535) / 257).round().astype(np.uint8)).convert("RGB")
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def _too_many(path: Path, pixels: int) -> DataError:
    return DataError(f"{path}: {pixels:,} pixels, by its header; expected at most {MOST_PIXELS:,}, so make it smaller")


def _said(error: BaseException) -> str:
    """What Pillow said, on one line."""
    return short(str(error).strip().rstrip("."))[1:-1]


def _tensor(path: Path) -> npt.NDArray[Any]:
    import torch
    from safetensors import SafetensorError, safe_open

    if reason := why_unreadable(path, FEATURES):
        raise DataError(f"{path}: {reason}")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            found: Tensor | None = file.get_tensor(names[0]) if len(names) == 1 else None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a whole {TENSORS} file ({_said(error)}); expected {FEATURES} in one tensor") from None
    if found is None:
        raise DataError(f"{path}: {counted(len(names), 'tensor')}; expected one, {FEATURES}")
    if not found.is_floating_point():
        raise DataError(f"{path}: holds {str(found.dtype).removeprefix('torch.')}; expected {FEATURES}, in floats")
    return found.to(torch.float64).numpy()


def _checked(found: npt.NDArray[Any], place: str, width: int) -> Features:
    """(F,) of what was read of one picture. Raises DataError."""
    if found.ndim == 2 and len(found) == 1:
        found = found[0]
    if found.ndim != 1:
        raise DataError(f"{place}: shape {found.shape}; expected {FEATURES} as ({width:,},)")
    if len(found) != width:
        raise _wrong_width(place, len(found), width)
    with np.errstate(over="ignore"):
        features = found.astype(np.float32)  # (F,)
    finite = np.isfinite(features)
    if not finite.all():
        at = int(np.flatnonzero(~finite)[0])
        raise DataError(f"{place}: feature {at}: {found[at]:g} is no number of 32 bits; expected finite features, so make them again")
    return features


def _wrong_width(place: str, found: int, width: int) -> DataError:
    remedy = f"expected {width:,}, which is data.images.features: make them so, or train with another"
    return DataError(f"{place}: {found:,} features of a picture; {remedy}")


def _within(name: str) -> str:
    """A name as that of a place below: without what means nothing in a path, and not from the root."""
    return "/".join(part for part in PurePosixPath(name).parts if part != "/")


def _index(path: Path, header: str) -> list[str]:
    """The names of an array's pictures. `header`: what the first line may say instead of one."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}; expected the names of pictures") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; expected the names of pictures") from None
    if path.suffix != ".json":
        names = [line.split("\t")[0].strip() for line in text.splitlines() if line.strip()]
        return names[names[:1] == [header] :]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}; expected a list of the names of pictures") from None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{path}: holds {short(found)}; expected a list of the names of pictures")
    return found
