"""Files to documents to splits: text is read once, in pieces, and becomes one memory-mapped array of small integers.

The array lies in a cache under the hash of all that decides its content, so a second run starts at once and fifty runs
share one copy. Memory does not grow with the file: text passes through in pieces of a megabyte.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import io
import json
import logging
import mmap
import os
import re
import shutil
import sysconfig
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from charrnn.config import DataConfig
from charrnn.data.vocabulary import CODE_POINTS, Vocabulary
from charrnn.errors import DataError

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
PIECE = 1 << 20  # bytes read at a time
FORMAT = 1  # of the cache; a change makes old entries strangers

Progress = Callable[[int, int], None]  # bytes done, bytes in all
Ids = npt.NDArray[Any]


@dataclass(frozen=True)
class Corpus:
    """Encoded text. `ids` is read-only and memory-mapped; a split is a range of it."""

    vocabulary: Vocabulary
    ids: Ids  # (N,) uint8, uint16 or uint32
    ranges: dict[str, tuple[int, int]]
    documents: int  # 0 for a stream
    unknown: int  # characters outside the vocabulary
    files: int
    mapped: mmap.mmap

    def split(self, name: str) -> Ids:
        start, stop = self.ranges[name]
        return self.ids[start:stop]

    def forget_pages(self) -> None:
        """Let the system take back the pages that were read: they come again from the file when they are needed."""
        if hasattr(self.mapped, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            self.mapped.madvise(mmap.MADV_DONTNEED)


def find_files(config: DataConfig) -> list[Path]:
    """The files that `data.path` or `data.source` names, in a fixed order. Raises DataError where there are none."""
    if config.source == "python-stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
        return [p for p in sorted(root.rglob("*.py")) if p.is_file() and not skipped & set(p.relative_to(root).parts)]
    paths = [config.path] if isinstance(config.path, str) else list(config.path or [])
    found: list[Path] = []
    for name in paths:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts)]
            if not inside:
                raise DataError(f"data.path {name!r}: the directory holds no files; expected text files in it")
            found += inside
        elif path.exists():
            found.append(path)
        elif glob.has_magic(name):
            matches = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
            if not matches:
                raise DataError(f"data.path {name!r}: no file matches; the pattern is relative to {Path.cwd()}")
            found += matches
        else:
            raise DataError(f"data.path {name!r}: no such file; it is looked for relative to {Path.cwd()}")
    return list(dict.fromkeys(found))


def read_text(path: Path, encoding: str = "utf-8", on_bytes: Callable[[bytes], None] | None = None) -> Iterator[str]:
    """The text of a file in pieces: BOM dropped, line ends made `\\n`, `.gz` unpacked.

    Raises DataError naming file and byte offset where the bytes are not text in that encoding.
    """
    try:
        codec = codecs.lookup("utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding)
    except LookupError:
        raise DataError(f"data.encoding {encoding!r}: Python knows no such encoding; try utf-8, utf-16, gb18030, big5, shift_jis or cp1252") from None
    if not getattr(codec, "_is_text_encoding", True):
        raise DataError(f"data.encoding {encoding!r}: not a text encoding; try utf-8, utf-16, gb18030, big5, shift_jis or cp1252")
    decoder = codec.incrementaldecoder()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            while True:
                piece = file.read(PIECE)
                if on_bytes:
                    on_bytes(piece)
                pending = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(piece, final=not piece)
                except UnicodeDecodeError as error:
                    raise DataError(_undecodable(path, encoding, offset - pending + error.start)) from None
                offset += len(piece)
                yield newlines.decode(text, final=not piece)
                if not piece:
                    return
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); unpack it by hand or fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _undecodable(path: Path, encoding: str, offset: int) -> str:
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        sample = file.read(1 << 16)
    candidates = ["utf-16"] if sample[:2] in (b"\xff\xfe", b"\xfe\xff") else ["utf-8", "gb18030", "big5", "shift_jis", "cp1252"]
    fitting = []
    for candidate in candidates:
        try:
            codecs.getincrementaldecoder(candidate)().decode(sample)
        except UnicodeDecodeError:
            continue
        if candidate != encoding.lower():
            fitting.append(candidate)
    hint = f"its bytes would fit {' or '.join(fitting)}: set data.encoding" if fitting else "is it text at all?"
    return f"{path}: not {encoding} at byte {offset}; {hint}"


def load_corpus(config: DataConfig, seed: int, progress: Progress | None = None) -> Corpus:
    """Encode the text, or find it encoded. Raises DataError naming file and remedy where the text cannot be used."""
    files = find_files(config)
    total = sum(path.stat().st_size for path in files) or 1
    done = 0

    def report(size: int) -> None:
        nonlocal done
        done = min(done + size, total)
        if progress:
            progress(done, total)

    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(b"\0file\0")
        try:
            with open(path, "rb") as file:
                while piece := file.read(PIECE):
                    digest.update(piece)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    settings = config.model_dump(mode="json", exclude={"path", "cache"}) | {"seed": seed if config.documents != "none" else None, "format": FORMAT}
    # `.gz` is decided by name, so the names' endings belong to the content.
    settings["suffixes"] = [path.suffix == ".gz" for path in files]
    digest.update(json.dumps(settings, sort_keys=True).encode())

    root = Path(config.cache).expanduser()
    entry = root / digest.hexdigest()
    if not (entry / "meta.json").exists():
        try:
            root.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(dir=root, prefix=".building-"))
        except OSError as error:
            raise DataError(f"data.cache {root}: cannot be written: {error.strerror}; name another directory in data.cache") from None
        try:
            _encode(files, config, seed, building, report)
            try:
                os.replace(building, entry)
            except OSError:  # another job was faster; what it wrote is the same
                if not (entry / "meta.json").exists():
                    raise
        except OSError as error:
            raise DataError(f"data.cache {root}: cannot be written: {error.strerror or error}; free some space or name another directory in data.cache") from None
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return _open(entry, len(files))


def _open(entry: Path, files: int) -> Corpus:
    meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
    with open(entry / "ids.bin", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)  # columns lie far apart: what is read around them would only fill memory
    ranges = {name: (int(start), int(stop)) for name, (start, stop) in meta["ranges"].items()}
    return Corpus(
        vocabulary=Vocabulary.from_json(meta["vocabulary"]),
        ids=np.frombuffer(mapped, dtype=meta["dtype"]),
        ranges=ranges,
        documents=int(meta["documents"]),
        unknown=int(meta["unknown"]),
        files=files,
        mapped=mapped,
    )


def _pieces(files: list[Path], config: DataConfig) -> Iterator[tuple[Path, str]]:
    for path in files:
        for text in read_text(path, config.encoding):
            yield path, text


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _encode(files: list[Path], config: DataConfig, seed: int, into: Path, report: Callable[[int], None]) -> None:
    """Two passes: count the characters, then write their ids."""
    histogram = np.zeros(CODE_POINTS, dtype=np.int64)
    for _, document in _documents(files, config, None):
        points = _code_points(document)
        if len(points) > CODE_POINTS // 16:
            histogram += np.bincount(points, minlength=CODE_POINTS)
        else:  # a short text should not pay for the whole of Unicode
            np.add.at(histogram, points, 1)
    used = np.flatnonzero(histogram)
    if len(used) == 0:
        raise DataError(f"{_name(files)}: empty; expected text to learn from")
    if len(used) == 1:
        raise DataError(f"{_name(files)}: only one distinct character, {chr(int(used[0]))!r}; there is nothing to predict")
    ends = config.documents != "none"
    vocabulary = Vocabulary.from_counts(
        {int(point): int(histogram[point]) for point in used},
        ends=ends,
        max_size=config.vocabulary.max_size,
        min_count=config.vocabulary.min_count,
    )
    dtype = np.min_scalar_type(len(vocabulary) - 1)
    table = vocabulary.table().astype(dtype)
    starts = [0]
    written = unknown = 0
    end = np.array([vocabulary.end or 0], dtype=dtype)
    with open(into / "ids.bin", "wb") as out:
        for closes, document in _documents(files, config, report):
            ids = table[_code_points(document)]
            unknown += int(np.count_nonzero(ids == vocabulary.unknown))
            out.write(ids.tobytes())
            written += len(ids)
            if ends and closes:
                out.write(end.tobytes())
                written += 1
                starts.append(written)
    if ends:
        ranges = _shuffle(into, dtype, np.array(starts, dtype=np.int64), config, seed, _name(files))
    else:
        train = int(written * (1 - config.val_fraction - config.test_fraction))
        val = written - int(round(written * config.val_fraction, 6)) if config.test_fraction else train
        ranges = {"train": (0, train), "test": (train, val), "val": (val, written)}  # the end of a stream is val
    if ranges["train"][1] - ranges["train"][0] < 2:
        raise DataError(f"{_name(files)}: {written} characters leave {ranges['train'][1]} to train on; expected at least 2, so add text or lower data.val_fraction")
    meta = {
        "vocabulary": vocabulary.to_json(),
        "dtype": np.dtype(dtype).name,
        "ranges": ranges,
        "documents": len(starts) - 1 if ends else 0,
        "unknown": unknown,
    }
    (into / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _name(files: list[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{len(files)} files from {files[0]}"


def _documents(files: list[Path], config: DataConfig, report: Callable[[int], None] | None) -> Iterator[tuple[bool, str]]:
    """Pieces of text, each with whether a document closes after it."""
    separator = {"lines": r"\n+", "blank_lines": r"\n(?:[ \t]*\n)+"}.get(config.documents)
    for path in files:
        rest = ""
        size = path.stat().st_size
        try:
            for text in read_text(path, config.encoding):
                if report:
                    report(min(size, PIECE))
                if separator is None:
                    if text:
                        yield False, text
                    continue
                # The last part may go on in the next piece, and so may a separator at its very end.
                parts = re.split(separator, rest + text)
                rest = parts.pop()
                while parts and not rest.strip():
                    rest = parts.pop() + "\n\n" + rest if config.documents == "blank_lines" else parts.pop() + "\n" + rest
                for part in parts:
                    if part.strip():
                        yield True, part.strip("\n")
        except DataError:
            if config.source == "python-stdlib":  # a few files there are broken on purpose
                logger.info("%s is not UTF-8 and is left out", path)
                continue
            raise
        for part in re.split(separator, rest) if separator else []:
            if part.strip():
                yield True, part.strip("\n")
        if config.documents == "files":
            yield True, ""


def _shuffle(into: Path, dtype: Any, starts: npt.NDArray[np.int64], config: DataConfig, seed: int, name: str) -> dict[str, tuple[int, int]]:
    """Put the documents into an order drawn from the seed, and cut that order into splits."""
    count = len(starts) - 1
    counts = {split: round(count * fraction) for split, fraction in (("val", config.val_fraction), ("test", config.test_fraction))}
    for split, fraction in (("val", config.val_fraction), ("test", config.test_fraction)):
        if fraction and not counts[split] and count > 2:
            counts[split] = 1
    train = count - sum(counts.values())
    if train < 1:
        raise DataError(f"{name}: {count} documents leave {train} to train on; add documents, or lower data.val_fraction and data.test_fraction")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(count)
    lengths = np.diff(starts)[order]
    edges = np.concatenate([[0], np.cumsum(lengths)])
    source = np.memmap(into / "ids.bin", dtype=dtype, mode="r")
    with open(into / "shuffled.bin", "wb") as out:
        for first in range(0, count, 4096):
            out.write(np.concatenate([source[starts[d] : starts[d + 1]] for d in order[first : first + 4096]]).tobytes())
    del source
    os.replace(into / "shuffled.bin", into / "ids.bin")
    marks = [0, train, train + counts["test"], count]
    return {split: (int(edges[a]), int(edges[b])) for split, a, b in zip(("train", "test", "val"), marks, marks[1:])}
