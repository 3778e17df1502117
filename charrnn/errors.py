"""The one exception that means: the user can mend this. The command line prints it as one line and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user's: the message names the place, the fact, the expectation and the remedy, on one line."""

    def __init__(self, message: str) -> None:
        # File names, and what other libraries say, may hold line ends.
        super().__init__(" ".join(message.splitlines()))


class ConfigError(UserError):
    """A configuration that cannot mean anything."""


class DataError(UserError):
    """Text that cannot be read or used."""


class CheckpointError(UserError):
    """A model file that cannot be read or does not fit."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message, `; did you mean 'x'?`, for the closest known word whatever its case; or nothing."""
    by_case = {name.casefold(): name for name in known}
    hint = difflib.get_close_matches(word.casefold(), by_case, n=1)
    return f"; did you mean {by_case[hint[0]]!r}?" if hint else ""
