"""What tasks share whose model writes a text of something else: of a recording, or of a picture.

Axes: L characters, B batch, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from charrnn.data.batch import IGNORED
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import printable

SHOWN = 60  # characters of a text in a table


def before(targets: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The characters before each of (L, B): `end` before the first, and where nothing is asked."""
    end = vocabulary.end
    assert end is not None
    begin = torch.full_like(targets[:1], end)
    return torch.cat([begin, targets[:-1].masked_fill(targets[:-1] == IGNORED, end)])


def asked_of(targets: Tensor, vocabulary: Vocabulary) -> Tensor:
    """What is scored of (L, B): nothing unknown, which is never written."""
    return targets.masked_fill(targets == vocabulary.unknown, IGNORED)


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Of logits (L, B, V) and targets (L, B), summed."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing)


def nats_of(logits: Tensor, targets: Tensor) -> Tensor:
    """What each of (L, B) costs by logits (L, B, V), in nats; 0 where nothing is asked."""
    costs = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return costs.view_as(targets)


def text_of(ids: Sequence[int], vocabulary: Vocabulary) -> str:
    """U+FFFD for what is unknown, which is no character that is ever written."""
    return "".join("\ufffd" if i == vocabulary.unknown else vocabulary.decode([i]) for i in ids if i != IGNORED)


def cut(text: str) -> str:
    """On one line, and so short that several stand side by side."""
    text = printable(text)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
