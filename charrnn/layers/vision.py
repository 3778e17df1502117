"""What is in a picture: a small residual network of convolutions.

Axes: B pictures, C channels, Y × X places of the grid, H pixels of a side.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 16  # channels that are normalised together
# Red, green and blue in the photographs of ImageNet, 0..1: what is subtracted, and by what is divided.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOMENTUM = 0.1  # of a batch in the running means
WIDEST_RATIO, FARTHEST_SHIFT = 3.0, 5.0  # r_max and d_max of batch renormalisation
SMALLEST = 1e-5  # is added to a variance


def group_norm(channels: int) -> nn.GroupNorm:
    """Of a picture by itself, so that it is seen in training as it is afterwards, whatever stands beside it (Wu & He 2018)."""
    groups = max(1, channels // GROUP)
    return nn.GroupNorm(groups if channels % groups == 0 else 1, channels)


class ResidualBlock(nn.Module):
    """x + f(x), f being two convolutions behind normalisation and ReLU (He et al. 2016, "pre-activation").

    Where the block makes the grid coarser or the channels more, x itself goes through a convolution of one place.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(inputs), group_norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, C', ⌈Y / stride⌉, ⌈X / stride⌉)."""
        y = F.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(y)
        added: Tensor = self.conv2(F.relu(self.norm2(self.conv1(y))))
        return kept + added


class ResidualCNN(nn.Module):
    """A stem that halves the picture, then stages of residual blocks, each of half the places and twice the channels of the one before.

    Convolutions begin as He et al. 2015 have it, and the second of each block at 0, so that a block begins as what it is added to
    (Zhang et al. 2019).
    """

    def __init__(self, width: int, stages: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1, bias=False)
        channels = [width, *(width << stage for stage in range(stages))]
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(before if block == 0 else after, after, 2 if block == 0 else 1)
                for before, after in itertools.pairwise(channels)
                for block in range(blocks)
            )
        )
        self.norm = group_norm(channels[-1])
        self.channels, self.reduction = channels[-1], 2 << stages  # of the grid, and of its sides
        if not self.stem.weight.is_meta:
            for part in self.modules():
                if isinstance(part, nn.Conv2d):
                    nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                if isinstance(part, ResidualBlock):
                    nn.init.zeros_(part.conv2.weight)

    def described(self) -> str:
        """What it is made of, for a person."""
        return f"CNN of {len(self.blocks)} residual blocks, {self.stem.out_channels} to {self.channels:,} channels"

    def side(self, pixels: int) -> int:
        """Places of a side of the grid of pictures of so many pixels a side."""
        return -(-pixels // self.reduction)

    def numbers_kept(self, pictures: torch.Size) -> int:
        """About how many numbers backward needs of pictures (B, 3, H, H): of each block five grids, and the picture."""
        count, _, side, _ = pictures
        numbers, side = 3 * side * side, -(-side // 2)
        numbers += self.stem.out_channels * side * side
        for block in self.blocks:
            assert isinstance(block, ResidualBlock)
            numbers += block.conv1.in_channels * side * side * 2
            side = -(-side // block.conv1.stride[0])
            numbers += block.conv1.out_channels * side * side * 4
        return count * numbers

    def forward(self, pictures: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """(B, 3, H, H) in 0..1 -> (B, C, Y, Y), Y = ⌈H / reduction⌉. Nothing is drawn."""
        mean, deviation = (pictures.new_tensor(numbers).view(3, 1, 1) for numbers in (MEAN, DEVIATION))
        x = ((pictures - mean) / deviation).contiguous(memory_format=torch.channels_last)  # a third faster on a CPU
        grid: Tensor = F.relu(self.norm(self.blocks(self.stem(x))))
        return grid


class Standardization(nn.Module):
    """Each channel to mean 0 and variance 1 over pictures: batch renormalisation without a scale (Ioffe 2017, algorithm 1).

    What pictures have in common is most of what a CNN says of each of them, nineteen parts of twenty as it begins: what reads the
    vector would otherwise have to learn first to do without it. Running means decide what a picture becomes, in training as
    afterwards; the gradient is that of batch normalisation. By the batch alone a picture would look another in training: captions
    of like length stand side by side, so what a batch has in common is not what all pictures have. The means are parameters that no
    loss moves, so they are stored with the weights.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.variance = nn.Parameter(torch.ones(channels), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(S, P, C) -> (S, P, C), in float32 at least."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if not self.training or x.size(1) < 2:  # one picture has no variance
            return (x - self.mean) / (self.variance + SMALLEST).sqrt()
        variance, mean = torch.var_mean(x, (0, 1), correction=0)
        with torch.no_grad():
            self.variance.lerp_(variance + (mean - self.mean).square(), MOMENTUM)
            self.mean.lerp_(mean, MOMENTUM)
            scale = (self.variance + SMALLEST).sqrt()
            ratio = ((variance + SMALLEST).sqrt() / scale).clamp(1 / WIDEST_RATIO, WIDEST_RATIO)
            shift = ((mean - self.mean) / scale).clamp(-FARTHEST_SHIFT, FARTHEST_SHIFT)
        return (x - mean) / (variance + SMALLEST).sqrt() * ratio + shift
