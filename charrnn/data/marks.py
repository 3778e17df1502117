"""Labels that a text holds itself: what the model reads is the text without punctuation, and what it learns is where the marks stood.

Read are all characters but punctuation and white space. In scripts that part words by spaces a word must stay one: where white space
or punctuation stands between two of its letters or digits, one space is read, and an apostrophe or a hyphen inside a word and a
point between digits (`don't`, `3.14`) stay. The label of a character is the first mark that stands between it and the next
character that is read, that space not counted, and O, index 0, where there is none.

Axes: N characters read, D documents.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from charrnn.data.corpus import Ids
from charrnn.data.vocabulary import CODE_POINTS, Vocabulary
from charrnn.errors import ConfigError

NONE, PAUSE = "O", "S"  # labels: no mark here, and a pause whatever its mark
BAR = "|"  # where a pause is, for a reader
# What a character is to the rules above. The first four are read wherever they stand.
OTHER, WORD, DIGIT, END, SPACE, PUNCTUATION, JOINER, POINT = range(8)
JOINERS = "'’-‐‑"  # inside a word they are a part of it
POINTS = ".,:/"  # between digits they are a part of the number
QUOTES = "」』﹂﹄"  # close what is said: a mark belongs before them, and behind other brackets that close
# Han, kana, bopomofo and their marks: scripts without spaces between words. Hangul has them, in 3130-318F.
UNSPACED = (
    *((0x2E80, 0x3130), (0x3190, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0xFF65, 0xFFA0)),
    *((0x1AFF0, 0x1B170), (0x20000, 0x323B0)),
)


@dataclass(frozen=True)
class Read:
    """What is read of a text, and the label of each character by its index."""

    ids: Ids  # (N,)
    labels: Ids  # (N,) int64
    edges: Ids  # (D + 1,) int64: where documents begin and the last one ends


@dataclass(frozen=True)
class Unmarked:
    """A text of the user's own without its marks, and where they would be put back."""

    read: Read
    points: Ids  # (characters of the text,) its code points
    places: Ids  # (N,) int64: where in it each character stands; a space between words, where what parts them begins
    gaps: Ids  # (N,) int64: the place in it before which the mark of each character belongs; -1 for a space between words, which has none
    marks: Ids  # places in it of the marks that it has


def labels_of(kind: str, marks: str) -> tuple[str, ...]:
    """The labels of `data.labels`: punctuation or segmentation."""
    return (NONE, *marks) if kind == "punctuation" else (NONE, PAUSE)


def written_of(labels: tuple[str, ...], pause: str = BAR) -> tuple[str, ...]:
    """What is put behind a character of each label."""
    return tuple("" if label == NONE else pause if label == PAUSE else label for label in labels)


def expect_marks(marks: str) -> None:
    """Raises ConfigError where one of them is a character that is read, and could not be put in."""
    for mark in marks:
        if _kind(mark) <= END:
            raise ConfigError(f"data.marks: {mark!r} is neither punctuation nor white space; expected marks such as ，。？")


def read_ids(ids: Ids, vocabulary: Vocabulary, kind: str, marks: str) -> Read:
    """An encoded text, each document closed by `end` or all one stream. What is unknown is read, and parts no words."""
    kinds = np.full(len(vocabulary), OTHER, dtype=np.uint8)
    kinds[len(vocabulary.symbols) :] = _kinds_of(vocabulary.characters)
    if vocabulary.end is not None:
        kinds[vocabulary.end] = END
    found = _strip(kinds[ids], _marks_of(vocabulary, marks)[ids])
    return _read(found, ids, vocabulary.id(" "), kind)


def unmark(text: str, closes: Sequence[int], vocabulary: Vocabulary, kind: str, marks: str) -> Unmarked:
    """A text as read_ids would find it encoded. `closes`: the places in it behind which a document closes."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    ids = vocabulary.table()[points]
    kinds = _kind_table(points)[points]
    kinds[(ids == vocabulary.unknown) & (kinds <= DIGIT)] = OTHER
    which = np.zeros(CODE_POINTS, dtype=np.uint8)
    which[[ord(mark) for mark in marks]] = np.arange(1, len(marks) + 1)
    # An end takes a place of its own among the characters for as long as they are parted.
    ends = np.array(closes, dtype=np.int64)
    found = _strip(np.insert(kinds, ends, END), np.insert(which[points], ends, 0))
    read = _read(found, np.insert(ids, ends, 0), vocabulary.id(" "), kind)
    gaps = _gaps(found, np.insert(points, ends, 0))
    before = np.concatenate([[0], np.cumsum(np.insert(np.zeros(len(points), dtype=np.int64), ends, 1))])  # ends before each place
    gaps = np.where(gaps < 0, -1, gaps - before[gaps])
    return Unmarked(read, points, found.places - before[found.places], gaps, found.marked - before[found.marked])


def restore(unmarked: Unmarked, labels: Ids, written: tuple[str, ...], closes: Sequence[int] = ()) -> list[str]:
    """The text with the mark of each label put in, cut at `closes`. `labels` (N,); `written`: what is written for each label.

    Marks that the text had are taken out, all else stands where it stood. A mark goes where the text had one, else behind the
    character and what closes a bracket there.
    """
    put = [(np.array([ord(c) for c in mark], dtype=np.uint32), unmarked.gaps[(labels == k) & (unmarked.gaps >= 0)])
           for k, mark in enumerate(written) if mark]  # fmt: skip
    places = np.concatenate([np.zeros(0, dtype=np.int64), *(np.repeat(gaps, len(mark)) for mark, gaps in put)])
    values = np.concatenate([np.zeros(0, dtype=np.uint32), *(np.tile(mark, len(gaps)) for mark, gaps in put)])
    keep = np.ones(len(unmarked.points), dtype=bool)
    keep[unmarked.marks] = False
    kept = np.concatenate([[0], np.cumsum(keep)])  # characters kept before each place
    points = np.insert(unmarked.points[keep], kept[places], values)
    # What belongs behind the last character before a cut stands before it.
    cuts: Ids = kept[list(closes)] + np.searchsorted(np.sort(places), list(closes), side="right") if closes else np.zeros(0, dtype=np.int64)
    return [part.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass") for part in np.split(points, cuts)]


@dataclass(frozen=True)
class _Found:
    places: Ids  # (N,) int64: of what is read; a space between words stands where its gap begins
    marks: Ids  # (N,) int64: the mark behind each, by its number from 1
    edges: Ids  # (D + 1,)
    own: Ids  # (N,) int64: where the text has that mark; -1 where it has none, -2 for a space between words
    marked: Ids  # places of all marks


def _strip(kinds: Ids, marks: Ids) -> _Found:
    """The rules above, for a text of these kinds of characters, in which these marks stand, by their numbers from 1."""
    word, digit = (kinds == WORD) | (kinds == DIGIT), kinds == DIGIT
    inner = np.zeros(len(kinds), dtype=bool)
    inner[1:-1] = (kinds == JOINER)[1:-1] & word[:-2] & word[2:] | (kinds == POINT)[1:-1] & digit[:-2] & digit[2:]
    word |= inner
    stands = (kinds <= END) | inner
    at = np.flatnonzero(stands)  # (K,), ends among them
    marked = np.flatnonzero((marks > 0) & ~stands)
    owners, first = np.unique(np.searchsorted(at, marked) - 1, return_index=True)
    first = marked[first[owners >= 0]]  # what stands before the first character has no owner
    owners = owners[owners >= 0]
    owned, own = np.zeros(len(at), dtype=np.int64), np.full(len(at), -1, dtype=np.int64)
    owned[owners], own[owners] = marks[first], first
    parted = np.zeros(len(at), dtype=bool)  # from the next one by a space that is read
    parted[:-1] = word[at[:-1]] & word[at[1:]] & (np.diff(at) > 1)
    which = np.repeat(np.arange(len(at)), 1 + parted)
    space = np.zeros(len(which), dtype=bool)
    space[1:] = which[1:] == which[:-1]
    places = at[which] + space
    ends = ~space & (kinds[at[which]] == END)
    keep = ~ends
    # The last document need not be closed.
    last = [] if len(kinds) and kinds[-1] == END else [keep.sum()]
    edges = np.concatenate([[0], np.cumsum(keep)[ends], last]).astype(np.int64)
    found_marks, found_own = np.where(space, 0, owned[which]), np.where(space, -2, own[which])
    return _Found(places[keep], found_marks[keep], edges, found_own[keep], marked)


def _read(found: _Found, ids: Ids, space: int, kind: str) -> Read:
    read = np.where(found.own == -2, space, ids[found.places])
    return Read(read.astype(ids.dtype), found.marks if kind == "punctuation" else np.minimum(found.marks, 1), found.edges)


def _gaps(found: _Found, points: Ids) -> Ids:
    """Where the mark of each character goes: where the text has one, else behind it and behind brackets that close. (N,)"""
    closing = np.zeros(CODE_POINTS, dtype=bool)
    for point in np.flatnonzero(np.bincount(points)):
        closing[point] = unicodedata.category(chr(point)) == "Pe" and chr(point) not in QUOTES
    gaps = found.places + 1
    closes = np.append(closing[points], False)
    while (further := closes[gaps]).any():
        gaps = gaps + further
    return np.where(found.own >= 0, found.own, np.where(found.own == -2, -1, gaps))


def _marks_of(vocabulary: Vocabulary, marks: str) -> Ids:
    numbers = np.zeros(len(vocabulary), dtype=np.uint8)
    for number, mark in enumerate(marks, start=1):
        if mark in vocabulary:
            numbers[vocabulary.id(mark)] = number
    return numbers


def _kind_table(points: Ids) -> npt.NDArray[np.uint8]:
    """(0x110000,) the kind of each code point that occurs: to ask of all of them would take longer than to read a book."""
    table = np.zeros(CODE_POINTS, dtype=np.uint8)
    used = np.flatnonzero(np.bincount(points))
    table[used] = _kinds_of("".join(map(chr, used)))
    return table


def _kinds_of(characters: str) -> list[int]:
    return [_kind(character) for character in characters]


@lru_cache(maxsize=1 << 15)
def _kind(character: str) -> int:
    category = unicodedata.category(character)
    if character.isspace():
        return SPACE
    if character in JOINERS:
        return JOINER
    if category[0] == "P":
        return POINT if character in POINTS else PUNCTUATION
    if category[0] == "C" or any(start <= ord(character) < stop for start, stop in UNSPACED):
        return OTHER
    return DIGIT if category == "Nd" else WORD
