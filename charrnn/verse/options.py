"""What a person asks of a verse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from charrnn.data.forms import Form
from charrnn.errors import UserError


@dataclass(frozen=True)
class VerseOptions:
    """What a verse must be. Raises UserError, naming the flags, for what cannot go together."""

    form: Form | None = None
    rhyme: bool = False  # the even lines rhyme, each with another character, as prosody has it
    tone: bool = False  # the tones of regulated verse
    acrostic: str = ""  # its characters stand in the first lines, one in each; the lines after them are free
    acrostic_at: Literal["start", "end"] = "start"
    lines: int | None = None
    max_line: int | None = None  # characters of a line

    def __post_init__(self) -> None:
        def expect(holds: bool, fact: str, expectation: str) -> None:
            if not holds:
                raise UserError(f"{fact}: expected {expectation}")

        for flag, value in (("--lines", self.lines), ("--max-line", self.max_line)):
            expect(value is None or value >= 1, f"{flag} {value}", "at least 1")
            remedy = f"one of them, for a form has lines of its own; leave {flag} out"
            expect(value is None or self.form is None, f"{flag} and --form are both given", remedy)
        expect(not self.tone or self.form is not None, "--tone without --form", "a form that has tones, as --form 五绝")
        placed = self.acrostic_at == "start" or self.acrostic != ""
        expect(placed, "--acrostic-at without --acrostic", "the characters to place, as --acrostic 我爱你们")
        count, hidden = self.count, len(self.acrostic)
        expect(not self.rhyme or count is not None, "--rhyme without --form or --lines", "a number of lines, as --lines 4")
        if count is not None:
            expect(not self.rhyme or count >= 2, "--rhyme with one line", "at least 2, for it is the even lines that rhyme")
            expect(hidden <= count, f"--acrostic of {hidden} characters for {count} lines", "at most one a line; shorten it or add lines")
        short = self.max_line == 1 and self.rhyme and self.acrostic != ""
        expect(not short, "--max-line 1 with --rhyme and --acrostic", "at least 2 characters in a line")

    @property
    def asked(self) -> bool:
        """Whether anything is."""
        return self != VerseOptions()

    @property
    def count(self) -> int | None:
        """Lines of the verse; None where it may have any number."""
        return self.form.lines if self.form else self.lines or len(self.acrostic) or None
