"""Characters to ids and back. Two symbols are not characters: `unknown`, which is read but never written, and `end`."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from charrnn.errors import CheckpointError, DataError

CODE_POINTS = 0x110000
SYMBOLS = ("unknown", "end")


@dataclass(frozen=True)
class Vocabulary:
    """Ids 0.. are `symbols`, the characters follow in code-point order.

    `end` is there only where the corpus has documents: a stream has no end.
    """

    symbols: tuple[str, ...]
    characters: str

    @classmethod
    def from_counts(cls, counts: Mapping[int, int], *, ends: bool, max_size: int | None = None, min_count: int = 1) -> Vocabulary:
        """From occurrences by code point, keeping the most frequent `max_size` that occur `min_count` times."""
        kept = [point for point, count in counts.items() if count >= min_count]
        if max_size is not None and len(kept) > max_size:
            kept = sorted(kept, key=lambda point: (-counts[point], point))[:max_size]
        if not kept:
            raise DataError(f"no character occurs {min_count} times; lower data.vocabulary.min_count")
        return cls(SYMBOLS if ends else SYMBOLS[:1], "".join(map(chr, sorted(kept))))

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
            sound = symbols in (SYMBOLS, SYMBOLS[:1]) and isinstance(characters, str) and len(set(characters)) == len(characters)
        except (ValueError, KeyError, TypeError, RecursionError):
            sound = False
        if not sound:
            raise CheckpointError("its vocabulary is damaged; expected the symbols and distinct characters that training wrote")
        return cls(symbols, characters)


@dataclass(frozen=True)
class Primed:
    """A prime as the model will read it."""

    text: str
    ids: list[int]
    replaced: dict[str, str]  # a character that the model does not know: the form of it that it does
    dropped: list[str]  # characters the model knows in no form


def encode_prime(vocabulary: Vocabulary, text: str) -> Primed:
    """Encode what a person typed: where a character is unknown, its NFC, full-width and half-width forms are tried."""
    text = unicodedata.normalize("NFC", text) if any(c not in vocabulary for c in text) else text
    read: list[str] = []
    replaced: dict[str, str] = {}
    dropped: list[str] = []
    for character in text:
        known = next((form for form in _forms(character) if form and all(c in vocabulary for c in form)), None)
        if known is None:
            if character not in dropped:
                dropped.append(character)
            continue
        if known != character:
            replaced[character] = known
        read.append(known)
    joined = "".join(read)
    return Primed(joined, vocabulary.encode(joined), replaced, dropped)


def _forms(character: str) -> Sequence[str]:
    point = ord(character)
    full = chr(point + 0xFEE0) if 0x21 <= point <= 0x7E else "\u3000" if character == " " else ""
    half = chr(point - 0xFEE0) if 0xFF01 <= point <= 0xFF5E else " " if character == "\u3000" else ""
    return (character, full, half, unicodedata.normalize("NFKC", character), unicodedata.normalize("NFD", character))
