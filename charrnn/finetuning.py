"""A model goes on with another text, or another task: what it knows keeps its place, and new characters get rows of their own.

The new run's vocabulary is the old one with the text's new characters behind it, so that no old id means something else.
A new row begins as a copy of `unknown`'s, in the embedding and in the head: the model reads a new character as it did when
it did not know it. In the head, `unknown` and its copies share the probability that `unknown` had: with n copies, each of
them has log(n + 1) less in its bias. So no old character's probability moves, in no text, before the first step. The text
itself then tells the copies apart. With tied embeddings the two copies are of one row, and the same holds.

Another task, or other labels, ask other questions: then only the embedding and the recurrent layers are taken, and what
answers (head, pooling, CRF) begins afresh.

Pairs of characters are hashed by their ids. Where the symbols before the characters are others, every id has moved, and the
table of pairs begins afresh too.

Axes: V old vocabulary size, W new vocabulary size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from charrnn.checkpoint import Loaded
from charrnn.config import HEARD, SEEN, Config, build_config
from charrnn.data.corpus import Corpus
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import CheckpointError, ConfigError, counted
from charrnn.models import BUILDERS
from charrnn.models.char_rnn import BY_ID
from charrnn.models.transcriber import CTC_BY_ID

# What gives the weights their shapes and their meaning. Dropout and backend may change.
SHAPE = (
    "model.cell", "model.embedding_size", "model.hidden_size", "model.num_layers", "model.bidirectional", "model.residual",
    "model.tied_embeddings", "model.layer_norm", "model.bigrams.max_size", "model.bigrams.size",
    "model.pyramid.levels", "model.pyramid.reduction", "model.decoder.hidden_size", "model.decoder.num_layers",
    "model.decoder.attention", "model.decoder.attention_size", "model.decoder.location_filters", "model.decoder.location_width",
    "model.image_as", "model.cnn.backbone", "model.cnn.width", "model.cnn.stages", "model.cnn.blocks",
    *HEARD, *SEEN,
)  # fmt: skip
ANSWER = ("model.pooling", "model.crf")  # of what answers
NAMED = 8  # characters that a note lists before it only counts them


def prepare(config: Config, loaded: Loaded) -> Config:
    """The configuration of a run that begins with that model: its vocabulary has what the model knows.

    Raises CheckpointError, naming every key, where the weights do not fit.
    """
    if BUILDERS[loaded.config.task] is not BUILDERS[config.task]:
        fact = f"a model of task {loaded.config.task}, which is made otherwise than one of task {config.task}"
        raise CheckpointError(f"{loaded.path}: cannot start from it: {fact}; name a model of task {config.task}, or leave out --init-from")
    compared = SHAPE if loaded.config.task != config.task else (*SHAPE, *ANSWER)
    settings = [(key, *map(attrgetter(key), (loaded.config, config))) for key in compared]
    differing = [(key, _said(there), _said(here)) for key, there, here in settings if there != here]
    if differing:
        facts = ", ".join(f"{key} is {there} there and {here} here" for key, there, here in differing)
        refusal = _refusal(config, loaded.config, compared)
        flags = " ".join(f"--set {key}={there}" for key, there, _ in differing)
        remedy = f"set the same with {flags}" if refusal is None else f"it cannot be the same here ({refusal}), so begin with another model"
        raise CheckpointError(f"{loaded.path}: cannot start from it: {facts}; {remedy}, or leave out --init-from")
    wanted = config.data.vocabulary
    known = loaded.vocabulary
    vocabulary = wanted.model_copy(
        update={
            "include": known.characters + "".join(c for c in wanted.include if c not in known),
            # A stream's model gets an `end` by itself where the new text has documents.
            "end": wanted.end or known.end is not None,
            "blank": wanted.blank or known.blank is not None,  # the ids stay what they were
        }
    )
    return config.model_copy(update={"data": config.data.model_copy(update={"vocabulary": vocabulary})})


def _refusal(config: Config, other: Config, keys: Sequence[str]) -> str | None:
    """Why a configuration cannot have these keys as that of a model has them; None where it can."""
    overrides = [f"{key}={json.dumps(attrgetter(key)(other))}" for key in keys]
    try:
        build_config(config.model_dump(mode="json"), "the config", overrides)
    except ConfigError as error:
        return str(error).partition(": ")[2].partition(";")[0]
    return None


def keeps_head(loaded: Loaded, config: Config, labels: tuple[str, ...]) -> bool:
    """Whether what answers is taken too: it was trained to answer the same question."""
    return loaded.config.task == config.task and loaded.labels == labels


def widen(loaded: Loaded, vocabulary: Vocabulary, *, head: bool = True) -> dict[str, Tensor]:
    """The model's weights for a vocabulary that holds its own: each id that it knows with its row, each new one with `unknown`'s.

    Without `head`, only those of the embedding, of the pairs and of the recurrent layers.
    """
    sources = _sources(loaded.vocabulary, vocabulary, loaded.vocabulary.unknown)  # (W,)
    shares = sources == loaded.vocabulary.unknown  # (W,)
    weights = {}
    by_id = [name for name in BY_ID if name == "embedding.weight" or not loaded.labels]
    by_id += [f"{writer}.{name}" for writer in ("speller", "teller") for name in by_id]
    for name, weight in loaded.weights.items():
        if not (head or name.startswith(("embedding.", "bigrams.", "recurrent."))):
            continue
        if name.startswith("fragments."):  # the new text has others
            continue
        if name.startswith("bigrams.") and loaded.vocabulary.symbols != vocabulary.symbols:
            continue
        if name in CTC_BY_ID:  # what `unknown` is elsewhere is the blank here; nothing is ever taken for the end of a text
            assert loaded.vocabulary.end is not None
            weights[name] = weight[_sources(loaded.vocabulary, vocabulary, loaded.vocabulary.end).to(weight.device)]
            continue
        if name not in by_id:
            weights[name] = weight
            continue
        rows = weight[sources.to(weight.device)]  # (V, ·) -> (W, ·)
        if name.endswith("head.bias"):
            rows[shares.to(weight.device)] -= math.log(int(shares.sum()))  # of one alone: 0
        weights[name] = rows
    return weights


def _sources(old: Vocabulary, new: Vocabulary, strange: int) -> Tensor:
    """(W,) the old id whose row each new id takes; `strange`: for what the old vocabulary does not have."""
    symbols = [old.symbols.index(symbol) if symbol in old.symbols else strange for symbol in new.symbols]
    return torch.tensor(symbols + [old.id(character) if character in old else strange for character in new.characters])


def report(loaded: Loaded, corpus: Corpus, *, head: bool = True) -> str:
    """What became of the model's characters, and of its head, in one line."""
    old, new = loaded.vocabulary, corpus.vocabulary
    added = [character for character in new.characters if character not in old]
    examples = " ".join(map(repr, added[:NAMED])) + (" …" if len(added) > NAMED else "")
    absent = sum(1 for character in corpus.absent if character in old)
    parts = [
        f"kept {counted(len(old.characters), 'character')}",
        f"added {len(added):,}" + (f" ({examples})" if added else ""),
        f"{absent:,} of the old do not occur in the new text",
    ]
    if old.end is None and new.end is not None:
        parts.append("the end of a document is new to it")
    elif old.end is not None and not corpus.documents:
        parts.append("it keeps its end of a document, though the new text is one stream without any")
    if old.symbols != new.symbols and loaded.config.model.bigrams.max_size:
        parts.append("its pairs of characters begin afresh")
    if not head:
        parts.append(f"its head for task {loaded.config.task} is left behind, and a fresh one begins")
    return f"{loaded.path}: " + ", ".join(parts)


def _said(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
