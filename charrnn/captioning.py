"""What is in pictures: several looked at side by side, and told of by greedy or beam search, or as drawn.

Axes: P pictures, n captions of each, S places of the grid, L characters, H pixels of a side, F features.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from charrnn.config import DecodingConfig, ImagesConfig
from charrnn.data.images import Features, Pixels, Shelf, is_shelf, load, plain, shelf_above, thumbnail
from charrnn.data.vocabulary import Vocabulary
from charrnn.decoding import Draw, Hypothesis, beam_search, greedy
from charrnn.device import seeded
from charrnn.errors import DataError
from charrnn.models.captioner import Captioner
from charrnn.options import SamplingOptions
from charrnn.sampling import filter_logits, finite_scores, sample
from charrnn.tasks.caption import ALIKE, limited

GROUP = 16  # pictures that are encoded side by side
SEVERAL = 10  # pictures, of which fewer may well be told of alike
THUMBNAIL = 480  # pixels of a side at most


class Draws(NamedTuple):
    """Captions are drawn, and not sought."""

    options: SamplingOptions
    seed: int


class Caption(NamedTuple):
    text: str
    hypothesis: Hypothesis


@dataclass(frozen=True)
class Described:
    """A picture, and what was written of it."""

    path: Path
    captions: list[Caption]  # the best first, or as they were drawn
    took: float  # seconds for reading and encoding it, and for its captions
    content: bytes  # the same of pictures that a model cannot tell apart
    seen: Pixels | None  # (3, H, H) as the model saw it; None of ready features
    reduction: int  # pixels of a side of it for each place that the model could look at; 0 where it looks nowhere
    thumbnail: bytes | None  # of the whole picture, JPEG, where that was asked for


class _Looked(NamedTuple):
    """A picture that has been read."""

    path: Path
    kept: Pixels | Features
    thumbnail: bytes | None
    took: float


class Describe:
    """A model with all that it needs to tell of what it sees."""

    def __init__(
        self,
        model: Captioner,
        vocabulary: Vocabulary,
        images: ImagesConfig,
        decoding: DecodingConfig,
        *,
        count: int = 1,
        draws: Draws | None = None,
        thumbnails: bool = False,
    ) -> None:
        """`count`: captions of each picture, the best that a beam of as many or more finds, or as many draws; `thumbnails`: are made."""
        self._model, self._vocabulary, self._images, self._decoding = model, vocabulary, images, limited(decoding)
        self._count, self._draws = count, draws
        self._thumbnails = thumbnails and images.features is None

    def files(self, paths: Iterable[Path]) -> Iterator[Described | DataError]:
        """What is written of each picture, and what was wrong with one in its place, in their order.

        An array of features with an index beside it is its pictures, and `array.npy/name` one of them. What is drawn of a picture does
        not hang on those beside it.
        """
        looked = self._look(paths)
        while group := list(islice(looked, GROUP)):
            told = iter(self._tell([one for one in group if isinstance(one, _Looked)]))
            for one in group:
                yield one if isinstance(one, DataError) else next(told)

    def _look(self, paths: Iterable[Path]) -> Iterator[_Looked | DataError]:
        shelves: dict[Path, Shelf] = {}
        for path in paths:
            try:
                shelf, ones = self._shelved(path, shelves)
            except DataError as error:
                yield error
                continue
            for one in ones:
                started = time.perf_counter()
                try:
                    kept = shelf.load(one) if shelf else load(one, self._images)
                    took = time.perf_counter() - started
                    yield _Looked(one, kept, thumbnail(one, THUMBNAIL) if self._thumbnails else None, took)
                except DataError as error:
                    yield error

    def _shelved(self, path: Path, shelves: dict[Path, Shelf]) -> tuple[Shelf | None, list[Path]]:
        """What a path stands for: one picture, or all of an array of features; and the array. `shelves`: those that were opened before."""
        if self._images.features is None:
            return None, [path]
        above = shelf_above(path) or (path if is_shelf(path) else None)
        if above is None:
            return None, [path]
        if above not in shelves:
            shelves[above] = Shelf(above, self._images)
        shelf = shelves[above]
        if above == path:
            return shelf, shelf.paths()
        try:
            return shelf, [shelf.locate(path.relative_to(above).as_posix())]
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    @torch.inference_mode()
    def _tell(self, looked: Sequence[_Looked]) -> list[Described]:
        if not looked:
            return []
        started = time.perf_counter()
        seen = torch.from_numpy(np.stack([one.kept for one in looked]))  # (P, 3, S, S) or (P, F)
        if self._images.features is None:
            seen = plain(seen, self._images)  # (P, 3, H, H)
        found = self._captions(seen.to(next(self._model.parameters()).device))
        took = (time.perf_counter() - started) / len(looked)
        reduction = self._model.encoder.cnn.reduction if self._model.encoder is not None and self._model.speller is not None else 0
        described = []
        for one, picture, hypotheses in zip(looked, seen, found):
            captions = [Caption(self._vocabulary.decode(hypothesis.ids), hypothesis) for hypothesis in hypotheses]
            content = hashlib.blake2b(one.kept.tobytes(), digest_size=16).digest()
            pixels = (255 * picture).round().byte().numpy() if self._images.features is None else None
            described.append(Described(one.path, captions, one.took + took, content, pixels, reduction, one.thumbnail))
        return described

    def _captions(self, pictures: Tensor) -> list[list[Hypothesis]]:
        """Of each of pictures (P, 3, H, H) or features (P, F)."""
        source, count = self._model.encode(pictures), self._count
        if self._draws is not None:
            columns = torch.arange(source.columns, device=source.device).repeat_interleave(count)  # (P n,)
            draw = _drawing(self._draws, count, source.columns, self._vocabulary)
            drawn = greedy(self._model, source.rows(columns), self._vocabulary, self._decoding, draw)
            return [drawn[first : first + count] for first in range(0, len(drawn), count)]
        if self._decoding.beam_width == 1:
            return [[found] for found in greedy(self._model, source, self._vocabulary, self._decoding)]
        return [found[:count] for found in beam_search(self._model, source, self._vocabulary, self._decoding, count=count)]


def _drawing(draws: Draws, count: int, pictures: int, vocabulary: Vocabulary) -> Draw:
    """Each column draws from a generator of its own, the first of each picture from the same, so the second, and so on."""
    written = torch.tensor([i for i in range(len(vocabulary)) if i not in vocabulary.unwritten])  # ids
    generators = [seeded(torch.device("cpu"), draws.seed, number) for _ in range(pictures) for number in range(count)]

    def draw(odds: Tensor) -> Tensor:
        logits = filter_logits(finite_scores(odds.cpu()[:, written]), draws.options, [])
        return written[sample(logits, draws.options, generators)].to(odds.device)

    return draw


def alike(captions: Mapping[bytes, str]) -> tuple[str, int] | None:
    """The caption that more than ALIKE of several pictures have, and how many; None where there is none such. Keys: their contents."""
    if len(captions) < SEVERAL:
        return None
    ((commonest, count),) = Counter(captions.values()).most_common(1)
    return (commonest, count) if count > ALIKE * len(captions) else None
