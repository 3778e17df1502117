"""From what is asked of a verse to the constraint that its texts start with."""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

from charrnn.constraints import Constraint
from charrnn.data.forms import Form
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.prosody import patterns
from charrnn.verse.options import VerseOptions
from charrnn.verse.plans import LAST, Forced, ids_of, make_plans
from charrnn.verse.texts import Free, Regular

MARKS = "，。"  # after the odd lines of a form, and after the even ones and the last
LONGEST_LINE = 200  # of --lines without --max-line: so that a line ends, whatever the model says


class Verse(NamedTuple):
    start: Constraint  # each text has a `copy` of it
    length: int | None  # characters that no text has more of; None where it ends when the model likes


def build_verse(vocabulary: Vocabulary, options: VerseOptions, length: int | None = None, prime: str = "") -> Verse:
    """The verse begins after the prime; only where no number of lines is asked for does it go on with the prime's last line.

    `length` is what a text may have at most, where somebody said so. Raises UserError, naming what is missing, for a verse
    that the vocabulary cannot fill or the length has no room for.
    """
    missing = [character for character in dict.fromkeys(options.acrostic) if character not in vocabulary]
    if missing:
        names = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in missing)
        raise UserError(f"--acrostic: the model does not know {names}; expected characters of its training text; choose others")
    return _regular(vocabulary, options, options.form, length) if options.form else _free(vocabulary, options, length, prime)


def letters_of_a_form(vocabulary: Vocabulary) -> frozenset[int]:
    """What a form counts as characters: letters, and only those as wide as Chinese ones where these are at least half of them."""
    letters = ids_of(vocabulary, str.isalpha)
    wide = ids_of(vocabulary, lambda c: c.isalpha() and unicodedata.east_asian_width(c) == "W")
    return wide if 2 * len(wide) >= len(letters) else letters


def _regular(vocabulary: Vocabulary, options: VerseOptions, form: Form, length: int | None) -> Verse:
    place = f"--form {form.name}"
    letters = letters_of_a_form(vocabulary)
    if not letters:
        raise UserError(f"{place}: the vocabulary has no letters; expected some to fill the lines with; sample without a form")
    newline = vocabulary.id("\n") if "\n" in vocabulary else None
    absent = [mark for mark in MARKS if mark not in vocabulary]
    if absent and newline is None:
        names = " and ".join(map(repr, absent))
        raise UserError(f"{place}: the vocabulary has no mark {names} and no line end; expected both marks or line ends between lines")
    marks = None if absent else (vocabulary.id(MARKS[0]), vocabulary.id(MARKS[1]))
    forced = _forced(vocabulary, options, letters, LAST if form.characters == 1 else 0)
    least = form.lines * (form.characters + 1) - (marks is None)
    if length is not None and length < least:
        raise UserError(f"--length {length}: {place} has {least} characters; expected at least as many; leave --length out")
    tones = patterns(form.lines, form.characters) if options.tone else None
    plans = make_plans(vocabulary, letters, form.lines, forced, tones, options.rhyme)
    return Verse(Regular(plans, form, marks, newline), form.lines * (form.characters + 2))


def _free(vocabulary: Vocabulary, options: VerseOptions, length: int | None, prime: str) -> Verse:
    lines, longest = options.count, options.max_line
    place = "--max-line" if lines is None else "--lines" if options.lines else "--acrostic"
    if "\n" not in vocabulary:
        raise UserError(f"{place}: the vocabulary has no line end; expected one to end lines with; lines that end in marks are a --form")
    letters = ids_of(vocabulary, str.isalnum)
    if lines is None:
        assert longest is not None  # nothing else can be asked for
        plans = make_plans(vocabulary, letters, None, {}, None, rhyme=False)
        return Verse(Free(plans, vocabulary, None, longest, len(prime.rpartition("\n")[2])), None)
    if longest is None:
        longest = LONGEST_LINE if length is None else min(LONGEST_LINE, length // lines - 1)
    shortest = 2 if options.acrostic and options.rhyme else 1
    if longest < shortest or (length is not None and length < lines * (longest + 1)):
        needed = lines * (max(longest, shortest) + 1)
        raise UserError(f"--length {length}: {lines} lines can take {needed} characters; expected at least as many; leave --length out")
    if not ids_of(vocabulary, lambda c: not c.isspace()):
        raise UserError(f"{place}: the vocabulary has only white space; expected something for the lines to begin with")
    plans = make_plans(vocabulary, letters, lines, _forced(vocabulary, options, letters, 0), None, options.rhyme)
    return Verse(Free(plans, vocabulary, lines, longest), lines * (longest + 1))


def _forced(vocabulary: Vocabulary, options: VerseOptions, letters: frozenset[int], first: int) -> Forced:
    for character in options.acrostic:
        if vocabulary.id(character) not in letters:
            raise UserError(f"--acrostic: {character!r} is none of the letters that the lines are of; expected letters; choose others")
    column = LAST if options.acrostic_at == "end" else first
    return {(line, column): vocabulary.id(character) for line, character in enumerate(options.acrostic)}
