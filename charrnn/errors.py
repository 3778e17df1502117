"""The one exception that means: the user can mend this. The command line prints it as one line and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user's: the message names the place, the fact, the expectation and the remedy, on one line."""


class ConfigError(UserError):
    """A configuration that cannot mean anything."""


class DataError(UserError):
    """Text that cannot be read or used."""


class CheckpointError(UserError):
    """A model file that cannot be read or does not fit."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """"; did you mean 'x'?" for the closest known word, or nothing."""
    hint = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {hint[0]!r}?" if hint else ""
