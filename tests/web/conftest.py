from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.web.playing import served


@pytest.fixture(scope="module")
def port(models: Path) -> Iterator[int]:
    """Of a server that has one of each."""
    names = ("writes", "hostile", "fill", "classify", "tag", "marks", "caption", "hear")
    with served(*(models / f"{name}.safetensors" for name in names)) as port:
        yield port
