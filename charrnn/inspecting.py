"""What a text is made of, before anything is trained on it: one pass, in memory that does not grow with the text.

Of a document only eight bytes are kept, to tell copies from it, and of a few drawn by chance the whole.
"""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from charrnn.config import DataConfig
from charrnn.data.corpus import count_characters
from charrnn.data.formats import read_documents
from charrnn.data.forms import form_of
from charrnn.data.vocabulary import CODE_POINTS

BATCH = 1 << 20  # characters counted together
SHOWN = 3  # documents drawn by chance
PASSAGE = 300  # characters of a stream that are shown in a document's place
RAREST = 12
STRANGEST = 20
VERSE = 2000  # characters; what is longer is no verse of a form
BUCKETS = 12  # of the histogram of lengths, and one for the few that are far longer
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U000323af]")


@dataclass(frozen=True)
class Strange:
    character: str
    why: str
    count: int


@dataclass(frozen=True)
class Sample:
    number: int  # of the document, from 1; of the passage's first character in a stream
    text: str  # as the model reads it


@dataclass(frozen=True)
class Inspection:
    files: int
    bytes: int
    formats: list[str]  # each once, as training finds them
    encodings: list[str]
    notes: list[str]  # on how it is read, as training says them
    is_stream: bool
    documents: int  # 0 for a stream
    characters: int
    vocabulary_size: int  # distinct characters
    once: int  # of them that occur once
    rarest: list[tuple[str, int]]
    strange: list[Strange]
    lengths: list[tuple[int, int, int]]  # of documents: from, to, how many
    shortest: int
    median: int
    longest: int
    forms: list[tuple[str, int]]  # of verse, most frequent first
    duplicates: int  # documents that are copies of an earlier one
    samples: list[Sample]


def inspect(config: DataConfig, seed: int = 1, progress: Callable[[int], None] | None = None) -> Inspection:
    """Read the text once. `progress` hears how many characters came. Raises DataError where it cannot be read or is empty."""
    reading = read_documents(config)
    histogram = np.zeros(CODE_POINTS, dtype=np.int64)
    lengths: Counter[int] = Counter()  # so many lengths that differ need a text as long as their sum
    forms: Counter[str] = Counter()
    hashes = array("Q")
    chance, samples = random.Random(seed), list[Sample]()
    batch, waiting, characters, passages = list[str](), 0, 0, 0
    for number, text in enumerate(reading, start=1):
        if reading.is_stream:
            for first in range(0, len(text), PASSAGE):
                passages += 1
                _draw(samples, passages, chance, Sample(characters + first + 1, text[first : first + PASSAGE]))
        else:
            lengths[len(text)] += 1
            hashes.append(int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"))
            if name := _form(text):
                forms[name] += 1
            _draw(samples, number, chance, Sample(number, text))
        batch.append(text)
        waiting += len(text)
        characters += len(text)
        if waiting >= BATCH:
            count_characters(histogram, "".join(batch))
            batch, waiting = [], 0
            if progress:
                progress(characters)
    count_characters(histogram, "".join(batch))
    if not characters:
        raise reading.emptiness()
    points = np.flatnonzero(histogram)
    rare = sorted(points.tolist(), key=lambda point: (histogram[point], point))[:RAREST]
    return Inspection(
        files=len(reading.files),
        bytes=sum(path.stat().st_size for path in reading.files),
        formats=list(dict.fromkeys(reading.formats)),
        encodings=list(dict.fromkeys(reading.encodings or [])),
        notes=reading.notes(),
        is_stream=reading.is_stream,
        documents=sum(lengths.values()),
        characters=characters,
        vocabulary_size=len(points),
        once=int(np.count_nonzero(histogram == 1)),
        rarest=[(chr(point), int(histogram[point])) for point in rare],
        strange=_strange(histogram, points),
        lengths=_buckets(lengths),
        shortest=min(lengths, default=0),
        median=_quantile(lengths, 0.5),
        longest=max(lengths, default=0),
        forms=forms.most_common(),
        duplicates=_copies(hashes),
        samples=sorted(samples, key=lambda sample: sample.number),
    )


def _draw(samples: list[Sample], number: int, chance: random.Random, drawn: Sample) -> None:
    """Keep SHOWN of all that come, each with the same chance, however many these will be (Vitter 1985, algorithm R)."""
    if len(samples) < SHOWN:
        samples.append(drawn)
    elif (place := chance.randrange(number)) < SHOWN:
        samples[place] = drawn


def _form(text: str) -> str:
    """The form of a Chinese verse, its title left out if it has one; nothing for other text."""
    if len(text) > VERSE or not _HAN.search(text):
        return ""
    body = re.split("[:：\n]", text, maxsplit=1)
    form = form_of(text) or form_of(body[-1])
    return form.name if form and len(_HAN.findall(body[-1])) >= form.lines * form.characters // 2 else ""


def _copies(hashes: array[int]) -> int:
    if not hashes:
        return 0
    sorted_ = np.frombuffer(hashes, dtype=np.uint64)
    sorted_.sort()  # in place: ten million documents are 80 MB, and not twice that
    return int(np.count_nonzero(sorted_[1:] == sorted_[:-1]))


def _quantile(lengths: Counter[int], share: float) -> int:
    wanted, seen = share * sum(lengths.values()), 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= wanted:
            return length
    return 0


def _buckets(lengths: Counter[int]) -> list[tuple[int, int, int]]:
    """BUCKETS of one round width that hold all but the longest hundredth, and one for these."""
    if not lengths:
        return []
    widths = (digit * 10**power for power in range(20) for digit in (1, 2, 5))
    width = next(width for width in widths if width * BUCKETS >= _quantile(lengths, 0.99))
    counts = Counter[int]()
    for length, count in lengths.items():
        counts[min((length - 1) // width, BUCKETS)] += count
    last, longest = max(counts), max(lengths)
    return [
        (place * width + 1, longest if place == BUCKETS else (place + 1) * width, counts[place]) for place in range(min(counts), last + 1)
    ]


def _strange(histogram: npt.NDArray[np.int64], points: npt.NDArray[np.intp]) -> list[Strange]:
    """The characters that are seldom meant, the most frequent first."""
    found = []
    for point in points.tolist():
        character = chr(point)
        if why := _oddity(character, histogram):
            found.append(Strange(character, why, int(histogram[point])))
    return sorted(found, key=lambda strange: -strange.count)[:STRANGEST]


_ODD = {
    "Cc": "a control character",
    "Cf": "invisible (a format character)",
    "Cn": "no character of Unicode",
    "Co": "private use: it looks different on every machine",
    "Cs": "half a character (a surrogate)",
    "Zl": "a line separator that is no line end",
    "Zp": "a paragraph separator that is no line end",
}


def _oddity(character: str, histogram: npt.NDArray[np.int64]) -> str:
    if character in "\n\t":
        return ""
    if character == "\ufffd":
        return "stands for bytes that someone could not read"
    category = unicodedata.category(character)
    if category == "Zs" and character not in " \u3000":
        return "a space that is not the usual one"
    if category in _ODD:
        return _ODD[category]
    if "\uff01" <= character <= "\uffee":
        plain = unicodedata.normalize("NFKC", character)
        if len(plain) == 1 and histogram[ord(plain)]:
            return f"another width of {plain!r}, which occurs {int(histogram[ord(plain)]):,} times"
    return ""
