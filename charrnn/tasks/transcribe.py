"""Task `transcribe`: what is said in a recording, character by character (Listen, Attend and Spell: Chan et al. 2016).

Axes: T frames, S encoder steps, L characters, B batch, F features of a frame, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.config import Config
from charrnn.data.batch import IGNORED, Batch
from charrnn.data.corpus import Corpus, Ids, Progress
from charrnn.data.features import augmented, finish, statistics
from charrnn.data.padding import buckets, pad
from charrnn.data.recordings import Recordings, load_recordings, load_recordings_file
from charrnn.data.vocabulary import Vocabulary
from charrnn.decoding import decode
from charrnn.device import seeded
from charrnn.errors import DataError, counted, listed, printable
from charrnn.layers.pyramid import merged_lengths
from charrnn.metrics import Edits, Tally
from charrnn.models.speller import Encoded
from charrnn.models.transcriber import CTC_BLANK, Transcriber
from charrnn.ranking import BEST_BY
from charrnn.sampling import evaluating
from charrnn.tables import aligned
from charrnn.tasks.task import State, fresh
from charrnn.tasks.writing import asked_of, before, cross_entropy, cut, text_of

PREVIEWED = 5  # utterances
WORST = 10


@dataclass(frozen=True)
class Judged:
    """What was written of an utterance, and what was said."""

    name: str
    truth: str
    answer: str
    rate: float  # edits for each character that was said


@dataclass(frozen=True)
class TranscribeScores:
    """What an evaluation counts: how sure the decoder was of the true characters, and how far from them what it wrote is."""

    tally: Tally
    edits: Edits
    worst: tuple[Judged, ...]  # of those with an edit, the farthest first

    @property
    def count(self) -> Tensor:
        return self.tally.count

    def __add__(self, other: TranscribeScores) -> TranscribeScores:
        worst = sorted(self.worst + other.worst, key=lambda judged: -judged.rate)[:WORST]
        return TranscribeScores(self.tally + other.tally, self.edits + other.edits, tuple(worst))

    def as_metrics(self, prefix: str = "") -> dict[str, float]:
        return self.tally.as_metrics(prefix) | self.edits.as_metrics(prefix)

    def describe(self) -> str:
        if not self.worst:
            return f"right: all of {counted(int(self.edits.count), 'utterance')}"
        rows = [[f"{judged.rate:.1%}", *(cut(text) for text in (judged.truth, judged.answer, judged.name))] for judged in self.worst]
        right = f"{int(self.edits.right):,} of {counted(int(self.edits.count), 'utterance')} are right; the farthest from it:"
        return "\n".join([right, *aligned([["errors", "said", "written", "recording"], *rows], left=(1, 2, 3))])


@dataclass(frozen=True, eq=False)
class Transcribing:
    config: Config
    recordings: Recordings
    unit = "char"
    best_by = BEST_BY["transcribe"]
    labels: tuple[str, ...] = ()

    @classmethod
    def load(cls, config: Config, progress: Progress | None = None) -> Transcribing:
        return cls(config, load_recordings(config.data, config.seed, progress))

    @classmethod
    def of_file(cls, config: Config, vocabulary: Vocabulary, labels: tuple[str, ...], path: Path) -> Transcribing:
        return cls(config, load_recordings_file(config.data, path, vocabulary))

    @property
    def corpus(self) -> Corpus:
        return self.recordings.corpus

    @property
    def vocabulary(self) -> Vocabulary:
        return self.corpus.vocabulary

    def model(self) -> Transcriber:
        model = fresh(self)
        assert isinstance(model, Transcriber)
        if model.mean is not None and model.deviation is not None:
            mean, deviation = statistics(self._finished(i) for i in self._split("train"))
            with torch.no_grad():
                model.mean.copy_(mean)
                model.deviation.copy_(deviation)
        return model

    def batches(self, split: str, *, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """Utterances of like length side by side; those of train each time a little different, as data.audio.augment says."""
        places, lengths, train = self._split(split), self.recordings.lengths(split), split == "train"
        mixed = np.random.default_rng((self.config.seed, epoch)) if train else None
        for batch in buckets(lengths, self.config.train.batch_size, mixed)[first:]:
            chosen = [places[i] for i in batch]
            frames = [self._finished(i, epoch if train else None) for i in chosen]
            names = tuple(self.recordings.utterances[i].audio.name for i in chosen)
            yield pad_frames(frames, [self.recordings.transcript(i) for i in chosen], names)

    def steps_per_epoch(self) -> int:
        return -(-len(self._split("train")) // self.config.train.batch_size)

    def loss(
        self, model: nn.Module, batch: Batch, state: State | None, *, generator: torch.Generator | None = None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tally, State]:
        """The decoder's cross-entropy of the true characters and, by model.decoder.ctc_weight, the encoder's of the whole text."""
        assert isinstance(model, Transcriber)
        batch, decoder = batch.to(next(model.parameters()).device), self.config.model.decoder
        encoded = model.encode(batch.inputs, batch.lengths, generator=generator)
        logits, asked = self._told(model, batch, encoded, decoder.teacher_forcing_rate, generator)
        loss = cross_entropy(logits, asked, label_smoothing)
        plain = cross_entropy(logits.detach(), asked) if label_smoothing else loss.detach()
        if decoder.ctc_weight:
            loss = (1 - decoder.ctc_weight) * loss + decoder.ctc_weight * self._ctc(model, batch, encoded)
        return loss, Tally.of_answers(plain, logits.detach().argmax(-1), asked), ()

    def _told(
        self, model: Transcriber, batch: Batch, encoded: Encoded, rate: float = 1.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (L, B, V) in float32, each with the characters before it known; and what they are asked, (L, B): nothing unknown."""
        previous = before(batch.targets, self.vocabulary)  # (L, B)
        logits = model(encoded, previous, teacher_forcing_rate=rate, generator=generator).float()
        return logits, asked_of(batch.targets, self.vocabulary)

    def _ctc(self, model: Transcriber, batch: Batch, encoded: Encoded) -> Tensor:
        """-log P(text | frames), summed, with neither end nor unknown characters in it; 0 of a text that is too long for its frames."""
        logits = model.ctc_logits(encoded)
        assert logits is not None
        steps, columns, _ = logits.shape
        spoken = (batch.targets != IGNORED) & (batch.targets != self.vocabulary.unknown) & (batch.targets != self.vocabulary.end)  # (L, B)
        lengths = torch.full((columns,), steps, device=logits.device) if encoded.lengths is None else encoded.lengths
        return F.ctc_loss(
            logits.float().log_softmax(-1),
            batch.targets.t()[spoken.t()],  # a text behind the other
            lengths,
            spoken.sum(0),
            blank=CTC_BLANK,
            reduction="sum",
            zero_infinity=True,
        )

    def measure(self, model: nn.Module, batch: Batch, state: State | None) -> tuple[TranscribeScores, State]:
        """As config.decoding has it sought."""
        assert isinstance(model, Transcriber)
        names, batch = batch.names, batch.to(next(model.parameters()).device)
        encoded = model.encode(batch.inputs, batch.lengths)
        logits, asked = self._told(model, batch, encoded)
        tally = Tally.of_answers(cross_entropy(logits, asked), logits.argmax(-1), asked)
        scores: TranscribeScores | None = None
        found = decode(model, encoded, self.vocabulary, self.config.decoding)
        for name, hypothesis, targets in zip(names, found, batch.targets.t().tolist()):
            truth, answer = text_of(targets, self.vocabulary), text_of(hypothesis.ids, self.vocabulary)
            edits = Edits.of(truth, answer)
            worst = () if truth == answer else (Judged(name, truth, answer, edits.char_error_rate()),)
            one = TranscribeScores(Tally.zero(tally.nats.device), edits, worst)
            scores = one if scores is None else scores + one
        assert scores is not None
        return replace(scores, tally=tally), ()

    @torch.inference_mode()
    def preview(self, model: nn.Module, generator: torch.Generator, length: int = 200) -> str:
        """A few utterances of the val split, or of train where there is none: what is written, and what was said where that is another."""
        assert isinstance(model, Transcriber)
        places = self.recordings.split("val") or self.recordings.split("train")
        lines = []
        with evaluating(model):
            for k in torch.randperm(len(places), generator=generator)[:PREVIEWED].tolist():
                frames = self._finished(places[k]).unsqueeze(1).to(next(model.parameters()).device)  # (T, 1, F)
                written = text_of(decode(model, model.encode(frames, None), self.vocabulary, self.config.decoding)[0].ids, self.vocabulary)
                truth = text_of(self.recordings.transcript(places[k]).tolist(), self.vocabulary)
                lines.append(printable(written[:length]) + ("" if written == truth else f"  (said: {printable(truth[:length])})"))
        return "\n".join(lines)

    def notes(self) -> list[str]:
        audio, model = self.config.data.audio, self.config.model
        hop = audio.hop_length / audio.sample_rate
        seconds = {split: int(self.recordings.lengths(split).sum()) * hop for split in ("train", "val", "test")}
        held = ", ".join(f"{seconds[split] / 60:,.1f} for {split}" for split in ("val", "test"))
        steps = torch.from_numpy(self.recordings.lengths("train").copy())
        for _ in range(model.pyramid.levels):
            steps = merged_lengths(steps, model.pyramid.reduction)
        times = model.pyramid.reduction**model.pyramid.levels
        notes = list(self.corpus.notes)
        count = len(self.recordings.split("train"))
        reads = f"{1000 * hop:g} ms a frame, {1000 * hop * times:g} ms an encoder step"
        notes.append(f"{counted(count, 'utterance')} to train on, {seconds['train'] / 60:,.1f} minutes; {held}; {reads}")
        if not self.recordings.split("val"):
            remedy = "raise data.val_fraction or name data.val_path"
            notes.append(f"the val split holds no utterance, so there is nothing to evaluate on; {remedy}")
        if model.decoder.ctc_weight:
            needed = [_ctc_steps(self.recordings.transcript(i)[:-1], self.vocabulary.unknown) for i in self.recordings.split("train")]
            short = int((steps < torch.tensor(needed)).sum())
            if short:
                fact = f"{counted(short, 'utterance')} of train with fewer encoder steps than the characters need"
                notes.append(f"{fact}: CTC learns nothing of them; lower model.pyramid.levels or data.audio.hop_length")
        if self.corpus.unknown:
            share = self.corpus.unknown / len(self.corpus.ids)
            fact = f"{counted(self.corpus.unknown, 'character')} ({share:.2%}) outside the vocabulary"
            strange = [
                self.recordings.utterances[i].place()
                for split in ("val", "test")
                for i in self.recordings.split(split)
                if (self.recordings.transcript(i) == self.vocabulary.unknown).any()
            ]
            where = f", at {listed(strange)}" if strange else ""
            notes.append(f"{fact}: never written, so errors in val and test{where}")
        return notes

    def _split(self, split: str) -> range:
        places = self.recordings.split(split)
        if not places:
            remedy = "add utterances" if split == "train" else f"raise data.{split}_fraction, name data.{split}_path or add utterances"
            raise DataError(f"split {split!r}: holds no utterance; expected some to transcribe, so {remedy}")
        return places

    def _finished(self, index: int, epoch: int | None = None) -> Tensor:
        """(T, F) as the model reads it; changed as data.audio.augment says where an epoch is given, always the same in each."""
        features, audio = self.recordings.features(index), self.config.data.audio
        if epoch is not None:
            features = augmented(features, audio.augment, seeded(torch.device("cpu"), self.config.seed, epoch, index))
        return finish(features, audio)


def _ctc_steps(ids: Ids, unknown: int) -> int:
    """A step for each character that is known, and a blank between two that are the same."""
    ids = ids[ids != unknown]
    return len(ids) + int((ids[1:] == ids[:-1]).sum())


def pad_frames(frames: Sequence[Tensor], texts: Sequence[Ids], names: tuple[str, ...] = ()) -> Batch:
    """Utterances (T, F) as one batch, zeros behind the shorter ones; their ids, IGNORED behind the shorter ones."""
    text = pad(texts, texts)
    lengths = torch.tensor([len(utterance) for utterance in frames])
    ragged = bool((lengths != lengths[0]).any())
    return Batch(nn.utils.rnn.pad_sequence(list(frames)), text.targets, lengths if ragged else None, continues=False, names=names)
