"""Files to documents to splits: text is read in pieces, and becomes one memory-mapped array of small integers.

A split is a part of `data.path`, or has files of its own, which are read alike and encoded in the same vocabulary.
The array lies in a cache under the hash of all that decides its content, so a second run starts at once and fifty runs
share one copy. Memory does not grow with the file: text passes through in pieces of a megabyte.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from charrnn.config import DataConfig
from charrnn.data.cache import build_entry, is_sealed
from charrnn.data.decoding import AUTO, read_text
from charrnn.data.files import Source, find_files, kind, sources
from charrnn.data.formats import Reading, read_file
from charrnn.data.vocabulary import CODE_POINTS, Vocabulary
from charrnn.errors import DataError, UserError, did_you_mean
from charrnn.paths import user_path

SPLITS = ("train", "val", "test")
PIECE = 1 << 20  # bytes or ids read at a time
BLOCK = 1 << 24  # ids put into the order of their documents, or searched for the ends of these, at a time
FORGET = 256  # batches or windows after which the system may have the pages of the text back
FORMAT = 3  # of the cache; a change makes old entries strangers
OWN_FILES = {"data.val_path": "val", "data.test_path": "test"}  # the keys that name a split's own files
# What does not decide how a text is encoded: where it lies, and what a task makes of it. What is taken of it is said by `fractions`.
UNREAD = {
    "path", "val_path", "test_path", "cache", "val_fraction", "test_fraction",
    "label", "labels", "marks", "example_length", "blanks", "audio", "images",
}  # fmt: skip

SURROGATES = slice(0xD800, 0xE000)  # code points that are no characters

Progress = Callable[[int, int], None]  # bytes done, bytes in all
Ids = npt.NDArray[Any]
T = TypeVar("T")
Stamp = tuple[int, int]  # of a file: bytes, and nanoseconds when it was last written to


@dataclass(frozen=True, eq=False)
class Corpus:
    """Encoded text. `ids` is read-only; a split is a range of it. Of documents, each is closed by `end`."""

    vocabulary: Vocabulary
    ids: Ids  # (N,) uint8, uint16 or uint32
    ranges: dict[str, tuple[int, int]]
    documents: int  # 0 for a stream
    unknown: int  # characters outside the vocabulary
    absent: str  # the characters of data.vocabulary.include that the text of data.path lacks
    files: int  # that were text
    contents: str  # a hash of the files' bytes, wherever they lie
    notes: list[str]  # of how the text was read, for a person
    mapped: mmap.mmap | None  # what holds `ids`; None where they are in memory
    what: str = "text"  # it is, for a person
    faults: tuple[DataError, ...] = ()  # of a file of the user's own: what is wrong with its examples, while the others are used

    def split(self, name: str) -> Ids:
        """Raises UserError where there is no such split."""
        expect_split(name)
        start, stop = self.ranges[name]
        return self.ids[start:stop]

    def edges(self, name: str) -> Ids:
        """Where the documents of a split begin and end in it, each without its `end`, (documents, 2) int64; a stream is one.

        Those that are empty are left out.
        """
        ids, end = self.split(name), self.vocabulary.end
        ends = [np.zeros(0, dtype=np.int64)]
        if end is not None:
            ends += [np.flatnonzero(ids[at : at + BLOCK] == end) + at for at in range(0, len(ids), BLOCK)]
        stops = np.concatenate([*ends, [len(ids)]])
        starts = np.concatenate([[0], stops[:-1] + (end is not None)])
        edges = np.stack([starts, stops], axis=1)
        return edges[edges[:, 0] < edges[:, 1]]

    def forget_pages(self) -> None:
        """Let the system take back the pages that were read: they come again from the file when they are needed."""
        if self.mapped is not None:
            _forget(self.mapped)

    def forgetting(self, parts: Iterable[T]) -> Iterator[T]:
        """What is read of the corpus, part by part, so that never all of it is in memory."""
        for index, part in enumerate(parts, start=1):
            yield part
            if index % FORGET == 0:
                self.forget_pages()
        self.forget_pages()


def expect_split(name: str) -> None:
    """Raises UserError where there is no such split."""
    if name not in SPLITS:
        raise UserError(f"split {name!r}: there is no such split; expected {', '.join(SPLITS)}{did_you_mean(name, SPLITS)}")


def encode_text(vocabulary: Vocabulary, pieces: Iterable[tuple[str, list[int]]]) -> Ids:
    """One text in a given vocabulary, as a corpus of it would be encoded: (N,). `pieces` are those of a Reading."""
    dtype = np.min_scalar_type(len(vocabulary) - 1)
    table = vocabulary.table().astype(dtype)
    return np.concatenate([np.zeros(0, dtype=dtype), *(_encoded(table, text, closes, vocabulary) for text, closes in pieces)])


def _encoded(table: Ids, text: str, closes: list[int], vocabulary: Vocabulary) -> Ids:
    ids = table[_code_points(text)]
    return np.insert(ids, np.array(closes), vocabulary.end or 0) if closes else ids


def load_file(config: DataConfig, vocabulary: Vocabulary, path: Path) -> Corpus:
    """A file of the user's own in a given vocabulary, all of it in split `test`, read as the text of the configuration was.

    Raises DataError where it cannot be used.
    """
    reading = read_file(config, path, None if vocabulary.end is not None else "none")
    ids = encode_text(vocabulary, reading.pieces())
    if len(ids) < 2:
        raise DataError(f"{path}: holds {len(ids)} characters; expected at least 2 to measure on, so name another text")
    documents = 0 if vocabulary.end is None else int(np.count_nonzero(ids == vocabulary.end))
    return corpus_of_file(path, vocabulary, ids, documents, reading.notes())


def corpus_of_file(path: Path, vocabulary: Vocabulary, ids: Ids, documents: int, notes: list[str]) -> Corpus:
    """What was read of a file, all of it in split `test`."""
    return Corpus(
        vocabulary=vocabulary,
        ids=ids,
        ranges={"train": (0, 0), "test": (0, len(ids)), "val": (len(ids), len(ids))},
        documents=documents,
        unknown=len(ids) - int(np.count_nonzero(ids)),
        absent="",
        files=1,
        contents=_hash_files([path]),
        notes=notes,
        mapped=None,
    )


def split_configs(config: DataConfig) -> dict[str, DataConfig]:
    """The files of a configuration by the key that names them: those of `data.path`, and of the splits that have files of their own."""
    configs = {"data.path": config}
    for key in OWN_FILES:
        if path := getattr(config, key.removeprefix("data.")):
            configs[key] = config.model_copy(update={"source": "files", "path": path, "val_path": None, "test_path": None})
    return configs


def load_corpus(config: DataConfig, seed: int, progress: Progress | None = None, *, blank: bool = False) -> Corpus:
    """Encode the text, or find it encoded; with `blank` the vocabulary has that symbol.

    Raises DataError naming file and remedy where the text cannot be used.
    """
    files = {key: find_files(part, key) for key, part in split_configs(config).items()}
    stamps = {key: file_stamps(paths) for key, paths in files.items()}
    readings = {key: Reading(part, sources(files[key])) for key, part in split_configs(config).items()}
    _refuse_mixture(readings)
    cache = user_path(config.cache, "data.cache")
    contents = {key: _hash_files(paths) for key, paths in files.items()}
    entry = cache / _digest(contents, readings, seed, blank)
    corpus = _open(entry, _joint(contents), readings)
    if corpus is None:
        total = sum(size for sizes in stamps.values() for size, _ in sizes) or 1
        _build(readings, stamps, seed, blank, entry, _halves(total, progress))
        if progress:
            progress(total, total)  # an archive holds bytes that belong to no member
        corpus = _open(entry, _joint(contents), readings)
    if corpus is None:
        raise DataError(f"data.cache {cache}: what was written to it cannot be read back; name another directory in data.cache")
    return corpus


def _refuse_mixture(readings: dict[str, Reading]) -> None:
    whole = readings["data.path"]
    for key, reading in readings.items():
        if reading.is_stream != whole.is_stream:
            facts = [f"{r.name} is read as {'one stream' if r.is_stream else 'documents'}" for r in (reading, whole)]
            remedy = "set data.format or data.documents, or name a text of the same kind"
            raise DataError(f"{key}: {facts[0]}, and {facts[1]}; expected both alike, so {remedy}")


def _joint(contents: dict[str, str]) -> str:
    """One hash for what stands in all the files; of data.path alone, its own."""
    if len(contents) == 1:
        return contents["data.path"]
    return hashlib.blake2b(json.dumps(contents, sort_keys=True).encode(), digest_size=16).hexdigest()


def file_stamps(files: Sequence[Path]) -> list[Stamp]:
    """Raises DataError where a file is not there or may not be looked at."""
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


def _hash_files(files: list[Path]) -> str:
    """A hash of what stands in these files, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        content = hashlib.blake2b(kind(path).encode())
        try:
            with open(path, "rb") as file:
                while piece := file.read(PIECE):
                    content.update(piece)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
        digest.update(content.digest())
    return digest.hexdigest()


def _digest(contents: dict[str, str], readings: dict[str, Reading], seed: int, blank: bool) -> str:
    """A name for what encoding these files gives: of all that decides it, and of nothing else."""
    whole = readings["data.path"]
    settings = whole.config.model_dump(mode="json", exclude=UNREAD)
    settings |= {"seed": None if whole.is_stream else seed, "format_of_cache": FORMAT, "blank": blank} | whole.config.fractions
    for key, reading in readings.items():
        formats = "none" if reading.is_stream else reading.formats  # guessed from names too
        settings[key] = {"contents": contents[key], "formats": formats}
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()


def _open(entry: Path, contents: str = "", readings: Mapping[str, Reading] = MappingProxyType({})) -> Corpus | None:
    """What lies in the cache there; None where that is nothing, or not whole. `readings` recall what was found out when it was made."""
    if not is_sealed(entry):
        return None
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        mapped = _map(entry / "ids.bin")
        ids = np.frombuffer(mapped, dtype=meta["dtype"])
        if meta["dtype"] not in ("uint8", "uint16", "uint32") or len(ids) != meta["length"]:
            return None
        for key, reading in readings.items():
            reading.recall(meta["readings"][key])
        corpus = Corpus(
            vocabulary=Vocabulary.from_json(meta["vocabulary"]),
            ids=ids,
            ranges={split: (int(meta["ranges"][split][0]), int(meta["ranges"][split][1])) for split in SPLITS},
            documents=int(meta["documents"]),
            unknown=int(meta["unknown"]),
            absent=str(meta["absent"]),
            files=int(meta["files"]),
            contents=contents,
            notes=list(dict.fromkeys(note for reading in readings.values() for note in reading.notes())),
            mapped=mapped,
        )
    except (OSError, LookupError, TypeError, AttributeError, ValueError):
        return None
    return corpus


def _is_whole(entry: Path) -> bool:
    return _open(entry) is not None


def _map(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)  # columns lie far apart: what is read around them would only fill memory
    return mapped


def _forget(mapped: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _build(
    readings: dict[str, Reading], stamps: dict[str, list[Stamp]], seed: int, blank: bool, entry: Path, report: Callable[[int], None]
) -> None:
    """Make an entry of the cache. `stamps`: of the files, from before the first look into them."""

    def make(made: Path, _: Path) -> None:
        _encode(readings, seed, blank, made, report)
        for key, reading in readings.items():
            for path, before, after in zip(reading.files, stamps[key], file_stamps(reading.files)):
                if before != after:
                    raise DataError(f"{path}: changed while it was read; start again when nothing writes to it")

    build_entry(entry, make, _is_whole)


def _encode(readings: dict[str, Reading], seed: int, blank: bool, into: Path, report: Callable[[int], None]) -> None:
    """Two passes: count the characters, then write their ids. The files of a split of its own come behind, in their order."""
    reading = readings["data.path"]
    config, name = reading.config, reading.name
    whole = reading
    if config.source == "python-stdlib":
        # A few of its files are broken on purpose.
        encoding = "utf-8" if config.encoding == AUTO else config.encoding
        whole = Reading(config, [source for source in reading.sources if _is_text(source, encoding)])
    histogram = np.zeros(CODE_POINTS, dtype=np.int64)
    for text, _ in whole.pieces(report):
        count_characters(histogram, text)
    vocabulary = _vocabulary(histogram, whole, name, blank)
    dtype = np.min_scalar_type(len(vocabulary) - 1)
    table = vocabulary.table().astype(dtype)
    starts: list[Ids] = [np.zeros(1, dtype=np.int8)]  # of documents; in small dtypes, for there may be many millions
    written = unknown = 0
    encoded = into / "ids.bin" if reading.is_stream else into.parent / "unshuffled.bin"
    with open(encoded, "wb") as out:
        for text, closes in whole.pieces(report):
            ids = _encoded(table, text, closes, vocabulary)
            unknown += len(ids) - int(np.count_nonzero(ids))  # unknown's id is 0
            if closes:
                begun = written + np.array(closes) + np.arange(1, len(closes) + 1)
                starts.append(begun.astype(np.min_scalar_type(-2 * (written + len(ids)))))  # signed, and room for a sum of two
            out.write(ids.data)
            written += len(ids)
    if reading.is_stream:
        documents, ranges = 0, _cut_stream(written, config, name)
    else:
        edges = np.concatenate(starts)
        starts.clear()
        documents, ranges = len(edges) - 1, _shuffle(encoded, into / "ids.bin", dtype, edges, config, seed, name)
    others = {key: other for key, other in readings.items() if other is not reading}
    for key, other in others.items():
        before = written
        with open(into / "ids.bin", "ab") as out:
            for text, closes in other.pieces(lambda size: report(2 * size)):  # read once
                ids = _encoded(table, text, closes, vocabulary)
                unknown += len(ids) - int(np.count_nonzero(ids))
                documents += len(closes)
                out.write(ids.data)
                written += len(ids)
        if written == before:
            raise other.emptiness()
        if written < before + 2:  # a character is predicted from the one before it
            raise DataError(f"{key}: {other.name} holds one character; expected at least 2")
        ranges[OWN_FILES[key]] = before, written
    meta = {
        "vocabulary": vocabulary.to_json(),
        "dtype": np.dtype(dtype).name,
        "length": written,
        "ranges": ranges,
        "documents": documents,
        "unknown": unknown,
        "absent": "".join(character for character in config.vocabulary.include if not histogram[ord(character)]),
        "files": len(whole.files) + sum(len(other.files) for other in others.values()),
        "readings": {"data.path": whole.to_json()} | {key: other.to_json() for key, other in others.items()},
    }
    (into / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _is_text(source: Source, encoding: str) -> bool:
    try:
        for _ in read_text(source, encoding):
            pass
    except DataError:
        return False
    return True


def count_characters(histogram: npt.NDArray[np.int64], text: str) -> None:
    """Add a text's characters to how often each code point has come, (CODE_POINTS,)."""
    counts = np.bincount(_code_points(text))
    histogram[: len(counts)] += counts


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _vocabulary(histogram: npt.NDArray[np.int64], reading: Reading, name: str, blank: bool) -> Vocabulary:
    config = reading.config
    used = np.flatnonzero(histogram)
    if len(used) == 0:
        raise reading.emptiness()
    if len(used) == 1:
        raise DataError(f"{name}: only one distinct character, {chr(int(used[0]))!r}; there is nothing to predict")
    if histogram[SURROGATES].any():
        found = dict.fromkeys(reading.encodings or [])
        raise DataError(f"{name}: holds halves of characters (surrogates) in {', '.join(found)}; set data.encoding to what it is in")
    vocabulary = Vocabulary.from_counts(
        {int(point): int(histogram[point]) for point in used},
        ends=not reading.is_stream or config.vocabulary.end,
        blank=blank or config.vocabulary.blank,
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
    val, test = (math.ceil(count * Fraction(str(config.fractions[split]))) for split in ("val", "test"))
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
