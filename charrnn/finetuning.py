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
from charrnn.config import Config, ModelConfig, build_config
from charrnn.data.corpus import Corpus
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import CheckpointError, ConfigError, counted
from charrnn.models.char_rnn import BY_ID

# What gives the weights their shapes and their meaning. Dropout and backend may change.
SHAPE = (
    "cell", "embedding_size", "hidden_size", "num_layers", "bidirectional", "residual", "tied_embeddings", "layer_norm",
    "bigrams.max_size", "bigrams.size",
)  # fmt: skip
ANSWER = ("pooling", "crf")  # of what answers
NAMED = 8  # characters that a note lists before it only counts them


def prepare(config: Config, loaded: Loaded) -> Config:
    """The configuration of a run that begins with that model: its vocabulary has what the model knows.

    Raises CheckpointError, naming every key, where the weights do not fit.
    """
    old, new = loaded.config.model, config.model
    compared = SHAPE if loaded.config.task != config.task else (*SHAPE, *ANSWER)
    settings = [(key, *map(attrgetter(key), (old, new))) for key in compared]
    differing = [(f"model.{key}", _said(there), _said(here)) for key, there, here in settings if there != here]
    if differing:
        facts = ", ".join(f"{key} is {there} there and {here} here" for key, there, here in differing)
        refusal = _refusal(config, old, compared)
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


def _refusal(config: Config, model: ModelConfig, keys: Sequence[str]) -> str | None:
    """Why a configuration cannot have these keys as that model has them; None where it can."""
    overrides = [f"model.{key}={json.dumps(attrgetter(key)(model))}" for key in keys]
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
    sources = _sources(loaded.vocabulary, vocabulary)  # (W,)
    shares = sources == loaded.vocabulary.unknown  # (W,)
    weights = {}
    by_id = [name for name in BY_ID if name == "embedding.weight" or not loaded.labels]
    for name, weight in loaded.weights.items():
        if not (head or name.startswith(("embedding.", "bigrams.", "recurrent."))):
            continue
        if name.startswith("bigrams.") and loaded.vocabulary.symbols != vocabulary.symbols:
            continue
        if name not in by_id:
            weights[name] = weight
            continue
        rows = weight[sources.to(weight.device)]  # (V, ·) -> (W, ·)
        if name == "head.bias":
            rows[shares.to(weight.device)] -= math.log(int(shares.sum()))  # of one alone: 0
        weights[name] = rows
    return weights


def _sources(old: Vocabulary, new: Vocabulary) -> Tensor:
    """(W,) the old id whose row each new id takes."""
    symbols = [old.symbols.index(symbol) if symbol in old.symbols else old.unknown for symbol in new.symbols]
    return torch.tensor(symbols + [old.id(character) for character in new.characters])


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
    return str(value).lower() if isinstance(value, bool) else str(value)
