"""Public corpora: fetched from where their makers put them, verified, and unpacked into a directory of texts.

What arrives lies in a hidden `.part` file until it is whole and its SHA-256 is right, so a directory never holds half a text,
and a download that broke off goes on where it was. Nothing is unpacked to a place outside of the directory.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import http.client
import json
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from charrnn import __version__
from charrnn.data.files import BOMB_RATIO, leads_out
from charrnn.errors import DataError, UserError, did_you_mean
from charrnn.lock import locked

PIECE = 1 << 16
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 4  # connections in one call, each going on where the last one broke off
SLACK = 1 << 20  # bytes that may come out of an archive of any size

# What the standard library raises of an archive that is damaged, encrypted or packed in a way it does not know.
UNPACKABLE = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)

Members = Iterator[tuple[str, Callable[[], IO[bytes]]]]  # path in the archive, and what opens it
Progress = Callable[[int, int | None], None]  # bytes here, bytes in all where that is known


@dataclass(frozen=True)
class Source:
    """Where a corpus comes from. `sha256` is of what is downloaded; None where no sum could be verified, or the address is of a
    branch, whose archive is another one with each change."""

    address: str
    about: str
    licence: str
    size: int | None = None
    sha256: str | None = None
    members: str = "*"  # which files of an archive are texts, as a pattern in which * goes over / too

    @property
    def file(self) -> str:
        return self.address.rpartition("/")[2]


SOURCES = {
    "tinyshakespeare": Source(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "scenes of Shakespeare's plays in one stream, 65 distinct characters",
        "public-domain text, repository MIT",
        1_115_394,
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "shakespeare": Source(
        "https://cs.stanford.edu/people/karpathy/char-rnn/shakespeare_input.txt",
        "all of Shakespeare in one stream",
        "public-domain text",
        None,
        "59a0ad62833b2e15ec811c548618876359e902717431236e52699a0e2bc253ca",
    ),
    "text8": Source(
        "http://mattmahoney.net/dc/text8.zip",
        "100 MB of English Wikipedia as 26 letters and the space",
        "CC BY-SA (Wikipedia)",
        31_344_016,
        "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
    ),
    "enwik8": Source(
        "http://mattmahoney.net/dc/enwik8.zip",
        "the first 100 MB of English Wikipedia in 2006, with its markup",
        "CC BY-SA (Wikipedia)",
        36_445_475,
        "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
    ),
    "nottingham": Source(
        "https://github.com/jukedeck/nottingham-dataset/archive/refs/heads/master.zip",
        "the Nottingham collection of folk tunes in ABC notation, cleaned",
        "GPL-3.0",
        members="*/ABC_cleaned/*.abc",
    ),
    "chinese-poetry": Source(
        "https://github.com/chinese-poetry/chinese-poetry/archive/refs/heads/master.zip",
        "poems of Tang and Song, traditional characters, as JSON",
        "MIT",
        members="*/全唐诗/poet.*.json",
    ),
    "song-ci": Source(
        "https://github.com/chinese-poetry/chinese-poetry/archive/refs/heads/master.zip",
        "ci of Song, simplified characters, as JSON",
        "MIT",
        members="*/宋词/ci.song.*.json",
    ),
}


@dataclass(frozen=True)
class Fetched:
    files: list[Path]  # the texts
    size: int  # bytes of what was downloaded
    sha256: str
    verified: bool  # against a sum that was known before
    fresh: bool  # False where it was all there already


def source_of(name: str) -> Source:
    """The source of that name. Raises UserError naming those that there are."""
    if name not in SOURCES:
        raise UserError(f"corpus {name!r}: not in the table{did_you_mean(name, SOURCES)}; known are {', '.join(SOURCES)}")
    return SOURCES[name]


def fetch(source: Source, into: Path, progress: Progress | None = None) -> Fetched:
    """Make the corpus be there. What a person has put at `into/source.file` is taken for what was to be downloaded.

    Raises DataError naming address, reason and remedy.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        with locked(into / ".lock", "--to"):
            return _fetch(source, into, progress or (lambda done, total: None))
    except OSError as error:
        place = error.filename or into
        remedy = "free some space or name another directory with --to"
        raise DataError(f"{place}: cannot be written: {error.strerror or error}; {remedy}") from None


def _fetch(source: Source, into: Path, progress: Progress) -> Fetched:
    if (there := _already(source, into)) is not None:
        return there
    file = into / source.file
    if file.exists():
        found = _sha256(file)
        if source.sha256 not in (None, found):
            raise DataError(f"{file}: its SHA-256 is {found}; expected {source.sha256}; delete the file to fetch it again")
    else:
        part = into / f".{source.file}.part"
        _download(source, part, file, progress)
        found = _sha256(part)
        if source.sha256 not in (None, found):
            part.unlink()
            raise DataError(
                f"{source.address}: what came has the SHA-256 {found}; expected {source.sha256}; "
                f"try again, and if it stays so the file there is another one now: fetch it by hand to {file} from elsewhere"
            )
        os.replace(part, file)
    size = file.stat().st_size
    files = _unpack(file, into, source.members)
    if files is None:
        files = [file]
    else:
        file.unlink()  # a directory is read with all that lies in it, and the texts are there now
    done = {
        "address": source.address, "members": source.members, "size": size, "sha256": found,
        "files": {str(path.relative_to(into)): path.stat().st_size for path in files},
    }  # fmt: skip
    _write(into / ".fetched.json", json.dumps(done, ensure_ascii=False, indent=1).encode())
    return Fetched(files, size, found, source.sha256 is not None, fresh=True)


def _already(source: Source, into: Path) -> Fetched | None:
    """What an earlier call left, if it is of this source and all there."""
    try:
        done = json.loads((into / ".fetched.json").read_bytes())
        files = {into / name: size for name, size in done["files"].items()}
        whole = all(path.stat().st_size == size for path, size in files.items())
        same = (done["address"], done["members"]) == (source.address, source.members) and source.sha256 in (None, done["sha256"])
        if not (whole and same and files):
            return None
        return Fetched(list(files), int(done["size"]), str(done["sha256"]), source.sha256 is not None, fresh=False)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _write(path: Path, payload: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(payload)
    os.replace(part, path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class _Broken(Exception):
    """The network failed, not the disk."""


def _download(source: Source, part: Path, file: Path, progress: Progress) -> None:
    """Fill `part`, going on with what is there. Raises DataError where that cannot be done now."""
    by_hand = f"or fetch it by hand to {file} and run this again"
    for attempt in range(ATTEMPTS):
        before = _size(part)
        reason = "it breaks off"
        try:
            total = _receive(source, part, progress)
        except urllib.error.HTTPError as error:
            error.close()
            raise DataError(f"{source.address}: the server answers {error.code} {error.reason}; try again later, {by_hand}") from None
        except _Broken as error:
            total, reason = None, str(error)
        else:
            if total is None or _size(part) >= total:
                part.with_name(part.name + ".version").unlink(missing_ok=True)
                return
        if _size(part) <= before or attempt + 1 == ATTEMPTS:
            break
    here = f"; {_size(part):,} bytes are here, and the next try goes on behind them" if _size(part) else ""
    raise DataError(f"{source.address}: cannot be fetched ({reason}){here}; check the network and try again, {by_hand}")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _receive(source: Source, part: Path, progress: Progress) -> int | None:
    """One connection. Returns how many bytes there are in all, where the server says so. Raises _Broken, HTTPError, DataError."""
    before = _size(part)
    kept = part.with_name(part.name + ".version")  # of the file of which this is a part, as the server called it
    version = kept.read_text(encoding="utf-8") if before and kept.exists() else ""
    headers = {"User-Agent": f"charrnn/{__version__}", "Accept-Encoding": "identity"}
    # Without a version only a known sum can tell whether two halves are of one file.
    if before and (version or source.sha256):
        headers |= {"Range": f"bytes={before}-"} | ({"If-Range": version} if version else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(source.address, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        if (error.headers.get("Content-Range") or "").strip() == f"bytes */{before}":
            return before  # it was whole
        part.unlink()
        return _receive(source, part, progress)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(getattr(error, "reason", None) or error) from None
    with response:
        begins, total = _extent(response)
        if begins not in (0, before):
            raise _Broken(f"it sends from byte {begins:,} on where {before:,} was asked for")
        if source.size is not None and total not in (None, source.size):
            fact = f"the file there has {total:,} bytes; expected {source.size:,}"
            raise DataError(f"{source.address}: {fact}; it is another one now, so fetch the old one by hand from elsewhere")
        kept.write_text(_version(response), encoding="utf-8")
        here = begins
        with open(part, "r+b" if begins else "wb") as out:
            out.seek(begins)
            out.truncate()
            while piece := _read(response):
                out.write(piece)
                here += len(piece)
                progress(here, total)
                if source.size is not None and here > source.size:
                    raise DataError(f"{source.address}: sends more than the {source.size:,} bytes it should have; fetch it by hand")
    return total


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(PIECE)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(error) from None


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Where what is sent begins in the file, and how long the file is."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", (response.headers.get("Content-Range") or "").strip())
    if response.status == 206 and match:
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length") or ""
    return 0, int(length) if length.isdecimal() else None


def _version(response: http.client.HTTPResponse) -> str:
    """What If-Range may ask for: a strong tag, or a date."""
    tag = response.headers.get("ETag") or ""
    return tag if tag.startswith('"') else response.headers.get("Last-Modified") or ""


def _unpack(file: Path, into: Path, members: str) -> list[Path] | None:
    """The texts of an archive, moved to their places when all of them are there; None where the file is a text itself."""
    name = file.name.lower()
    if name.endswith(".zip"):
        opened = _zipped
    elif re.search(r"\.(tar|tgz|tar\.(gz|bz2|xz))$", name):
        opened = _tarred
    elif name.endswith(".gz"):
        opened = _gzipped
    else:
        return None
    left = file.stat().st_size * BOMB_RATIO + SLACK
    with tempfile.TemporaryDirectory(dir=into, prefix=".unpacking-") as workshop:
        found: list[str] = []
        try:
            for member, content in opened(file):
                place = _inside(file, member)
                if not fnmatch.fnmatchcase(member, members):
                    continue
                target = Path(workshop, place)
                target.parent.mkdir(parents=True, exist_ok=True)
                with content() as packed, open(target, "wb") as out:
                    while piece := packed.read(PIECE):
                        left -= len(piece)
                        if left < 0:
                            fact = f"{member!r}: more than {BOMB_RATIO} times as large unpacked as packed"
                            raise DataError(f"{file}: {fact}; expected text, so nothing was unpacked; look into it by hand")
                        out.write(piece)
                found.append(place)
        except UNPACKABLE as error:
            raise DataError(f"{file}: cannot be unpacked: {error}; delete it to fetch it again") from None
        if not found:
            raise DataError(f"{file}: holds no file {members!r}; its makers have arranged it anew, so unpack by hand what you want of it")
        for place in found:
            target = into / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(workshop, place), target)
    return [into / place for place in sorted(set(found))]


def _inside(file: Path, member: str) -> str:
    """The member's path, which leads to no place but below the directory. Raises DataError."""
    if leads_out(member):
        raise DataError(f"{file}: {member!r}: a path outside of the archive; expected only paths below it, so nothing was unpacked")
    return str(PurePosixPath(member.replace("\\", "/")))


def _zipped(file: Path) -> Members:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if stat.S_ISLNK(info.external_attr >> 16):
                raise DataError(f"{file}: {info.filename!r}: a link; expected plain files, so nothing was unpacked")
            if not info.is_dir():
                yield info.filename, partial(archive.open, info)


def _tarred(file: Path) -> Members:
    with tarfile.open(file) as archive:
        for info in archive:
            content = archive.extractfile(info) if info.isfile() else None
            if content is not None:
                with content:
                    yield info.name, partial(_same, content)
            elif not info.isdir():
                raise DataError(f"{file}: {info.name!r}: a link or a device; expected plain files, so nothing was unpacked")


def _same(content: IO[bytes]) -> IO[bytes]:
    return content


def _gzipped(file: Path) -> Members:
    yield file.name[: -len(".gz")], partial(gzip.open, file)  # type: ignore[misc]
