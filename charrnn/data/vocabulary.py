"""Characters to ids and back. Three symbols are not characters: `end`, and `unknown` and `blank`, which are read but never written."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from charrnn.errors import CheckpointError, DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CODE_POINTS = 0x110000
SYMBOLS = ("unknown", "end", "blank")  # in this order; the first is always there


@dataclass(frozen=True)
class Vocabulary:
    """Ids 0.. are `symbols`, the characters follow in code-point order; those that had to be there come before the others.

    `end` is there only where the corpus has documents, or had them when the model began: a stream has no end. `blank` is what
    stands for a hidden character, and is there only where some are hidden.
    """

    symbols: tuple[str, ...]
    characters: str

    @classmethod
    def from_counts(
        cls,
        counts: Mapping[int, int],
        *,
        ends: bool,
        blank: bool = False,
        max_size: int | None = None,
        min_count: int = 1,
        include: str = "",
    ) -> Vocabulary:
        """From occurrences by code point, keeping the most frequent `max_size` that occur `min_count` times.

        The characters of `include` stand first whatever their number, and count among the `max_size`.
        """
        included = set(map(ord, include))
        kept = [point for point, count in counts.items() if count >= min_count and point not in included]
        if max_size is not None and len(kept) + len(included) > max_size:
            kept = sorted(kept, key=lambda point: (-counts[point], point))[: max(0, max_size - len(included))]
        if not (kept or included):
            raise DataError(f"no character occurs {min_count} times; lower data.vocabulary.min_count")
        there = dict(zip(SYMBOLS, (True, ends, blank)))
        return cls(tuple(symbol for symbol in SYMBOLS if there[symbol]), include + "".join(map(chr, sorted(kept))))

    def __len__(self) -> int:
        return len(self.symbols) + len(self.characters)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {character: i for i, character in enumerate(self.characters, start=len(self.symbols))}

    @property
    def unknown(self) -> int:
        return 0

    @property
    def end(self) -> int | None:
        return self.symbols.index("end") if "end" in self.symbols else None

    @property
    def blank(self) -> int | None:
        return self.symbols.index("blank") if "blank" in self.symbols else None

    @property
    def unwritten(self) -> list[int]:
        """What may be read and is never written."""
        return [self.unknown] if self.blank is None else [self.unknown, self.blank]

    def __contains__(self, character: str) -> bool:
        return character in self._ids

    def id(self, character: str) -> int:
        return self._ids.get(character, self.unknown)

    def encode(self, text: str) -> list[int]:
        return [self.id(character) for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The characters of ids; symbols are silent."""
        first = len(self.symbols)
        return "".join(self.characters[i - first] for i in ids if i >= first)

    def table(self) -> npt.NDArray[np.int32]:
        """(0x110000,) code point to id, for encoding text by the megabyte."""
        import numpy as np  # a model that writes needs none of it, and begins a tenth of a second sooner

        table = np.full(CODE_POINTS, self.unknown, dtype=np.int32)
        table[[ord(c) for c in self.characters]] = np.arange(len(self.symbols), len(self), dtype=np.int32)
        return table

    def to_json(self) -> str:
        return json.dumps({"symbols": self.symbols, "characters": self.characters})

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Raises CheckpointError when the text is not what to_json writes."""
        try:
            fields = json.loads(text)
            symbols, characters = tuple(fields["symbols"]), fields["characters"]
            ordered = tuple(symbol for symbol in SYMBOLS if symbol in symbols)
            sound = (
                symbols == ordered
                and symbols[:1] == SYMBOLS[:1]
                and isinstance(characters, str)
                and len(set(characters)) == len(characters) > 0
            )
            characters.encode()  # half a character (a surrogate) is none
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise CheckpointError("its vocabulary is damaged; expected the symbols and distinct characters that training wrote")
        return cls(symbols, characters)


def opening(vocabulary: Vocabulary, prime_ids: Sequence[int]) -> list[int]:
    """What the model reads before it writes. A document follows the `end` of another; a stream has lines, or else just begins."""
    if vocabulary.end is not None:
        return [vocabulary.end, *prime_ids]
    start = "\n" if "\n" in vocabulary else vocabulary.characters[0]
    return list(prime_ids) or [vocabulary.id(start)]


def framed(vocabulary: Vocabulary, text: str) -> list[int]:
    """The ids of a document with what stands before and behind it: the first of them is read, and the others are predicted."""
    ids = vocabulary.encode(text)
    if vocabulary.end is not None:
        return [vocabulary.end, *ids, vocabulary.end]
    return [vocabulary.id("\n"), *ids] if "\n" in vocabulary else ids


@dataclass(frozen=True)
class Primed:
    """A prime as the model will read it."""

    text: str
    ids: list[int]
    replaced: dict[str, str]  # a character that the model does not know: the form of it that it does
    dropped: list[str]  # characters the model knows in no form


def encode_prime(vocabulary: Vocabulary, text: str) -> Primed:
    """Encode what a person typed: where a character is unknown, its NFC, full-width and half-width forms are tried."""
    read: list[str] = []
    replaced: dict[str, str] = {}
    dropped: dict[str, None] = {}  # each once, in their order
    units = [text] if _known(vocabulary, text) == text else _composing(text)
    for part in [part for unit in units for part in ([unit] if _known(vocabulary, unit) else unit)]:
        form = _known(vocabulary, part)
        if form is None:
            dropped[part] = None
            continue
        read.append(form)
        if form != part:
            replaced[part] = form
    joined = "".join(read)
    return Primed(joined, vocabulary.encode(joined), replaced, list(dropped))


def _known(vocabulary: Vocabulary, unit: str) -> str | None:
    """The first form that the vocabulary has the characters of: what is known as it stands is read as it stands."""
    return next((form for form in _forms(unit) if form and all(c in vocabulary for c in form)), None)


def _composing(text: str) -> list[str]:
    """The text cut where nothing composes: a letter stays with its combining marks, and a Hangul syllable in one piece."""
    units: list[str] = []
    for character in text:
        if units and (unicodedata.combining(character) or _nfc(units[-1] + character) != _nfc(units[-1]) + _nfc(character)):
            units[-1] += character
        else:
            units.append(character)
    return units


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _forms(unit: str) -> tuple[str, ...]:
    whole = _nfc(unit)
    return (unit, whole, _OTHER_WIDTHS.get(whole, ""), unicodedata.normalize("NFKC", whole), unicodedata.normalize("NFD", whole))


# "，" for "," and "ｶ" for "カ". The way back from a full-width or half-width form is NFKC.
_OTHER_WIDTHS = {
    plain: wide
    for wide in ("\u3000", *map(chr, range(0xFF01, 0xFFEF)))
    if len(plain := unicodedata.normalize("NFKC", wide)) == 1 and plain != wide
}
