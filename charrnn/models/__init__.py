"""Architectures: layers put together, and the parameters of a whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from charrnn.config import Config
from charrnn.models.backbone import Backbone
from charrnn.models.captioner import Captioner
from charrnn.models.char_rnn import CharRNN
from charrnn.models.transcriber import Transcriber

Architecture = CharRNN | Transcriber | Captioner


def _char_rnn(config: Config, vocabulary_size: int, labels: int | None) -> CharRNN:
    return CharRNN(config.model, vocabulary_size, labels)


def _transcriber(config: Config, vocabulary_size: int, labels: int | None) -> Transcriber:
    audio = config.data.audio
    return Transcriber(config.model, audio.features, vocabulary_size, normalised=audio.normalization == "global")


def _captioner(config: Config, vocabulary_size: int, labels: int | None) -> Captioner:
    return Captioner(config.model, config.data.images.features, vocabulary_size, config.data.images.size)


BUILDERS: dict[str, Callable[[Config, int, int | None], Architecture]] = {
    "lm": _char_rnn,
    "fill": _char_rnn,
    "classify": _char_rnn,
    "tag": _char_rnn,
    "transcribe": _transcriber,
    "caption": _captioner,
}


def build_architecture(config: Config, vocabulary_size: int, labels: int | None = None) -> Architecture:
    """What the task of a configuration trains, with its weights as they begin; `labels`: how many it answers with, None for characters."""
    return BUILDERS[config.task](config, vocabulary_size, labels)


def count_parameters(model: nn.Module) -> int:
    """Numbers that are learned; a shared tensor counts once, and what no step moves does not."""
    frozen = {"mean", "deviation", "decision", "bigrams.keys", "norm.mean", "norm.variance"}
    backbones = [(place, part) for place, part in model.named_modules() if isinstance(part, Backbone)]
    frozen |= {f"{place}.{name}" for place, part in backbones for name in part.unlearned}
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name not in frozen)


class RecurrentSizes(NamedTuple):
    """What reading from both sides costs: outputs twice as wide, and as many parameters once more."""

    outputs: int  # numbers that the stack, or the encoder, hands on at each step
    forward: int  # parameters of the recurrent layers that read from the beginning
    reverse: int  # and from the end; 0 in one direction


def recurrent_sizes(model: Architecture) -> RecurrentSizes:
    """Of the layers that read; what writes with their help, or of a picture, reads one way."""
    if isinstance(model, CharRNN):
        stacks = [model.recurrent]
    else:
        stacks = model.recurrent_stacks() if isinstance(model, Captioner) else model.recurrent_stacks()[:-1]

    def numbers(direction: int) -> int:
        layers = [stack.weights(layer, direction) for stack in stacks for layer in range(stack.num_layers)]
        return sum(weight.numel() for weights in layers for weight in weights if weight is not None)

    return RecurrentSizes(stacks[0].output_size, numbers(0), numbers(1) if stacks[0].directions == 2 else 0)
