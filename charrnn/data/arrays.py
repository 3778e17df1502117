"""Arrays of floats that others have made, in `.npy` files: mapped, and looked into before they are used."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from charrnn.data.files import why_unreadable
from charrnn.errors import DataError

ARRAY = ".npy"  # ends the name of such a file
# What numpy lets out at a header, which it reads as Python's own tokens and literals.
HEADER_FAULTS = (ValueError, OSError, TokenError, SyntaxError, TypeError, ArithmeticError, LookupError, RecursionError, MemoryError)


def mapped(path: Path, what: str, expected: str) -> npt.NDArray[np.floating[Any]]:
    """On disk still. Not by `np.load`, which would look into pickles and archives. `what` the file is, where it is none.

    Raises DataError naming the file, with what was expected.
    """
    if reason := why_unreadable(path, what):
        raise DataError(f"{path}: {reason}")
    try:
        found = np.lib.format.open_memmap(path, mode="r")
    except HEADER_FAULTS as error:
        raise DataError(f"{path}: not a whole {ARRAY} file of numbers ({error}); {expected}") from None
    if found.dtype.kind != "f":
        raise DataError(f"{path}: holds {found.dtype}; {expected}")
    return found
