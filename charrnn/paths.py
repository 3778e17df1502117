"""Paths that a person wrote."""

from __future__ import annotations

from pathlib import Path

from charrnn.errors import UserError, short


def user_path(name: str, place: str) -> Path:
    """The path that a user wrote, `~` being a home; what `place` calls it. Raises UserError where nothing can be looked for there."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"{place} {short(name)}: there is no such home directory; write the path without ~") from None
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # a name that is too long, a directory that may not be looked into
        raise UserError(f"{place} {short(name)}: cannot be looked for: {error.strerror or error}; name another path") from None
    return path
