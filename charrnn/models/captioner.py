"""A picture in, characters out: a CNN looks at it, a recurrent network tells what is there.

Axes: P pictures, B captions, L characters, C channels of the CNN, Y places of a side of its grid, S = Y² places, J numbers of a
picture, V vocabulary size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from charrnn.config import CNNConfig, ModelConfig
from charrnn.layers.dropout import dropout
from charrnn.layers.recurrent import RecurrentStack
from charrnn.layers.vision import ResidualCNN, Standardization
from charrnn.models.backbone import PROBED, Backbone
from charrnn.models.speller import Encoded, Speller, Spelling
from charrnn.models.teller import Teller, Telling, Told


class ImageEncoder(nn.Module):
    """Pictures to grids of numbers (Y², P, C): a row of the grid behind the other. `size`: of the pictures, pixels of a side.

    Raises UserError where the backbone that is named cannot be had (Backbone).
    """

    def __init__(self, config: CNNConfig, size: int = PROBED) -> None:
        super().__init__()
        self.cnn: ResidualCNN | Backbone = (
            ResidualCNN(config.width, config.stages, config.blocks) if config.backbone is None else Backbone(config, size)
        )
        self.channels = self.cnn.channels

    def forward(self, pictures: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """(P, 3, H, H) in 0..1 -> (Y², P, C)."""
        grid: Tensor = self.cnn(pictures, generator=generator)  # (P, C, Y, Y)
        return grid.flatten(2).permute(2, 0, 1)


class Captioner(nn.Module):
    """What the encoder sees is told to the decoder once (Teller), as one vector: its mean over the places. Or the decoder looks at
    the places before it writes each character (Speller; Xu et al. 2015).

    Without an encoder the vector is that of ready `features`. Either way each of its numbers is brought to mean 0 and variance 1 over
    pictures, so that what is told of is what tells them apart, whatever its scale.

    With `model.cnn.fragments` a second head is asked of the vector alone which short strings the captions have, as Fang et al. 2015
    ask for words. Where a picture is told of once, what the decoder does not use yet the CNN has no reason to see, and what the CNN
    does not see the decoder cannot use.
    """

    def __init__(self, config: ModelConfig, features: int | None, vocabulary_size: int, size: int = PROBED) -> None:
        """`features`: numbers of a picture, where they are ready; `size`: pixels of a side, where they are not."""
        super().__init__()
        self.encoder = ImageEncoder(config.cnn, size) if features is None else None
        width = self.encoder.channels if self.encoder is not None else features or 0
        self.drop = config.cnn.dropout
        self.width, self.norm = width, Standardization(width)
        asked = config.cnn.fragments.count if self.encoder is not None else 0
        self.fragments = nn.Linear(width, asked) if asked else None
        self.speller: Speller | None = None
        self.teller: Teller | None = None
        if config.image_as == "attention":
            sizes = {"hidden_size": config.hidden_size, "num_layers": config.num_layers, "attention": "additive"}
            decoder = config.decoder.model_copy(update=sizes)
            self.speller = Speller(config.cell, width, vocabulary_size, config.embedding_size, decoder, config.dropout, config.backend)
        else:
            self.teller = Teller(config, width, vocabulary_size)

    def recurrent_stacks(self) -> list[RecurrentStack]:
        return [self._decoder.recurrent]

    @property
    def _decoder(self) -> Speller | Teller:
        decoder = self.teller if self.speller is None else self.speller
        assert decoder is not None
        return decoder

    def described(self) -> dict[str, str]:
        """What it is made of, for a person."""
        seen = f"none, {self.width:,} features of a picture" if self.encoder is None else self.encoder.cnn.described()
        return {"encoder": seen, "decoder": self._decoder.described()}

    def numbers_kept(self, inputs: torch.Size, targets: torch.Size, asked: int) -> int:
        """About how many numbers backward needs of pictures (P, 3, H, H) or features (P, J), and characters (L, B)."""
        characters, batch = targets
        numbers = inputs.numel() if self.encoder is None else self.encoder.cnn.numbers_kept(inputs)
        if self.speller is not None:
            assert self.encoder is not None
            places = self.encoder.cnn.side(inputs[-1]) ** 2
            return numbers + self.speller.numbers_kept(places, batch, characters)
        return numbers + self._teller.numbers_kept(batch, characters)

    @property
    def _teller(self) -> Teller:
        assert self.teller is not None
        return self.teller

    def encode(self, pictures: Tensor, *, generator: torch.Generator | None = None) -> Told | Encoded:
        """Pictures (P, 3, H, H) in 0..1, or ready features (P, J), as what is written of, a column a picture."""
        seen = pictures.unsqueeze(0) if self.encoder is None else self.encoder(pictures, generator=generator)  # (S, P, J)
        if self.speller is None:
            seen = seen.mean(0, keepdim=True)  # (1, P, J)
        seen = dropout(self.norm(seen), self.drop, locked=True, training=self.training, generator=generator)
        return Told(seen.squeeze(0)) if self.speller is None else self.speller.encoded(seen)

    def unseen(self, source: Told | Encoded) -> Told | Encoded:
        """What stands for as many pictures where none is shown: 0, which is the mean over pictures of each number."""
        if isinstance(source, Told):
            return Told(torch.zeros_like(source.vector))
        assert self.speller is not None
        return self.speller.encoded(torch.zeros_like(source.outputs))

    @torch.no_grad()
    def begin_fragments(self, shares: Tensor) -> None:
        """Say of every picture that its captions have each fragment as often as all do, (K,): from nothing else there is more to learn
        at first than how often, and thousands of those gradients at once would leave of the CNN nothing that is not 0.
        """
        assert self.fragments is not None
        self.fragments.weight.zero_()
        self.fragments.bias[: len(shares)] = torch.logit(shares).to(self.fragments.bias)

    def fragment_logits(self, source: Told | Encoded) -> Tensor:
        """Of each column, how likely its captions have each of the fragments, (P, K), in float32 at least."""
        assert self.fragments is not None
        seen = source.vector if isinstance(source, Told) else source.outputs.mean(0)  # (P, J)
        logits: Tensor = self.fragments(seen)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def start(self, source: Told | Encoded) -> Telling | Spelling:
        """Where the decoder stands before the first character."""
        if isinstance(source, Told):
            return self._teller.start(source)
        assert self.speller is not None
        return self.speller.start(source)

    def next(self, ids: Tensor, place: Telling | Spelling, source: Told | Encoded) -> tuple[Tensor, Telling | Spelling]:
        """The characters before (B,) -> logits of the next (B, V), and where the decoder then stands."""
        if isinstance(source, Told):
            assert isinstance(place, Telling)
            return self._teller.next(ids, place, source)
        assert self.speller is not None and isinstance(place, Spelling)
        return self.speller.next(ids, place, source)

    def ctc_logits(self, source: Told | Encoded) -> None:
        """A picture is not written off from left to right: there is no such head."""

    def forward(self, source: Told | Encoded, previous: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The true characters before each, (L, B), of a source of as many columns -> logits (L, B, V)."""
        logits: Tensor = self._decoder(source, previous, generator=generator)
        return logits
