"""Files to documents to splits: text is read in pieces, and becomes one memory-mapped array of small integers.

The array lies in a cache under the hash of all that decides its content, so a second run starts at once and fifty runs
share one copy. Memory does not grow with the file: text passes through in pieces of a megabyte.
"""

from __future__ import annotations

import codecs
import contextlib
import glob
import gzip
import hashlib
import io
import json
import math
import mmap
import os
import secrets
import shutil
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from charrnn.config import DataConfig, user_path
from charrnn.data.vocabulary import CODE_POINTS, Vocabulary
from charrnn.errors import DataError, UserError
from charrnn.lock import locked

SPLITS = ("train", "val", "test")
PIECE = 1 << 20  # bytes or ids read at a time
BLOCK = 1 << 24  # ids of documents put into their order at a time
BUILDING = ".building-"  # what a folder is called in which an entry is being made
FORMAT = 1  # of the cache; a change makes old entries strangers

SURROGATES = slice(0xD800, 0xE000)  # code points that are no characters
ENCODINGS = "utf-8, utf-16, gb18030, big5, shift_jis or cp1252"

Progress = Callable[[int, int], None]  # bytes done, bytes in all
Ids = npt.NDArray[Any]
Stamp = tuple[int, int]  # of a file: bytes, and nanoseconds when it was last written to


@dataclass(frozen=True, eq=False)
class Corpus:
    """Encoded text. `ids` is read-only and memory-mapped; a split is a range of it."""

    vocabulary: Vocabulary
    ids: Ids  # (N,) uint8, uint16 or uint32
    ranges: dict[str, tuple[int, int]]
    documents: int  # 0 for a stream
    unknown: int  # characters outside the vocabulary
    absent: str  # the characters of data.vocabulary.include that the text lacks
    files: int  # that were text
    contents: str  # a hash of the files' bytes, wherever they lie
    mapped: mmap.mmap

    def split(self, name: str) -> Ids:
        start, stop = self.ranges[name]
        return self.ids[start:stop]

    def forget_pages(self) -> None:
        """Let the system take back the pages that were read: they come again from the file when they are needed."""
        _forget(self.mapped)


def find_files(config: DataConfig) -> list[Path]:
    """The files that `data.path` or `data.source` names, in a fixed order. Raises DataError where there are none."""
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
        path = user_path(name, "data.path")
        if os.path.isdir(path):
            inside = files_in(path)
            if not inside:
                raise DataError(f"data.path {name!r}: the directory holds no files; expected text files in it")
            found += inside
        elif os.path.isfile(path):
            found.append(path)
        elif os.path.exists(path):
            raise DataError(f"data.path {name!r}: not an ordinary file, and text is read more than once; save it as a file first")
        elif glob.has_magic(name):
            matches = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(p)]
            if not matches:
                raise DataError(f"data.path {name!r}: no file matches; the pattern is relative to {Path.cwd()}")
            found += matches
        else:
            raise DataError(f"data.path {name!r}: no such file; it is looked for relative to {Path.cwd()}")
    return list(dict.fromkeys(found))


def files_in(folder: Path) -> list[Path]:
    """The files of a folder and of the folders in it, in the order of their names, without the hidden ones."""
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and not any(q.startswith(".") for q in p.relative_to(folder).parts)]


def read_text(path: Path, encoding: str = "utf-8", on_bytes: Callable[[int], None] | None = None) -> Iterator[str]:
    """The text of a file in pieces: BOM dropped, line ends made `\\n`, `.gz` unpacked. `on_bytes` hears how many were read.

    Raises DataError naming file and byte offset where the bytes are not text in that encoding.
    """
    decoder = _codec(encoding).incrementaldecoder()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = position = 0  # in the text's bytes, in the file's
    begun = False
    try:
        with open(path, "rb") as raw:
            file = _unpacked(path, raw)
            while True:
                piece = file.read(PIECE)
                pending = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(piece, final=not piece)
                except UnicodeDecodeError as error:
                    raise DataError(_undecodable(path, encoding, offset - pending + error.start)) from None
                except UnicodeError as error:  # utf-16 without its byte order mark says no more than that
                    raise DataError(f"{path}: not {encoding} ({error}); set data.encoding: utf-16-le, or what it is in") from None
                offset += len(piece)
                if text and not begun:
                    begun, text = True, text.removeprefix("\ufeff")
                if on_bytes:
                    on_bytes(raw.tell() - position)
                    position = raw.tell()
                yield newlines.decode(text, final=not piece)
                if not piece:
                    return
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); unpack it by hand or fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _codec(encoding: str) -> codecs.CodecInfo:
    try:
        codec = codecs.lookup(encoding)
    except (LookupError, ValueError):
        raise DataError(f"data.encoding {encoding!r}: Python knows no such encoding; try {ENCODINGS}") from None
    if not getattr(codec, "_is_text_encoding", True):
        raise DataError(f"data.encoding {encoding!r}: not a text encoding; try {ENCODINGS}")
    # utf-8-sig would hide where in the bytes an error is.
    return codecs.lookup("utf-8") if codec.name == "utf-8-sig" else codec


def _unpacked(path: Path, raw: BinaryIO) -> BinaryIO:
    return gzip.GzipFile(fileobj=raw) if _is_packed(path) else raw  # type: ignore[return-value]


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _undecodable(path: Path, encoding: str, offset: int) -> str:
    with open(path, "rb") as raw:
        start = _unpacked(path, raw).read(1 << 12)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        candidates = ["utf-16"]
    elif b"\0" in start:  # ASCII in utf-16 has zeros in every other place, and nothing but utf-16 has any
        even, odd = (start[parity::2].count(0) * 4 > len(start) for parity in (0, 1))
        candidates = ["utf-16-be"] * even + ["utf-16-le"] * odd
    else:
        candidates = ["utf-8", "gb18030", "big5", "shift_jis", "cp1252"]
    own = codecs.lookup(encoding).name
    fitting = [name for name in candidates if codecs.lookup(name).name != own and _fits(path, name, offset + (1 << 16))]
    hint = f"its bytes would fit {' or '.join(fitting)}: set data.encoding" if fitting else "is it text at all?"
    return f"{path}: not {encoding} at byte {offset}{' of what is packed in it' if _is_packed(path) else ''}; {hint}"


def _fits(path: Path, encoding: str, size: int) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    with open(path, "rb") as raw:
        file = _unpacked(path, raw)
        while size > 0 and (piece := file.read(min(size, PIECE))):
            size -= len(piece)
            try:
                decoder.decode(piece)
            except UnicodeError:
                return False
    return True


def split_documents(texts: Iterable[str], documents: str) -> Iterator[tuple[str, list[int]]]:
    """One file's text as its documents: pieces of text, each with the places in it behind which a document closes.

    `lines`: each line is one, without its end. `blank_lines`: each run of lines between blank ones. `files`: the whole text, as it
    stands. `none`: there are none, and none closes. What is blank (nothing but white space) is never a document.
    """
    if documents == "none":
        return ((text, []) for text in texts)
    return {"files": _whole, "lines": _lines, "blank_lines": _paragraphs}[documents](texts)


def _whole(texts: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
    blank, opened = "", False
    for text in texts:
        if not opened:
            text = blank + text
            if _is_blank(text):
                blank = text
                continue
            opened = True
        yield text, []
    if opened:
        yield "", [0]


def _lines(texts: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
    blank = ""  # the beginning of a line that has been blank so far
    opened = False  # a line that is not blank has been passed on in part
    for text in texts:
        *ended, rest = (blank + text).split("\n")
        first = ended[:1] if opened else []  # goes on with that line, and so may be blank
        parts = first + [line for line in ended[len(first) :] if line and not line.isspace()]
        opened = (opened and not ended) or not _is_blank(rest)
        blank = "" if opened else rest
        yield "".join(parts) + ("" if blank else rest), list(accumulate(map(len, parts)))
    if opened:
        yield "", [0]


def _paragraphs(texts: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
    blank = ""  # the beginning of a line that has been blank so far
    begun = False  # a line that is not blank has been passed on in part
    opened = False  # and so has a document
    for text in texts:
        *ended, rest = (blank + text).split("\n")
        parts: list[str] = []
        closes: list[int] = []
        size = 0
        for line in ended:
            if begun or not _is_blank(line):
                if opened and not begun:
                    parts.append("\n")
                    size += 1
                parts.append(line)
                size += len(line)
                opened, begun = True, False
            elif opened:
                closes.append(size)
                opened = False
        if begun or not _is_blank(rest):
            if opened and not begun:
                parts.append("\n")
            parts.append(rest)
            opened, begun, blank = True, True, ""
        else:
            blank = rest
        yield "".join(parts), closes
    if opened:
        yield "", [0]


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def encode_text(vocabulary: Vocabulary, pieces: Iterable[str], documents: str) -> Ids:
    """One text in a given vocabulary, as a corpus of it would be encoded: (N,), with `end` behind each document where there is one."""
    dtype = np.min_scalar_type(len(vocabulary) - 1)
    table = vocabulary.table().astype(dtype)
    encoded = [np.zeros(0, dtype=dtype)]
    for text, closes in split_documents(pieces, "none" if vocabulary.end is None else documents):
        encoded.append(_encoded(table, text, closes, vocabulary))
    return np.concatenate(encoded)


def _encoded(table: Ids, text: str, closes: list[int], vocabulary: Vocabulary) -> Ids:
    ids = table[_code_points(text)]
    return np.insert(ids, np.array(closes), vocabulary.end or 0) if closes else ids


def load_corpus(config: DataConfig, seed: int, progress: Progress | None = None) -> Corpus:
    """Encode the text, or find it encoded. Raises DataError naming file and remedy where the text cannot be used."""
    files = find_files(config)
    _codec(config.encoding)
    cache = user_path(config.cache, "data.cache")
    stamps = _stamps(files)
    contents = _contents(files)
    entry = cache / _digest(contents, config, seed)
    corpus = _open(entry, contents)
    if corpus is None:
        _build(files, stamps, config, seed, entry, _halves(sum(size for size, _ in stamps) or 1, progress))
        corpus = _open(entry, contents)
    if corpus is None:
        raise DataError(f"data.cache {cache}: what was written to it cannot be read back; name another directory in data.cache")
    return corpus


def _stamps(files: list[Path]) -> list[Stamp]:
    stamps = []
    for path in files:
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
        stamps.append((stat.st_size, stat.st_mtime_ns))
    return stamps


def _halves(total: int, progress: Progress | None) -> Callable[[int], None]:
    """Text is read twice, and each time is half of the work."""
    done = 0

    def report(size: int) -> None:
        nonlocal done
        done += size
        if progress:
            progress(min(done // 2, total), total)

    return report


def _contents(files: list[Path]) -> str:
    """A hash of what stands in these files, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        content = hashlib.blake2b(b"gz" if _is_packed(path) else b"")
        try:
            with open(path, "rb") as file:
                while piece := file.read(PIECE):
                    content.update(piece)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
        digest.update(content.digest())
    return digest.hexdigest()


def _digest(contents: str, config: DataConfig, seed: int) -> str:
    """A name for what encoding these files gives: of all that decides it, and of nothing else."""
    settings = config.model_dump(mode="json", exclude={"path", "cache"})
    settings |= {"seed": seed if config.documents != "none" else None, "format": FORMAT, "contents": contents}
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()


def _open(entry: Path, contents: str) -> Corpus | None:
    """What lies in the cache there; None where that is nothing, or not whole."""
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        mapped = _map(entry / "ids.bin")
        ids = np.frombuffer(mapped, dtype=meta["dtype"])
        if meta["dtype"] not in ("uint8", "uint16", "uint32") or len(ids) != meta["length"]:
            return None
        corpus = Corpus(
            vocabulary=Vocabulary.from_json(meta["vocabulary"]),
            ids=ids,
            ranges={split: (int(meta["ranges"][split][0]), int(meta["ranges"][split][1])) for split in SPLITS},
            documents=int(meta["documents"]),
            unknown=int(meta["unknown"]),
            absent=str(meta["absent"]),
            files=int(meta["files"]),
            contents=contents,
            mapped=mapped,
        )
    except (OSError, LookupError, TypeError, AttributeError, ValueError):
        return None
    return corpus


def _is_whole(entry: Path) -> bool:
    return _open(entry, contents="") is not None


def _map(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)  # columns lie far apart: what is read around them would only fill memory
    return mapped


def _forget(mapped: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _build(files: list[Path], stamps: list[Stamp], config: DataConfig, seed: int, entry: Path, report: Callable[[int], None]) -> None:
    """Make an entry of the cache. `stamps`: of the files, from before the first look into them."""
    cache = entry.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        with _workshop(cache) as workshop:
            made = workshop / "made"
            made.mkdir()
            _encode(files, config, seed, made, report)
            for path, before, after in zip(files, stamps, _stamps(files)):
                if before != after:
                    raise DataError(f"{path}: changed while it was read; start again when nothing writes to it")
            for path in made.iterdir():  # an entry that is there after a power cut is whole
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
            if not _is_whole(entry):  # it may be there, and damaged
                with contextlib.suppress(FileNotFoundError):
                    os.replace(entry, workshop / "damaged")
            try:
                os.replace(made, entry)
            except OSError:
                if not _is_whole(entry):  # else another job was faster, and what it wrote is the same
                    raise
    except OSError as error:
        remedy = "free some space or name another directory in data.cache"
        raise DataError(f"data.cache {cache}: cannot be written: {error.strerror or error}; {remedy}") from None


@contextlib.contextmanager
def _workshop(cache: Path) -> Iterator[Path]:
    """A folder to make an entry in. Its lock is there before it and behind it, so who finds a folder that is not locked may sweep it."""
    folder = cache / (BUILDING + secrets.token_hex(8))
    with locked(_lock_of(folder)):
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # what stays is swept by the next job


def _sweep(cache: Path) -> None:
    """Take away the workshops of jobs that were killed: those whose lock can be had."""
    for folder in cache.glob(f"{BUILDING}*"):
        # A UserError: its job is at work. An OSError: it is another user's, and not ours to take away.
        with contextlib.suppress(UserError, OSError):
            if folder.is_dir():
                with locked(_lock_of(folder)) as hindrance:
                    if not hindrance:
                        shutil.rmtree(folder, ignore_errors=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _encode(files: list[Path], config: DataConfig, seed: int, into: Path, report: Callable[[int], None]) -> None:
    """Two passes: count the characters, then write their ids."""
    name = str(files[0]) if len(files) == 1 else f"{len(files)} files from {files[0]}"
    if config.source == "python-stdlib":
        files = [path for path in files if _is_text(path, config.encoding)]  # a few are broken on purpose
    histogram = np.zeros(CODE_POINTS, dtype=np.int64)
    for text, _ in _documents(files, config, report):
        counts = np.bincount(_code_points(text))
        histogram[: len(counts)] += counts
    vocabulary = _vocabulary(histogram, config, name)
    dtype = np.min_scalar_type(len(vocabulary) - 1)
    table = vocabulary.table().astype(dtype)
    starts: list[Ids] = [np.zeros(1, dtype=np.int8)]  # of documents; in small dtypes, for there may be many millions
    written = unknown = 0
    encoded = into / "ids.bin" if config.documents == "none" else into.parent / "unshuffled.bin"
    with open(encoded, "wb") as out:
        for text, closes in _documents(files, config, report):
            ids = _encoded(table, text, closes, vocabulary)
            unknown += len(ids) - int(np.count_nonzero(ids))  # unknown's id is 0
            if closes:
                begun = written + np.array(closes) + np.arange(1, len(closes) + 1)
                starts.append(begun.astype(np.min_scalar_type(-2 * (written + len(ids)))))  # signed, and room for a sum of two
            out.write(ids.data)
            written += len(ids)
    if config.documents == "none":
        documents, ranges = 0, _cut_stream(written, config, name)
    else:
        edges = np.concatenate(starts)
        starts.clear()
        documents, ranges = len(edges) - 1, _shuffle(encoded, into / "ids.bin", dtype, edges, config, seed, name)
    meta = {
        "vocabulary": vocabulary.to_json(),
        "dtype": np.dtype(dtype).name,
        "length": written,
        "ranges": ranges,
        "documents": documents,
        "unknown": unknown,
        "absent": "".join(character for character in config.vocabulary.include if not histogram[ord(character)]),
        "files": len(files),
    }
    (into / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _is_text(path: Path, encoding: str) -> bool:
    try:
        for _ in read_text(path, encoding):
            pass
    except DataError:
        return False
    return True


def _documents(files: list[Path], config: DataConfig, report: Callable[[int], None]) -> Iterator[tuple[str, list[int]]]:
    """The documents of all files. In a stream, a file that does not end its last line ends it where another follows."""
    unended = False
    for path in files:
        joint = "\n" if unended else ""
        for text, closes in split_documents(read_text(path, config.encoding, report), config.documents):
            if text and config.documents == "none":
                text, joint, unended = joint + text, "", not text.endswith("\n")
            yield text, closes


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _vocabulary(histogram: npt.NDArray[np.int64], config: DataConfig, name: str) -> Vocabulary:
    used = np.flatnonzero(histogram)
    if len(used) == 0:
        raise DataError(f"{name}: empty; expected text to learn from")
    if len(used) == 1:
        raise DataError(f"{name}: only one distinct character, {chr(int(used[0]))!r}; there is nothing to predict")
    if histogram[SURROGATES].any():
        raise DataError(f"{name}: holds halves of characters (surrogates) in {config.encoding}; set data.encoding to what it is in")
    vocabulary = Vocabulary.from_counts(
        {int(point): int(histogram[point]) for point in used},
        ends=config.documents != "none" or config.vocabulary.end,
        max_size=config.vocabulary.max_size,
        min_count=config.vocabulary.min_count,
        include=config.vocabulary.include,
    )
    if len(vocabulary.characters) == 1:
        kept = f"max_size and min_count leave only {vocabulary.characters!r} of its {len(used)} characters"
        raise DataError(f"{name}: data.vocabulary: {kept}; there is nothing to predict")
    return vocabulary


def _sizes(count: int, config: DataConfig) -> dict[str, int]:
    """Of the splits, in their order. Exact: in floats, 0.1 of ten and 0.05 of a hundred go astray."""
    val, test = (math.ceil(count * Fraction(str(fraction))) for fraction in (config.val_fraction, config.test_fraction))
    return {"train": count - val - test, "test": test, "val": val}


def _ranges(sizes: dict[str, int]) -> dict[str, tuple[int, int]]:
    edges = np.cumsum([0, *sizes.values()]).tolist()
    return {split: (start, stop) for split, start, stop in zip(sizes, edges, edges[1:])}


def _cut_stream(count: int, config: DataConfig, name: str) -> dict[str, tuple[int, int]]:
    """train is the first int(count * (1 - val_fraction)) characters, val the end."""
    sizes = _sizes(count, config)
    for split, size in sizes.items():
        if size < 2 and (size != 0 or split == "train"):  # a character is predicted from the one before it
            remedy = "lower data.val_fraction" if split == "train" else f"change data.{split}_fraction"
            raise DataError(f"{name}: {count} characters leave {max(0, size)} for {split}; expected at least 2, so add text or {remedy}")
    return _ranges(sizes)


def _shuffle(source: Path, into: Path, dtype: Any, edges: Ids, config: DataConfig, seed: int, name: str) -> dict[str, tuple[int, int]]:
    """Write the documents in an order drawn from the seed, and cut that order into splits. `edges`: where they lie in the source."""
    count = len(edges) - 1
    sizes = _sizes(count, config)
    if sizes["train"] < 1:
        raise DataError(
            f"{name}: {count} {'document leaves' if count == 1 else 'documents leave'} none to train on; "
            "add documents, lower data.val_fraction and data.test_fraction, or set data.documents: none"
        )
    order = np.arange(count, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed)).shuffle(order)
    ends = np.cumsum(np.diff(edges)[order], dtype=edges.dtype)  # of the documents, in their new order
    with open(source, "rb") as lying, open(into, "wb") as out:
        for first in range(0, int(ends[-1]), BLOCK):
            out.write(_block(lying, dtype, edges, order, ends, first).data)
    marks = {0: 0} | {documents: int(ends[documents - 1]) for documents in np.cumsum(list(sizes.values())).tolist()}
    return {split: (marks[start], marks[stop]) for split, (start, stop) in _ranges(sizes).items()}


def _block(source: BinaryIO, dtype: Any, edges: Ids, order: Ids, ends: Ids, first: int) -> Ids:
    """The ids from `first` on of the documents in their new order, gathered in one pass over the source.

    Documents lie everywhere: to read them one by one takes many times as long, and pages mapped for them all count as memory.
    """
    last = min(first + BLOCK, int(ends[-1]))
    block = np.empty(last - first, dtype=dtype)
    whole = edges.dtype  # int32 mostly, and half of what numpy would take
    ranks = np.arange(np.searchsorted(ends, whole.type(first), side="right"), np.searchsorted(ends, whole.type(last)) + 1, dtype=whole)
    ranks = ranks[np.argsort(order[ranks])]  # as they lie in the source
    starts, stops = edges[order[ranks]], edges[1:][order[ranks]]
    shifts = ends[ranks] - whole.type(first) - stops  # from a place in the source to its place in the block
    # Of a document that begins before the block or goes on behind it, only what falls into the block.
    np.maximum(starts, -shifts, out=starts)
    np.minimum(stops, whole.type(len(block)) - shifts, out=stops)
    source.seek(0)
    size = max(1, PIECE // 4)
    for at in range(0, int(edges[-1]), size):
        piece = np.fromfile(source, dtype=dtype, count=size)
        here = slice(np.searchsorted(stops, whole.type(at), side="right"), np.searchsorted(starts, whole.type(at + len(piece))))
        begins = np.maximum(starts[here], whole.type(at))
        lengths = np.minimum(stops[here], whole.type(at + len(piece))) - begins
        behind = np.cumsum(lengths, dtype=whole)
        places = np.repeat(begins - (behind - lengths), lengths) + np.arange(behind[-1] if len(behind) else 0, dtype=whole)  # in the source
        block[places + np.repeat(shifts[here], lengths)] = piece[places - whole.type(at)]
    return block
