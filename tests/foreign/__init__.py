"""Packages that charrnn can use and does not need, as small as they can be."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PACKAGES = ("torchvision", "timm")


def forget(patch: pytest.MonkeyPatch) -> None:
    """Have them imported anew, and what was there before put back."""
    for name in list(sys.modules):
        if name.partition(".")[0] in PACKAGES:
            patch.delitem(sys.modules, name)


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Have those of this folder imported, whatever is installed."""
    forget(patch)
    patch.syspath_prepend(HERE)
    for name in (*PACKAGES, "torchvision.models"):
        patch.setitem(sys.modules, name, importlib.import_module(name))
