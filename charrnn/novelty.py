"""Has it copied? A text that a run kept, the index of it, what of a sample stands in it, and the refusal to copy.

The index is a suffix array: every place of the text, in the order of what follows there. It answers for runs of any length.
A run never holds the end of a document or a character outside the vocabulary: documents lie side by side by chance.
"""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from charrnn.atomic import WriteError, write_atomically
from charrnn.constraints import Mask
from charrnn.data.corpus import Ids, encode_text
from charrnn.data.formats import Reading
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import DataError
from charrnn.run_files import TEXT, TEXT_INDEX

GRAM = 8  # characters of the runs whose novel share is told
LONGEST_TEXT = (1 << 31) - 2  # characters that an index has numbers for
PIECE = 1 << 20  # ids written at a time
GLANCE = 64  # characters of a match that are looked for at first
FORMAT = "charrnn text"  # in the metadata of a kept text and of its index
DTYPES = {"uint8": "U8", "uint16": "U16", "uint32": "U32", "int32": "I32"}  # as safetensors calls them

Span = tuple[int, int]  # where it starts, and where it has ended


def suffix_array(ids: Ids, size: int) -> npt.NDArray[np.int32]:
    """The places of `ids` (N,), all below `size`, in the order of what follows there. A text that is over comes before one that goes on.

    Prefix doubling (Manber & Myers 1990): as many ids as fit into 64 bits are sorted at once, and then only what they do not tell
    apart, by twice as many each time (Larsson & Sadakane 1999). At most about 40 bytes a character.
    """
    count = len(ids)
    if count == 0:
        return np.zeros(0, dtype=np.int32)
    bits = size.bit_length()  # of an id and one, 0 being what follows the last
    depth = 64 // bits
    keys = np.zeros(count, dtype=np.uint64)
    for at in range(depth):
        keys <<= np.uint64(bits)
        keys[: max(0, count - at)] += np.add(ids[at:], 1, dtype=np.uint64)
    order = np.argsort(keys).astype(np.int32)  # (N,)
    places = np.arange(count, dtype=np.int32)  # in the order, of what is not told apart yet
    keys = keys[order]
    ranks = np.zeros(count + 1, dtype=np.int32)  # where the group of a suffix begins, and one; the empty suffix has 0
    while True:
        begins = np.concatenate([[True], keys[1:] != keys[:-1]])  # a group of suffixes that are equal so far
        ranks[order[places]] = np.maximum.accumulate(np.where(begins, places, 0)) + 1
        alone = begins & np.concatenate([begins[1:], [True]])
        places = places[~alone]
        if len(places) == 0:
            return order
        suffixes = order[places]
        behind = ranks[np.minimum(suffixes.astype(np.int64) + depth, count)]
        keys = ranks[suffixes].astype(np.int64) * (count + 1) + behind
        sorting = np.argsort(keys)
        keys, order[places] = keys[sorting], suffixes[sorting]
        depth *= 2


class Index:
    """What stands in a text, by a search in its suffix array. Ids are compared as bytes, the high one first."""

    def __init__(self, ids: Ids, vocabulary: Vocabulary, order: npt.NDArray[np.int32] | None = None) -> None:
        if len(ids) > LONGEST_TEXT:
            remedy = "give a part of it with --novelty-text FILE"
            raise DataError(f"the training text has {len(ids):,} characters, and an index has room for {LONGEST_TEXT:,}; {remedy}")
        self.vocabulary = vocabulary
        self.ids = ids  # (N,)
        self.order = suffix_array(ids, len(vocabulary)) if order is None else order  # (N,)
        self._dtype = np.min_scalar_type(len(vocabulary) - 1).newbyteorder(">")
        self._width = self._dtype.itemsize
        self._bytes = self._as_bytes(ids)
        self._places = self.order.data  # indexed by Python's own numbers, three times as fast as the array

    def _as_bytes(self, ids: Ids | Sequence[int]) -> bytes:
        return np.asarray(ids).astype(self._dtype).tobytes()

    def _key(self, size: int) -> Callable[[int], bytes]:
        """The first `size` bytes of what follows a place."""
        text, width = self._bytes, self._width
        return lambda place: text[place * width : place * width + size]

    def longest_match(self, ids: Sequence[int]) -> int:
        """Of how many ids the longest beginning of `ids` is that stands in the text."""
        return self._longest_match(self._as_bytes(ids), GLANCE)

    def _longest_match(self, run: bytes, glance: int) -> int:
        size = glance * self._width
        while True:
            beginning = run[:size]
            at = bisect_left(self._places, beginning, key=self._key(len(beginning)))
            # What is nearest in the order has most in common with it.
            nearest = self._places[max(0, at - 1) : at + 1]
            found: int = max((_common(beginning, self._key(len(beginning))(place)) for place in nearest), default=0) // self._width
            if found * self._width < len(beginning) or len(beginning) == len(run):
                return found
            size *= 4

    def matches(self, ids: Sequence[int]) -> list[int]:
        """For each place of `ids` the length of the longest run from there that stands in the text."""
        found: list[int] = []
        for start, stop in self.characters(ids):
            found += [0] * (start - len(found))
            run = self._as_bytes(ids[start:stop])
            for at in range(stop - start):
                # A run that stands there stands there without its first character too.
                glance = max(GLANCE, found[-1] + 1) if found else GLANCE
                found.append(self._longest_match(run[at * self._width :], glance))
        return found + [0] * (len(ids) - len(found))

    def completed(self, n: int, before: Sequence[int], ids: Sequence[int]) -> int:
        """How many of `ids`, which follow `before`, complete a run of n that stands in the text."""
        joined = [*before, *ids]
        return sum(length >= n and at + n > len(before) for at, length in enumerate(self.matches(joined)))

    def characters(self, ids: Sequence[int]) -> Iterator[Span]:
        """The stretches of `ids` that are characters, and known."""
        first = len(self.vocabulary.symbols)
        start = 0
        for at, id_ in enumerate([*ids, self.vocabulary.unknown]):
            if id_ < first:
                if at > start:
                    yield start, at
                start = at + 1

    def following(self, ids: Sequence[int]) -> Ids:
        """The ids that come behind `ids` wherever it stands in the text, some of them more than once; none where it does not."""
        run = self._as_bytes(ids)
        key = self._key(len(run))
        start = bisect_left(self._places, run, key=key)
        stop = bisect_right(self._places, run, lo=start, key=key)
        places = self.order[start:stop].astype(np.int64) + len(ids)
        return self.ids[places[places < len(self.ids)]]


def _common(a: bytes, b: bytes) -> int:
    """Bytes that both begin with."""
    size = min(len(a), len(b))
    differ = np.frombuffer(a, dtype=np.uint8, count=size) != np.frombuffer(b, dtype=np.uint8, count=size)
    return int(differ.argmax()) if differ.any() else size


@dataclass(frozen=True)
class Novelty:
    """What of a text is copied. Places are those of its characters."""

    copied: list[Span]  # all that belongs to a copied run of at least so many characters; runs that overlap are one span
    longest: Span  # the longest copied run, however short
    grams: int  # runs of GRAM characters
    novel: int  # of them, those that do not stand in the training text

    @property
    def novel_share(self) -> float:
        """Raises ZeroDivisionError for a text that has no run of GRAM characters."""
        return self.novel / self.grams


def examine(index: Index, ids: Sequence[int], least: int, prime: int = 0) -> Novelty:
    """Look for `ids` in the text, in runs of at least `least`. What ends within the first `prime` of them was not written: not counted."""
    found = index.matches(ids)
    copied: list[Span] = []
    longest = (0, 0)
    for start, length in enumerate(found):
        stop = start + length
        if stop <= prime:
            continue
        if length > longest[1] - longest[0]:
            longest = (start, stop)
        if length >= least:
            if copied and start <= copied[-1][1]:
                copied[-1] = (copied[-1][0], max(stop, copied[-1][1]))
            else:
                copied.append((start, stop))
    grams = [at for start, stop in index.characters(ids) for at in range(max(start, prime - GRAM + 1), stop - GRAM + 1)]
    return Novelty(copied, longest, len(grams), sum(found[at] < GRAM for at in grams))


def telling(vocabulary: Vocabulary) -> int:
    """From how many characters on a copied run tells something: a line of verse in Chinese, two or three words in letters.

    Either is a matter of some 30 bits, which a text of millions of characters does not hold by chance.
    """
    return 12 if len(vocabulary.characters) < 500 else 5


class NoCopy:
    """Refuses what would complete a run of n characters of the training text. A Constraint.

    The prime counts: `context` is what stands before the first character. The end of a document is never refused, and begins anew.
    Where every character would be refused, none is; `Index.completed` finds it.
    """

    def __init__(self, index: Index, n: int, context: Sequence[int] = ()) -> None:
        self.index, self.n = index, n
        self.recent = list(context)[-(n - 1) :]

    @property
    def over(self) -> bool:
        return False

    def allowed(self) -> Mask | None:
        if len(self.recent) < self.n - 1:
            return None
        following = self.index.following(self.recent)
        if len(following) == 0:
            return None
        mask = np.ones(len(self.index.vocabulary), dtype=np.bool_)  # (V,)
        mask[following] = False
        first = len(self.index.vocabulary.symbols)
        mask[:first] = True
        if not mask[first:].any():
            return None
        return mask

    def advance(self, id_: int) -> None:
        if id_ < len(self.index.vocabulary.symbols):
            self.recent = []
        else:
            self.recent = [*self.recent, id_][-(self.n - 1) :]

    def copy(self) -> NoCopy:
        return copy.copy(self)


def keep_text(path: Path, ids: Ids, vocabulary: Vocabulary) -> None:
    """Write the encoded text that novelty is measured against. Raises WriteError."""
    _write_array(path, ids, {"format": FORMAT, "vocabulary": vocabulary.to_json()})


def index_of(reading: Reading, vocabulary: Vocabulary) -> Index:
    """The index of a text. Raises DataError where it cannot be read, or is no text of this model's."""
    ids = encode_text(vocabulary, reading.pieces())
    if not np.any(ids >= len(vocabulary.symbols)):
        raise DataError(f"--novelty-text {reading.name}: holds no character that the model knows; expected the text that it was trained on")
    return Index(ids, vocabulary)


def kept_index(model: Path, vocabulary: Vocabulary) -> tuple[Index, list[str]]:
    """The index of the text that the run of a model file kept, and what there is to warn about. It is made once, and lies beside the text.

    Raises DataError where the run kept none, naming the key.
    """
    path = model.with_name(TEXT)
    if not path.exists():
        remedy = "give the text with --novelty-text FILE, or train with train.keep_text: true"
        raise DataError(f"{path}: no such file: the run did not keep its training text; {remedy}")
    found, remedy = _read_array(path), "take it away and train on with --resume, or give the text with --novelty-text FILE"
    if found is None:
        raise DataError(f"{path}: damaged; {remedy}")
    ids, metadata = found
    if metadata.get("vocabulary") != vocabulary.to_json():
        raise DataError(f"{path}: kept by the run of another model, for its characters are others; give the text with --novelty-text FILE")
    if int(ids.max(initial=0)) >= len(vocabulary):
        raise DataError(f"{path}: damaged: it holds ids that its vocabulary does not have; {remedy}")
    digest = _checksum(ids)
    beside = path.with_name(TEXT_INDEX)
    cached = _read_array(beside)
    if cached and cached[1].get("text") == digest and len(cached[0]) == len(ids) and int(cached[0].max(initial=0)) < max(1, len(ids)):
        return Index(ids, vocabulary, cached[0]), []
    index = Index(ids, vocabulary)
    try:
        _write_array(beside, index.order, {"format": FORMAT, "text": digest})
    except WriteError as problem:
        return index, [f"{problem}; the index will be made again next time"]
    return index, []


def _write_array(path: Path, array: Ids, metadata: Mapping[str, str]) -> None:
    """One tensor, `array`, as a .safetensors file; piece by piece, for the text may be larger than memory."""
    fields: dict[str, Any] = {"dtype": DTYPES[array.dtype.name], "shape": [len(array)], "data_offsets": [0, array.nbytes]}
    header = json.dumps({"__metadata__": {**metadata, "checksum": _checksum(array)}, "array": fields}).encode()
    header += b" " * (-len(header) % 8)
    pieces = (array[at : at + PIECE].tobytes() for at in range(0, len(array), PIECE))
    write_atomically(path, (part for parts in ([struct.pack("<Q", len(header)), header], pieces) for part in parts))


def _read_array(path: Path) -> tuple[Ids, dict[str, str]] | None:
    """What _write_array wrote; None where that is not there, or not whole."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                return None
            array = file.get_tensor("array")
    except (SafetensorError, OSError):
        return None
    if array.ndim != 1 or array.dtype.name not in DTYPES or (array.dtype.kind == "i" and array.min(initial=0) < 0):
        return None
    sound = metadata.get("checksum") in (None, _checksum(array))  # files of before there were checksums have none
    return (array, metadata) if sound else None


def _checksum(array: Ids) -> str:
    return hashlib.blake2b(array.data, digest_size=16).hexdigest()
