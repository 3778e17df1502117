"""Recordings with what is said in them: a manifest's utterances as frames of features, beside their transcripts.

Features are computed once and lie memory-mapped in the cache, as they are before what changes them from epoch to epoch.

Axes: N utterances, M frames of all of them, C numbers of a frame before derivatives, T frames of one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from charrnn.config import AudioConfig, DataConfig
from charrnn.data.audio import utterance
from charrnn.data.cache import build_entry, is_sealed
from charrnn.data.corpus import Corpus, Ids, Progress, file_stamps
from charrnn.data.examples import ORDER, corpus_of, load_parts, split_range, strange, vocabulary_of
from charrnn.data.manifests import load_own
from charrnn.data.utterances import Utterance, manifest
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import DataError, Faults
from charrnn.paths import user_path

FORMAT = 2  # of the cache; a change makes old entries strangers
UNREAD = {"field", "top_db", "deltas", "normalization", "augment"}  # what does not decide the features that are kept
FRAMES, EDGES = "frames.bin", "edges.json"


@dataclass(frozen=True, eq=False)
class Recordings:
    """Transcripts as the documents of a corpus, each closed by `end`, and beside each its frames."""

    corpus: Corpus
    utterances: list[Utterance]  # in the order of the corpus
    counts: dict[str, int]  # of each split
    edges: Ids  # (N + 1,) int64: where the frames of each begin and end
    frames: Ids  # (M, C) float32, read-only

    def split(self, name: str) -> range:
        """The places of a split's utterances. Raises UserError where there is no such split."""
        return split_range(self.counts, name)

    def lengths(self, name: str) -> Ids:
        """Frames of each utterance of a split."""
        return np.diff(self.edges)[self.split(name)]

    def features(self, index: int) -> Tensor:
        """Of one utterance, (T, C), a copy."""
        return torch.from_numpy(self.frames[self.edges[index] : self.edges[index + 1]].copy())

    def transcript(self, index: int) -> Ids:
        """Its ids, `end` last."""
        start, stop = self._starts[index : index + 2]
        return self.corpus.ids[start:stop]

    @cached_property
    def _starts(self) -> Ids:
        """(N + 1,) where each transcript begins in the corpus."""
        return np.concatenate([[0], np.cumsum([len(found.transcript) + 1 for found in self.utterances])])


def load_recordings(config: DataConfig, seed: int, progress: Progress | None = None) -> Recordings:
    """The splits of a configuration. Raises Faults naming file and line of each recording and transcript that cannot be used.

    The vocabulary is that of what is trained on: what stands only in val or test is unknown.
    """

    def check(found: list[Utterance]) -> Iterator[DataError]:
        sizes = [size for size, _ in file_stamps([one.audio for one in found])]
        return (heard for heard in _heard(found, sizes, config.audio, progress) if isinstance(heard, DataError))

    parts = load_parts(config, seed, manifest, "utterance", check=check)
    vocabulary = vocabulary_of((found.transcript for found in parts.splits["train"]), config, parts.name, least=1)
    return _recordings(parts.splits, vocabulary, config, parts.notes, parts.files, progress)


def load_recordings_file(config: DataConfig, path: Path, vocabulary: Vocabulary) -> Recordings:
    """A manifest of the user's own, in its order, as split `test` in a trained model's vocabulary. Without the filters.

    What cannot be used is left out, and a fault of the corpus. So is a transcript with characters that the model does not know, but
    that is measured: what it cannot write are errors. Raises Faults where nothing can be used.
    """

    def load(some: list[Utterance], notes: list[str]) -> Recordings:
        return _recordings({"train": [], "test": some, "val": []}, vocabulary, config, notes, 1, None)

    def strangers(recordings: Recordings) -> Iterator[DataError | None]:
        measured = "so mend the transcript; it is measured, and each of them is an error"
        return (strange(one.place(), one.transcript, vocabulary, measured) for one in recordings.utterances)

    recordings, faults = load_own(config, path, manifest, "utterance", load, strangers)
    return replace(recordings, corpus=replace(recordings.corpus, faults=faults))


def _recordings(
    splits: Mapping[str, Sequence[Utterance]],
    vocabulary: Vocabulary,
    config: DataConfig,
    notes: list[str],
    files: int,
    progress: Progress | None,
) -> Recordings:
    utterances = [found for split in ORDER for found in splits[split]]
    texts = {split: [found.transcript for found in some] for split, some in splits.items()}
    stamps = file_stamps([found.audio for found in utterances])
    kept = config.audio.model_dump(mode="json", exclude=UNREAD)
    named = [(str(found.audio.resolve()), *stamp) for found, stamp in zip(utterances, stamps)]
    digest = hashlib.blake2b(json.dumps([FORMAT, kept, named]).encode(), digest_size=16).hexdigest()
    entry = user_path(config.cache, "data.cache") / f"audio-{digest}"
    opened = _open(entry, len(utterances), config.audio)
    if opened is None:
        build_entry(
            entry,
            lambda made, _: _compute(utterances, [size for size, _ in stamps], config.audio, made, progress),
            lambda folder: _open(folder, len(utterances), config.audio) is not None,
        )
        opened = _open(entry, len(utterances), config.audio)
    if opened is None:
        raise DataError(f"data.cache {entry.parent}: what was written to it cannot be read back; name another directory in data.cache")
    edges, frames = opened
    # What is heard decides what is learned, and not where it lies: a run goes on though its files have moved.
    heard = hashlib.blake2b(json.dumps(kept).encode(), digest_size=16)
    heard.update(edges.tobytes())
    for start in range(0, len(frames), 1 << 16):
        heard.update(frames[start : start + (1 << 16)].tobytes())
    corpus = corpus_of(texts, vocabulary, config, notes=notes, files=files, beside=heard.digest(), what="recordings or their transcripts")
    return Recordings(corpus, utterances, {split: len(some) for split, some in splits.items()}, edges, frames)


def _open(entry: Path, count: int, config: AudioConfig) -> tuple[Ids, Ids] | None:
    """Edges and frames of so many utterances that lie there; None where that is nothing, or not whole."""
    if not is_sealed(entry):
        return None
    try:
        edges = np.array(json.loads((entry / EDGES).read_text(encoding="utf-8")), dtype=np.int64)
        frames = np.memmap(entry / FRAMES, dtype=np.float32, mode="r").reshape(-1, config.num_mels)
    except (OSError, ValueError, TypeError, OverflowError):
        return None
    return (edges, frames) if edges.shape == (count + 1,) and edges[-1] == len(frames) else None


def _compute(utterances: Sequence[Utterance], sizes: Sequence[int], config: AudioConfig, into: Path, progress: Progress | None) -> None:
    edges, faults = [0], dict[int, DataError]()
    with open(into / FRAMES, "wb") as out:
        for place, features in enumerate(_heard(utterances, sizes, config, progress)):
            if isinstance(features, DataError):
                faults[place] = features
            elif not faults:
                out.write(features.numpy().tobytes())
                edges.append(edges[-1] + len(features))
    if faults:
        places = sorted(faults, key=lambda place: (utterances[place].source, utterances[place].line))
        raise Faults([faults[place] for place in places], places)
    (into / EDGES).write_text(json.dumps(edges), encoding="utf-8")


def _heard(
    utterances: Sequence[Utterance], sizes: Sequence[int], config: AudioConfig, progress: Progress | None
) -> Iterator[Tensor | DataError]:
    """Of each its features, (T, C), or what is wrong with it. `sizes`: of the files, in bytes."""
    done, total = 0, sum(sizes)
    for found, size in zip(utterances, sizes):
        yield _features(found, config)
        done += size
        if progress:
            progress(done, total)


def _features(found: Utterance, config: AudioConfig) -> Tensor | DataError:
    try:
        features = utterance(found.audio, config)
    except DataError as error:
        return DataError(f"{found.place()}: {error}")
    if features.size(1) != config.num_mels:
        fact = f"{found.audio}: {features.size(1)} features a frame; expected {config.num_mels}, which is data.audio.num_mels"
        return DataError(f"{found.place()}: {fact}, so set that to what the features have")
    return features
