"""The pyramid: recurrent layers that read several steps of the layer below as one, so that time grows shorter from layer to layer.

Axes: T time of the input, S time of the outputs, B batch, I input_size, H hidden_size, D directions, r reduction.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.layers.dropout import dropout
from charrnn.layers.recurrent import RecurrentStack


def merge_steps(x: Tensor, reduction: int) -> Tensor:
    """(T, B, H) -> (⌈T / r⌉, B, r·H): r neighbours as one, the earliest first; zeros behind the last where T is no multiple of r."""
    steps = -(-x.size(0) // reduction)
    x = F.pad(x, (0, 0, 0, 0, 0, steps * reduction - x.size(0)))
    return x.reshape(steps, reduction, *x.shape[1:]).transpose(1, 2).flatten(2)


def merged_lengths(lengths: Tensor, reduction: int) -> Tensor:
    """(B,) -> (B,): how many steps are left of so many; a last one that is not full is one."""
    return (lengths + reduction - 1) // reduction


class PyramidalEncoder(nn.Module):
    """Listen (Chan et al. 2016, 3.1): h_t^(i) = f(h_{t-1}^(i), [h_{2t}^(i-1) ; h_{2t+1}^(i-1)]), and from the end likewise.

    `num_layers` layers read every step; above them `levels` layers read `reduction` steps of the layer below as one. Attention
    over T / rˡ steps has that much less to choose from, and each layer that much less to do. A last group that is not full is
    filled with zeros, as in a batch every sequence is behind its end: how long the others are changes nothing.

    Parameters are those of RecurrentStack: `stacks.0` has the plain layers, `stacks.1` … one layer each.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        levels: int = 3,
        reduction: int = 2,
        bidirectional: bool = True,
        layer_norm: bool = False,
        residual: bool = False,
        between_layers: float = 0.0,
        locked: bool = False,
        weight_hh: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.levels, self.reduction, self.between_layers, self.locked = levels, reduction, between_layers, locked
        output_size = hidden_size * (2 if bidirectional else 1)

        def stack(inputs: int, layers: int) -> RecurrentStack:
            return RecurrentStack(
                cell, inputs, hidden_size, layers, bidirectional=bidirectional, layer_norm=layer_norm, residual=residual,
                between_layers=between_layers, locked=locked, weight_hh=weight_hh, backend=backend,
            )  # fmt: skip

        self.stacks = nn.ModuleList([stack(input_size, num_layers), *(stack(reduction * output_size, 1) for _ in range(levels))])
        self.output_size = output_size

    def forward(self, x: Tensor, lengths: Tensor | None, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """x (T, B, I), lengths (B,) or None where all are T -> outputs (S, B, D·H) and their lengths, S = ⌈… ⌈T / r⌉ … / r⌉.

        What the outputs hold beyond a sequence's length means nothing.
        """
        for level, stack in enumerate(self.stacks):
            if level:
                x = dropout(x, self.between_layers, locked=self.locked, training=self.training, generator=generator)
                if lengths is not None:
                    x = x.masked_fill(~within(lengths, x.size(0)).unsqueeze(-1), 0)
                    lengths = merged_lengths(lengths, self.reduction)
                x = merge_steps(x, self.reduction)
            x, _ = stack(x, None, lengths=lengths, final_state=False, generator=generator)
        return x, lengths


def within(lengths: Tensor, steps: int) -> Tensor:
    """(B,) -> (T, B) bool: whether a step lies within its sequence."""
    return torch.arange(steps, device=lengths.device).unsqueeze(-1) < lengths
