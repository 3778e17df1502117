"""How a verse can be carried through: the plans among which the model chooses as it writes, and what each may have where.

A plan is a tone pattern and a rhyme. At first every plan that can be carried through is live, and each character leaves those
live that it belongs to. Only such plans are ever live, so whatever the model writes, a character that fits is left for every
place after it; where there is no plan at all, that is said before the first character.

Axes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import numpy as np

from charrnn.constraints import Mask
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.prosody import EITHER, LEVEL, OBLIQUE, RHYMES, Pattern, Sound, sounds

LAST = -1  # the column of the character that a line ends with

Forced = Mapping[tuple[int, int], int]  # line and column: the id that must stand there


class Plan(NamedTuple):
    pattern: Pattern | None
    rhyme: str | None

    def rhymes(self, line: int) -> bool:
        return self.rhyme is not None and (line % 2 == 1 or (line == 0 and self.pattern is not None and self.pattern.first_rhymes))


Live = tuple[Plan, ...]


class Slot(NamedTuple):
    """A place in a verse: what the live plans may have there."""

    ids: AbstractSet[int]
    mask: Mask  # (V,) bool, the same
    choices: tuple[tuple[Plan, AbstractSet[int]], ...]  # what each plan may have, where they differ
    rhymes: bool  # what was a rhyme before may not stand here again
    free: bool  # nothing is asked of what stands here


class Plans:
    """All plans of a verse, and what they may have where. One value for all texts of a verse: what it finds once it keeps."""

    def __init__(self, size: int, sets: dict[str, AbstractSet[int]], forced: Forced, live: Live) -> None:
        self._size = size
        self._sets = sets  # by name: a tone, a rhyme, what is not of a rhyme, `id 7` for what must stand somewhere, `break`
        self._forced = forced
        self.live = live
        self._masks: dict[frozenset[str], tuple[AbstractSet[int], Mask]] = {}
        self._slots: dict[tuple[int, int, Live, bool], Slot] = {}

    def mask(self, ids: AbstractSet[int]) -> Mask:
        """(V,) bool."""
        mask = np.zeros(self._size, dtype=np.bool_)
        mask[sorted(ids)] = True
        return mask

    def slot(self, line: int, column: int, live: Live, breaks: bool = False) -> Slot:
        """The place at a line and a column of it; with `breaks`, a line end may come before what stands there."""
        key = (line, column, live, breaks)
        if key not in self._slots:
            names = [self._name(plan, line, column) for plan in live]
            several = len(set(names)) > 1
            union = frozenset(names + ["break"] if breaks else names)
            if union not in self._masks:
                ids = frozenset[int]().union(*(self._sets[name] for name in union))
                self._masks[union] = ids, self.mask(ids)
            choices = tuple((plan, self._sets[name]) for plan, name in zip(live, names)) if several else ()
            rhymes = column == LAST and (line, LAST) not in self._forced and any(plan.rhymes(line) for plan in live)
            self._slots[key] = Slot(*self._masks[union], choices, rhymes, union == {EITHER})
        return self._slots[key]

    def _name(self, plan: Plan, line: int, column: int) -> str:
        """Of the set that a plan may have there."""
        if (line, column) in self._forced:
            return f"id {self._forced[line, column]}"
        if column == LAST and plan.rhyme is not None:
            if plan.rhymes(line):
                return plan.rhyme
            if line == 0 and f"not {plan.rhyme}" in self._sets:
                return f"not {plan.rhyme}"
        return plan.pattern.lines[line][column] if plan.pattern else EITHER


def ids_of(vocabulary: Vocabulary, fits: Callable[[str], bool]) -> frozenset[int]:
    return frozenset(id_ for id_, c in enumerate(vocabulary.characters, start=len(vocabulary.symbols)) if fits(c))


def make_plans(
    vocabulary: Vocabulary, letters: AbstractSet[int], lines: int | None, forced: Forced, tones: Sequence[Pattern] | None, rhyme: bool
) -> Plans:
    """The plans of a verse of so many lines of `letters`. Raises UserError where there is none, saying what is in the way."""
    sets: dict[str, AbstractSet[int]] = {EITHER: letters, "break": {vocabulary.id("\n")}, **{f"id {id_}": {id_} for id_ in forced.values()}}
    heard: dict[int, Sound] = {}
    if tones is not None or rhyme:
        flag = "--rhyme" if rhyme else "--tone"
        by_character = sounds(vocabulary.decode(sorted(letters)), flag)
        heard = {vocabulary.id(character): sound for character, sound in by_character.items()}
    fitting: Sequence[Pattern | None] = [None]
    if tones is not None:
        for tone in (LEVEL, OBLIQUE):
            sets[tone] = {id_ for id_, sound in heard.items() if sound.tone == tone}
            if not sets[tone]:
                raise UserError(f"--tone: the vocabulary has no character of the tone {tone}; expected some; leave --tone out")
        fitting = _fitting(vocabulary, heard, forced, tones)
    if not rhyme:
        return Plans(len(vocabulary), sets, forced, tuple(Plan(pattern, None) for pattern in fitting))
    assert lines is not None
    wanted = _forced_rhyme(vocabulary, heard, forced)
    ends = {id_ for (line, column), id_ in forced.items() if column == LAST and (line == 0 or line % 2 == 1)}
    for name in RHYMES:
        # What must end another of these lines is no choice; with tones, the rhyming lines are those of level ends.
        sets[name] = {i for i, sound in heard.items() if sound.rhyme == name and (tones is None or sound.tone == LEVEL)} - ends
    live, needed = [], lines
    for pattern in fitting:
        for name in RHYMES if wanted is None else (wanted,):
            plan = Plan(pattern, name)
            choices = sum(plan.rhymes(line) and (line, LAST) not in forced for line in range(lines))
            needed = min(needed, choices)
            if len(sets[name]) < choices:
                continue
            if (0, LAST) in forced:
                first = forced[0, LAST]
                if plan.rhymes(0) and (first not in heard or heard[first].rhyme != name):
                    continue
            elif pattern is None and len(sets[name]) == choices:
                # The first line would take from this rhyme a character that the others need.
                sets[f"not {name}"] = letters - sets[name]
                if not sets[f"not {name}"]:
                    continue
            live.append(plan)
    if not live:
        richest = wanted or max(RHYMES, key=lambda name: len(sets[name]))
        kind = "characters" if tones is None else f"characters of the tone {LEVEL}"
        raise UserError(
            f"--rhyme: {needed} lines must end in different {kind} of one rhyme, and {'of' if wanted else 'the most are'} "
            f"{len(sets[richest])}, of {richest}; expected more of them in the vocabulary; ask for fewer lines or leave --rhyme out"
        )
    return Plans(len(vocabulary), sets, forced, tuple(live))


def _fitting(vocabulary: Vocabulary, heard: Mapping[int, Sound], forced: Forced, tones: Sequence[Pattern]) -> list[Pattern]:
    """The patterns that have room for what must stand somewhere."""
    clashes = []
    for pattern in tones:
        clash = ""
        for (line, column), id_ in forced.items():
            tone = pattern.lines[line][column]
            if tone != EITHER and (id_ not in heard or heard[id_].tone != tone):
                has = f"{heard[id_].tone} ({heard[id_].syllable})" if id_ in heard else "of no known tone"
                place = f"line {line + 1} {'ends' if column == LAST else 'begins'} with"
                clash = f"{place} {vocabulary.decode([id_])!r}, {has}, where {tone} must stand"
                break
        clashes.append(clash)
    fitting = [pattern for pattern, clash in zip(tones, clashes) if not clash]
    if not fitting:
        raise UserError(f"--tone with --acrostic: no pattern has room for it; in the first, {clashes[0]}; leave one of them out")
    return fitting


def _forced_rhyme(vocabulary: Vocabulary, heard: Mapping[int, Sound], forced: Forced) -> str | None:
    """The rhyme of the even lines whose end is not free; None where all are."""
    found: dict[str, str] = {}
    for (line, column), id_ in forced.items():
        if column != LAST or line % 2 == 0:
            continue
        character = vocabulary.decode([id_])
        rhyme = heard[id_].rhyme if id_ in heard else None
        if rhyme is None:
            raise UserError(f"--rhyme: line {line + 1} ends with {character!r}, of which no rhyme is known; expected a Chinese character")
        found[rhyme] = f"{character!r} ({heard[id_].syllable}, {rhyme})"
    if len(found) > 1:
        raise UserError(
            f"--rhyme with --acrostic: {' and '.join(found.values())} end even lines and do not rhyme; leave --rhyme out or choose others"
        )
    return next(iter(found), None)
