"""Examples that a corpus is made of one by one: read from named files, shuffled into splits, their texts encoded.

What is wrong with one comes in its place as a DataError, so that who can do without it goes on; a corpus raises all of them at once.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

import numpy as np

from charrnn.config import DataConfig
from charrnn.data.corpus import SPLITS, Corpus, encode_text, expect_split
from charrnn.data.files import Source, find_files, sources
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import DataError, Faults, characters_listed, counted

ORDER = ("train", "test", "val")  # of the splits in a corpus
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Parts(Generic[T]):
    """The examples of a configuration."""

    found: list[T]  # those of data.path
    splits: dict[str, list[T]]
    notes: list[str]  # of how they were read, for a person
    name: str  # of the files
    files: int


def load_parts(
    config: DataConfig,
    seed: int,
    read: Callable[[DataConfig, list[Source], list[str]], Iterator[T | DataError]],
    what: str,
    split_of: Callable[[T], str | None] = lambda example: None,
    check: Callable[[list[T]], Iterable[DataError]] = lambda _: (),
) -> Parts[T]:
    """The splits of a configuration, each of its own files or of data.path shuffled by seed. `what`: one of the examples, for an error.

    `split_of` says of an example of data.path where it belongs, if that is known. What it says to be of val is the val split then, and
    nothing is drawn for it; where val has files of its own, it is left out. So with test.

    Raises Faults naming file and line of each that cannot be used: to go on without them would be to learn from less than was asked,
    unsaid. Where there are some, `check` is asked of the others what a closer look finds, so that all are named in one go.
    """
    notes: list[str] = []
    files = sources(find_files(config))
    faults: list[DataError] = []
    found = sound(read(config, files, notes), faults)
    given: dict[str, list[T]] = {}
    for split, path in (("val", config.val_path), ("test", config.test_path)):
        if path is not None:
            key, own_notes = f"data.{split}_path", list[str]()
            named = sources(find_files(config.model_copy(update={"path": path}), key))
            given[split] = sound(read(config, named, own_notes), faults)
            notes += [f"{key}: {note}" for note in own_notes]
            files = files + named
    if faults:
        faults += check([*found, *(example for split in given.values() for example in split)])
        raise Faults(faults)
    name = files[0].name if len(files) == 1 else f"{len(files)} files from {files[0].name}"
    if not found:
        raise DataError(f"{name}: holds no {what}; expected some to learn from")
    said = {split: some for split in ("val", "test") if (some := [example for example in found if split_of(example) == split])}
    undrawn = config.model_copy(update={f"{split}_fraction": 0.0 for split in said})
    rest = [example for example in found if split_of(example) not in said]
    splits = _shuffled(rest, undrawn, seed, name, what) | said | given
    return Parts(found, splits, notes, name, len({source.path for source in files}))


def split_range(counts: Mapping[str, int], name: str) -> range:
    """The places of a split's examples in a corpus that has so many of each. Raises UserError where there is no such split."""
    expect_split(name)
    before = sum(counts[split] for split in ORDER[: ORDER.index(name)])
    return range(before, before + counts[name])


def sound(examples: Iterable[T | DataError], faults: list[DataError] | None = None) -> list[T]:
    """Those that can be used. `faults` takes what is wrong with the others; without it that is raised, as Faults."""
    found, wrong = list[T](), list[DataError]() if faults is None else faults
    for example in examples:
        if isinstance(example, DataError):
            wrong.append(example)
        else:
            found.append(example)
    if faults is None and wrong:
        raise Faults(wrong)
    return found


def usable(examples: list[T], load: Callable[[list[T]], R], faults: list[DataError]) -> R:
    """What `load` makes of those of the examples that it can use. It raises Faults with their places where it cannot use some.

    `faults` takes these. Raises all of `faults` where nothing else is left.
    """
    try:
        return load(examples)
    except Faults as error:
        faults += error.faults
        rest = [example for place, example in enumerate(examples) if place not in error.places]
        if not rest:
            raise Faults(faults) from None
        return load(rest)


def strange(place: str, text: str, vocabulary: Vocabulary, remedy: str) -> DataError | None:
    """What there is to say of a text with characters that a model does not know; None of one without."""
    strangers = [character for character in dict.fromkeys(text) if character not in vocabulary]
    if not strangers:
        return None
    return DataError(f"{place}: the model does not know {characters_listed(strangers)}; expected characters that it has learned, {remedy}")


def _shuffled(found: Sequence[T], config: DataConfig, seed: int, name: str, what: str) -> dict[str, list[T]]:
    """As the documents of a corpus are."""
    val, test = (math.ceil(len(found) * Fraction(str(config.fractions[split]))) for split in ("val", "test"))
    train = len(found) - val - test
    if train < 1:
        remedy = "add some, or lower data.val_fraction and data.test_fraction"
        raise DataError(f"{name}: {counted(len(found), what)} {'leaves' if len(found) == 1 else 'leave'} none to train on; {remedy}")
    order = np.arange(len(found))
    np.random.Generator(np.random.PCG64(seed)).shuffle(order)
    shuffled = [found[i] for i in order.tolist()]
    return {"train": shuffled[:train], "test": shuffled[train : train + test], "val": shuffled[train + test :]}


def vocabulary_of(texts: Iterable[str], config: DataConfig, name: str, *, least: int = 2) -> Vocabulary:
    """Of what is trained on; with fewer characters than `least` there is nothing to learn. Raises DataError then."""
    counts = Counter("".join(texts))
    kept = config.vocabulary
    vocabulary = Vocabulary.from_counts(
        {ord(character): count for character, count in counts.items()},
        ends=True,
        blank=kept.blank,
        max_size=kept.max_size,
        min_count=kept.min_count,
        include=kept.include,
    )
    if len(vocabulary.characters) < least:
        fact = f"only one character, {vocabulary.characters!r}"
        raise DataError(f"{name}: data.vocabulary: {fact}; there is nothing to tell texts by")
    return vocabulary


def corpus_of(
    texts: Mapping[str, Sequence[str]],
    vocabulary: Vocabulary,
    config: DataConfig,
    *,
    notes: list[str],
    files: int,
    beside: bytes,
    what: str = "text",
) -> Corpus:
    """Texts by split as documents, each closed by `end`, in memory. `beside`: what else the corpus holds, for its hash.

    `what` it is, as Corpus has it.
    """
    ordered = [text for split in ORDER for text in texts[split]]
    ids = encode_text(vocabulary, [("".join(ordered), np.cumsum(list(map(len, ordered))).tolist())])
    edges = {}
    start = 0
    for split in ORDER:
        stop = start + sum(len(text) + 1 for text in texts[split])
        edges[split] = (start, stop)
        start = stop
    contents = hashlib.blake2b(digest_size=16)
    for part in (vocabulary.to_json().encode(), repr(edges).encode(), ids.tobytes(), beside):
        contents.update(part)
    known = set().union(*ordered)
    return Corpus(
        vocabulary=vocabulary,
        ids=ids,
        ranges={split: edges[split] for split in SPLITS},
        documents=len(ordered),
        unknown=len(ids) - int(np.count_nonzero(ids)),
        absent="".join(character for character in config.vocabulary.include if character not in known),
        files=files,
        contents=contents.hexdigest(),
        notes=notes,
        mapped=None,
        what=what,
    )
