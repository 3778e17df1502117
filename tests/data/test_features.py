"""Features of sound: what they are, by a second computation; and that what changes them changes what it says, and nothing else."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charrnn.config import AudioConfig, AugmentConfig
from charrnn.data.features import (
    EPSILON,
    FLOOR,
    augmented,
    deltas,
    finish,
    frames,
    log_mel,
    mel_filters,
    normalised,
    statistics,
)

Array = npt.NDArray[np.float64]
SPEECH = AudioConfig(sample_rate=8000, window_length=200, hop_length=80, num_mels=40)


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(count, generator=torch.Generator().manual_seed(seed))


def plain_log_mel(samples: Array, config: AudioConfig) -> Array:
    """The same by its definition: a sum for each frame, bin and channel, and triangles added up from many narrow strips."""
    window, hop, rate = config.window_length, config.hop_length, config.sample_rate
    size = 2 ** math.ceil(math.log2(window))
    bins = size // 2 + 1
    hann = [math.sin(math.pi * n / window) ** 2 for n in range(window)]
    centred = samples - samples.sum() / len(samples)

    def mel(hertz: Array) -> Array:
        return np.asarray(2595 * np.log10(1 + hertz / 700))

    strips = 2000
    weights = np.zeros((config.num_mels, bins))
    step = mel(np.array([rate / 2]))[0] / (config.num_mels + 1)
    corners = 700 * (10 ** (step * np.arange(config.num_mels + 2) / 2595) - 1)
    for k in range(bins):
        hertz = (k - 0.5 + (np.arange(strips) + 0.5) / strips) * rate / size
        for m in range(config.num_mels):
            low, middle, high = corners[m : m + 3]
            weights[m, k] = np.interp(hertz, [low, middle, high], [0, 1, 0], left=0, right=0).mean()
    result = []
    for t in range(math.ceil(len(samples) / hop)):
        # The window's middle is the middle of the hop.
        first = t * hop + (size - window) // 2 - (size - hop) // 2
        frame = [hann[n] * (centred[first + n] if 0 <= first + n < len(samples) else 0.0) for n in range(window)]
        n = np.arange(window)
        power = np.array([abs(np.sum(frame * np.exp(-2j * np.pi * k * n / size))) ** 2 for k in range(bins)]) / sum(w * w for w in hann)
        result.append([math.log(max(FLOOR, (w @ power) / w.sum())) for w in weights])
    return np.array(result)


@pytest.mark.parametrize("count", [1, 7, 40, 41, 333])
@pytest.mark.parametrize(
    "rate, window, hop, mels", [(8000, 100, 40, 13), (8000, 64, 64, 20), (11025, 77, 25, 40), (1000, 2, 1, 1), (16000, 65, 64, 90)]
)
def test_the_log_mel_spectrogram_is_what_its_definition_says(count: int, rate: int, window: int, hop: int, mels: int) -> None:
    config = AudioConfig(sample_rate=rate, window_length=window, hop_length=hop, num_mels=mels)
    samples = noise(count) + 0.3 * torch.sin(torch.arange(count) * 0.7) + 0.05
    expected = torch.from_numpy(plain_log_mel(samples.double().numpy(), config)).float()
    # Of logarithms: where hardly any power is left, its rounding in float32 shows.
    torch.testing.assert_close(log_mel(samples, config), expected, atol=3e-4, rtol=0)


@given(st.integers(1, 3000), st.integers(2, 700), st.data())
def test_any_sound_has_a_frame_for_each_hop_begun(count: int, window: int, data: st.DataObject) -> None:
    config = AudioConfig(sample_rate=8000, window_length=window, hop_length=data.draw(st.integers(1, window)), num_mels=5)
    found = log_mel(noise(count), config)
    assert found.shape == (frames(count, config), 5) and len(found) == -(-count // config.hop_length)
    assert found.dtype == torch.float32 and found.is_contiguous() and bool(found.isfinite().all())


def test_noise_of_a_loudness_has_that_power_in_every_channel() -> None:
    found = log_mel(noise(80_000), SPEECH).double().exp().mean(0)  # (M,)
    assert found.shape == (40,) and found.min() > 0.008 and found.max() < 0.012  # 0.1 squared


def test_silence_is_the_floor_with_or_without_an_offset() -> None:
    for silence in (torch.zeros(500), torch.full((500,), 0.25), torch.ones(1)):
        torch.testing.assert_close(log_mel(silence, SPEECH), torch.full((frames(len(silence), SPEECH), 40), math.log(FLOOR)))
    sound = noise(4000)
    torch.testing.assert_close(log_mel(sound + 0.25, SPEECH), log_mel(sound, SPEECH), atol=2e-3, rtol=0)


def test_a_tone_is_in_its_channel_and_in_its_frames() -> None:
    at = torch.arange(8000) / 8000
    for hertz in (300, 1000, 3000):
        tone = 0.5 * torch.sin(2 * math.pi * hertz * at) * (at > 0.5)
        found = log_mel(tone, SPEECH)
        channel = 2595 * math.log10(1 + hertz / 700) / (2595 * math.log10(1 + 4000 / 700) / 41) - 1
        assert abs(int(found[75].argmax()) - channel) < 1
        assert bool((found[:49].amax(1) < -12).all()) and bool((found[51:].amax(1) > -1).all())


def test_no_channel_is_empty_however_many_there_are() -> None:
    for rate, size, mels in ((8000, 256, 40), (8000, 256, 512), (192_000, 64, 128), (1000, 2, 3)):
        filters = mel_filters(rate, size, mels)
        assert filters.shape == (mels, size // 2 + 1) and float(filters.min()) >= 0
        torch.testing.assert_close(filters.sum(1), torch.ones(mels))


def plain_deltas(x: list[list[float]]) -> list[list[float]]:
    def at(t: int, f: int) -> float:
        return x[min(max(t, 0), len(x) - 1)][f]

    return [[sum(k * at(t + k, f) for k in range(-2, 3)) / 10 for f in range(len(x[0]))] for t in range(len(x))]


@given(st.integers(1, 9), st.integers(1, 4))
def test_derivatives_are_slopes_of_what_lies_around(length: int, channels: int) -> None:
    x = torch.randn(length, channels, generator=torch.Generator().manual_seed(length))
    first = plain_deltas(x.tolist())
    second = plain_deltas(first)
    assert deltas(x, 0).equal(x)
    torch.testing.assert_close(deltas(x, 1), torch.cat([x, torch.tensor(first)], 1))
    torch.testing.assert_close(deltas(x, 2), torch.cat([x, torch.tensor(first), torch.tensor(second)], 1))


def test_a_straight_line_has_its_slope() -> None:
    line = 0.5 * torch.arange(20.0)[:, None]
    torch.testing.assert_close(deltas(line, 1)[2:-2, 1], torch.full((16,), 0.5))


def test_an_utterance_is_normalised_by_channel() -> None:
    x = torch.cat([5 + 3 * noise(300).view(100, 3), torch.full((100, 1), math.log(FLOOR)), 1e30 * noise(100)[:, None]], dim=1)
    found = normalised(x)
    torch.testing.assert_close(found.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(0, correction=0), torch.tensor([1.0, 1, 1, 0, 1]), atol=1e-3, rtol=0)
    assert normalised(x[:1]).equal(torch.zeros(1, 5))  # one frame says nothing of how far others lie


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.sampled_from([0.0, -23.0, 1e4]))
def test_statistics_are_those_of_all_frames_together(lengths: list[int], offset: float) -> None:
    features = [offset + 10 * noise(3 * length, seed).view(length, 3) for seed, length in enumerate(lengths)]
    mean, std = statistics(iter(features))
    whole = torch.cat(features).double()
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, whole.mean(0).float())
    torch.testing.assert_close(std, whole.std(0, correction=0).clamp(min=EPSILON).float())


def test_a_channel_that_never_changes_can_be_divided_by_its_deviation() -> None:
    mean, std = statistics([torch.full((4, 2), 7.0)] * 3)
    assert mean.tolist() == [7, 7] and bool((std > 0).all())


def test_what_a_model_reads_has_derivatives_and_is_normalised_as_it_is_set() -> None:
    x = 3 + noise(400).view(100, 4)
    assert finish(x, AudioConfig(normalization="none")).equal(x)
    assert finish(x, AudioConfig(normalization="global", deltas=1)).equal(deltas(x, 1))
    assert finish(x, AudioConfig(deltas=2)).equal(normalised(deltas(x, 2)))


def again(x: torch.Tensor, seed: int = 1, /, **settings: float) -> torch.Tensor:
    return augmented(x, AugmentConfig.model_validate(settings), torch.Generator().manual_seed(seed))


ALL = {"time_masks": 2, "time_width": 9, "mel_masks": 1, "mel_width": 3, "speed": 0.2, "warp": 0.1, "noise": 0.1}


def test_without_settings_nothing_is_changed() -> None:
    x = noise(200).view(20, 10)
    assert again(x) is x


@given(st.integers(1, 40), st.integers(1, 12), st.sets(st.sampled_from(["time_masks", "mel_masks", "speed", "warp", "noise"]), min_size=1))
def test_a_change_follows_from_its_seed_alone(length: int, channels: int, names: set[str]) -> None:
    x = noise(length * channels).view(length, channels)
    before, others = x.clone(), torch.get_rng_state()
    settings = {name: value for name, value in ALL.items() if name in names or name.endswith("_width")}
    found = again(x, **settings)
    assert found.equal(again(x, **settings))
    assert x.equal(before) and torch.get_rng_state().equal(others)
    assert found.size(1) == channels and found.dtype == torch.float32 and bool(found.isfinite().all())


def test_other_seeds_give_other_utterances() -> None:
    x = noise(1000).view(100, 10)
    found = [again(x, seed, **ALL) for seed in range(10)]
    assert len({(len(y), float(y.sum())) for y in found}) == 10


def test_speed_makes_it_longer_or_shorter_and_no_different() -> None:
    x = torch.linspace(0, 1, 200)[:, None] * torch.tensor([1.0, -2.0])  # a line stays a line
    lengths = set()
    for seed in range(40):
        y = again(x, seed, speed=0.25)
        lengths.add(len(y))
        expected = torch.linspace(0, 1, len(y))[:, None] * torch.tensor([1.0, -2.0])
        torch.testing.assert_close(y, expected, atol=0.01, rtol=0)
    assert min(lengths) < 180 and max(lengths) > 220 and all(200 / 1.25 <= n <= 200 / 0.75 + 1 for n in lengths)


def test_warp_moves_channels_and_keeps_frames() -> None:
    x = torch.exp(-((torch.arange(40.0) - 20).square()) / 8).expand(30, 40)
    peaks = {int(again(x, seed, warp=0.1)[0].argmax()) for seed in range(40)}
    assert min(peaks) in (18, 19) and max(peaks) in (22, 23) and 20 in peaks  # 21 / 1.1 - 1 to 21 / 0.9 - 1
    assert again(x, 3, warp=0.1).shape == x.shape
    flat = torch.ones(5, 8)
    torch.testing.assert_close(again(flat, warp=0.5), flat)


def test_masks_hold_the_mean_and_no_more_frames_than_they_may() -> None:
    x = noise(4000).view(100, 40)
    widths = set()
    for seed in range(60):
        changed = (again(x, seed, time_masks=1, time_width=7) != x).all(1)
        widths.add(int(changed.sum()))
        bands = (again(x, seed, mel_masks=1, mel_width=5) != x).all(0)
        assert int(bands.sum()) <= 5
        torch.testing.assert_close(again(x, seed, time_masks=1, time_width=7)[changed], x.mean(0).expand(int(changed.sum()), -1))
        torch.testing.assert_close(again(x, seed, mel_masks=1, mel_width=5)[:, bands], x.mean(0)[bands].expand(100, -1))
    assert widths == set(range(8))
    short = noise(400).view(10, 40)
    assert max(int((again(short, seed, time_masks=1, time_width=50) != short).all(1).sum()) for seed in range(40)) == 2  # a fifth


def test_noise_is_as_loud_as_it_is_set_by_channel() -> None:
    x = torch.cat([noise(5000)[:, None], 30 * noise(5000, 1)[:, None], torch.full((5000, 1), 4.0)], dim=1)
    added = again(x, noise=0.5) - x
    torch.testing.assert_close(added.std(0) / x.std(0).clamp(min=1e-9), torch.tensor([0.5, 0.5, 0]), atol=0.03, rtol=0)


def test_masks_are_of_what_was_warped_and_noise_is_on_them() -> None:
    x = noise(4000).view(100, 40)
    warped, masked = again(x, 5, speed=0.1), again(x, 5, speed=0.1, time_masks=3)
    noisy = again(x, 5, speed=0.1, time_masks=3, noise=0.1)
    hidden = (masked != warped).all(1)
    assert len(warped) != 100 and hidden.any()
    torch.testing.assert_close(masked[hidden], warped.mean(0).expand(int(hidden.sum()), -1))
    assert bool((noisy != masked).all())
    torch.testing.assert_close((noisy - masked).std() / warped.std(), torch.tensor(0.1), atol=0.01, rtol=0)


def test_what_lies_far_below_the_loudest_is_raised() -> None:
    """Ten decibels are a factor of 10 in power; a louder recording with deeper silences is then no other utterance."""
    x = torch.tensor([[0.0, -2.0], [-30.0, -1.0], [-9.0, -11.6]])
    config = AudioConfig(top_db=50, normalization="none")
    lowest = -50 * math.log(10) / 10
    torch.testing.assert_close(finish(x, config), torch.tensor([[0.0, -2.0], [lowest, -1.0], [-9.0, lowest]]))
    deeper = torch.where(x < lowest, x - 20, x) + 8
    for normalization in ("none", "utterance"):
        both = AudioConfig(top_db=50, normalization=normalization, deltas=1)
        torch.testing.assert_close(finish(deeper, both), finish(x, both))
        uncut = both.model_copy(update={"top_db": None})
        assert not torch.allclose(finish(deeper, uncut), finish(x, uncut))


def test_one_deviation_for_all_channels_keeps_a_quiet_one_quiet() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([5.0, 1.0, 0.01]) + torch.tensor([1.0, -7.0, 2.0])
    found = finish(x, AudioConfig(normalization="mean", num_mels=3))
    torch.testing.assert_close(found.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    assert float(found.square().mean()) == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(found.std(0) / found.std(0)[0], x.std(0) / x.std(0)[0])
    with_slopes = finish(x, AudioConfig(normalization="mean", num_mels=3, deltas=1))
    torch.testing.assert_close(with_slopes[:, :3], found)
    assert float(with_slopes[:, 3:].square().mean()) == pytest.approx(1.0, abs=1e-3)  # slopes are small, and yet as loud


def test_an_equalizer_colours_the_channels_alike_in_every_frame() -> None:
    x, config = torch.zeros(7, 40), AugmentConfig(equalizer=6)
    curves = torch.stack([augmented(x, config, torch.Generator().manual_seed(seed)) for seed in range(400)])  # (N, T, M)
    assert torch.equal(curves[:, 0], curves[:, 6]) and not torch.equal(curves[0], curves[1])
    # Four waves, each with a mean square of a half over the channels.
    deviation = float(curves[:, 0].square().mean().sqrt()) * 10 / math.log(10)
    assert deviation == pytest.approx(6 * math.sqrt(4 / 2), rel=0.1)
    assert float(curves[:, 0].diff(dim=1).abs().max()) < 0.25 * float(curves.abs().max())
