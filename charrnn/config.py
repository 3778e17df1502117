"""YAML and `--set` to frozen, typed models. Every mistake in a configuration dies here, with its place named.

Defaults < YAML < `--set a.b=c`. Nothing below this module sees a dictionary of settings, and nothing changes one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from charrnn.errors import ConfigError, did_you_mean, short
from charrnn.options import separator_of
from charrnn.plain_yaml import Loader, parse_yaml


def _text(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError(f"{short(value)} is not valid; expected text that is not empty")
    return value


def _distinct(value: str) -> str:
    seen: set[str] = set()
    for character in value:
        if character in seen:
            raise ValueError(f"{short(value)} is not valid; expected each character once, and {short(character)} stands there twice")
        seen.add(character)
    return value


Text = Annotated[str, AfterValidator(_text)]
Count = Annotated[int, Field(gt=0, lt=1 << 63)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Limit = Annotated[float, Field(gt=0, le=1e9)]
Width = Annotated[int, Field(gt=0, le=1 << 20)]  # more is a slip of the keyboard, and would overflow torch's sizes
DEVICE = r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$"
DropoutPlace = Literal["input", "between_layers", "output"]

# What other char-RNN programs call the same thing: old habits work.
ALIASES = {
    "rnn_size": "model.hidden_size",
    "lstm_size": "model.hidden_size",
    "num_units": "model.hidden_size",
    "embedding_dim": "model.embedding_size",
    "seq_length": "train.tbptt_window",
    "num_steps": "train.tbptt_window",
    "num_seqs": "train.batch_size",
}
# What a key holds, where pydantic would tell of its patterns and the members of its unions.
EXPECTED = {
    "device": "auto, cpu, mps, cuda or cuda:N",
    "data.path": "a path or a list of paths; in quotes if it looks like something else",
    "data.val_path": "a path or a list of paths; in quotes if it looks like something else",
    "data.test_path": "a path or a list of paths; in quotes if it looks like something else",
    "data.filters.author": "a name or a list of names",
    "data.filters.form": "五绝, 七绝, 五律, 七律, lines x characters as 4x7, or a list of them",
    "data.filters.drop_lines_with": "a character, some text, or a list of them",
    "model.dropout.locked": "true, false or a list of input, between_layers, output",
    "train.cuda_graph": "auto, true or false",
    "train.class_weights": "balanced, or a weight above 0 for each label",
}
# What only some tasks ask of; the others refuse it, but for its default. Of a section, any of its keys that is not named by itself.
BELONGS = {
    "data.label": ("classify",),
    "data.labels": ("tag",),
    "data.marks": ("tag",),
    "data.example_length": ("fill", "classify", "tag"),
    "data.blanks": ("fill",),
    "model.tied_embeddings": ("lm", "fill"),
    "model.pooling": ("classify",),
    "model.crf": ("tag",),
    "model.pyramid": ("transcribe",),
    "model.decoder.attention_size": ("transcribe", "caption"),
    "model.decoder": ("transcribe",),
    "model.image_as": ("caption",),
    "model.cnn": ("caption",),
    "model.dropout.unknown": ("lm", "fill", "classify", "tag"),
    "decoding.ctc_weight": ("transcribe",),
    "decoding": ("transcribe", "caption"),
    "data.audio": ("transcribe",),
    "data.images": ("caption",),
    "model.bigrams": ("fill", "classify", "tag"),
    "train.tbptt_window": ("lm",),
    "train.class_weights": ("classify", "tag"),
    "train.keep_text": ("lm",),
}
# What a task takes for a key that is left out, where the key has no meaning in the others.
SETTLED: dict[str, dict[str, dict[str, Any]]] = {
    "classify": {"data": {"label": "label"}, "model": {"pooling": "max"}},
    "transcribe": {"data": {"field": "transcript"}, "model": {"bidirectional": True}},  # the encoder; the decoder cannot be
    "caption": {"data": {"field": "caption"}},
}
# What the features of a recording are: weights mean nothing with other ones.
HEARD = (
    "data.audio.sample_rate", "data.audio.num_mels", "data.audio.window_length", "data.audio.hop_length", "data.audio.top_db",
    "data.audio.deltas", "data.audio.normalization",
)  # fmt: skip
# What a picture is, likewise.
SEEN = ("data.images.size", "data.images.features")
NAMED_COLUMNS = ("jsonl", "csv", "tsv")
COLUMNS = {  # what a task reads from them
    "classify": "text and label",
    "transcribe": "recording and transcript",
    "caption": "picture and caption",
}
PUNCTUATED = ("data.template", "data.pattern")  # text full of what means something else in YAML: `--set` takes it as it stands
UNLIKE = {"keep_prob": "set model.dropout.output to 1 - keep_prob"}  # the same thing told the other way round


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        """A section whose keys are all commented out is null in YAML."""
        return {} if value is None else value

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and _is_number(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"{str(value).lower()} is not valid; expected a number")
        return value


def _is_number(annotation: Any) -> bool:
    return annotation in (int, float) or any(map(_is_number, get_args(annotation)))


def _cache() -> str:
    home = os.environ.get("XDG_CACHE_HOME", "")
    return f"{home if os.path.isabs(home) else '~/.cache'}/charrnn"  # a relative one is to be ignored, says the XDG specification


class VocabularyConfig(Section):
    max_size: Count | None = None  # keep the most frequent characters
    min_count: Count = 1  # drop characters seen fewer times
    include: Annotated[str, AfterValidator(_distinct)] = ""  # these first, seen or not; --init-from adds what its model knows
    end: bool = False  # has a symbol for the end of a document even where the text is a stream; --init-from sets it likewise
    blank: bool = False  # has the symbol that stands for a hidden character, though the task is not fill; --init-from sets it likewise


class FiltersConfig(Section):
    """Which documents are left out. Lengths are those of the document as the model reads it."""

    min_length: Count | None = None  # characters
    max_length: Count | None = None
    author: Text | list[Text] | None = None  # only by one of these
    form: Text | list[Text] | None = None  # only regular verse: 五绝, 七绝, 五律, 七律 or lines x characters as 4x7
    drop_duplicates: bool = False  # keep the first of those that are the same
    drop_lines_with: Text | list[Text] = []  # leave out lines that hold one of these, such as □

    @model_validator(mode="after")
    def _consistent(self) -> FiltersConfig:
        if self.min_length is not None and self.max_length is not None and self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is above max_length {self.max_length}; no document is both")
        return self


class BlanksConfig(Section):
    """Which characters of an example are hidden. A hidden character is read as the symbol `blank`, always."""

    share: Fraction = 0.15  # of the characters, hidden one by one
    span_share: Fraction = 0.0  # of the characters, hidden in spans of 2 to span_max
    span_max: Annotated[int, Field(ge=2, lt=1 << 31)] = 8
    line_rate: Fraction = 0.0  # the probability that one whole line of an example is hidden
    per_example: Count | None = None  # exactly so many single characters of each example instead, whatever the rates
    never: Annotated[str, AfterValidator(_distinct)] = ""  # characters that are not hidden, such as marks and line ends, which are easy

    @model_validator(mode="after")
    def _some(self) -> BlanksConfig:
        if not (self.share or self.span_share or self.line_rate or self.per_example):
            raise ValueError("share, span_share and line_rate are all 0, so nothing is hidden; set one of them above 0")
        return self


class AugmentConfig(Section):
    """What changes an utterance anew each time it is learned from."""

    time_masks: Annotated[int, Field(ge=0, le=1000)] = 0  # stretches of frames that are blanked out (SpecAugment: Park et al. 2019) …
    time_width: Count = 20  # … of at most so many frames
    mel_masks: Annotated[int, Field(ge=0, le=1000)] = 0  # bands of channels
    mel_width: Count = 8
    speed: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # the utterance is faster or slower by at most this share
    warp: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # frequencies are higher or lower by at most this share (Jaitly & Hinton 2013)
    equalizer: Annotated[float, Field(ge=0, le=40)] = 0.0  # decibels, standard deviation of each of four waves over the channels
    noise: Annotated[float, Field(ge=0, le=10)] = 0.0  # standard deviation of what is added to the normalised features


class AudioConfig(Section):
    """How a recording becomes frames of features."""

    field: Text = "audio"  # the manifest's column with the recordings' paths, relative to the manifest
    sample_rate: Annotated[int, Field(ge=1000, le=192_000)] = 16_000  # Hz; a recording of another rate is resampled
    num_mels: Annotated[int, Field(gt=0, le=1024)] = 40  # channels of the log-mel spectrogram
    window_length: Annotated[int, Field(gt=1, le=1 << 16)] = 400  # samples of a frame
    hop_length: Annotated[int, Field(gt=0, le=1 << 16)] = 160  # samples from one frame to the next
    top_db: Annotated[float, Field(gt=0, le=200)] | None = None  # its loudest is 0, and nothing further below that
    deltas: Annotated[int, Field(ge=0, le=2)] = 0  # 1: with the first derivatives over time, 2: with the second too
    # utterance: to mean 0 and variance 1 by channel, in each; global: the same over all; mean: in each, to mean 0 by channel and one
    # variance for all channels, and another for their derivatives
    normalization: Literal["utterance", "mean", "global", "none"] = "utterance"
    max_seconds: Annotated[float, Field(ge=0.1, le=1e9)] = 30.0  # of an utterance; a longer recording is cut where it is quietest
    augment: AugmentConfig = AugmentConfig()

    @property
    def features(self) -> int:
        """Numbers of a frame."""
        return self.num_mels * (1 + self.deltas)

    @model_validator(mode="after")
    def _overlapping(self) -> AudioConfig:
        if self.hop_length > self.window_length:
            raise ValueError(f"hop_length {self.hop_length} is above window_length {self.window_length}; frames would miss samples")
        return self


class ImageAugmentConfig(Section):
    """What changes a picture anew each time it is learned from."""

    crop: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # share of each side that is left out, at random on which side of what is kept
    flip: bool = False  # left and right are swapped, half the time; not where captions tell them apart
    color: Fraction = 0.0  # brightness, contrast and saturation are higher or lower by at most this share


class ImagesConfig(Section):
    """How a picture becomes the pixels, or the ready features, that a model sees."""

    field: Text = "image"  # the manifest's column with the pictures' paths
    folder: Text | None = None  # that they are relative to, else the manifest's own; or one array of ready features, .npy, beside its index
    size: Annotated[int, Field(gt=0, le=4096)] = 112  # pixels, of both sides of the square that a model sees
    features: Width | None = None  # numbers of a picture, where others have made features of it, in .npy or .safetensors; else its pixels
    augment: ImageAugmentConfig = ImageAugmentConfig()
    workers: Annotated[int, Field(gt=0, le=1024)] | None = None  # processes that decode pictures for the cache; left out, one a core

    @property
    def side(self) -> int:
        """Pixels of a side that are kept, so that a crop of `size` leaves out the share that it shall."""
        return round(self.size / (1 - self.augment.crop))

    @model_validator(mode="after")
    def _pixels(self) -> ImagesConfig:
        if self.features is not None and self.augment != ImageAugmentConfig():
            raise ValueError("augment changes pixels, and features says that others have made features of them; leave one of them out")
        return self


class DataConfig(Section):
    source: Literal["files", "python-stdlib"] = "files"  # python-stdlib: the running Python's own library, on every machine
    path: Text | list[Text] | None = None  # file, list, glob, directory, any of them .gz or .zip; relative to where the command runs
    val_path: Text | list[Text] | None = None  # the val split as it is given; then none of `path` is taken for it
    test_path: Text | list[Text] | None = None
    encoding: Text = "auto"  # auto: UTF-8, else the likeliest, and the run says which
    documents: Literal["none", "lines", "blank_lines", "files"] | None = None  # of plain text; none: one stream of it
    format: Literal[
        "auto", "text", "lines", "title_body", "blank_lines", "pattern", "chinese_poetry", "jsonl", "csv", "tsv", "lrc", "conll"
    ] = "auto"  # auto: what names and contents show beyond doubt, else plain text; the run says which
    field: Text | None = None  # of jsonl, csv and tsv: where the text is
    label: Text | None = None  # of the same, for classify: where the label is; `label` by default
    labels: Literal["column", "punctuation", "segmentation"] = "column"  # for tag: in the file, or made of its marks, which are taken out
    marks: Annotated[str, AfterValidator(_distinct), Field(min_length=1)] = "，。、；：？！"  # for tag: those that are learned
    example_length: Count = 256  # characters of an example at most, for fill, classify and tag
    blanks: BlanksConfig = BlanksConfig()  # for fill: what is hidden
    audio: AudioConfig = AudioConfig()  # for transcribe
    images: ImagesConfig = ImagesConfig()  # for caption
    pattern: Text | None = None  # a regular expression: a line that begins with it begins a document
    template: Text | None = None  # what a document becomes, "{title}\n{body}"; by default what suits the format
    script: Literal["simplified", "traditional"] | None = None  # Chinese characters are converted to it
    filters: FiltersConfig = FiltersConfig()
    val_fraction: Fraction = 0.1  # of path: the end of a stream; documents by seed. Not asked where there is a val_path
    test_fraction: Fraction = 0.0
    vocabulary: VocabularyConfig = VocabularyConfig()
    cache: Text = Field(default_factory=_cache)  # encoded text, by content hash; $XDG_CACHE_HOME/charrnn or ~/.cache/charrnn

    @property
    def separator(self) -> str:
        """What is written between two documents."""
        return separator_of(self.documents, self.format)

    @field_validator("pattern", mode="after")
    @classmethod
    def _regular(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{short(value)} is no regular expression ({error}); expected one such as '^X:'") from None
        return value

    @model_validator(mode="after")
    def _one_format(self) -> DataConfig:
        if self.documents is not None and self.format not in ("auto", "text"):
            raise ValueError(f"documents: {self.documents} is of plain text, and format is {self.format}; leave one of them out")
        if self.source != "files" and self.format not in ("auto", "text"):
            raise ValueError(f"source: {self.source} is plain text, and format is {self.format}; leave one of them out")
        if self.pattern is not None and (self.format not in ("auto", "pattern") or self.documents is not None):
            other = f"format is {self.format}" if self.documents is None else f"documents is {self.documents}"
            raise ValueError(f"pattern {self.pattern!r} is given, and {other}; set format: pattern, or leave pattern out")
        if self.format == "pattern" and self.pattern is None:
            raise ValueError("format: pattern needs pattern, a regular expression for the line that begins a document, such as '^X:'")
        if self.field is not None and (self.format not in ("auto", "jsonl", "csv", "tsv") or self.documents is not None):
            raise ValueError(f"field {self.field!r} is of jsonl, csv and tsv; set format to one of them, or leave field out")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.source == "files" and not self.path:
            raise ValueError(
                "path is missing; name the text to learn from (a file, a list, a glob or a directory), or set source: python-stdlib"
            )
        if self.source != "files" and self.path:
            raise ValueError(f"path {self.path!r} is given together with source: {self.source}; leave one of them out")
        for name, paths in (("val_path", self.val_path), ("test_path", self.test_path)):
            if paths == []:
                raise ValueError(f"{name} names no file; name at least one, or leave {name} out")
        fractions = self.fractions
        if fractions["val"] + fractions["test"] >= 1:
            raise ValueError(
                f"val_fraction {self.val_fraction} and test_fraction {self.test_fraction} leave nothing to train on; "
                "together they must stay below 1"
            )
        return self

    @property
    def fractions(self) -> dict[str, float]:
        """What each split takes of `path`."""
        val, test = 0.0 if self.val_path else self.val_fraction, 0.0 if self.test_path else self.test_fraction
        return {"val": val, "test": test}


class DropoutConfig(Section):
    embedding: Fraction = 0.0  # whole characters of the embedding (Gal & Ghahramani 2016)
    input: Fraction = 0.0  # what enters the first layer
    between_layers: Fraction = 0.0
    output: Fraction = 0.0  # what enters the head
    bigrams: Fraction = 0.0  # whole pairs of model.bigrams
    unknown: Fraction = 0.0  # characters of the text, each read as unknown: new ones of another text are then nothing new
    weight_hh: Fraction = 0.0  # DropConnect on the recurrent weights (Merity et al. 2018)
    locked: bool | list[DropoutPlace] = False  # one mask for all steps of a window (variational), everywhere or at these places

    def is_locked(self, place: DropoutPlace) -> bool:
        return self.locked if isinstance(self.locked, bool) else place in self.locked


class BigramsConfig(Section):
    """Pairs of neighbouring characters as a second input, beside the characters; for fill, classify and tag."""

    max_size: Annotated[int, Field(ge=0, le=1 << 26)] = 0  # the most frequent so many; 0 is off, 100000 is usual
    min_count: Count = 2  # of those that the text has so many times: what is seen once is learned by heart
    size: Width = 64  # of a pair's vector


class PyramidConfig(Section):
    """Layers above the `num_layers` plain ones, each of which reads several steps of the layer below as one (Chan et al. 2016)."""

    levels: Annotated[int, Field(ge=0, le=16)] = 3
    reduction: Annotated[int, Field(ge=2, le=64)] = 2  # steps that become one, in each of them


class DecoderConfig(Section):
    """What writes the characters: a recurrent network that looks at what the encoder made of the whole input."""

    hidden_size: Width = 256
    num_layers: Annotated[int, Field(gt=0, le=1000)] = 1
    attention: Literal["additive", "location"] = "location"  # location: knows where it looked before (Chorowski et al. 2015)
    attention_size: Width = 128
    location_filters: Width = 10
    location_width: Annotated[int, Field(gt=0, le=1 << 16)] = 15  # encoder steps that a filter sees on each side, and the one between
    teacher_forcing_rate: Annotated[float, Field(ge=0, le=1)] = 1.0  # how often it is told the true character before, and not its own
    ctc_weight: Annotated[float, Field(ge=0, lt=1)] = 0.3  # of the loss by which the encoder alone is judged (Watanabe et al. 2017)


class FragmentsConfig(Section):
    """Short strings of the captions that the picture's vector is asked for too, while it learns."""

    count: Annotated[int, Field(ge=0, le=100_000)] = 0  # at most, the commonest; 0: the vector learns from what is written alone
    length: Annotated[int, Field(gt=0, le=4)] = 3  # characters of each
    weight: PositiveFloat = 1.0  # of their cross-entropy, summed, beside that of the characters


class CNNConfig(Section):
    """What looks at a picture before it is told of: a residual network of convolutions."""

    width: Width = 32  # channels of the first stage; each has twice those of the one before
    stages: Annotated[int, Field(gt=0, le=8)] = 4  # each halves the sides of the grid, as the stem before them does
    blocks: Annotated[int, Field(gt=0, le=1000)] = 1  # of a stage, with two convolutions each
    backbone: Text | None = None  # torchvision/NAME or timm/NAME instead: a network of theirs, where that package is installed …
    weights: Text = "default"  # … begun with weights of theirs by name, with those it has as default, or none; --init-from has its own
    frozen: bool = False  # the backbone learns nothing
    dropout: Fraction = 0.0  # of the picture's numbers, before the recurrence hears of them
    fragments: FragmentsConfig = FragmentsConfig()

    @field_validator("backbone", mode="after")
    @classmethod
    def _of_a_package(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"(torchvision|timm)/[\w.-]+", value):
            raise ValueError(f"{short(value)} is not valid; expected torchvision/NAME or timm/NAME, such as torchvision/resnet18")
        return value

    @model_validator(mode="after")
    def _one_network(self) -> CNNConfig:
        ours = [key for key in ("width", "stages", "blocks") if getattr(self, key) != type(self).model_fields[key].default]
        if self.backbone is not None and ours:
            said = f"{ours[0]} {getattr(self, ours[0])} is of our own network, and backbone is {self.backbone}"
            raise ValueError(f"{said}; leave one of them out")
        if self.backbone is None and (self.frozen or self.weights != "default"):
            said = "frozen: true" if self.frozen else f"weights: {self.weights}"
            raise ValueError(f"{said} is of a backbone, and none is named; name one in backbone, or leave it out")
        if self.frozen and self.weights.casefold() == "none":
            raise ValueError("frozen: true keeps weights that nobody has trained, for weights is none; leave one of them out")
        return self


class ModelConfig(Section):
    cell: Literal["rnn_tanh", "rnn_relu", "lstm", "gru"] = "lstm"
    embedding_size: Width = 64
    hidden_size: Width = 256  # units per layer and direction
    num_layers: Annotated[int, Field(gt=0, le=1000)] = 1
    bidirectional: bool = False  # not for lm: each layer reads from both ends, and hands up 2 · hidden_size
    tied_embeddings: bool = False  # for lm and fill: head and embedding share one matrix
    layer_norm: bool = False  # on each layer's outputs
    bigrams: BigramsConfig = BigramsConfig()  # for fill, classify and tag: pairs of neighbours are read too
    residual: bool = False  # a layer's input is added to its output, where they are equally wide; so not in model.pyramid
    pooling: Literal["last", "max", "mean", "max_mean", "attention"] | None = None  # for classify: one answer of a text; by default max
    crf: bool = False  # for tag: labels are scored with those before them, and the best sequence of them is taken
    pyramid: PyramidConfig = PyramidConfig()  # for transcribe: of the encoder, whose other layers cell, hidden_size and num_layers tell
    decoder: DecoderConfig = DecoderConfig()  # for transcribe
    # For caption. first_step: s_0 = f(U x_0 + W s_-1 + V X), and X never again; first_input: a step before the first character, that
    # reads it (Vinyals et al. 2015); attention: looked at anew before each character (Xu et al. 2015)
    image_as: Literal["first_step", "first_input", "attention"] = "first_step"
    cnn: CNNConfig = CNNConfig()  # for caption, unless data.images.features are ready
    backend: Literal["auto", "reference", "explicit", "fused", "native"] = "auto"
    dropout: DropoutConfig = DropoutConfig()

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.dropout.bigrams and not self.bigrams.max_size:
            raise ValueError("dropout.bigrams is of model.bigrams, and there are none; set bigrams.max_size, or leave dropout.bigrams out")
        if self.tied_embeddings and self.embedding_size != self.output_size:
            outputs = f"twice hidden_size ({self.output_size})" if self.bidirectional else f"hidden_size ({self.hidden_size})"
            raise ValueError(
                f"tied_embeddings needs embedding_size ({self.embedding_size}) equal to {outputs}; "
                f"set embedding_size: {self.output_size} or tied_embeddings: false"
            )
        return self

    @property
    def output_size(self) -> int:
        """How wide a layer's outputs are."""
        return self.hidden_size * (2 if self.bidirectional else 1)


class TrainConfig(Section):
    batch_size: Count = 32  # parallel streams, or examples
    tbptt_window: Count = 128  # for lm: steps through which gradients flow
    max_steps: Count | None = None  # the run ends at the first of the three limits
    max_epochs: Limit | None = None
    max_minutes: Limit | None = None
    optimizer: Literal["adamw", "adam", "rmsprop", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 3e-3
    momentum: Fraction = 0.9  # sgd's, and beta1 of adam and adamw
    beta2: Fraction = 0.99
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # on matrices only
    schedule: Literal["constant", "cosine", "linear", "plateau"] = "cosine"  # over the largest fraction of the limits used up
    warmup_steps: Annotated[int, Field(ge=0, lt=1 << 63)] = 50
    min_learning_rate: Fraction = 0.02  # where the schedule ends, as a share of learning_rate
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5  # schedule: plateau multiplies by this …
    plateau_patience: Count = 2  # … after so many evaluations without a better value
    max_grad_norm: PositiveFloat = 1.0
    accumulate: Count = 1  # windows, or batches of examples, whose gradients make one step
    shards: Count = 1  # groups of columns, each with a CPU thread of its own; see docs/performance.md for when it pays
    threads: Count | None = None  # that share a product on a CPU; left out, all there are, and one while other programs hold the cores
    label_smoothing: Fraction = 0.0
    ema_decay: Fraction = 0.0  # weight averaging; the averaged weights are what is evaluated and saved. 0 is off
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    tf32: bool = False  # on a GPU, float32 products read 10 bits of a number's fraction and not 23, which is faster
    cuda_graph: Literal["auto"] | bool = "auto"  # for lm on a GPU: a step is recorded once and asked for by one call; auto: where it can be
    patience: Count | None = None  # stop after so many evaluations without a better value
    best_by: Text | None = None  # the val metric that chooses: nats for lm and fill, accuracy for classify, f1 for tag, errors in speech
    class_weights: Literal["balanced"] | dict[str, PositiveFloat] | None = None  # for classify and tag: what a label counts in the loss
    evaluate_every: Count = 500  # steps
    save_every: Count = 500
    save_every_minutes: Limit | None = None  # also when training has gone on for so long since the last save
    keep: Annotated[int, Field(ge=0, lt=1 << 31)] = 0  # models of so many latest saves are kept, besides the best and the last
    log_every: Count = 50
    keep_text: bool = False  # for lm: the run keeps its encoded training text, for `sample --novelty` and `--no-copy`

    @model_validator(mode="after")
    def _ends(self) -> TrainConfig:
        if self.max_steps is None and self.max_epochs is None and self.max_minutes is None:
            raise ValueError("the run has no end; set at least one of max_steps, max_epochs, max_minutes")
        return self


class DecodingConfig(Section):
    """How the likeliest characters are sought."""

    beam_width: Annotated[int, Field(gt=0, le=1000)] = 1  # of beam search; 1 is greedy
    ctc_weight: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the encoder's own opinion (CTC) in the score; above 0, a beam of 1 too
    length_normalization: Annotated[float, Field(ge=0, le=5)] = 0.6  # 0: none; the exponent of Wu et al. 2016, equation 14
    # Characters at most. Left out, twice as many as the encoder has steps and 8; of captions half as many again as the longest that was
    # learned from, and no more than 200
    max_length: Count | None = None


class Config(Section):
    task: Literal["lm", "fill", "classify", "tag", "transcribe", "caption"] = "lm"
    run: Text = "runs/default"  # the run directory
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1
    device: Annotated[str, Field(pattern=DEVICE)] = "auto"
    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig
    decoding: DecodingConfig = DecodingConfig()  # for transcribe and caption

    @model_validator(mode="before")
    @classmethod
    def _settle(cls, value: Any) -> Any:
        """Put in what the task takes for a key that is left out."""
        if not isinstance(value, Mapping) or not isinstance(value.get("task"), str):
            return value
        settled = dict(value)
        data = settled.get("data")
        # Where the file is to be read as something else, it is that, and not the column, that a person has to mend.
        named = not isinstance(data, Mapping) or (data.get("format") in (None, "auto", *NAMED_COLUMNS) and data.get("documents") is None)
        for section, defaults in SETTLED.get(settled["task"], {}).items():
            given = settled.get(section) or {}
            if isinstance(given, Mapping):
                left_out = {key: default for key, default in defaults.items() if given.get(key) is None and (named or key != "field")}
                settled[section] = {**given, **left_out}
        return settled

    @model_validator(mode="after")
    def _honest(self) -> Config:
        if self.task == "lm" and self.model.bidirectional:
            raise ValueError(
                "model.bidirectional: a language model that reads from both sides has read its own answer; "
                "set bidirectional: false (guessing from both sides is the task `fill`)"
            )
        return self

    @model_validator(mode="after")
    def _of_this_task(self) -> Config:
        for name, tasks in BELONGS.items():
            *sections, key = name.split(".")
            model: Section = self
            for section in sections:
                model = getattr(model, section)
            value, default = getattr(model, key), type(model).model_fields[key].get_default(call_default_factory=True)
            if self.task not in tasks and value != default:
                if isinstance(value, Section):
                    differing = [inner for inner in type(value).model_fields if getattr(value, inner) != getattr(default, inner)]
                    key = next((inner for inner in differing if f"{name}.{inner}" not in BELONGS), "")
                    if not key:  # each of them says itself whose it is
                        continue
                    name, value = f"{name}.{key}", getattr(value, key)
                said = str(value).lower() if isinstance(value, bool) else short(value)
                remedy = f"leave it out, or set task: {tasks[0]}"
                raise ValueError(f"{name}: {said} is of task {_listed(tasks)}, and task is {self.task}; {remedy}")
        return self

    @model_validator(mode="after")
    def _labelled_text(self) -> Config:
        data = self.data
        if data.format == "conll" and not (self.task == "tag" and data.labels == "column"):
            where = f"task is {self.task}" if self.task != "tag" else f"labels is {data.labels}"
            raise ValueError(f"data.format: conll is of task tag with labels: column, and {where}; set another format")
        if self.task == "tag" and data.labels == "column" and (data.format not in ("auto", "conll") or _is_plain(data)):
            raise ValueError(
                "data.labels: column reads labels from CoNLL columns, and the text is to be read as something else; "
                "set data.format: conll alone, or make the labels of the text with labels: punctuation or segmentation"
            )
        if self.task in COLUMNS and (data.format not in ("auto", *NAMED_COLUMNS) or _is_plain(data)):
            raise ValueError(
                f"data.format: task {self.task} reads {COLUMNS[self.task]} from named columns, and the file is to be read as something "
                f"else; set data.format: {', '.join(NAMED_COLUMNS)} or auto, and leave out data.documents, data.pattern and data.source"
            )
        return self

    @model_validator(mode="after")
    def _judged(self) -> Config:
        if self.model.crf and (self.train.class_weights is not None or self.train.label_smoothing):
            key = "train.class_weights" if self.train.class_weights is not None else "train.label_smoothing"
            raise ValueError(f"{key}: is of labels that are judged one by one, and model.crf judges them together; leave one of them out")
        return self

    @model_validator(mode="after")
    def _pictured(self) -> Config:
        if self.task == "caption" and self.model.bidirectional:
            raise ValueError("model.bidirectional: what writes a caption reads only what it has written; set bidirectional: false")
        if self.task == "caption" and self.model.residual:
            raise ValueError("model.residual: what writes a caption has no such layers; set residual: false")
        if self.task == "caption" and self.train.shards > 1:
            raise ValueError("train.shards: the pictures of a batch are looked at together, by all threads; leave it out")
        features = self.data.images.features
        if features is not None and self.model.image_as == "attention":
            raise ValueError(
                f"model.image_as: attention looks at the places of a picture, and data.images.features: {features} numbers have none; "
                "set image_as: first_step or first_input"
            )
        if self.task == "caption" and features is not None:
            given = {key: getattr(self.model.cnn, key) for key in CNNConfig.model_fields if key != "dropout"}  # which is of features too
            key, value = next(((key, value) for key, value in given.items() if value != getattr(CNNConfig(), key)), ("", None))
            if key:
                said = f"{key}.{_changed(value)}" if isinstance(value, Section) else f"{key}: {value}"
                raise ValueError(
                    f"model.cnn.{said} is of a network that looks at pixels, and data.images.features: {features} says that others have "
                    "looked; leave one of them out"
                )
        cnn = self.model.cnn
        if self.task == "caption" and features is None and cnn.backbone is None and self.data.images.size < 1 << (1 + cnn.stages):
            raise ValueError(
                f"model.cnn.stages: {cnn.stages} halve the sides of a picture to nothing, for data.images.size is "
                f"{self.data.images.size}; lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _sought(self) -> Config:
        if self.decoding.ctc_weight and not self.model.decoder.ctc_weight:
            raise ValueError(
                f"decoding.ctc_weight: {self.decoding.ctc_weight:g} asks what CTC thinks, and model.decoder.ctc_weight: 0 trains none; "
                "set that above 0 before training, or leave decoding.ctc_weight out"
            )
        return self

    @model_validator(mode="after")
    def _summed(self) -> Config:
        model, features = self.model, self.data.audio.features
        if self.task == "transcribe" and model.residual and model.num_layers == 1 and features != model.output_size:
            raise ValueError(
                f"model.residual: true adds nothing: the encoder's one plain layer reads {features} features a frame and hands up "
                f"{model.output_size}, and a level of model.pyramid reads several steps as one; set model.num_layers to 2 or more, "
                "or leave residual out"
            )
        return self

    @property
    def is_labelled(self) -> bool:
        """Whether a model of this task answers with labels, and not with characters."""
        return self.task in ("classify", "tag")

    @property
    def is_windowed(self) -> bool:
        """Whether a batch is a window of streams, whose state is carried to the next, and not a set of examples."""
        return self.task == "lm"

    def to_yaml(self) -> str:
        return as_yaml(self.model_dump(mode="json"))


def _is_plain(data: DataConfig) -> bool:
    return data.documents is not None or data.pattern is not None or data.source != "files"


def _changed(section: Section) -> str:
    """The first `key: value` of a section that is not as it is by default."""
    default = type(section)()
    return next(f"{key}: {value}" for key, value in section if value != getattr(default, key))


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


class _Dumper(yaml.SafeDumper):
    """YAML that says the same to us and to everyone else: text that either takes for something else is quoted."""


_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeLoader.yaml_implicit_resolvers.get(first, []), *resolvers]
    for first, resolvers in Loader.yaml_implicit_resolvers.items()
}


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Text that is not plain to the eye in double quotes, with escapes: PyYAML reads some line ends otherwise than it writes them."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _quoted)


def as_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML that parse_yaml reads back as they are."""
    return str(yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """With the keys of sections before those in them, `train.max_steps`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return found


class Given(NamedTuple):
    """A setting that takes the place of the file's."""

    key: str  # with its sections, `train.learning_rate`
    value: Any
    place: str  # where a person wrote it, which is what an error message blames


def load_config(path: Path | str, overrides: Sequence[str | Given] = ()) -> Config:
    """Read a YAML file and apply `a.b=c` overrides. Raises ConfigError, one line, naming file and key."""
    return build_config(read_settings(path), str(path), overrides)


def read_settings(path: Path | str) -> dict[str, Any]:
    """The sections of a YAML file, not validated. Raises ConfigError, one line, where it has none."""
    path = Path(path)
    try:
        raw = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file; `ls configs` shows those that ship{_near(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory; expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}; save the config as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return _settings_of(raw, str(path))


def read_config(text: str, place: str, overrides: Sequence[str | Given] = ()) -> Config:
    """From YAML, with `a.b=c` overrides. `place` is what an error message blames. Raises ConfigError, one line."""
    return build_config(_settings_of(text, place), place, overrides)


def _settings_of(text: str, place: str) -> dict[str, Any]:
    try:
        settings = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{place}: holds a {type(settings).__name__}; expected sections `data:`, `model:`, `train:` with keys")
    return settings


def build_config(settings: Mapping[str, Any], place: str, overrides: Sequence[str | Given] = ()) -> Config:
    """Validate settings, which stay as they are. `place` is what an error message blames. Raises ConfigError."""
    merged = _move_aliases(settings, place)
    given = {}  # key: the --set that it comes from, and that is to blame
    for override in overrides:
        setting = setting_of(override) if isinstance(override, str) else override
        _put(merged, setting)
        given[setting.key] = setting.place
    for section in ("data", "train"):
        merged.setdefault(section, {})
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_explain(error, place, given)) from None


def _near(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    return did_you_mean(path.name, names)


def _move_aliases(settings: Mapping[str, Any], place: str) -> dict[str, Any]:
    moved: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in settings.items()}
    for section, values in [("", moved), *((k, v) for k, v in moved.items() if isinstance(v, dict))]:
        for old in [key for key in values if isinstance(key, str)]:
            if old in UNLIKE:
                raise ConfigError(f"{place}: {old!r} is not used here; {UNLIKE[old]}")
            if old not in ALIASES:
                continue
            target_section, target = ALIASES[old].split(".")
            into = moved[target_section] = {} if moved.get(target_section) is None else moved[target_section]
            if not isinstance(into, dict):
                raise ConfigError(f"{place}: {target_section}: {short(into)} is not valid; expected a section with keys")
            if target in into:
                raise ConfigError(
                    f"{place}: {section or 'top level'}: {old!r} is another name of {ALIASES[old]}, which is given too; keep one"
                )
            into[target] = values.pop(old)
    return moved


def setting_of(override: str) -> Given:
    """What `--set a.b=c` sets. Raises ConfigError where it is no key and value."""
    place = f"--set {override!r}"
    name, equals, text = override.partition("=")
    key = key_of(name, place) if equals else ""
    if not key:
        raise ConfigError(f"{place}: expected KEY=VALUE, for example --set train.max_minutes=3")
    try:
        value = parse_yaml(text)
    except ConfigError:
        if not text.startswith("*") and key not in PUNCTUATED:  # a star is a reference in YAML, and here a glob
            raise ConfigError(f"{place}: {text!r} is not a value; quote it if it is text") from None
        value = text
    return Given(key, text if key in PUNCTUATED and not isinstance(value, str | None) else value, place)


def key_of(name: str, place: str) -> str:
    """A key as it is called here, for one that is written with `-` or is an old habit; nothing where it is none. Raises ConfigError."""
    parts = name.strip().replace("-", "_").split(".")
    if not all(parts):
        return ""
    if parts[-1] in UNLIKE:
        raise ConfigError(f"{place}: {parts[-1]!r} is not used here; {UNLIKE[parts[-1]]}")
    return ALIASES.get(parts[-1], ".".join(parts))


def _put(settings: dict[str, Any], setting: Given) -> None:
    *sections, leaf = setting.key.split(".")
    here: Any = settings
    for section in sections:
        inner = here.get(section)
        if inner is not None and not isinstance(inner, dict):
            raise ConfigError(f"{setting.place}: {section!r} is {short(inner)}, not a section with keys")
        here[section] = here = dict(inner or {})
    here[leaf] = setting.value


def _explain(error: ValidationError, place: str, given: Mapping[str, str]) -> str:
    """The first complaint, as one line; the number of the others."""
    complaints: dict[tuple[str, ...], dict[str, Any]] = {}  # by key: a union complains once for each of its members
    for complaint in sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden"):
        complaints.setdefault(_key(complaint["loc"]), dict(complaint))
    key, first = next(iter(complaints.items()))
    name, section = ".".join(key), ".".join(key[:-1])
    # What speaks of several sections begins with the key that it is about.
    about = name or str(first.get("ctx", {}).get("error", "")).partition(":")[0]
    blamed = next((source for setting, source in given.items() if f"{about}.".startswith(f"{setting}.")), place)
    if first["type"] == "extra_forbidden":  # also where what was given lies inside of it
        blamed = next((source for setting, source in given.items() if f"{setting}.".startswith(f"{name}.")), blamed)
    others = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
    if first["type"] in ("extra_forbidden", "invalid_key"):
        where = f"{blamed}: {section + ': ' if section else ''}"
        if first["type"] == "invalid_key":
            return f"{where}key {short(first['input'])} is not text; quote it, or take it out{others}"
        return f"{where}unknown key {short(key[-1])}{_remedy(section, key[-1])}{others}"
    where = f"{blamed}: {name + ': ' if name else ''}"
    if first["type"] == "value_error":
        return f"{where}{first['ctx']['error']}{others}"
    return f"{where}{short(first['input'])} is not valid; {_expectation(name, first)}{others}"


def _key(location: tuple[int | str, ...]) -> tuple[str, ...]:
    """Where in the configuration a complaint belongs, without the indices and union members that pydantic puts behind a key."""
    model: type[Section] | None = Config
    key: list[str] = []
    for part in location:
        if model is None:
            break
        key.append(str(part))
        model = _section(model, str(part))
    return tuple(key)


def _remedy(section: str, key: str) -> str:
    known = dict(_sections())
    belongs = [name for name, keys in known.items() if key in keys]
    if belongs:
        return f"; it belongs in section {belongs[0]!r}" if belongs[0] else "; it belongs at the top level"
    return did_you_mean(key, known[section]) or f"; known are {', '.join(known[section])}"


def _expectation(key: str, complaint: Mapping[str, Any]) -> str:
    if complaint["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"expected a section with keys such as {', '.join(list(dict(_sections())[key])[:3])}"
    if key in EXPECTED:
        return f"expected {EXPECTED[key]}"
    if complaint["type"] == "string_type":
        return "expected text; in quotes if it looks like something else"
    # "Input should be a valid integer, unable to parse string as an integer"
    message = str(complaint["msg"]).removeprefix("Input should be ").partition(", unable")[0].replace("a valid ", "a ")
    message = message.replace("a integer", "an integer")
    if complaint["type"].startswith(("greater_than", "less_than")):
        message = f"a number {message}"
    hint = ""
    if complaint["type"] == "literal_error":
        hint = did_you_mean(str(complaint["input"]), re.findall("'(.*?)'", str(complaint["ctx"]["expected"])))
    return f"expected {message[:1].lower()}{message[1:]}{hint}"


def _section(model: type[Section], key: str) -> type[Section] | None:
    annotation = model.model_fields[key].annotation if key in model.model_fields else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def keys_of(section: str) -> list[str]:
    """The keys of a section and of those in it, each with its sections before it: `model.dropout.input`."""
    inner = [(name, keys) for name, keys in _sections() if f"{name}.".startswith(f"{section}.")]
    names = {name for name, _ in inner}
    return [key for name, keys in inner for one in keys if (key := f"{name}.{one}") not in names]


def _sections(name: str = "", model: type[Section] = Config) -> Iterator[tuple[str, list[str]]]:
    """Every section with its keys; the top level is ""."""
    yield name, list(model.model_fields)
    for key in model.model_fields:
        if inner := _section(model, key):
            yield from _sections(f"{name}.{key}".lstrip("."), inner)
