"""What is said in recordings: each read in pieces of bounded length, each piece encoded and searched, one behind the other.

Axes: L characters, S encoder steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from charrnn.config import AudioConfig, DecodingConfig
from charrnn.data.audio import Piece, pieces
from charrnn.data.features import finish
from charrnn.data.vocabulary import Vocabulary
from charrnn.decoding import Fusion, Hypothesis, certainty, decode
from charrnn.errors import DataError
from charrnn.models.transcriber import Transcriber


class Heard(NamedTuple):
    """A stretch of a recording and what was written of it."""

    start: float  # seconds
    stop: float
    text: str
    hypothesis: Hypothesis


@dataclass(frozen=True)
class Transcript:
    """A recording, and what was written of it."""

    path: Path
    heard: list[Heard]
    seconds: float  # of sound
    took: float  # seconds for reading, encoding and searching
    separator: str  # between pieces

    @property
    def text(self) -> str:
        return self.separator.join(heard.text for heard in self.heard if heard.text)

    @property
    def confidence(self) -> float:
        """As `certainty` has it, of the characters and the ends of all pieces."""
        return certainty([cost for heard in self.heard for cost in heard.hypothesis.nats])

    @property
    def finished(self) -> bool:
        """Whether each piece came to an end; else what is written of one is cut off."""
        return all(heard.hypothesis.finished for heard in self.heard)

    @property
    def real_time_factor(self) -> float:
        return self.took / max(self.seconds, 1e-9)


class Transcribe:
    """A model with all that it needs to write down what it hears."""

    def __init__(
        self, model: Transcriber, vocabulary: Vocabulary, audio: AudioConfig, decoding: DecodingConfig, fusion: Fusion | None = None
    ) -> None:
        self._model, self._vocabulary, self._audio, self._decoding, self._fusion = model, vocabulary, audio, decoding, fusion
        self._separator = " " if " " in vocabulary else ""

    def files(self, paths: Iterable[Path]) -> Iterator[Transcript | DataError]:
        """A transcript for each recording, and what was wrong with one in its place, in their order."""
        for path in paths:
            try:
                yield self.file(path)
            except DataError as error:
                yield error

    def file(self, path: Path) -> Transcript:
        """Raises DataError, naming it, for what is no recording, or is damaged anywhere.

        Of a recording of several pieces the alignments are not kept: they are the one thing of size that would grow with its length.
        """
        started = time.perf_counter()
        heard: list[Heard] = []
        for piece in pieces(path, self._audio):
            heard.append(self._hear(path, piece))
            if len(heard) > 1:
                heard[-2:] = map(_unaligned, heard[-2:])
        return Transcript(path, heard, heard[-1].stop, time.perf_counter() - started, self._separator)

    @torch.inference_mode()
    def _hear(self, path: Path, piece: Piece) -> Heard:
        if piece.features.size(1) != self._audio.num_mels:
            fact = f"{piece.features.size(1)} features a frame; expected {self._audio.num_mels}, as the model has learned"
            raise DataError(f"{path}: {fact}, so make the features in the same way")
        device = next(self._model.parameters()).device
        frames = finish(piece.features, self._audio).unsqueeze(1).to(device)  # (T, 1, F)
        found = decode(self._model, self._model.encode(frames, None), self._vocabulary, self._decoding, self._fusion)[0]
        return Heard(piece.start, piece.stop, self._vocabulary.decode(found.ids), found)


def _unaligned(heard: Heard) -> Heard:
    return heard._replace(hypothesis=replace(heard.hypothesis, alignment=torch.zeros(len(heard.hypothesis.ids), 0)))
