#!/usr/bin/env python3
"""Longer utterances from single words: recordings of one speaker, drawn and joined with silences, as WAV with a manifest of their own.

MANIFEST is a TSV with columns `audio` and `transcript`, such as those of the Free Spoken Digit Dataset, whose files are called
`7_jackson_32.wav`. Every utterance is of one speaker, and of recordings of this one manifest: what is made of a manifest for training and
of one for validation has nothing in common. Before, between and behind the recordings is faint noise, as loud as the quietest moments
of what is joined. Writes OUT/manifest.tsv (`audio`, `transcript`, `speaker`) and the recordings beside it, 16 bits. All of it follows from
the manifest and the seed. Needs charrnn[audio].
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import soundfile

from charrnn.config import DataConfig
from charrnn.data.files import Source
from charrnn.data.utterances import manifest
from charrnn.errors import DataError, UserError

SPEAKER = r"^[^_]+_(.+)_[^_]+$"  # in 7_jackson_32: what stands between the first and the last underscore
FRAME = 0.01  # seconds that are loud or quiet together
SILENCE = (0.05, 0.3)  # seconds, the shortest and the longest

Samples = npt.NDArray[np.float64]


def speakers(path: Path, pattern: re.Pattern[str]) -> dict[str, list[tuple[Path, str]]]:
    """Recordings with their transcripts, in the manifest's order, by speaker. Raises DataError naming line or recording."""
    found: dict[str, list[tuple[Path, str]]] = {}
    config = DataConfig(path=str(path), format="tsv")
    for said in manifest(config, [Source(path)], []):
        if isinstance(said, DataError):
            raise said
        match = pattern.search(said.audio.stem)
        if match is None:
            raise DataError(f"{said.place()}: no speaker in {said.audio.stem!r}; expected --speaker-pattern {pattern.pattern!r} to match")
        found.setdefault(match[1] if pattern.groups else match[0], []).append((said.audio, said.transcript))
    if not found:
        raise DataError(f"{path}: names no recordings; expected rows of audio and transcript")
    return found


def recording(path: Path) -> tuple[Samples, int]:
    """(N,) in -1..1, and the rate. Raises DataError."""
    try:
        samples, rate = soundfile.read(path, dtype="float64", always_2d=True)  # (N, channels)
    except soundfile.SoundFileError as error:
        raise DataError(f"{path}: not audio that can be read ({error})") from None
    if not len(samples):
        raise DataError(f"{path}: holds no samples; take it out of the manifest")
    return samples.mean(axis=1), rate


def floor(samples: Samples, rate: int) -> float:
    """The loudness, as root mean square, of the quietest moment."""
    width = min(len(samples), round(FRAME * rate))
    whole = samples[: len(samples) // width * width].reshape(-1, width)
    return float(np.sqrt(np.square(whole).mean(axis=1)).min())


def joined(recordings: list[Samples], rate: int, random: np.random.Generator) -> Samples:
    """(N,): with noise before, between and behind them."""
    loudness = float(np.mean([floor(samples, rate) for samples in recordings]))
    parts: list[Samples] = []
    for samples in [*recordings, None]:
        parts.append(loudness * random.standard_normal(int(rate * random.uniform(*SILENCE))))
        if samples is not None:
            parts.append(samples)
    return np.concatenate(parts)


def make(path: Path, out: Path, *, count: int, least: int, most: int, seed: int, pattern: re.Pattern[str]) -> None:
    by_speaker = speakers(path, pattern)
    names = sorted(by_speaker)
    loaded: dict[Path, tuple[Samples, int]] = {}
    out.mkdir(parents=True, exist_ok=True)
    rows = ["audio\ttranscript\tspeaker\n"]
    rate = 0
    for number in range(count):
        random = np.random.Generator(np.random.PCG64([seed, number]))
        speaker = names[random.integers(len(names))]
        own = by_speaker[speaker]
        drawn = [own[i] for i in random.integers(len(own), size=random.integers(least, most + 1))]
        for audio, _ in drawn:
            if audio not in loaded:
                loaded[audio] = recording(audio)
                rate = rate or loaded[audio][1]
                if loaded[audio][1] != rate:
                    raise DataError(f"{audio}: {loaded[audio][1]:,} Hz, and others have {rate:,}; expected one rate, so resample it first")
        name = f"{number:05d}.wav"
        sound = joined([loaded[audio][0] for audio, _ in drawn], rate, random)
        soundfile.write(out / name, np.round(32767 * sound.clip(-1, 1)).astype(np.int16), rate, subtype="PCM_16")
        rows.append(f"{name}\t{' '.join(transcript for _, transcript in drawn)}\t{speaker}\n")
    (out / "manifest.tsv").write_text("".join(rows), encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, help="a TSV with columns audio and transcript")
    parser.add_argument("--out", type=Path, required=True, help="a folder; made where there is none")
    parser.add_argument("--count", type=int, default=1000, help="utterances (default: 1000)")
    parser.add_argument("--min", type=int, default=1, help="recordings of an utterance at least (default: 1)")
    parser.add_argument("--max", type=int, default=7, help="and at most (default: 7)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--speaker-pattern",
        default=SPEAKER,
        metavar="REGEX",
        help="finds the speaker in a file's name without its suffix: its first group, or all that matches (default: %(default)s)",
    )
    args = parser.parse_args()

    def refuse(reason: object) -> NoReturn:
        parser.exit(2, f"{parser.prog}: error: {reason}\n")

    if args.count < 1 or args.seed < 0 or not 1 <= args.min <= args.max:
        refuse("expected --count of at least 1, --seed of at least 0, and 1 <= --min <= --max")
    try:
        pattern = re.compile(args.speaker_pattern)
    except re.error as error:
        refuse(f"--speaker-pattern {args.speaker_pattern!r}: no regular expression: {error}")
    try:
        make(args.manifest, args.out, count=args.count, least=args.min, most=args.max, seed=args.seed, pattern=pattern)
    except UserError as error:
        refuse(error)
    except OSError as error:
        refuse(f"{error.filename}: {error.strerror}; name another folder with --out")


if __name__ == "__main__":
    main()
