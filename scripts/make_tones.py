#!/usr/bin/env python3
"""A tiny language of tones: eight letters, each a pitch with harmonics of its own, written as recordings with their transcripts.

An utterance is one or two words of one to four letters; a space is a pause. Pitch, vibrato, loudness, length and noise differ from one to
the next. Writes OUT/train.tsv and OUT/val.tsv, and the recordings beside them in folders of the same names, 8 kHz, 16 bits, one channel.
With the defaults that is the corpus in data/sample/tones. Needs charrnn[audio].

The samples follow from seed and number alone. FLAC is a quarter of WAV's size, but how it is packed differs between versions of libFLAC:
for the same bytes everywhere, ask for --format wav.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

RATE = 8000  # Hz
LETTERS = "abcdefgh"
LOWEST, STEP = 330.0, 1.36  # Hz of `a`, and from each letter to the next: up to 2840 Hz, and no letter is a harmonic of another
HARMONICS = (1.0, 0.35, 0.15)  # loudness of the tone, its double, its triple, as far as they stay below half the rate
SPLITS = {"train": 1, "val": 2}  # each has random numbers of its own, so that more of one changes nothing in the other

Samples = npt.NDArray[np.float64]


def words(random: np.random.Generator) -> str:
    return " ".join("".join(random.choice(list(LETTERS), random.integers(1, 5))) for _ in range(random.integers(1, 3)))


def tone(letter: str, tuning: float, pace: float, random: np.random.Generator) -> Samples:
    """(N,) in -1..1: it swells and fades, so that a letter said twice is heard twice."""
    count = int(RATE * pace * random.uniform(0.06, 0.1))
    time = np.arange(count) / RATE  # (N,)
    pitch = LOWEST * STEP ** LETTERS.index(letter) * tuning * random.uniform(0.985, 1.015)
    depth, speed = random.uniform(0, 0.01), random.uniform(5, 9)  # of the vibrato: a share of the pitch, Hz
    phase = 2 * np.pi * pitch * (time + depth * (1 - np.cos(2 * np.pi * speed * time)) / (2 * np.pi * speed))
    sound = np.zeros(count)
    for n, loudness in enumerate(HARMONICS, start=1):
        if n * pitch < 0.45 * RATE:
            sound += loudness * random.uniform(0.5, 1.2) * np.sin(n * phase)
    edge = min(count // 3, RATE // 80)
    swell = np.minimum(1, (np.arange(count) + 0.5) / edge)
    return random.uniform(0.7, 1.0) * sound * np.minimum(swell, swell[::-1])


def utterance(split: str, number: int, seed: int) -> tuple[str, npt.NDArray[np.int16]]:
    """A transcript and its samples."""
    random = np.random.Generator(np.random.PCG64([seed, SPLITS[split], number]))
    transcript = words(random)
    tuning, pace, loudness = random.uniform(0.96, 1.04), random.uniform(0.8, 1.2), random.uniform(0.1, 0.3)
    parts = [np.zeros(int(RATE * random.uniform(0.02, 0.06)))]
    for letter in transcript:
        pause = random.uniform(0.08, 0.14) if letter == " " else random.uniform(0, 0.01)
        parts += [np.zeros(int(RATE * pause))] if letter == " " else [tone(letter, tuning, pace, random), np.zeros(int(RATE * pause))]
    parts.append(np.zeros(int(RATE * random.uniform(0.02, 0.06))))
    sound = loudness * np.concatenate(parts)  # (N,)
    sound += random.uniform(0.0001, 0.0006) * random.standard_normal(len(sound))
    return transcript, np.round(32767 * sound.clip(-1, 1)).astype(np.int16)


def write(split: str, count: int, seed: int, out: Path, kind: str) -> None:
    """A manifest with its recordings."""
    folder = out / split
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["audio\ttranscript\n"]
    for number in range(count):
        transcript, samples = utterance(split, number, seed)
        name = f"{number:03d}.{kind}"
        soundfile.write(folder / name, samples, RATE, subtype="PCM_16")
        rows.append(f"{split}/{name}\t{transcript}\n")
    (out / f"{split}.tsv").write_text("".join(rows), encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=120, help="utterances to learn from (default: 120)")
    parser.add_argument("--val-count", type=int, default=20, help="utterances to measure on (default: 20)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="a folder; made where there is none")
    parser.add_argument("--format", choices=("flac", "wav"), default="flac")
    args = parser.parse_args()
    if args.count < 1 or args.val_count < 1 or args.seed < 0:
        parser.exit(2, f"{parser.prog}: error: expected --count and --val-count of at least 1, and --seed of at least 0\n")
    try:
        write("train", args.count, args.seed, args.out, args.format)
        write("val", args.val_count, args.seed, args.out, args.format)
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: {error.filename}: {error.strerror}; name another folder with --out\n")


if __name__ == "__main__":
    main()
