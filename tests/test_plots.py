"""The picture of a confusion: a PNG that shows what was taken for what, with labels that can be read."""

from __future__ import annotations

import builtins
import io
from typing import Any

import numpy as np
import pytest
import torch

from charrnn.errors import UserError
from charrnn.metrics import Confusion
from charrnn.plots import confusion_png, require_matplotlib

DARKEST, LIGHTEST = (8, 48, 107), (247, 251, 255)  # of the colour map, for all and for none of a row


def pixels(picture: bytes) -> Any:
    """(height, width, 3) uint8."""
    from matplotlib import image

    return np.round(image.imread(io.BytesIO(picture), format="png")[..., :3] * 255).astype(np.uint8)


def share(picture: bytes, color: tuple[int, int, int]) -> float:
    return float((pixels(picture) == np.array(color, dtype=np.uint8)).all(-1).mean())


def test_it_is_dark_where_a_row_lies_and_light_elsewhere() -> None:
    right, note = confusion_png(Confusion(torch.tensor([[7, 0], [0, 900]])), ["bad", "good"])
    assert note is None and right.startswith(b"\x89PNG")
    assert share(right, DARKEST) > 0.15 and share(right, LIGHTEST) > 0.15
    wrong, _ = confusion_png(Confusion(torch.tensor([[0, 7], [900, 0]])), ["bad", "good"])
    rows, columns = np.nonzero((pixels(right) == np.array(DARKEST)).all(-1))
    assert np.corrcoef(rows, columns)[0, 1] > 0.5  # from the upper left to the lower right
    rows, columns = np.nonzero((pixels(wrong) == np.array(DARKEST)).all(-1))
    assert np.corrcoef(rows, columns)[0, 1] < -0.5


def test_labels_without_a_font_are_numbers_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import font_manager

    own = [entry for entry in font_manager.fontManager.ttflist if entry.name.startswith(("DejaVu", "Last Resort"))]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    confusion = Confusion(torch.tensor([[7, 1], [2, 9]]))
    picture, note = confusion_png(confusion, ["好", "差"])
    assert note == "no font here has '好', so labels are drawn as numbers, in their order; install one such as Noto Sans CJK"
    assert picture == confusion_png(confusion, ["1", "2"])[0]


def test_many_long_and_strange_labels_are_drawn() -> None:
    labels = [f"${n}^{{x$ \t_ {'long ' * n}" for n in range(12)]
    picture, note = confusion_png(Confusion(torch.eye(12, dtype=torch.int64)), labels)
    assert note is None and min(pixels(picture).shape[:2]) > 500


def test_without_matplotlib_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "matplotlib":
            raise ImportError(name)
        return real(name, *rest)

    require_matplotlib("--confusion")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError) as caught:
        require_matplotlib("--confusion")
    assert str(caught.value) == "--confusion: needs matplotlib, which is not installed; pip install 'charrnn[plots]'"
