"""Listen, Attend and Spell: a pyramid reads the frames, attention looks at what it made of them, a decoder writes the characters.

Axes: T frames, S encoder steps, L characters, B batch, F features of a frame, E embedding_size, W width of the encoder's outputs,
D decoder's hidden_size, A attention_size, V vocabulary size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from charrnn.config import ModelConfig
from charrnn.layers.dropout import dropout
from charrnn.layers.pyramid import PyramidalEncoder, within
from charrnn.layers.recurrent import RecurrentStack
from charrnn.models.beginning import begin_inputs
from charrnn.models.speller import Encoded, Speller, Spelling

CTC_BY_ID = ("ctc.weight", "ctc.bias")  # parameters with a row for each id, beside those that a CharRNN has too
CTC_BLANK = 0  # the id of `unknown`, which nobody ever writes


class Transcriber(nn.Module):
    """Frames in, characters out, one after the other.

    A pyramid listens, a Speller attends and spells. On the encoder's outputs alone a second head is judged by
    connectionist temporal classification (Graves et al. 2006): attention on little data often finds no alignment of its own, and
    this teaches the encoder where things are (Watanabe et al. 2017). Its blank is the id of `unknown`.

    `normalised` frames are (x - mean) / deviation, by feature; both are stored with the weights, and no loss moves them.
    """

    def __init__(self, config: ModelConfig, features: int, vocabulary_size: int, *, normalised: bool = False) -> None:
        super().__init__()
        decoder, self.dropout = config.decoder, config.dropout
        self.mean = nn.Parameter(torch.zeros(features), requires_grad=False) if normalised else None
        self.deviation = nn.Parameter(torch.ones(features), requires_grad=False) if normalised else None
        self.encoder = PyramidalEncoder(
            config.cell,
            features,
            config.hidden_size,
            config.num_layers,
            levels=config.pyramid.levels,
            reduction=config.pyramid.reduction,
            bidirectional=config.bidirectional,
            layer_norm=config.layer_norm,
            residual=config.residual,
            between_layers=config.dropout.between_layers,
            locked=config.dropout.is_locked("between_layers"),
            weight_hh=config.dropout.weight_hh,
            backend=config.backend,
        )
        width = self.encoder.output_size
        self.speller = Speller(config.cell, width, vocabulary_size, config.embedding_size, decoder, config.dropout, config.backend)
        self.ctc = nn.Linear(width, vocabulary_size) if decoder.ctc_weight else None
        if not self.speller.head.weight.is_meta:
            for stack in self.recurrent_stacks()[:-1]:
                begin_inputs(stack)

    def recurrent_stacks(self) -> list[RecurrentStack]:
        """Those of the encoder, from the bottom up, then the decoder's."""
        return [*(stack for stack in self.encoder.stacks if isinstance(stack, RecurrentStack)), self.speller.recurrent]

    def described(self) -> dict[str, str]:
        """What it is made of, for a person."""
        plain, levels = self.recurrent_stacks()[0], self.encoder.levels
        above = f" + {levels} that read {self.encoder.reduction} steps as one" if levels else ""
        frames = f"{self.encoder.reduction**levels} frames a step"
        return {
            "encoder": f"{plain.cell}, layers of {plain.hidden_size}: {plain.num_layers}{above}, {frames}",
            "decoder": f"{self.speller.described()}{', beside it CTC' if self.ctc else ''}",
        }

    def numbers_kept(self, inputs: torch.Size, targets: torch.Size, asked: int) -> int:
        """About how many numbers backward needs of frames (T, B, F) and characters (L, B), `asked` of them being there."""
        (steps, batch, _), numbers = inputs, 2 * math.prod(inputs)
        for level, stack in enumerate(self.encoder.stacks):
            assert isinstance(stack, RecurrentStack)
            steps = -(-steps // self.encoder.reduction) if level else steps
            numbers += steps * batch * stack.num_layers * stack.numbers_kept()
        return numbers + self.speller.numbers_kept(steps, batch, targets[0])

    def encode(self, frames: Tensor, lengths: Tensor | None, *, generator: torch.Generator | None = None) -> Encoded:
        """frames (T, B, F), lengths (B,) or None where all are T."""
        if self.mean is not None and self.deviation is not None:
            frames = (frames - self.mean) / self.deviation
        frames = dropout(frames, self.dropout.input, locked=self.dropout.is_locked("input"), training=self.training, generator=generator)
        outputs, lengths = self.encoder(frames, lengths, generator=generator)  # (S, B, W), (B,)
        mask = None if lengths is None else within(lengths, outputs.size(0))  # (S, B)
        return self.speller.encoded(outputs, lengths, mask)

    def ctc_logits(self, encoded: Encoded) -> Tensor | None:
        """(S, B, V), id 0 being the blank; None of a model without that head."""
        return None if self.ctc is None else self.ctc(encoded.outputs)

    def start(self, encoded: Encoded) -> Spelling:
        """Where the decoder stands before the first character."""
        return self.speller.start(encoded)

    def next(self, ids: Tensor, spelling: Spelling, encoded: Encoded) -> tuple[Tensor, Spelling]:
        """The characters before (B,) -> logits of the next (B, V), and where the decoder then stands."""
        return self.speller.next(ids, spelling, encoded)

    def forward(
        self, encoded: Encoded, previous: Tensor, *, teacher_forcing_rate: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Speller.forward: the true characters before each, (L, B) -> logits (L, B, V)."""
        logits: Tensor = self.speller(encoded, previous, teacher_forcing_rate=teacher_forcing_rate, generator=generator)
        return logits
