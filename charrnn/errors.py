"""The one exception that means: the user can mend this. The command line prints it as one line and exits with 2."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence

LONGEST = 2000  # characters of a message
NAMED = 8  # things that a message names before it only counts them
SAID = 20  # faults that are said, a line each, before they are only counted


class UserError(ValueError):
    """A mistake of the user's: the message names the place, the fact, the expectation and the remedy, on one line."""

    def __init__(self, message: str) -> None:
        # File names, foreign model files and other libraries bring line ends, control characters and any length.
        line = printable(" ".join(message.splitlines()))
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}")

    @property
    def lines(self) -> list[str]:
        """What a person is told, a line each."""
        return [str(self)]


class ConfigError(UserError):
    """A configuration that cannot mean anything."""


class DataError(UserError):
    """Text that cannot be read or used."""


class Faults(DataError):
    """What is wrong with each of several examples. As a text, the first of them and how many more there are; `lines` has them all."""

    def __init__(self, faults: Sequence[DataError], places: Iterable[int] = ()) -> None:
        """At least one. `places`: which of the examples that were to be read they are of, where that is known."""
        self.faults = tuple({str(fault): fault for fault in faults}.values())  # a manifest may be that of two splits
        self.places = frozenset(places)
        others = f" (and {len(self.faults) - 1:,} more)" if len(self.faults) > 1 else ""
        super().__init__(f"{self.faults[0]}{others}")

    @property
    def lines(self) -> list[str]:
        """One for each; of very many the first, and how many more."""
        more = len(self.faults) - SAID
        return [str(fault) for fault in self.faults[:SAID]] + ([f"and {more:,} more that cannot be used"] if more > 0 else [])


class CheckpointError(UserError):
    """A model file that cannot be read or does not fit."""


def first_line(error: Exception) -> str:
    """Of what another library says, as much as belongs into a message; of an error without words its name."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def says_out_of_memory(error: Exception) -> bool:
    """Whether it is of the machine's memory, in Python's words or in those that torch has for a CPU."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def not_finite() -> UserError:
    """What to raise of a model that nothing can be drawn from."""
    remedy = "its training diverged, so sample from an earlier checkpoint"
    return UserError(f"the model answers with numbers that are not finite; expected finite logits; {remedy}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message, `; did you mean 'x'?`, for the closest known word whatever its case; or nothing."""
    by_case = {name.casefold(): name for name in known}
    hint = difflib.get_close_matches(word.casefold(), by_case, n=1)
    return f"; did you mean {by_case[hint[0]]!r}?" if hint else ""


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 80

    def repr_int(self, x: int, level: int) -> str:
        return f"a number of {x.bit_length()} bits" if x.bit_length() > 1000 else super().repr_int(x, level)


short = _Short().repr  # of a value in a message: one line, and not a million characters of it


def printable(text: str) -> str:
    """With what a terminal would obey or hide (control characters, bidirectional marks) written as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def glyph(character: str) -> str:
    """One character where it stands alone, on an axis or under a picture: blanks as `␣`, a line end as `↵`, nothing, an end, as `␃`."""
    return {"": "␃", "\n": "↵", "\t": "⇥"}.get(character) or ("␣" if character.isspace() else printable(character))


def counted(number: int, thing: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def listed(names: Sequence[str]) -> str:
    """`a, b`; of many the first, and how many more."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def characters_listed(characters: Iterable[str]) -> str:
    """Characters by what they look like and by their numbers, `'é' (U+00E9)`."""
    return listed([f"{character!r} (U+{ord(character):04X})" for character in characters])
