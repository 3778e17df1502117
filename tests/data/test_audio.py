"""Recordings in pieces: of any format, rate and length; and what cannot be read is named on one line."""

from __future__ import annotations

import builtins
import math
import os
import re
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from charrnn.config import AudioConfig
from charrnn.data.audio import Piece, duration, pieces, require_audio, shortfall, utterance
from charrnn.data.features import log_mel
from charrnn.errors import DataError, UserError

Samples = npt.NDArray[np.float32]


def settings(**audio: Any) -> AudioConfig:
    return AudioConfig.model_validate({"sample_rate": 8000, "window_length": 200, "hop_length": 80, "num_mels": 20} | audio)


def tones(seconds: float, rate: int = 8000) -> Samples:
    at = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * 440 * at) + 0.2 * np.sin(2 * np.pi * 1500 * at) * np.sin(2 * np.pi * 3 * at)).astype(np.float32)


def noise(count: int) -> Samples:
    return (0.1 * np.random.default_rng(count).standard_normal(count)).astype(np.float32)


def written(path: Path, samples: npt.NDArray[Any], rate: int = 8000, subtype: str | None = None) -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def refused(work: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read(path: Path, **audio: Any) -> list[Piece]:
    return list(pieces(path, settings(**audio)))


@pytest.mark.parametrize(
    "name, subtype, tolerance",
    [("a.wav", "PCM_16", 0.01), ("a.wav", "PCM_24", 0.01), ("a.wav", "FLOAT", 1e-4), ("a.WAV", "DOUBLE", 1e-4), ("a.flac", "PCM_16", 0.01),
     ("a.aiff", "PCM_16", 0.01), ("a.ogg", "VORBIS", 1.0), ("a.wav", "PCM_U8", 0.5), ("a.wav", "ULAW", 1.5)],
)  # fmt: skip
def test_every_format_says_the_same(tmp_path: Path, name: str, subtype: str, tolerance: float) -> None:
    samples = tones(0.5) + noise(4000)
    [piece] = read(written(tmp_path / name, samples, subtype=subtype))
    expected = log_mel(torch.from_numpy(samples), settings())
    assert piece.features.shape == (50, 20) and (piece.start, piece.stop) == (0, 0.5)
    assert float((piece.features - expected).abs().max()) < tolerance


@pytest.mark.parametrize("rate", [1000, 11025, 16_000, 44_100, 48_000, 96_000, 192_000])
def test_every_rate_is_resampled(tmp_path: Path, rate: int) -> None:
    hertz = 440 if rate > 1000 else 300
    path = written(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * hertz * np.arange(2 * rate) / rate), rate, "FLOAT")
    [piece] = read(path)
    expected = log_mel(torch.from_numpy(0.5 * np.sin(2 * np.pi * hertz * np.arange(16_000) / 8000)).float(), settings())
    assert piece.features.shape == expected.shape and piece.stop == duration(path, settings()) == 2
    loud = expected > -8
    assert float((piece.features - expected)[5:-5][loud[5:-5]].abs().max()) < 0.05


def test_resampled_in_blocks_it_is_the_same_as_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.wav", noise(44_100), 44_100, "FLOAT")
    [whole] = read(path)
    monkeypatch.setattr("charrnn.data.audio.BLOCK", 1000)
    [piece] = read(path)
    torch.testing.assert_close(piece.features, whole.features, atol=1e-3, rtol=0)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tones(0.3), noise(2400)
    [piece] = read(written(tmp_path / "a.wav", np.stack([left, right], axis=1), subtype="FLOAT"))
    torch.testing.assert_close(piece.features, log_mel(torch.from_numpy((left + right) / 2), settings()), atol=1e-4, rtol=0)
    [piece] = read(written(tmp_path / "a.wav", np.stack([right] * 12, axis=1), subtype="FLOAT"))
    torch.testing.assert_close(piece.features, log_mel(torch.from_numpy(right), settings()), atol=1e-3, rtol=0)


@pytest.mark.parametrize("rate", [1000, 8000, 44_100, 96_000])
@pytest.mark.parametrize("count", [1, 2, 11])
def test_a_click_is_a_recording(tmp_path: Path, rate: int, count: int) -> None:
    [piece] = read(written(tmp_path / "a.wav", np.full(count, 0.5), rate))
    assert len(piece.features) >= 1 and bool(piece.features.isfinite().all())


@given(st.integers(1, 30_000), st.floats(0.1, 1.5), st.integers(1, 20_000))
def test_pieces_are_the_whole_and_none_is_too_long(tmp_path_factory: Any, count: int, longest: float, block: int) -> None:
    path = tmp_path_factory.mktemp("audio") / "a.wav"
    config = settings(max_seconds=longest)
    samples = noise(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("charrnn.data.audio.BLOCK", block)
        found = list(pieces(written(path, samples, subtype="FLOAT"), config))
    edges = [round(8000 * second) for piece in found for second in piece[1:]]
    assert edges[0] == 0 and edges[-1] == count and edges[1:-1:2] == edges[2::2]
    for piece, start, stop in zip(found, edges[::2], edges[1::2]):
        assert 0 < stop - start <= max(1, int(config.max_seconds * 8000))
        torch.testing.assert_close(piece.features, log_mel(torch.from_numpy(samples[start:stop]), config), atol=1e-3, rtol=0)


def test_it_is_cut_where_it_is_quietest(tmp_path: Path) -> None:
    samples = tones(9.0)
    for pause in (0.9, 2.6, 5.0, 7.5):  # the first is too early in its piece
        samples[round(8000 * pause) :][: round(8000 * 0.15)] *= 0.01
    found = read(written(tmp_path / "a.wav", samples), max_seconds=3)
    assert [round(piece.stop, 3) for piece in found[:-1]] == pytest.approx([2.675, 5.075, 7.575], abs=0.05)
    assert found[-1].stop == 9


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with soundfile.SoundFile(path, "w", 8000, 1, subtype="PCM_U8") as file:
        for _ in range(30):
            file.write(noise(8000 * 60))
    assert duration(path, settings()) == 1800
    tracemalloc.start()
    try:
        found = [piece.stop for piece in pieces(path, settings(max_seconds=5))]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found[-1] == 1800 and peak < 4e6  # its samples are 57.6 MB; those of a piece, twice in float32 and once in float64, 0.6


def test_a_recording_is_an_utterance_if_it_is_short_enough(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", tones(2.0))
    assert utterance(path, settings(max_seconds=2)).equal(read(path)[0].features)
    message = "2.00 seconds long; expected at most 1.9, which is data.audio.max_seconds, so cut the recording or raise that"
    assert refused(lambda: utterance(path, settings(max_seconds=1.9))) == f"{path}: {message}"
    written(path, tones(2.0)[:-1])
    assert "2.00 seconds long; expected at most 1.9998, " in refused(lambda: utterance(path, settings(max_seconds=1.9998)))
    np.save(tmp_path / "a.npy", np.zeros((300, 7)))
    assert utterance(tmp_path / "a.npy", settings(max_seconds=3)).shape == (300, 7)
    assert refused(lambda: utterance(tmp_path / "a.npy", settings(max_seconds=2))).startswith(f"{tmp_path / 'a.npy'}: 3.00 seconds long; ")


def test_a_header_without_a_length_does_no_harm(tmp_path: Path) -> None:
    path = written(tmp_path / "a.flac", tones(3.75))
    whole = read(path, max_seconds=2)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the samples in all, 36 bits: 0 says that the writer did not know
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert [piece[1:] for piece in read(path, max_seconds=2)] == [piece[1:] for piece in whole]
    assert duration(path, settings()) == 3.75


def test_a_header_that_claims_more_than_there_is_gives_what_there_is(tmp_path: Path) -> None:
    for name in ("a.wav", "a.ogg"):
        path = written(tmp_path / name, noise(30_000))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        found = read(path, max_seconds=1)
        assert 1 < found[-1].stop < 2.5 and all(bool(piece.features.isfinite().all()) for piece in found)


@pytest.mark.parametrize("name, subtype", [("a.wav", "PCM_16"), ("a.wav", "FLOAT"), ("a.wav", "IMA_ADPCM"), ("a.aiff", "PCM_16"),
    ("a.au", "PCM_16")])  # fmt: skip
def test_a_recording_that_breaks_off_is_no_utterance(tmp_path: Path, name: str, subtype: str) -> None:
    path = written(tmp_path / name, noise(30_000), subtype=subtype)
    whole = path.read_bytes()
    assert shortfall(path) is None and len(utterance(path, settings())) in (375, 379)  # of ADPCM whole blocks are written
    path.write_bytes(whole + bytes(100))
    assert shortfall(path) is None
    path.write_bytes(whole[: len(whole) // 5])
    fact = shortfall(path) or ""
    there, all_ = (float(number) for number in re.findall(r"\d+\.\d\d", fact))
    assert fact.startswith("breaks off: ") and there == pytest.approx(0.75, abs=0.02) and all_ == pytest.approx(3.75, abs=0.11)
    remedy = "expected a whole recording, so fetch it again, or cut it there and its transcript too"
    assert refused(lambda: utterance(path, settings())) == f"{path}: {fact}; {remedy}"
    assert read(path)[-1].stop == pytest.approx(there, abs=0.01)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF, 60_044])
def test_a_header_that_does_not_know_the_length_breaks_nothing_off(tmp_path: Path, size: int) -> None:
    """As programs write it that could not go back to it, into a pipe; or that count the header too."""
    path = written(tmp_path / "a.wav", noise(30_000))
    content = bytearray(path.read_bytes())
    content[40:44] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert shortfall(path) is None and len(utterance(path, settings())) == 375


def test_a_recording_that_is_damaged_further_on_is_read_up_to_there(tmp_path: Path) -> None:
    path = written(tmp_path / "a.flac", noise(80_000))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = pieces(path, settings(max_seconds=1))
    assert next(found).stop <= 1 and next(found).stop > 1
    message = refused(lambda: list(found))
    assert message.startswith(f"{path}: breaks off at 4.10 seconds or soon after (")
    assert message.endswith("; expected a whole recording, so fetch it again or cut it there")
    assert refused(lambda: utterance(path, settings())) == message


def test_a_sample_that_is_no_number_is_named_with_its_second(tmp_path: Path) -> None:
    expected = "expected numbers in -1 to 1, so write the recording again"
    for value, told in ((math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"), (-1e20, "-1e+20")):
        samples = np.stack([tones(5.0), tones(5.0)], axis=1)
        samples[30_000, 1] = value
        path = written(tmp_path / "a.wav", samples, subtype="FLOAT")
        assert refused(lambda: read(path)) == f"{path}: a sample at 3.7500 seconds is {told}; {expected}"  # noqa: B023 - called here
    path = written(tmp_path / "a.wav", 32_768 * tones(1.0), subtype="FLOAT")  # whole numbers by mistake: louder, and no harm
    assert bool(read(path)[0].features.isfinite().all())


def test_what_is_not_a_recording_is_named(tmp_path: Path) -> None:
    expected = "expected a recording, as WAV, FLAC or OGG"
    unreadable = f"not audio that can be read (Format not recognised); {expected}, or features as .npy"
    rate = "samples a second, by its header; expected 1,000 to 1,000,000"
    wav = written(tmp_path / "a.wav", tones(0.1)).read_bytes()
    for name, content, message in (
        ("empty.wav", b"", unreadable),
        ("text.flac", "不是声音\n".encode() * 100, unreadable),
        ("a.raw", wav, f"samples without a header, by its name; {expected}"),
        ("header.wav", wav[:40] + bytes(4), "holds no samples; expected a recording with some sound in it"),
        ("slow.wav", wav[:24] + b"\1\0\0\0" + wav[28:], f"1 {rate}"),
        ("fast.wav", wav[:24] + b"\xff\xff\xff\x7f" + wav[28:], f"2,147,483,647 {rate}"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert refused(lambda: read(path)) == f"{path}: {message}"  # noqa: B023 - called here
        if "no samples" not in message:
            assert refused(lambda: duration(path, settings())) == f"{path}: {message}"  # noqa: B023


def test_a_path_that_leads_to_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    for name in ("none.wav", "none.npy", "nul\0.wav"):
        assert refused(lambda: read(tmp_path / name)).endswith(": no such file; expected a recording")  # noqa: B023 - called here
    (tmp_path / "folder.wav").mkdir()
    assert refused(lambda: read(tmp_path / "folder.wav")) == f"{tmp_path / 'folder.wav'}: is a directory; expected a recording"
    assert refused(lambda: read(tmp_path / "pipe.wav")) == f"{tmp_path / 'pipe.wav'}: not an ordinary file; expected a recording"


@pytest.mark.parametrize(
    "header", [b"{'descr': '<f4', ", b"(" * 60, b"{'descr': [], 'fortran_order': 1, 'shape': (-1,), }", b"1\n 2\n3", b"{" * 100]
)
def test_features_with_a_header_that_is_none_are_refused(tmp_path: Path, header: bytes) -> None:
    """Numpy reads it as Python's tokens and literals, and lets out whatever these raise."""
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", 118) + header.ljust(117) + b"\n" + bytes(99))
    assert f"{tmp_path / 'a.npy'}: not a whole .npy file of numbers (" in refused(lambda: read(tmp_path / "a.npy"))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_ready_features_are_taken_as_they_are(tmp_path: Path, dtype: str) -> None:
    features = np.round(np.random.default_rng(1).standard_normal((250, 13)), 2).astype(dtype)
    np.save(tmp_path / "a.npy", features)
    [piece] = read(tmp_path / "a.npy")
    assert piece.features.dtype == torch.float32 and piece[1:] == (0, 2.5)
    assert piece.features.equal(torch.from_numpy(features.astype(np.float32)))
    found = read(tmp_path / "a.npy", max_seconds=1)  # a hundred frames
    assert [len(piece.features) for piece in found] == [100, 100, 50] and [piece.start for piece in found] == [0, 1, 2]
    assert torch.cat([piece.features for piece in found]).equal(piece.features)
    np.save(tmp_path / "a.npy", np.asfortranarray(features))
    assert read(tmp_path / "a.npy")[0].features.equal(piece.features)


@pytest.mark.parametrize(
    "content, message",
    [
        (np.zeros(3), "shape (3,); expected features as (frames, features), in floats"),
        (np.zeros((2, 3, 4)), "shape (2, 3, 4); expected features as (frames, features), in floats"),
        (np.zeros((2, 3), dtype=np.int16), "holds int16; expected features as (frames, features), in floats"),
        (np.zeros((2, 3), dtype=np.complex64), "holds complex64; expected features as (frames, features), in floats"),
        (np.zeros((0, 3)), "no frames, shape (0, 3); expected features as (frames, features), in floats"),
        (np.zeros((3, 0)), "no features, shape (3, 0); expected features as (frames, features), in floats"),
        (np.zeros((2, 20_000)), "20,000 features a frame; expected at most 16,384, so turn them round if T is last"),
        (np.array([[1, 2], [3, math.nan]]), "frame 1, feature 1: nan is no number of 32 bits; "
         "expected finite features, so make them again"),
        (np.array([[1, 1e300]]), "frame 0, feature 1: 1e+300 is no number of 32 bits; expected finite features, so make them again"),
    ],
)  # fmt: skip
def test_features_that_cannot_be_used_are_named(tmp_path: Path, content: npt.NDArray[Any], message: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, content)
    assert refused(lambda: read(path)) == f"{path}: {message}"


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("sprung",)


def test_nothing_in_a_file_of_features_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.npy"
    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)
    pickled = path.read_bytes()
    np.save(path, np.zeros((50, 3)))
    whole = path.read_bytes()
    huge = whole.replace(b"(50, 3), }        ", b"(50000000000, 3), }")[: len(whole)]
    for content in (b"", b"nonsense" * 9, pickled, pickled[10:], whole[:100], whole[:-1], huge, b"PK\3\4" + whole):
        path.write_bytes(content)
        message = refused(lambda: read(path))
        assert message.startswith(f"{path}: not a whole .npy file of numbers (")
        assert message.endswith("; expected features as (frames, features), in floats")
    assert not Path("sprung").exists()


def test_without_soundfile_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.wav", tones(0.1))
    np.save(tmp_path / "a.npy", np.zeros((3, 2)))
    require_audio("transcribe")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "soxr":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    remedy = "needs soundfile and soxr, which are not installed; pip install 'charrnn[audio]'"
    with pytest.raises(UserError) as caught:
        require_audio("transcribe")
    assert str(caught.value) == f"transcribe: {remedy}"
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: {remedy}"
    assert len(read(tmp_path / "a.npy")) == 1  # which needs neither


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = "import sys, charrnn.data.utterances; sys.exit(bool({'soundfile', 'soxr'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
