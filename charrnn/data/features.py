"""Sound as frames of features: the log-mel spectrogram, what is made of it for a model, and what changes it while a model learns.

Axes: N samples, T frames, M mel channels, K frequency bins, F features of a frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from charrnn.config import AudioConfig, AugmentConfig

FLOOR = 1e-10  # power: about that of 16 bits' rounding, so digital silence is no further from speech than a quiet room is
EPSILON = 1e-5  # standard deviation: what a channel that never changes is divided by
REACH = 2  # frames to each side that a derivative is taken over
WAVES = 4  # of an equalizer's curve, the slowest half a wave over all channels
MASKED = 0.2  # of an utterance at most under one time mask: the p of SpecAugment, else a short word would vanish whole


def frames(samples: int, config: AudioConfig) -> int:
    """How many frames so many samples become: one for each hop begun, so at least one."""
    return math.ceil(samples / config.hop_length)


def log_mel(samples: Tensor, config: AudioConfig) -> Tensor:
    """(N,) float32 in -1..1 at `config.sample_rate`, N ≥ 1 -> (T, M) float32: the natural logarithm of each mel channel's mean power.

    T is ceil(N / hop_length): frame t is a Hann window around the middle of hop t, and outside of the samples there is silence. Their mean
    is taken off first, for the constant that cheap converters add is no sound. White noise of variance σ² has power σ² in every channel,
    whatever the window; power below FLOOR is FLOOR.
    """
    window, hop = config.window_length, config.hop_length
    size = 1 << (window - 1).bit_length()
    count = frames(samples.numel(), config)
    left = (size - hop) // 2  # torch puts the window in the middle of `size` samples
    right = (count - 1) * hop + size - left - samples.numel()
    padded = F.pad(samples - samples.mean(), (left, right))  # ((T - 1) * hop + size,)
    hann = torch.hann_window(window)  # (window,)
    spectrum = torch.stft(padded, size, hop, window, hann, center=False, return_complex=True)  # (K, T)
    power = (spectrum.real.square() + spectrum.imag.square()) / hann.square().sum()  # (K, T)
    return (mel_filters(config.sample_rate, size, config.num_mels) @ power).clamp(min=FLOOR).log().T.contiguous()  # (T, M)


@lru_cache(maxsize=16)
def mel_filters(sample_rate: int, size: int, num_mels: int) -> Tensor:
    """(M, K): what each bin of a transform of `size` samples counts in each channel; a channel's weights sum to 1.

    Triangles between points at equal distances on the mel scale of HTK, 2595 log10(1 + f / 700), from 0 Hz to half the sample rate.
    A bin has the mean of the triangle over its width, and not the triangle's height in its middle: then no channel is empty, however
    many there are. That mean is the difference of the triangle's antiderivative at the bin's two edges.
    """
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    points = 700 * (10 ** (torch.linspace(0, top, num_mels + 2, dtype=torch.float64) / 2595) - 1)  # (M + 2,) Hz
    low, middle, high = (points[i : i + num_mels, None] for i in range(3))  # (M, 1) each
    edges = (torch.arange(size // 2 + 2, dtype=torch.float64) - 0.5) * (sample_rate / size)  # (K + 1,) Hz
    rise = edges.clamp(low, middle) - low  # (M, K + 1)
    fall = high - edges.clamp(middle, high)  # (M, K + 1)
    area = rise.square() / (middle - low) - fall.square() / (high - middle)  # (M, K + 1): twice the antiderivative, but for a constant
    weights = area.diff()  # (M, K)
    return (weights / weights.sum(1, keepdim=True)).float()


def deltas(x: Tensor, order: int) -> Tensor:
    """(T, F) -> (T, F · (1 + order)): with the derivatives over time up to `order` behind them, each taken of the one before.

    The slope of the straight line fitted to REACH frames on both sides (Furui 1986; the formula of the HTK book), the first and the
    last frame standing for those beyond them.
    """
    parts = [x]
    for _ in range(order):
        held = torch.cat([parts[-1][:1].expand(REACH, -1), parts[-1], parts[-1][-1:].expand(REACH, -1)])  # (T + 2 · REACH, F)
        ahead = [held[REACH + k : held.size(0) - REACH + k] - held[REACH - k : held.size(0) - REACH - k] for k in range(1, REACH + 1)]
        total = sum((k * difference for k, difference in enumerate(ahead, start=1)), torch.zeros_like(x))  # (T, F)
        parts.append(total / (2 * sum(k * k for k in range(1, REACH + 1))))
    return torch.cat(parts, dim=1)


def normalised(x: Tensor, *, together: int = 1) -> Tensor:
    """(T, F) -> (T, F): each channel with mean 0 and standard deviation 1 over the utterance; zeros where it never changes.

    `together`: so many neighbours have one deviation, so that a channel in which nothing is said stays quiet. It divides F; with all
    channels of one order of derivatives, that order is no louder than another.
    """
    wide = x.double()  # (T, F): in float32 the mean of equal numbers is not quite that number
    std, mean = torch.std_mean(wide, dim=0, correction=0)  # (F,) each
    std = std.square().view(-1, together).mean(1).sqrt().repeat_interleave(together)  # (F,)
    return ((wide - mean) / (std + EPSILON)).to(x.dtype)


def statistics(features: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over the frames of all utterances, (F,) float32 each; the latter at least EPSILON.

    One utterance is looked at a time. Expects at least one frame, and in each as many channels.
    """
    count = 0
    mean = squares = torch.zeros((), dtype=torch.float64)  # (F,) each, after the first; squares of the distances from the mean
    for x in features:
        wide = x.double()  # (T, F)
        own = wide.mean(0)  # (F,)
        # Merged by the distance of the means (Chan, Golub & LeVeque 1979): sums of squares themselves would lose what they differ by.
        total = count + len(wide)
        squares = squares + (wide - own).square().sum(0) + (own - mean).square() * (count * len(wide) / total)
        mean = mean + (own - mean) * (len(wide) / total)
        count = total
    assert count, "statistics of no frames"
    return mean.float(), (squares / count).sqrt().clamp(min=EPSILON).float()


def finish(x: Tensor, config: AudioConfig) -> Tensor:
    """(T, M) -> (T, F), what a model reads: its silences cut, with its derivatives, and normalised if that is by utterance."""
    if config.top_db is not None:  # how loud it is, and how deep its silences, tells of the microphone, and not of what is said
        x = (x - x.max()).clamp(min=-config.top_db * math.log(10) / 10)
    x = deltas(x, config.deltas)
    together = {"utterance": 1, "mean": config.num_mels}.get(config.normalization)
    return normalised(x, together=together) if together else x


def augmented(x: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """(T, M) -> (T', M): other features that say the same, each time other ones; x itself where the settings are all 0.

    Before `finish`. In this order: faster or slower, the channels read at other frequencies (the factor is one of the mel scale, on
    which channels lie at equal distances), louder here and softer there (`equalizer`), masks, noise. A mask holds the utterance's mean,
    which is 0 once it is normalised.
    """
    if config.speed:
        length = max(1, round(len(x) / _factor(config.speed, generator)))
        x = _read_at(x, (torch.arange(length, dtype=torch.float64) + 0.5) * (len(x) / length) - 0.5)
    if config.warp:
        x = _read_at(x.T, torch.arange(1, x.size(1) + 1, dtype=torch.float64) * _factor(config.warp, generator) - 1).T
    if config.equalizer:
        x = x + _curve(x.size(1), config.equalizer, generator)
    if not (config.time_masks or config.mel_masks or config.noise):
        return x
    std, mean = torch.std_mean(x, dim=0, correction=0)  # (M,) each
    x = x.clone()
    for _ in range(config.time_masks):
        start, stop = _mask(len(x), min(config.time_width, int(MASKED * len(x))), generator)
        x[start:stop] = mean
    for _ in range(config.mel_masks):
        start, stop = _mask(x.size(1), config.mel_width, generator)
        x[:, start:stop] = mean[start:stop]
    if config.noise:
        x += config.noise * std * torch.randn(x.shape, generator=generator)
    return x


def _curve(channels: int, decibels: float, generator: torch.Generator) -> Tensor:
    """(M,) in nats of power: how another microphone, or another throat, would colour the channels; smooth, a sum of slow cosines."""
    waves = torch.arange(1, WAVES + 1, dtype=torch.float64).unsqueeze(-1)  # (WAVES, 1)
    places = (torch.arange(channels, dtype=torch.float64) + 0.5) / channels  # (M,)
    heights = torch.randn(WAVES, 1, dtype=torch.float64, generator=generator) * decibels * math.log(10) / 10
    return (heights * torch.cos(math.pi * waves * places)).sum(0).float()


def _factor(most: float, generator: torch.Generator) -> float:
    return 1 + most * (2 * torch.rand((), dtype=torch.float64, generator=generator).item() - 1)


def _read_at(x: Tensor, positions: Tensor) -> Tensor:
    """(L, C), (P,) float64 -> (P, C): on the straight line between the two rows that a position lies between, the ends held."""
    positions = positions.clamp(0, len(x) - 1)
    below = positions.long()  # (P,)
    share = (positions - below).to(x.dtype)[:, None]  # (P, 1)
    return torch.lerp(x[below], x[(below + 1).clamp(max=len(x) - 1)], share)


def _mask(length: int, most: int, generator: torch.Generator) -> tuple[int, int]:
    width = int(torch.randint(min(most, length) + 1, (), generator=generator))
    start = int(torch.randint(length - width + 1, (), generator=generator))
    return start, start + width
