"""Recordings, and features that others have made of them, as pieces that a model can read at once. A file is never held whole.

Axes: N samples, C channels of a recording, T frames, F features of a frame.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charrnn.config import AudioConfig
from charrnn.data.arrays import ARRAY, mapped
from charrnn.data.features import log_mel
from charrnn.data.files import why_unreadable
from charrnn.errors import DataError, UserError, short

RECORDING = "a recording"  # what a path leads to
BLOCK = 1 << 14  # samples, of all channels together, that are decoded at a time
RATES = (1000, 1_000_000)  # Hz; a header that says otherwise is damaged, and would ask for any amount of memory
LOUDEST = 1e12  # of a sample: full scale is 1, and whole numbers are written as floats by mistake; the square of more overflows
WIDEST = 1 << 14  # features of a frame
CUT_FROM = 2 / 3  # of the longest piece: where the search for a quiet place begins
QUIET = 0.1  # seconds that are quiet together
UNKNOWN = 1 << 62  # frames: what a file has whose header does not say how many
MISCOUNTED = 0.01  # seconds: of so little it is the header that is wrong, as where it counts itself
UNSAID = 0x7FFF0000  # bytes: from here on, what a header holds that was written before anyone knew how long the recording would be
# How libsndfile notes that the samples of a WAV, AIFF or AU are fewer bytes than their header says.
FEWER = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)

Samples = npt.NDArray[np.float32]


class Piece(NamedTuple):
    """A stretch of a recording, from `start` to `stop` in seconds."""

    features: Tensor  # (T, F) float32, before `finish`
    start: float
    stop: float


def require_audio(what: str) -> None:
    """Raises UserError where what reads recordings is not installed. To be asked before work begins."""
    try:
        import soundfile  # noqa: F401
        import soxr  # noqa: F401
    except ImportError:
        raise UserError(f"{what}: needs soundfile and soxr, which are not installed; pip install 'charrnn[audio]'") from None


def pieces(path: Path, config: AudioConfig) -> Generator[Piece, None, None]:
    """A recording as log-mel features, or ready ones as they are, in pieces of at most `max_seconds`.

    A recording is WAV, FLAC, OGG or whatever libsndfile reads, of any rate, its channels averaged. It is cut where it is quietest in the
    last third of what a piece may hold; ready features are cut at that length. Memory is that of a few pieces, whatever the file's
    length. Raises DataError naming the file where it cannot be used, also after some pieces where it is damaged further on.
    """
    if is_ready(path):
        yield from _ready(path, config)
        return
    require_audio(str(path))
    rate = config.sample_rate
    limit = max(1, int(config.max_seconds * rate))
    start = 0
    held, size = list[Samples](), 0
    for block in _resampled(path, rate):
        held.append(block)
        size += len(block)
        if size <= limit:
            continue
        samples = np.concatenate(held)
        while len(samples) > limit:
            cut = _quietest(samples, int(CUT_FROM * limit), limit, int(QUIET * rate))
            yield _piece(samples[:cut], start, config)
            start += cut
            samples = samples[cut:]
        held, size = [samples], len(samples)
    yield _piece(np.concatenate(held), start, config)


def utterance(path: Path, config: AudioConfig) -> Tensor:
    """(T, F) float32, before `finish`: a whole recording, or ready features.

    Raises DataError also where it is above `max_seconds`, or breaks off: what was said behind that stands in its transcript.
    """
    if fact := shortfall(path):
        raise DataError(f"{path}: {fact}; expected a whole recording, so fetch it again, or cut it there and its transcript too")
    found = pieces(path, config)
    first = next(found)
    is_whole = next(found, None) is None
    found.close()
    if is_whole:
        return first.features
    seconds = math.ceil(100 * duration(path, config)) / 100  # rounded up, so that it does not read like what is allowed
    length = f"{seconds:,.2f} seconds long; expected at most {config.max_seconds:g}"
    raise DataError(f"{path}: {length}, which is data.audio.max_seconds, so cut the recording or raise that")


def duration(path: Path, config: AudioConfig) -> float:
    """Seconds, as the file's header says: nothing is decoded where it says so. Raises DataError naming the file."""
    if is_ready(path):
        return len(_mapped(path)) * config.hop_length / config.sample_rate
    require_audio(str(path))
    with _opened(path) as file:
        frames, rate = int(file.frames), int(file.samplerate)
    if frames >= UNKNOWN:
        frames = sum(len(block) for block, _ in _blocks(path))
    return frames / rate


def shortfall(path: Path) -> str | None:
    """What there is to say of a WAV, AIFF or AU that holds less than its header says; None of all else.

    Raises DataError naming the file.
    """
    if is_ready(path):
        return None
    require_audio(str(path))
    with _opened(path) as file:
        said, seconds = FEWER.search(file.extra_info), file.frames / file.samplerate
    if said is None:
        return None
    promised, there = map(int, said.groups())
    whole = seconds * promised / max(1, there)
    if promised >= UNSAID or whole - seconds < MISCOUNTED:
        return None
    return f"breaks off: {seconds:,.2f} of {whole:,.2f} seconds, as its header has it, are there"


def is_ready(path: Path) -> bool:
    """Whether a file holds features, and not sound, by its name."""
    return path.suffix.lower() == ARRAY


def _piece(samples: Samples, start: int, config: AudioConfig) -> Piece:
    stop = start + len(samples)
    return Piece(log_mel(torch.from_numpy(samples), config), start / config.sample_rate, stop / config.sample_rate)


def _quietest(samples: Samples, start: int, stop: int, width: int) -> int:
    """The middle of those `width` samples, within a stretch, whose energy is lowest; at least 1."""
    width = max(1, min(width, (stop - start) // 2))
    energy = np.cumsum(np.square(samples[start:stop], dtype=np.float64))  # (stop - start,)
    before = np.concatenate([[0.0], energy[:-width]])
    return max(1, start + int(np.argmin(energy[width - 1 :] - before)) + width // 2)


def _resampled(path: Path, rate: int) -> Iterator[Samples]:
    """The samples of a recording, in pieces, at the rate asked for; at least one sample. Raises DataError."""
    import soxr

    stream = None
    any_came = False
    for block, own_rate in _blocks(path):
        if own_rate == rate:
            yield block
            continue
        stream = stream or soxr.ResampleStream(own_rate, rate, 1, dtype="float32")
        if len(resampled := stream.resample_chunk(block)):
            any_came = True
            yield resampled
    if stream is not None:
        last = stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
        # A click shorter than one sample at the new rate leaves nothing behind, and is still a recording.
        yield last if len(last) or any_came else np.zeros(1, dtype=np.float32)


def _blocks(path: Path) -> Iterator[tuple[Samples, int]]:
    """(N,) each, with their rate: the samples of a recording, its channels averaged. Raises DataError where there are none to use."""
    import soundfile

    at = 0
    with _opened(path) as file:
        count = max(1, BLOCK // file.channels)
        while True:
            try:
                block = file.read(count, dtype="float32", always_2d=True)  # (N, C)
            except soundfile.SoundFileError as error:
                where = f"breaks off at {at / file.samplerate:.2f} seconds or soon after ({_said(error)})"
                raise DataError(f"{path}: {where}; expected a whole recording, so fetch it again or cut it there") from None
            if not len(block):
                break
            sound = np.abs(block) < LOUDEST  # (N, C); false where it is NaN
            if not sound.all():
                frame, channel = np.argwhere(~sound)[0]
                where = f"a sample at {(at + frame) / file.samplerate:.4f} seconds is {block[frame, channel]:g}"
                raise DataError(f"{path}: {where}; expected numbers in -1 to 1, so write the recording again")
            yield block.mean(axis=1), file.samplerate
            at += len(block)
    if at == 0:
        raise DataError(f"{path}: holds no samples; expected a recording with some sound in it")


def _opened(path: Path) -> Any:
    """A `soundfile.SoundFile`, to be closed. Raises DataError where the file is none."""
    import soundfile

    if reason := why_unreadable(path, RECORDING):
        raise DataError(f"{path}: {reason}")
    expected = "expected a recording, as WAV, FLAC or OGG"
    if path.suffix.lower() == ".raw":  # which soundfile would want to be told the rate of
        raise DataError(f"{path}: samples without a header, by its name; {expected}")
    try:
        file = soundfile.SoundFile(path)
    except soundfile.SoundFileError as error:
        raise DataError(f"{path}: not audio that can be read ({_said(error)}); {expected}, or features as {ARRAY}") from None
    if not RATES[0] <= file.samplerate <= RATES[1]:
        file.close()
        raise DataError(f"{path}: {file.samplerate:,} samples a second, by its header; expected {RATES[0]:,} to {RATES[1]:,}")
    # After each read soundfile would seek to where it already is, which fails at the end of a stream that was written without its length.
    file.seekable = lambda: False
    return file


def _said(error: Exception) -> str:
    """What libsndfile said, without the path and the full stop."""
    return short(str(getattr(error, "error_string", error)).strip().rstrip("."))[1:-1]


def _ready(path: Path, config: AudioConfig) -> Iterator[Piece]:
    features = _mapped(path)  # (T, F)
    seconds = config.hop_length / config.sample_rate
    limit = max(1, int(config.max_seconds / seconds))
    for start in range(0, len(features), limit):
        with np.errstate(over="ignore"):
            some = features[start : start + limit].astype(np.float32)  # (T, F)
        finite = np.isfinite(some)
        if not finite.all():
            frame, channel = np.argwhere(~finite)[0]
            where = f"frame {start + frame}, feature {channel}: {features[start + frame, channel]:g}"
            raise DataError(f"{path}: {where} is no number of 32 bits; expected finite features, so make them again")
        yield Piece(torch.from_numpy(some), start * seconds, (start + len(some)) * seconds)


def _mapped(path: Path) -> npt.NDArray[np.floating[Any]]:
    """(T, F), on disk still. Raises DataError."""
    expected = "expected features as (frames, features), in floats"
    features = mapped(path, RECORDING, expected)
    if features.ndim != 2:
        raise DataError(f"{path}: shape {features.shape}; {expected}")
    if not features.size:
        raise DataError(f"{path}: no {'features' if len(features) else 'frames'}, shape {features.shape}; {expected}")
    if features.shape[1] > WIDEST:
        raise DataError(f"{path}: {features.shape[1]:,} features a frame; expected at most {WIDEST:,}, so turn them round if T is last")
    return features
