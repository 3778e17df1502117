"""Where the compiled library is. Without torch, for the engine that needs none."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path


def library_path() -> Path | None:
    """The library beside this file, of csrc/. None where the package was installed without it."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_native{suffix}")
        if path.exists():
            return path
    return None
