"""Pictures with what is said of them: a manifest's captions as the documents of a corpus, beside them the pixels of their pictures.

Pictures are decoded once, by several processes, and lie memory-mapped in the cache, each content once and under its hash: another seed,
other captions or another folder find them there. What changes pictures from epoch to epoch comes later.

Axes: P pictures, N captions of all of them, K pictures that are kept, B of a batch, S pixels of a side, F features.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor

from charrnn.config import DataConfig, ImagesConfig
from charrnn.data.arrays import ARRAY
from charrnn.data.cache import build_entry, is_sealed
from charrnn.data.captions import Captioned, is_manifest, manifest, names
from charrnn.data.corpus import PIECE, SPLITS, Corpus, Ids, Progress, Stamp, file_stamps
from charrnn.data.examples import ORDER, corpus_of, load_parts, split_range, strange, vocabulary_of
from charrnn.data.files import find_files, sources
from charrnn.data.images import Fault, Placed, Shelf, begin_worker, load, require_pillow, write_pictures
from charrnn.data.manifests import load_own
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import DataError, Faults, counted, did_you_mean, short
from charrnn.paths import user_path

FORMAT = 1  # of the cache; a change makes old entries strangers
KEPT, HASHES = "pictures.bin", "hashes.json"
CHUNK = 16  # pictures that a process decodes in one go
WORTH = 1 << 23  # bytes of files that a further process is started for: about half a second of decoding, and it takes as long to begin
LIST = ".txt"  # ends the name of a list of pictures
AHEAD = 4  # chunks for each process that are handed out before the first is done


@dataclass(frozen=True, eq=False)
class Pictures:
    """Captions as the documents of a corpus, each closed by `end`, picture by picture; and the pictures."""

    corpus: Corpus
    captioned: list[Captioned]  # P of them, in the order of the corpus
    counts: dict[str, int]  # pictures of each split
    rows: Ids  # (P,) int64: where each picture lies in `kept`
    kept: Ids  # (K, 3, S, S) uint8, or (K, F) float32 where features were ready; read-only

    def split(self, name: str) -> range:
        """The places of a split's pictures. Raises UserError where there is no such split."""
        return split_range(self.counts, name)

    def captions(self, split: str) -> range:
        """The places of a split's captions among all N: those of its pictures, one picture after the other."""
        places = self.split(split)
        return range(int(self.firsts[places.start]), int(self.firsts[places.stop]))

    def captions_of(self, picture: int) -> range:
        return range(int(self.firsts[picture]), int(self.firsts[picture + 1]))

    def lengths(self, split: str) -> Ids:
        """Characters of each caption of a split, its `end` counted."""
        return np.diff(self._starts)[self.captions(split)]

    def caption(self, index: int) -> Ids:
        """Its ids, `end` last."""
        start, stop = self._starts[index : index + 2]
        return self.corpus.ids[start:stop]

    def pictures(self, places: Sequence[int] | Ids) -> Tensor:
        """Of a batch, (B, 3, S, S) uint8 or (B, F) float32, a copy. Their places may repeat."""
        return torch.from_numpy(self.kept[self.rows[np.asarray(places, dtype=np.int64)]])

    @cached_property
    def firsts(self) -> Ids:
        """(P + 1,): of each picture the first of its captions."""
        return np.cumsum([0, *(len(found.captions) for found in self.captioned)])

    @cached_property
    def picture_of(self) -> Ids:
        """(N,): of each caption its picture."""
        return np.repeat(np.arange(len(self.captioned)), np.diff(self.firsts))

    @cached_property
    def _starts(self) -> Ids:
        """(N + 1,): where each caption begins in the corpus."""
        return np.cumsum([0, *(len(caption) + 1 for found in self.captioned for caption in found.captions)])


def load_pictures(config: DataConfig, seed: int, progress: Progress | None = None) -> Pictures:
    """The splits of a configuration, drawn by picture, so that no two captions of one are in two of them.

    `data.val_path` and `data.test_path` are manifests, or lists of those pictures of `data.path` that are of that split, a name a line.
    Without them the splits that Karpathy's JSON names are taken. The vocabulary is that of what is trained on. Raises Faults naming
    file and line of each picture and caption that cannot be used.
    """

    def check(found: list[Captioned]) -> list[DataError]:
        """Nothing is kept of those that can be used: the run will not begin."""
        try:
            shelf = _shelf(config.images)
            _hashes(found, shelf, None, config.images)
            with tempfile.TemporaryDirectory() as scratch:
                _compute(found, list(range(len(found))), shelf, config.images, _shape(config.images), Path(scratch) / KEPT, progress)
        except Faults as error:
            return list(error.faults)
        except DataError as error:
            return [error]
        return []

    lists = _Lists(config)
    drawn = config.model_copy(update={f"{split}_path": None for split in lists.splits})
    parts = load_parts(drawn, seed, manifest, "picture", lists.split_of, check)
    lists.expect_all(parts.found)
    notes = parts.notes
    named = Counter(split for captioned in parts.found if (split := lists.split_of(captioned)))
    if named:
        told = ", ".join(f"{named[split]:,} {split}" for split in SPLITS if named[split])
        ousted = [split for split in ("val", "test") if named[split] and getattr(drawn, f"{split}_path")]
        left = "".join(f"; those of {split} are left out, for data.{split}_path names others" for split in ousted)
        notes = [*notes, f"data.path: the splits are those that {'lists name' if lists.splits else 'it names'}: {told}{left}"]
    texts = (caption for captioned in parts.splits["train"] for caption in captioned.captions)
    vocabulary = vocabulary_of(texts, config, parts.name, least=1)
    return _pictures(parts.splits, vocabulary, config, notes, parts.files + lists.files, progress)


def load_pictures_file(config: DataConfig, path: Path, vocabulary: Vocabulary, progress: Progress | None = None) -> Pictures:
    """A manifest of the user's own, in its order, as split `test` in a trained model's vocabulary. Without the filters.

    What cannot be used is left out, and a fault of the corpus. So is a caption with characters that the model does not know, but that
    is measured, all but these characters. Raises Faults where nothing can be used.
    """

    def load(some: list[Captioned], notes: list[str]) -> Pictures:
        return _pictures({"train": [], "test": some, "val": []}, vocabulary, config, notes, 1, progress)

    def strangers(pictures: Pictures) -> Iterator[DataError | None]:
        measured = "so mend the caption; it is measured, all but these"
        return (strange(one.place(), "".join(one.captions), vocabulary, measured) for one in pictures.captioned)

    pictures, faults = load_own(config, path, manifest, "picture", load, strangers)
    return replace(pictures, corpus=replace(pictures.corpus, faults=faults))


class _Lists:
    """What `data.val_path` and `data.test_path` name where they are no manifests: pictures of `data.path`, a name a line."""

    def __init__(self, config: DataConfig) -> None:
        self.splits: list[str] = []
        self.files = 0  # that were read
        self._named: dict[str, tuple[str, str]] = {}  # a name, with its split and its place
        for split in ("val", "test"):
            path = getattr(config, f"{split}_path")
            files = sources(find_files(config.model_copy(update={"path": path}), f"data.{split}_path")) if path is not None else []
            if not files or any(source.suffix != LIST or is_manifest(source, config) for source in files):
                continue
            self.splits.append(split)
            self.files += len({source.path for source in files})
            before = len(self._named)
            for source in files:
                for line, name in names(source, config):
                    place = f"{source.name}: line {line}"
                    if self._named.setdefault(name, (split, place))[0] != split:
                        raise DataError(f"{place}: {short(name)} is of test, and {self._named[name][1]} has it too; expected it in one")
            if len(self._named) == before:
                remedy = "expected names, one a line, so list some or leave it out"
                raise DataError(f"data.{split}_path: {', '.join(source.name for source in files)} names no picture; {remedy}")

    def split_of(self, captioned: Captioned) -> str | None:
        name = self._name_of(captioned)
        return captioned.split if name is None else self._named[name][0]

    def expect_all(self, found: Sequence[Captioned]) -> None:
        """Raises DataError where a list names what is none of the pictures."""
        missing = self._named.keys() - {self._name_of(captioned) for captioned in found}
        for name in self._named:  # in their order
            if name in missing:
                known = [PurePath(captioned.name).name for captioned in found]
                remedy = f"expected names of pictures, one a line, or a manifest with captions{did_you_mean(name, known)}"
                raise DataError(f"{self._named[name][1]}: data.path has no picture {short(name)}; {remedy}")

    def _name_of(self, captioned: Captioned) -> str | None:
        """Under which a list has it: the manifest's own, which ready features need not have, or that of its file; or the end of either."""
        if not self._named:
            return None
        paths = (captioned.image.with_name(PurePath(captioned.name).name), captioned.image)
        ends = ("/".join(path.parts[start:]) for path in dict.fromkeys(paths) for start in range(len(path.parts)))
        return next((name for name in ends if name in self._named), None)


def _pictures(
    splits: Mapping[str, Sequence[Captioned]],
    vocabulary: Vocabulary,
    config: DataConfig,
    notes: list[str],
    files: int,
    progress: Progress | None,
) -> Pictures:
    captioned = [found for split in ORDER for found in splits[split]]
    counts = {split: len(some) for split, some in splits.items()}
    images, cache = config.images, user_path(config.cache, "data.cache")
    shelf = _shelf(images)
    if images.features is None:
        require_pillow("task caption")
    hashes = _hashes(captioned, shelf, cache, images)
    rows = {content: row for row, content in enumerate(sorted(set(hashes)))}
    shape = _shape(images)
    entry = cache / f"pictures-{_digest(json.dumps([FORMAT, shape, list(rows)]).encode())}"
    opened = partial(_open, entry, len(rows), shape)
    if opened() is None:
        places = [rows[content] for content in hashes]
        build_entry(
            entry,
            lambda made, _: _compute(captioned, places, shelf, images, shape, made / KEPT, progress),
            lambda folder: _open(folder, len(rows), shape) is not None,
        )
    kept = opened()
    if kept is None:
        raise DataError(f"data.cache {cache}: what was written to it cannot be read back; name another directory in data.cache")
    # What is seen decides what is learned, and not where it lies: a run goes on though its files have moved.
    texts = {split: [caption for found in some for caption in found.captions] for split, some in splits.items()}
    beside = json.dumps([shape, hashes, [len(found.captions) for found in captioned]]).encode()
    notes = [*notes, *_shared(splits, hashes)]
    corpus = corpus_of(texts, vocabulary, config, notes=notes, files=files, beside=beside, what="pictures or their captions")
    return Pictures(corpus, captioned, counts, np.array([rows[content] for content in hashes], dtype=np.int64), kept)


def _shared(splits: Mapping[str, Sequence[Captioned]], hashes: Sequence[str]) -> Iterator[str]:
    """What there is to say of pictures that are learned from and measured on."""
    place, of = 0, {}
    for split in ORDER:
        of[split] = hashes[place : place + len(splits[split])]
        place += len(splits[split])
    for split in ("val", "test"):
        if both := len(set(of["train"]) & set(of[split])):
            are = "is" if both == 1 else "are"
            yield f"{counted(both, 'picture')} of {split} {are} in train too, by content, so what is measured there is too good"


def _shape(config: ImagesConfig) -> tuple[int, ...]:
    """Of one picture as it is kept."""
    return (3, config.side, config.side) if config.features is None else (config.features,)


def _shelf(config: ImagesConfig) -> Shelf | None:
    folder = None if config.features is None or config.folder is None else user_path(config.folder, "data.images.folder")
    return Shelf(folder, config) if folder is not None and folder.suffix.lower() == ARRAY else None


def _hashes(captioned: Sequence[Captioned], shelf: Shelf | None, cache: Path | None, config: ImagesConfig) -> list[str]:
    """What is in each picture's file. Found in the cache, where there is one, for files that were not written to since.

    Raises Faults with the places of those that cannot be read.
    """
    if shelf is not None:
        return _all_of(captioned, lambda found: _digest(shelf.load(found.image).tobytes()))
    if cache is None:
        return _all_of(captioned, _hash_file)
    paths = [found.image for found in captioned]
    stamps = [(str(path.resolve()), *stamp) for path, stamp in zip(paths, _stamps(captioned))]
    entry = cache / f"hashes-{_digest(json.dumps([FORMAT, config.features is None, stamps]).encode())}"

    def known() -> list[str] | None:
        if not is_sealed(entry):
            return None
        try:
            found = json.loads((entry / HASHES).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, list) and len(found) == len(paths) else None

    found = known()
    if found is None:
        found = _all_of(captioned, _hash_file)
        text = json.dumps(found)
        build_entry(entry, lambda made, _: _write(made / HASHES, text), lambda _: known() is not None)
    return found


def _all_of(captioned: Sequence[Captioned], made: Callable[[Captioned], str]) -> list[str]:
    """What is made of each. Raises Faults with the places of those of which nothing can be."""
    results, faults = list[str](), dict[int, DataError]()
    for at, found in enumerate(captioned):
        try:
            results.append(made(found))
        except DataError as error:
            faults[at] = DataError(f"{found.place()}: {error}")
    if faults:
        raise Faults(list(faults.values()), faults)
    return results


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _stamps(captioned: Sequence[Captioned]) -> list[Stamp]:
    return file_stamps([found.image for found in captioned])


def _hash_file(found: Captioned) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(found.image, "rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    except OSError as error:
        raise DataError(f"{found.image}: cannot be read: {error.strerror or error}; expected a picture") from None
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _open(entry: Path, count: int, shape: tuple[int, ...]) -> Ids | None:
    """So many pictures that lie there; None where that is nothing, or not whole."""
    dtype = _dtype(shape)
    if not is_sealed(entry):
        return None
    try:
        if (entry / KEPT).stat().st_size != count * int(np.prod(shape)) * dtype.itemsize:
            return None
        return np.memmap(entry / KEPT, dtype=dtype, mode="r", shape=(count, *shape))
    except (OSError, ValueError):
        return None


def _dtype(shape: tuple[int, ...]) -> np.dtype[np.uint8] | np.dtype[np.float32]:
    return np.dtype(np.uint8) if len(shape) == 3 else np.dtype(np.float32)


def _compute(
    captioned: Sequence[Captioned],
    places: Sequence[int],
    shelf: Shelf | None,
    config: ImagesConfig,
    shape: tuple[int, ...],
    into: Path,
    progress: Progress | None,
) -> None:
    """Write each picture to its place. Raises Faults, in their order, with the places in `captioned` of those that cannot be used.

    The processes write what they decode themselves, so that nothing but names goes from one to the other.
    """
    first: dict[int, Captioned] = {}  # of those with one content
    for place, found in zip(places, captioned):
        first.setdefault(place, found)
    work = list(first.items())
    stamps = [] if shelf is not None else _stamps(captioned)
    sizes = [1] * len(work) if shelf is not None else [size for size, _ in _stamps(list(first.values()))]
    size = int(np.prod(shape)) * _dtype(shape).itemsize
    with open(into, "wb") as out:
        out.truncate(size * len(work))
    chunks = [[(found.image, place) for place, found in work[start : start + CHUNK]] for start in range(0, len(work), CHUNK)]
    read = partial(load, config=config) if shelf is None else shelf.load
    write = partial(write_pictures, load=read, into=into, size=size)
    workers = 1 if config.features is not None else min(config.workers or _cores(), 1 + sum(sizes) // WORTH)  # features are but read
    done, faults = 0, dict[int, str]()  # what is wrong with the content of a place
    with closing(_each(write, chunks, workers)) as results:
        for at, found_wrong in enumerate(results):
            faults |= {work[at * CHUNK + index][0]: message for index, message in found_wrong}
            done += sum(sizes[at * CHUNK : (at + 1) * CHUNK])
            if progress:
                progress(done, sum(sizes))
    if faults:
        named = [(at, faults[place], first[place]) for at, place in enumerate(places) if place in faults]
        wrong = {at: fault.replace(str(read_of.image), str(captioned[at].image), 1) for at, fault, read_of in named}
        raise Faults([DataError(f"{captioned[at].place()}: {message}") for at, message in wrong.items()], wrong)
    if shelf is None:
        for found, before, after in zip(captioned, stamps, _stamps(captioned)):
            if before != after:
                raise DataError(f"{found.image}: changed while it was read; start again when nothing writes to it")


def _each(write: Callable[[Placed], list[Fault]], chunks: list[Placed], workers: int) -> Generator[list[Fault], None, None]:
    """What comes of each chunk, in their order, by so many processes; one is this one."""
    workers = min(workers, len(chunks))
    if workers < 2:
        yield from map(write, chunks)
        return
    # Not by fork, which copies the locks of torch's threads as they are held just then.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["charrnn.data.images", "PIL.Image"])  # imported once for all of them
    pool = ProcessPoolExecutor(workers, context, begin_worker)  # which imports no torch
    waiting: list[Future[list[Fault]]] = []
    rest = iter(chunks)
    try:
        waiting += [pool.submit(write, chunk) for chunk in itertools.islice(rest, AHEAD * workers)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(write, chunk) for chunk in itertools.islice(rest, 1)]
    except BrokenProcessPool:
        for process in list((pool._processes or {}).values()):
            process.kill()  # the pool asks them to go and waits, which took more than two minutes on a crowded machine
        remedy = "set data.images.workers: 1; a script of your own has to begin its work below `if __name__ == '__main__':`"
        raise DataError(f"data.images.workers {workers}: a process that decoded pictures has died; {remedy}") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
