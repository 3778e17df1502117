"""Task `caption`: what is in a picture, character by character.

Axes: P pictures, B captions, L characters, V vocabulary size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.config import Config, DecodingConfig, ImagesConfig
from charrnn.data.batch import Batch
from charrnn.data.corpus import Corpus, Ids, Progress
from charrnn.data.fragments import Fragments, find_fragments
from charrnn.data.images import augmented, plain
from charrnn.data.padding import grouped_buckets, pad
from charrnn.data.pictures import Pictures, load_pictures, load_pictures_file
from charrnn.data.vocabulary import Vocabulary
from charrnn.decoding import decode
from charrnn.device import seeded
from charrnn.errors import DataError, UserError, counted, printable
from charrnn.metrics import Tally, bleu
from charrnn.models.backbone import Backbone
from charrnn.models.captioner import Captioner
from charrnn.models.speller import Encoded
from charrnn.models.teller import Told
from charrnn.ranking import BEST_BY
from charrnn.sampling import evaluating
from charrnn.tables import aligned
from charrnn.tasks.looking import Looking, look
from charrnn.tasks.task import Scores, State, fresh
from charrnn.tasks.writing import asked_of, before, cross_entropy, cut, text_of

PREVIEWED = 5  # pictures
EXAMPLES = 10
MEASURED = 5000  # pictures of a split: those of larger ones are drawn by the seed
ENCODED = 64  # pictures that the CNN sees side by side, without gradients
LONGEST = 200  # characters of a caption at most, where decoding.max_length is left out …
SPARE = 1.5  # … and so many times the longest that was learned from: what goes on for longer comes to no end
ALIKE = 0.9  # share of pictures that are told of alike, above which a model has not looked at them


@dataclass(frozen=True)
class Written:
    """What was written of a picture, and the captions that it has."""

    name: str
    captions: tuple[str, ...]
    answer: str
    finished: bool  # came to an end by itself

    @property
    def right(self) -> bool:
        return self.answer in self.captions


@dataclass(frozen=True)
class CaptionScores:
    """What an evaluation counts: how sure the model was of the true captions, and what it wrote."""

    tally: Tally
    written: tuple[Written, ...]

    @property
    def count(self) -> Tensor:
        return self.tally.count

    def __add__(self, other: CaptionScores) -> CaptionScores:
        return CaptionScores(self.tally + other.tally, self.written + other.written)

    def right(self) -> int:
        """Pictures of which one of the true captions was written, to the character."""
        return sum(written.right for written in self.written)

    def commonest(self) -> tuple[str, int]:
        """The caption that was written most often, and of how many pictures. Raises ValueError where none was."""
        if not self.written:
            raise ValueError("no pictures were counted, so nothing was written of them")
        return Counter(written.answer for written in self.written).most_common(1)[0]

    def as_metrics(self, prefix: str = "") -> dict[str, float]:
        counts = {"caption_accuracy": self.right(), "same_caption": self.commonest()[1]}
        return self.tally.as_metrics(prefix) | {f"{prefix}{name}": count / len(self.written) for name, count in counts.items()}

    def describe(self) -> str:
        pictures, (commonest, alike) = len(self.written), self.commonest()
        has, its = ("has", "its") if pictures == 1 else ("have", "their")
        lines = [f"{self.right():,} of {counted(pictures, 'picture')} {has} what was written among {its} captions"]
        if unfinished := sum(not written.finished for written in self.written):
            lines.append(f"{unfinished:,} were cut off at decoding.max_length")
        if alike / pictures > ALIKE and pictures > 1:
            lines.append(f"{alike:,} of them are told of alike, {cut(commonest)}: the model has not learned to look")
        if wrong := [written for written in self.written if not written.right][:EXAMPLES]:
            rows = [[cut(text) for text in (written.answer, written.captions[0], written.name)] for written in wrong]
            lines += ["some of the others:", *aligned([["written", "a caption of it", "picture"], *rows], left=(0, 1, 2))]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Captioning:
    config: Config
    pictures: Pictures
    unit = "char"
    best_by = BEST_BY["caption"]
    labels: tuple[str, ...] = ()

    @classmethod
    def load(cls, config: Config, progress: Progress | None = None) -> Captioning:
        pictures = load_pictures(config.data, config.seed, progress)
        known = int(pictures.lengths("train").max(initial=1)) - 1  # without its end
        return cls(config.model_copy(update={"decoding": limited(config.decoding, known)}), pictures)

    @classmethod
    def of_file(cls, config: Config, vocabulary: Vocabulary, labels: tuple[str, ...], path: Path) -> Captioning:
        config = config.model_copy(update={"decoding": limited(config.decoding)})
        return cls(config, load_pictures_file(config.data, path, vocabulary))

    @property
    def corpus(self) -> Corpus:
        return self.pictures.corpus

    @property
    def vocabulary(self) -> Vocabulary:
        return self.corpus.vocabulary

    def model(self) -> Captioner:
        model = fresh(self)
        assert isinstance(model, Captioner)
        if model.fragments is not None:
            model.begin_fragments(self._fragments.shares)
        if model.encoder is not None and isinstance(model.encoder.cnn, Backbone):
            model.encoder.cnn.check()
        return model

    def begin(self, model: nn.Module) -> None:
        """With the weights of the backbone that is named, if any."""
        assert isinstance(model, Captioner)
        if model.encoder is not None and isinstance(model.encoder.cnn, Backbone):
            model.encoder.cnn.begin()

    def batches(self, split: str, *, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """Captions side by side, each picture once with all of them; of train each time a little different, as data.images.augment says."""
        train = split == "train"
        mixed = np.random.default_rng((self.config.seed, epoch)) if train else None
        for number, captions in enumerate(self._arranged(split, mixed)):
            if number >= first:
                generator = seeded(torch.device("cpu"), self.config.seed, epoch, number) if train else None
                yield self._batch(captions, generator)

    def _arranged(self, split: str, mixed: np.random.Generator | None) -> list[list[int]]:
        """Of each batch the places of its captions."""
        places, captions = self.pictures.split(split), self.pictures.captions(split)
        if not places:
            remedy = "add pictures" if split == "train" else f"raise data.{split}_fraction, name data.{split}_path or add pictures"
            raise DataError(f"split {split!r}: holds no picture; expected some to tell of, so {remedy}")
        firsts = self.pictures.firsts[places.start : places.stop + 1] - captions.start
        arranged = grouped_buckets(self.pictures.lengths(split), firsts, self.config.train.batch_size, mixed)
        return [[captions[i] for i in batch] for batch in arranged]

    def _batch(self, captions: Sequence[int], generator: torch.Generator | None) -> Batch:
        pictures, of = np.unique(self.pictures.picture_of[np.asarray(captions)], return_inverse=True)  # (P,), (B,)
        texts = [self.pictures.caption(i) for i in captions]
        names = tuple(self.pictures.captioned[i].image.name for i in pictures.tolist())
        seen = finish(self.pictures.pictures(pictures), self.config.data.images, generator)
        return Batch(seen, pad(texts, texts).targets, None, continues=False, names=names, pictures=torch.from_numpy(of))

    def steps_per_epoch(self) -> int:
        return -(-len(self.pictures.captions("train")) // self.config.train.batch_size)

    def loss(
        self, model: nn.Module, batch: Batch, state: State | None, *, generator: torch.Generator | None = None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tally, State]:
        """The cross-entropy of the true captions, each character with those before it known, and of the fragments they have."""
        assert isinstance(model, Captioner)
        batch = batch.to(next(model.parameters()).device)
        source = model.encode(batch.inputs, generator=generator)
        logits, asked = self._told(model, batch, source, generator)
        loss = cross_entropy(logits, asked, label_smoothing)
        plain = cross_entropy(logits.detach(), asked) if label_smoothing else loss.detach()
        if model.fragments is not None:
            loss = loss + self.config.model.cnn.fragments.weight * self._fragments_missed(model, batch, source)
        return loss, Tally.of_answers(plain, logits.detach().argmax(-1), asked), ()

    @cached_property
    def _fragments(self) -> Fragments:
        """Of the captions of train, without their ends."""
        wanted, captions = self.config.model.cnn.fragments, self.pictures.captions("train")
        return find_fragments([self.pictures.caption(i)[:-1] for i in captions], wanted.length, wanted.count, len(self.vocabulary))

    def _fragments_missed(self, model: Captioner, batch: Batch, source: Told | Encoded) -> Tensor:
        """The cross-entropy of whether each caption has each fragment, summed."""
        assert batch.pictures is not None
        there = self._fragments.of(batch.targets)  # (B, K)
        logits = model.fragment_logits(source)[batch.pictures, : there.size(1)]
        return F.binary_cross_entropy_with_logits(logits, there.to(logits.dtype), reduction="sum")

    def _told(
        self, model: Captioner, batch: Batch, source: Told | Encoded, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (L, B, V) in float32 of a source of P columns, and what they are asked, (L, B)."""
        assert batch.pictures is not None
        logits = model(source.rows(batch.pictures), before(batch.targets, self.vocabulary), generator=generator)
        return logits.float(), asked_of(batch.targets, self.vocabulary)

    def measure(self, model: nn.Module, batch: Batch, state: State | None) -> tuple[CaptionScores, State]:
        """As config.decoding has it sought."""
        assert isinstance(model, Captioner)
        names, batch = batch.names, batch.to(next(model.parameters()).device)
        assert batch.pictures is not None
        source = model.encode(batch.inputs)
        logits, asked = self._told(model, batch, source)
        tally = Tally.of_answers(cross_entropy(logits, asked), logits.argmax(-1), asked)
        truths: list[list[str]] = [[] for _ in names]
        for picture, targets in zip(batch.pictures.tolist(), batch.targets.t().tolist()):
            truths[picture].append(text_of(targets, self.vocabulary))
        found = decode(model, source, self.vocabulary, self.config.decoding)
        written = tuple(
            Written(name, tuple(truth), text_of(hypothesis.ids, self.vocabulary), hypothesis.finished)
            for name, truth, hypothesis in zip(names, truths, found)
        )
        return CaptionScores(tally, written), ()

    @torch.inference_mode()
    def examine(self, model: nn.Module, split: str, scores: Scores, progress: Callable[[int], None] | None = None) -> Looking:
        """Whether it looks at the pictures of a split, of at most MEASURED of them, drawn by the seed; and how far what it has written of
        all of them, in `scores`, is from their captions."""
        assert isinstance(model, Captioner) and isinstance(scores, CaptionScores)
        places = np.asarray(self.pictures.split(split))
        drawn = np.random.default_rng(self.config.seed).permutation(len(places))[:MEASURED]
        chosen = places[np.sort(drawn)]
        captions = [[self.pictures.caption(i) for i in self.pictures.captions_of(place)] for place in chosen.tolist()]
        with evaluating(model):
            first, *others = (self._seen(model, chosen[at : at + ENCODED]) for at in range(0, len(chosen), ENCODED))
            source = first.beside(others)
            nats, shuffled, none, recall = look(
                model, source, captions, self.pictures.rows[chosen], self.vocabulary, self.config.seed, progress
            )
        notes, found = list[str](), None
        try:
            found = bleu([one.answer for one in scores.written], [one.captions for one in scores.written])
        except UserError as error:
            notes.append(str(error))
        count = sum(map(len, captions))
        return Looking(len(chosen), count, len(places) - len(chosen), nats, shuffled, none, recall, found, tuple(notes))

    def _seen(self, model: Captioner, places: Sequence[int] | Ids) -> Any:
        """Pictures as the decoder is told of them; of one model all are of one kind."""
        seen = finish(self.pictures.pictures(places), self.config.data.images, None)
        return model.encode(seen.to(next(model.parameters()).device))

    @torch.inference_mode()
    def preview(self, model: nn.Module, generator: torch.Generator, length: int = 200) -> str:
        """A few pictures of the val split, or of train where there is none: what is written, and a caption where that is another."""
        assert isinstance(model, Captioner)
        places = self.pictures.split("val") or self.pictures.split("train")
        chosen = [places[k] for k in torch.randperm(len(places), generator=generator)[:PREVIEWED].tolist()]
        lines = []
        with evaluating(model):
            for place, found in zip(chosen, decode(model, self._seen(model, chosen), self.vocabulary, self.config.decoding)):
                written, captions = text_of(found.ids, self.vocabulary), self.pictures.captioned[place].captions
                lines.append(printable(written[:length]) + ("" if written in captions else f"  (it is: {printable(captions[0][:length])})"))
        return "\n".join(lines)

    def notes(self) -> list[str]:
        counts, images = self.pictures.counts, self.config.data.images
        captions = len(self.pictures.captions("train"))
        held = ", ".join(f"{counts[split]:,} for {split}" for split in ("val", "test"))
        seen = f"{images.size} × {images.size} pixels" if images.features is None else f"{images.features:,} features"
        told = f"{counted(counts['train'], 'picture')} to train on with {counted(captions, 'caption')}, {held}; {seen}"
        notes = [*self.corpus.notes, told]
        if not counts["val"]:
            remedy = "raise data.val_fraction or name data.val_path"
            notes.append(f"the val split holds no picture, so there is nothing to evaluate on; {remedy}")
        if self.corpus.unknown:
            share = self.corpus.unknown / len(self.corpus.ids)
            fact = f"{counted(self.corpus.unknown, 'character')} ({share:.2%}) outside the vocabulary"
            notes.append(f"{fact}: never written, and not scored")
        return notes


def limited(config: DecodingConfig, longest: int | None = None) -> DecodingConfig:
    """With the length at which captions are cut off, where it is left out: by the longest to learn from, where that is known."""
    if config.max_length is not None:
        return config
    return config.model_copy(update={"max_length": LONGEST if longest is None else max(1, min(LONGEST, round(SPARE * longest)))})


def finish(pictures: Tensor, config: ImagesConfig, generator: torch.Generator | None) -> Tensor:
    """As the model reads them: pictures (P, 3, S, S) uint8 -> (P, 3, H, H) in 0..1, changed where there is a generator; features stay."""
    if config.features is not None:
        return pictures
    return plain(pictures, config) if generator is None else augmented(pictures, config, generator)
