"""Which files hold the text, and their bytes: as they lie there, packed by gzip, or members of a zip archive read in place."""

from __future__ import annotations

import glob
import gzip
import io
import lzma
import os
import re
import sysconfig
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, cast

from charrnn.config import DataConfig
from charrnn.errors import DataError
from charrnn.paths import user_path

# Text packs into a fifth or a twentieth. What unpacks to more than so many times its size was made to fill a memory or a disk.
BOMB_RATIO = 100
BOMB_BYTES = 10**6  # less does no harm
TAR = re.compile(r"\.(tar|tgz|tar\.[a-z0-9]+)$", re.IGNORECASE)
ENCRYPTED = 0x1  # a member's flag

OnBytes = Callable[[int], None]  # hears how many of a file's own bytes were read


def find_files(config: DataConfig, key: str = "data.path") -> list[Path]:
    """The files that `data.path` or `data.source` names, in a fixed order. Raises DataError where there are none, naming `key`."""
    if config.source == "python-stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
        sources = [p for p in sorted(root.rglob("*.py")) if p.is_file() and not skipped & set(p.relative_to(root).parts)]
        if not sources:
            raise DataError(f"data.source python-stdlib: {root} holds no Python files; name a text in data.path instead")
        return sources
    paths = [config.path] if isinstance(config.path, str) else list(config.path or [])
    found: list[Path] = []
    for name in paths:
        path = user_path(name, key)
        if os.path.isdir(path):
            inside = files_in(path)
            if not inside:
                raise DataError(f"{key} {name!r}: the directory holds no files; expected text files in it")
            found += inside
        elif os.path.isfile(path):
            found.append(path)
        elif os.path.exists(path):
            raise DataError(f"{key} {name!r}: not an ordinary file, and text is read more than once; save it as a file first")
        elif glob.has_magic(name):
            matches = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(p)]
            if not matches:
                raise DataError(f"{key} {name!r}: no file matches; the pattern is relative to {Path.cwd()}")
            found += matches
        else:
            raise DataError(f"{key} {name!r}: no such file; it is looked for relative to {Path.cwd()}")
    return list(dict.fromkeys(found))


def files_in(folder: Path) -> list[Path]:
    """The files of a folder and of the folders in it, in the order of their names, without the hidden ones."""
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and not any(q.startswith(".") for q in p.relative_to(folder).parts)]


def why_unreadable(path: Path, what: str) -> str | None:
    """What there is to say of a path where no file can be opened, and `what` was expected; None where one can."""
    if os.path.isdir(path):
        return f"is a directory; expected {what}"
    if not os.path.exists(path):
        return f"no such file; expected {what}"
    if not os.path.isfile(path):
        return f"not an ordinary file; expected {what}"
    try:
        path.open("rb").close()
    except OSError as error:
        return f"cannot be read: {error.strerror or error}; expected {what}"
    return None


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True)
class Source:
    """One text: a file, a member of a zip archive, or bytes that came from elsewhere, of which `path` is but a name."""

    path: Path
    member: str | None = None
    archive: zipfile.ZipFile | None = None  # open, for its directory may name thousands of members
    content: bytes | None = None

    @property
    def name(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}: {self.member}"

    @property
    def suffix(self) -> str:
        """Of the text's own name, lower case: `.json` of poems.json.gz."""
        name = (self.member or self.path.name).lower()
        return os.path.splitext(name.removesuffix(".gz"))[1]

    @property
    def is_packed(self) -> bool:
        return self.member is not None or kind(self.path) != ""

    @contextmanager
    def opened(self, on_bytes: OnBytes | None = None) -> Iterator[Readable]:
        """Its bytes, unpacked. Raises DataError, also in the midst of reading, where they cannot be had or unpack to far too many."""
        if self.content is not None:
            yield _Counted(io.BytesIO(self.content), on_bytes)
            return
        try:
            if self.archive is None or self.member is None:
                with open(self.path, "rb") as raw:
                    counted = _Counted(raw, on_bytes)
                    yield _Unpacked(counted, self.name) if kind(self.path) == "gz" else counted
                return
            with self.archive.open(self.member) as inside:
                member = _Counted(cast(BinaryIO, inside))
                yield _Unpacked(member, self.name) if self.member.lower().endswith(".gz") else member
            if on_bytes:
                on_bytes(self.archive.getinfo(self.member).compress_size)
        except (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
            what = "zip archive" if self.member is not None and not isinstance(error, gzip.BadGzipFile) else "gzip file"
            raise DataError(f"{self.name}: not a whole {what} ({error}); unpack it by hand or fetch it again") from None
        except NotImplementedError as error:
            raise DataError(f"{self.name}: packed in a way that is not known here ({error}); unpack it by hand") from None
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error.strerror or error}; expected a file that holds text") from None


def kind(path: Path) -> str:
    """`gz`, `zip` or nothing: how a file is packed, by its name."""
    suffix = path.suffix.lower().removeprefix(".")
    return suffix if suffix in ("gz", "zip") else ""


def sources(files: list[Path]) -> list[Source]:
    """The texts of files in their order, zip archives opened: their members in the order of their names.

    Raises DataError for an archive that is broken, encrypted, empty, or not safe to open.
    """
    found: list[Source] = []
    for path in files:
        if TAR.search(path.name):
            raise DataError(f"{path}: a tar archive; unpack it by hand and name the folder in data.path")
        found += _members(path) if kind(path) == "zip" else [Source(path)]
    return found


def _members(path: Path) -> list[Source]:
    try:
        archive = zipfile.ZipFile(path)  # closed with the last of its sources
        members = [info for info in archive.infolist() if not info.is_dir()]
        size = path.stat().st_size
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path}: not a whole zip archive ({error}); unpack it by hand or fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    for info in members:
        place = f"{path}: {info.filename}"
        if leads_out(info.filename):
            raise DataError(f"{place}: a path that leads out of the archive; expected members inside it, so unpack by hand what you trust")
        if info.flag_bits & ENCRYPTED:
            raise DataError(f"{place}: encrypted; unpack it by hand and name the folder in data.path")
        if info.filename.lower().endswith(".zip"):
            raise DataError(f"{place}: an archive within an archive; unpack the outer one and name its folder in data.path")
        _refuse_bomb(place, info.file_size, info.compress_size)
    # Members may share their packed bytes, so that none is suspect alone.
    _refuse_bomb(f"{path}: its {len(members)} members", sum(info.file_size for info in members), size)
    shown = [info.filename for info in members if not any(p != "." and p.startswith((".", "__MACOSX")) for p in info.filename.split("/"))]
    if not shown:
        raise DataError(f"{path}: the archive holds no files; expected text files in it")
    return [Source(path, name, archive) for name in sorted(set(shown))]


def leads_out(member: str) -> bool:
    """Whether a member's path is one of no place below the folder that its archive is unpacked in."""
    path = PurePosixPath(member.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or bool(re.match("[A-Za-z]:", member)) or "\0" in member or not path.parts


def _refuse_bomb(place: str, unpacked: int, packed: int) -> None:
    if unpacked >= BOMB_BYTES and unpacked > BOMB_RATIO * max(1, packed):
        raise DataError(
            f"{place}: {packed:,} bytes that unpack to {unpacked:,} or more; "
            f"expected at most {BOMB_RATIO} times as many, so unpack it by hand if it is what you want"
        )


class _Counted:
    """A file that counts, and says, how many bytes were read of it."""

    def __init__(self, raw: BinaryIO, on_bytes: OnBytes | None = None) -> None:
        self.raw, self.on_bytes, self.total = raw, on_bytes, 0

    def read(self, size: int = -1, /) -> bytes:
        piece = self.raw.read(size)
        self.total += len(piece)
        if self.on_bytes and piece:
            self.on_bytes(len(piece))
        return piece


class _Unpacked:
    """What a gzip file unpacks to, watched as it comes: its header says nothing of how much that will be."""

    def __init__(self, packed: _Counted, name: str) -> None:
        self.packed, self.name, self.total = packed, name, 0
        self.file = gzip.GzipFile(fileobj=cast(BinaryIO, packed))

    def read(self, size: int = -1, /) -> bytes:
        piece = self.file.read(size)
        self.total += len(piece)
        _refuse_bomb(self.name, self.total, self.packed.total)
        return piece
