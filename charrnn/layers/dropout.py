"""Dropout in its three places: activations (each step anew, or locked over time), rows of an embedding, recurrent weights.

Axes: T time, B batch, H features, V vocabulary, E embedding_size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LEVELS = 1 << 16  # of a 16-bit draw


def dropout_mask(
    shape: Sequence[int], p: float, *, device: torch.device | str, dtype: torch.dtype, generator: torch.Generator | None
) -> Tensor:
    """0 with probability p, else 1 / (1 - p), so that a product with it keeps its expectation.

    The generator, if any, lives on `device`. On a CPU p is rounded to a multiple of 2⁻¹⁶, and the scale with it.
    """
    device = torch.device(device)
    if device.type != "cpu":
        return torch.empty(tuple(shape), device=device, dtype=dtype).bernoulli_(1 - p, generator=generator).div_(1 - p)
    # bernoulli_ draws one value at a time: 7 ms for the mask of a window of 64 × 16 × 384. A 64-bit integer is four
    # 16-bit draws at once, and the same mask takes 1.2 ms.
    count = math.prod(shape)
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    dropped = min(round(p * LEVELS), LEVELS - 1)
    kept = draws.view(torch.int16)[:count].view(tuple(shape)) >= dropped - LEVELS // 2
    return kept.to(dtype).mul_(LEVELS / (LEVELS - dropped))


def dropout(x: Tensor, p: float, *, locked: bool, training: bool, generator: torch.Generator | None = None) -> Tensor:
    """(T, B, H) -> (T, B, H). `locked` drops the same features at every step of the window (Gal & Ghahramani 2016)."""
    if not training or p == 0:
        return x
    shape = (1, *x.shape[1:]) if locked else x.shape
    return x * dropout_mask(shape, p, device=x.device, dtype=x.dtype, generator=generator)


def drop_rows(weight: Tensor, p: float, *, training: bool, generator: torch.Generator | None = None) -> Tensor:
    """(V, E) -> (V, E) with whole rows dropped: the window does without these characters (Gal & Ghahramani 2016)."""
    if not training or p == 0:
        return weight
    return weight * dropout_mask((weight.size(0), 1), p, device=weight.device, dtype=weight.dtype, generator=generator)


def drop_weight(weight: Tensor, p: float, *, training: bool, generator: torch.Generator | None = None) -> Tensor:
    """DropConnect: each weight dropped alone, one mask for all steps of the window (Merity et al. 2018)."""
    if not training or p == 0:
        return weight
    return weight * dropout_mask(weight.shape, p, device=weight.device, dtype=weight.dtype, generator=generator)
