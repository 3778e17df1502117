"""The constraints of verse: lines of a form, and lines of any length. Each holds where one text of the verse stands.

Axes: V vocabulary.
"""

from __future__ import annotations

import copy

from charrnn.constraints import Mask
from charrnn.data.forms import Form
from charrnn.data.vocabulary import Vocabulary
from charrnn.verse.plans import LAST, Live, Plans, Slot, ids_of

WORD_ROOM = 4, 12  # the last quarter of a line, and at most its last 12 characters


class Regular:
    """A verse of a form: so many letters a line, and between two lines a mark or a line end.

    The marks are two, one after the odd lines, one after the even ones and the last. After a mark but the last a line
    end may come too: there the verse is laid out as the model's own text was.
    """

    def __init__(self, plans: Plans, form: Form, marks: tuple[int, int] | None, newline: int | None) -> None:
        self._form = form
        self._rhymes = _Rhymes(plans)
        self._newline = newline
        self._marked = marks is not None
        self._separators = [plans.mask({id_}) for id_ in marks or (newline,) if id_ is not None]
        self._line = self._column = 0
        self._may_break = False

    @property
    def over(self) -> bool:
        return self._line == self._form.lines

    def allowed(self) -> Mask:
        if self._column == self._form.characters:
            odd = self._line % 2 == 0 and self._line < self._form.lines - 1
            return self._separators[0 if odd else -1]
        return self._rhymes.mask(self._slot())

    def advance(self, id_: int) -> None:
        if self._may_break:
            self._may_break = False
            if id_ == self._newline:
                return
        if self._column == self._form.characters:
            self._line, self._column = self._line + 1, 0
            self._may_break = self._marked and self._newline is not None
            return
        slot = self._slot()
        self._column += 1
        self._rhymes.take(slot, id_)
        if self._column == self._form.characters:
            self._rhymes.end(self._line, slot, id_)
            if not self._marked and self._line == self._form.lines - 1:
                self._line += 1

    def _slot(self) -> Slot:
        column = LAST if self._column == self._form.characters - 1 else self._column
        return self._rhymes.slot(self._line, column, self._may_break)

    def copy(self) -> Regular:
        other = copy.copy(self)
        other._rhymes = self._rhymes.copy()
        return other


class Free:
    """Lines that the model ends, at the latest after `longest` characters: `lines` of them, or as many as it likes.

    Where their number is given, each begins with something that is not white space, and the text ends with the line end of the
    last one or with its document. A line must end with a certain letter where the verse asks for it; marks may follow.
    A line that grows too long ends after a space that stands near its end, else within the word.
    """

    def __init__(self, plans: Plans, vocabulary: Vocabulary, lines: int | None, longest: int, column: int = 0) -> None:
        self._rhymes = _Rhymes(plans)
        self._masks = FreeMasks(plans, vocabulary)
        self._lines = lines
        self._longest = longest
        self._room = min(longest // WORD_ROOM[0], WORD_ROOM[1])
        self._line = 0
        self._column = column
        self._spaced = False  # whether the last character is a space
        self._letter: int | None = None  # the last one of the line

    @property
    def over(self) -> bool:
        return self._line == self._lines

    def allowed(self) -> Mask:
        masks, last = self._masks, self._line + 1 == self._lines or self._lines is None
        ends = True
        if self._lines is not None:
            slot = self._rhymes.slot(self._line, LAST)
            ends = self._column > 0 and self._rhymes.permits(slot, self._letter)
            if self._column == self._longest - 1 and not slot.free:
                asked = self._rhymes.mask(slot)
                return asked | masks.silent | masks.breaks[last] if ends else asked
            if self._column == 0:
                head = self._rhymes.slot(self._line, 0)
                return masks.heads if head.free else head.mask
        if not ends:
            return masks.inside
        if self._column >= self._longest or (self._spaced and self._longest - self._column <= self._room):
            return masks.breaks[last]
        return masks.anything[last]

    def advance(self, id_: int) -> None:
        if id_ not in self._masks.ends:
            self._column += 1
            self._spaced = id_ in self._masks.spaces
            if id_ in self._masks.letters:
                self._letter = id_
            return
        if self._lines is not None:
            slot = self._rhymes.slot(self._line, LAST)
            self._rhymes.take(slot, self._letter)
            self._rhymes.end(self._line, slot, self._letter)
        self._line, self._column, self._spaced, self._letter = self._line + 1, 0, False, None

    def copy(self) -> Free:
        other = copy.copy(self)
        other._rhymes = self._rhymes.copy()
        return other


class FreeMasks:
    """What Free has where it asks for no letter in particular, (V,) bool each."""

    def __init__(self, plans: Plans, vocabulary: Vocabulary) -> None:
        newline = vocabulary.id("\n")
        # Some other characters end a line too, for who reads it: they never stand in one.
        inline = ids_of(vocabulary, lambda c: c.splitlines() == [c])
        self.spaces = ids_of(vocabulary, str.isspace) & inline
        self.letters = ids_of(vocabulary, str.isalnum)
        self.ends = {newline} if vocabulary.end is None else {newline, vocabulary.end}
        self.heads = plans.mask(inline - self.spaces)
        self.inside = plans.mask(inline)
        self.silent = plans.mask(inline - self.letters)
        # By whether it may be the last line, which the end of the document ends too.
        self.breaks = plans.mask({newline}), plans.mask(self.ends)
        self.anything = plans.mask(inline | {newline}), plans.mask(inline | self.ends)


class _Rhymes:
    """The plans that are live in one text, and the characters that no further rhyme may be."""

    def __init__(self, plans: Plans) -> None:
        self._plans = plans
        self._live: Live = plans.live
        self._used: frozenset[int] = frozenset()

    def slot(self, line: int, column: int, breaks: bool = False) -> Slot:
        return self._plans.slot(line, column, self._live, breaks)

    def mask(self, slot: Slot) -> Mask:
        """(V,) bool: what may stand there."""
        if not (slot.rhymes and self._used):
            return slot.mask
        mask: Mask = slot.mask.copy()
        mask[list(self._used)] = False
        return mask

    def permits(self, slot: Slot, id_: int | None) -> bool:
        return slot.free or (id_ in slot.ids and not (slot.rhymes and id_ in self._used))

    def take(self, slot: Slot, id_: int | None) -> None:
        if slot.choices:
            self._live = tuple(plan for plan, ids in slot.choices if id_ in ids)

    def end(self, line: int, slot: Slot, id_: int | None) -> None:
        """A line ended with that letter. The first one may rhyme without being asked to, and then has taken it from the rhyme."""
        if id_ is not None and (slot.rhymes or line == 0):
            self._used |= {id_}

    def copy(self) -> _Rhymes:
        return copy.copy(self)
