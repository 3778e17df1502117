"""The native engine: a language model that writes, decoded in C++ (ops/csrc/decode.h). Without torch and without numpy.

It does what `sampling.draw` does with PyTorch, in the same order and from the same generators, so that a seed means the same text. What
only PyTorch can do it refuses, with the reason. A model file that is not what training wrote it leaves to `checkpoint.load_model`, which
says what is wrong with it.

Axes: B rows (one a text), V vocabulary, E embedding_size, H hidden_size, G gates of a cell.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from charrnn.data.vocabulary import Vocabulary, opening
from charrnn.errors import CheckpointError, ConfigError, not_finite
from charrnn.model_file import Header, damaged_content, read_header
from charrnn.ops.library import library_path
from charrnn.options import SamplingOptions, separator_of
from charrnn.plain_yaml import parse_yaml

if TYPE_CHECKING:
    from charrnn.texts import Texts

INSTRUCTIONS = ("plain", "avx2", "avx512", "vnni")  # from least to most, as csrc/decode.cpp counts them
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}  # in the order of csrc/native.h
TENSORS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
PAUSE = 0.03  # seconds that a call lasts: a person who ends the program waits no longer
PIECE = 256  # ids of what is read before a text that are read at once, at first
TRIAL = 0.002  # seconds, about, in which it is found out with how many threads a step takes least,
TRIAL_STEPS = 2, 64  # by so many steps at least and at most,
TRIED_AGAIN = 1.0, 30.0  # and seconds until that is done again, for other programs come and go: later each time that nothing changed
NOT_FINITE, NO_MEMORY = 1, 2
MOST_THREADS = 2  # each layer is a moment at which all wait for the slowest


class Unfit(Exception):
    """Why this engine cannot run a model, for who named it."""


class _Model(ctypes.Structure):
    """csrc/decoder.h has the shapes."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                *("cell", "vocabulary", "embedding_size", "hidden", "layers", "residual", "quantized", "instructions", "end"),
                "unwritten_count",
            )
        ),
        ("read_scale", ctypes.c_double),
        ("unwritten", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("embedding", "head_weight", "head_bias", "weights")),
    ]


class _Options(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
        *((name, ctypes.c_int64) for name in ("top_k", "repetition_window", "no_repeat_ngram", "continues")),
    ]


@functools.cache
def _library() -> Any:
    """The library; None where the package was installed without it, or it was compiled from other sources than these."""
    path = library_path()
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    made = getattr(library, "charrnn_decoder_bytes", None)
    if made is None or made() != ctypes.sizeof(_Model) + ctypes.sizeof(_Options):
        return None
    library.charrnn_decoder_has.argtypes = [number]
    library.charrnn_decoder_new.argtypes = [ctypes.POINTER(_Model)]
    library.charrnn_decoder_new.restype = pointer
    library.charrnn_decoder_free.argtypes = [pointer]
    library.charrnn_decoder_free.restype = None
    library.charrnn_decoder_begin.argtypes = [pointer]
    library.charrnn_decoder_read.argtypes = [pointer, pointer, number, number, number, pointer]
    library.charrnn_decoder_spread.argtypes = [pointer, number, pointer, ctypes.POINTER(_Options), pointer, number]
    library.charrnn_decoder_write.argtypes = [pointer, number, pointer, pointer, number]
    library.charrnn_divergence.argtypes = [pointer, pointer, number]
    library.charrnn_divergence.restype = ctypes.c_double
    return library


@functools.cache
def instructions() -> tuple[str, ...]:
    """The instruction sets that this processor has kernels for, from least to most. () without the library."""
    library = _library()
    return () if library is None else tuple(name for number, name in enumerate(INSTRUCTIONS) if library.charrnn_decoder_has(number))


class Shape(NamedTuple):
    """What a language model is made of."""

    cell: str
    embedding_size: int
    hidden_size: int
    num_layers: int
    layer_norm: bool
    residual: bool
    tied_embeddings: bool


class Language(NamedTuple):
    """A language model as its file holds it."""

    path: Path
    shape: Shape
    vocabulary: Vocabulary
    separator: str  # between two documents
    tensors: dict[str, int]  # by name: where it begins in `weights`, float32
    weights: bytes


def _expected(shape: Shape, vocabulary_size: int) -> dict[str, list[int]]:
    """The parameters of models/char_rnn.py and layers/recurrent.py, and their shapes."""
    hidden, rows = shape.hidden_size, GATES[shape.cell] * shape.hidden_size
    found = {"embedding.weight": [vocabulary_size, shape.embedding_size], "head.bias": [vocabulary_size]}
    if not shape.tied_embeddings:
        found["head.weight"] = [vocabulary_size, hidden]
    for layer in range(shape.num_layers):
        inputs = hidden if layer else shape.embedding_size
        for name, of in zip(TENSORS, ([rows, inputs], [rows, hidden], [rows], [rows])):
            found[f"recurrent.{name}_l{layer}"] = of
        if shape.layer_norm:
            found |= {f"recurrent.norms.{layer}.{name}": [hidden] for name in ("weight", "bias")}
    return found


def _described(settings: Any) -> tuple[Shape, str]:
    """Raises Unfit where these are not settings that training wrote, or not those of a language model."""
    try:
        model, data = settings["model"], settings["data"]
        if settings["task"] != "lm":
            raise Unfit(f"it writes with models of task lm, and this one's is {settings['task']}")
        others = [name for name in ("bidirectional", "pooling", "crf") if model[name]]
        if others or model["bigrams"]["max_size"]:
            raise Unfit(f"it has no model.{(others or ['bigrams'])[0]}")
        shape = Shape(**{name: model[name] for name in Shape._fields})
        separator = separator_of(data["documents"], data["format"])
    except (KeyError, TypeError):
        raise Unfit("its configuration is not one that training wrote") from None
    sizes, flags = shape[1:4], shape[4:]
    sound = shape.cell in GATES and all(type(n) is int and 0 < n <= 1 << 20 for n in sizes) and all(type(flag) is bool for flag in flags)
    if not sound or (shape.tied_embeddings and shape.embedding_size != shape.hidden_size):
        raise Unfit("its configuration is not one that training wrote")
    return shape, separator


def _found(header: Header, expected: dict[str, list[int]]) -> dict[str, int]:
    """Where each tensor begins. Raises Unfit unless they are those expected, in float32, and fill the file."""
    if header.tensors.keys() != expected.keys():
        raise Unfit("its tensors are not those that its configuration asks for")
    places: list[tuple[int, int, str]] = []
    for name, shape in expected.items():
        entry = header.tensors[name]
        if not isinstance(entry, dict) or entry.get("shape") != shape:
            raise Unfit(f"its tensor {name} does not have the shape that its configuration asks for")
        if entry.get("dtype") != "F32":
            raise Unfit(f"its tensor {name} is not float32")
        match entry.get("data_offsets"):
            case [int(begin), int(end)] if end - begin == 4 * functools.reduce(int.__mul__, shape):
                places.append((begin, end, name))
            case _:
                raise Unfit(f"its tensor {name} lies nowhere")
    at = 0
    for begin, end, name in sorted(places):
        if begin != at:
            raise Unfit(f"its tensor {name} does not lie behind the one before it")
        at = end
    if at != header.size - header.start:
        raise Unfit("its tensors do not fill the file")
    return {name: begin for begin, _, name in places}


def open_language_model(path: Path) -> Language:
    """Read a language model's file. Raises CheckpointError where it is no model file, and Unfit where it is not one for this engine.

    Of a damaged one either; what is wrong with it is `checkpoint.load_model`'s to say.
    """
    if not instructions():
        remedy = "install a C++ compiler (g++ or clang++), then charrnn again"
        raise Unfit(f"it was not compiled when charrnn was installed, or from other sources than these; {remedy}")
    header = read_header(path)
    metadata = header.metadata
    try:
        if not (metadata["step"].isdecimal() and metadata["metrics"]) or metadata.get("labels", "[]") != "[]":
            raise Unfit("its metadata is not what training wrote")
        shape, separator = _described(parse_yaml(metadata["config"]))
        vocabulary = Vocabulary.from_json(metadata["vocabulary"])
    except (KeyError, CheckpointError, ConfigError):
        raise Unfit("its metadata is not what training wrote") from None
    if shape.num_layers > len(header.tensors):
        raise Unfit("its tensors are not those that its configuration asks for")
    tensors = _found(header, _expected(shape, len(vocabulary)))
    try:
        with open(path, "rb") as file:
            file.seek(header.start)
            weights = file.read()
    except OSError:
        raise Unfit("its file cannot be read") from None
    if len(weights) != header.size - header.start:
        raise Unfit("its file changes while it is read")
    if not header.is_sound([weights]):
        raise damaged_content(path)
    return Language(path, shape, vocabulary, separator, tensors, weights)


class NativeEngine:
    """An engine of texts.py. `int8`: weights in bytes, a scale a row, what they are multiplied with in 16 bits, a scale a vector."""

    def __init__(self, model: Language, *, int8: bool = False, instruction_set: str | None = None, threads: int | None = None) -> None:
        """Raises MemoryError. `threads`: at most two of them; None for what turns out to be faster, text by text."""
        self.vocabulary = model.vocabulary
        self._decoder = None
        shape, vocabulary = model.shape, model.vocabulary
        start = ctypes.cast(ctypes.c_char_p(model.weights), ctypes.c_void_p).value or 0

        def tensor(name: str) -> int | None:
            return start + model.tensors[name] if name in model.tensors else None

        names = [f"recurrent.{name}_l{layer}" for layer in range(shape.num_layers) for name in TENSORS]
        norms = [f"recurrent.norms.{layer}.{name}" for layer in range(shape.num_layers) for name in ("weight", "bias")]
        of_layers = [pointer for layer in range(shape.num_layers) for pointer in (*names[4 * layer :][:4], *norms[2 * layer :][:2])]
        unwritten, pointers = _ids(vocabulary.unwritten), (ctypes.c_void_p * len(of_layers))(*map(tensor, of_layers))
        made_of = _Model(
            cell=list(GATES).index(shape.cell),
            vocabulary=len(vocabulary),
            embedding_size=shape.embedding_size,
            hidden=shape.hidden_size,
            layers=shape.num_layers,
            residual=shape.residual,
            quantized=int8,
            instructions=INSTRUCTIONS.index(instruction_set or instructions()[-1]),
            end=-1 if vocabulary.end is None else vocabulary.end,
            unwritten_count=len(unwritten),
            read_scale=shape.embedding_size**0.5 if shape.tied_embeddings else 1.0,
            unwritten=ctypes.addressof(unwritten),
            embedding=tensor("embedding.weight"),
            head_weight=tensor("embedding.weight" if shape.tied_embeddings else "head.weight"),
            head_bias=tensor("head.bias"),
            weights=ctypes.addressof(pointers),
        )
        self._threads = _Threads(threads)
        self._decoder = _library().charrnn_decoder_new(ctypes.byref(made_of))
        if not self._decoder:
            raise MemoryError

    def __del__(self) -> None:
        if self._decoder:
            _library().charrnn_decoder_free(self._decoder)

    def draw(self, texts: Texts) -> Generator[list[list[int]], None, None]:
        library, options, rows = _library(), texts.options, len(texts.seeds)
        self.begin()
        self._read(opening(texts.vocabulary, texts.prime_ids))
        prime = _ids(texts.prime_ids)
        seeds = (ctypes.c_uint64 * rows)(*texts.seeds)
        _check(library.charrnn_decoder_spread(self._decoder, rows, seeds, _chosen(options, texts), prime, len(prime)))
        steps = 1  # the first is shown at once
        while True:
            masks = texts.masks() if texts.constraints else []
            steps = 1 if masks else max(1, min(steps, texts.left))
            written = (ctypes.c_int32 * (steps * rows))()
            threads = 1 if masks else self._threads.next()  # a call of one step would be over before another thread has begun
            began = time.perf_counter()
            _check(library.charrnn_decoder_write(self._decoder, steps, written, _allowed(masks, len(self.vocabulary)), threads))
            seconds = time.perf_counter() - began
            self._threads.took(threads, seconds / steps, steps)
            yield [written[row::rows] for row in range(rows)]
            steps = self._threads.trial(seconds / steps) or max(1, int(PAUSE * steps / max(seconds, 1e-9)))

    def _read(self, ids: Sequence[int]) -> None:
        at, count = 0, PIECE
        while at < len(ids):
            some = _ids(ids[at : at + count])
            began = time.perf_counter()
            threads = self._threads.next()
            last = at + count >= len(ids)
            _check(_library().charrnn_decoder_read(self._decoder, some, len(some), last, threads, None))
            seconds = time.perf_counter() - began
            at, count = at + count, max(1, int(PAUSE * len(some) / max(seconds, 1e-9)))

    def log_shares(self, ids: Sequence[int]) -> Any:
        """Natural logarithms of all shares after each of the ids, read from the beginning: float32 (T, V) by rows, as ctypes has them."""
        self.begin()
        return self.read_on(ids)

    def begin(self) -> None:
        """Forget all that was read."""
        _check(_library().charrnn_decoder_begin(self._decoder))

    def read_on(self, ids: Sequence[int]) -> Any:
        """What `log_shares` tells, behind what was read before; a text may be read piece by piece."""
        found = (ctypes.c_float * (len(ids) * len(self.vocabulary)))()
        _check(_library().charrnn_decoder_read(self._decoder, _ids(ids), len(ids), 0, 1, found))
        return found


class _Threads:
    """How many threads a step is shared out among: both numbers are tried, now and then, and the faster one taken.

    Which it is depends on what fits into the caches, and on what else the cores have to do.
    """

    def __init__(self, fixed: int | None) -> None:
        most = min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        self._choices = [fixed] if fixed else list(range(1, most + 1))
        self._seconds: dict[int, float] = {}  # that a step took
        self._untried = list(self._choices)
        self._chosen = self._choices[0]
        self._tried, self._pause = 0.0, TRIED_AGAIN[0]

    def next(self) -> int:
        if not self._untried and len(self._choices) > 1 and time.perf_counter() - self._tried > self._pause:
            self._untried = list(self._choices)
        return self._untried[0] if self._untried else self._chosen

    def trial(self, seconds: float) -> int:
        """Of how many steps the next call shall be for a trial, where one takes about so long; 0 where nothing is to be found out."""
        least, most = TRIAL_STEPS
        return max(least, min(most, int(TRIAL / max(seconds, 1e-9)))) if self._untried and len(self._choices) > 1 else 0

    def took(self, threads: int, seconds: float, steps: int) -> None:
        """What a step took, in a call of so many."""
        if not self._untried or steps < TRIAL_STEPS[0]:
            return
        self._seconds[self._untried.pop(0)] = seconds
        if not self._untried:
            before, self._chosen = self._chosen, min(self._seconds, key=self._seconds.__getitem__)
            self._pause = min(2 * self._pause, TRIED_AGAIN[1]) if self._chosen == before else TRIED_AGAIN[0]
            self._tried = time.perf_counter()


def _check(code: int) -> None:
    if code == NOT_FINITE:
        raise not_finite()
    if code == NO_MEMORY:
        raise MemoryError


def _ids(ids: Sequence[int]) -> Any:
    return (ctypes.c_int32 * len(ids))(*ids)


def _chosen(options: SamplingOptions, texts: Texts) -> Any:
    return ctypes.byref(
        _Options(
            # Numbers too small for the exponent are 0 to it, and 0 is greedy; the smallest that is not means the same as they do.
            temperature=max(options.temperature, sys.float_info.min) if options.temperature else 0.0,
            top_p=1.0 if options.top_p is None else options.top_p,
            min_p=options.min_p or 0.0,
            repetition_penalty=options.repetition_penalty,
            top_k=options.top_k or 0,
            repetition_window=options.repetition_window,
            no_repeat_ngram=options.no_repeat_ngram,
            continues=texts.separator is not None,
        )
    )


def _allowed(masks: Sequence[Any], size: int) -> bytes | None:
    """The masks of all rows, a byte an id; None where everything is allowed."""
    if all(mask is None for mask in masks):
        return None
    return b"".join(b"\1" * size if mask is None else mask.tobytes() for mask in masks)


def loss_of(exact: NativeEngine, rounded: NativeEngine, ids: Sequence[int]) -> float:
    """Bits per character by which one engine predicts worse than another what the latter thinks likely: its divergence over a text.

    On a text that `exact` drew at temperature 1 it is what the other's cross-entropy is expected to be higher by.
    """
    size = len(ids) * len(exact.vocabulary)
    return float(_library().charrnn_divergence(exact.log_shares(ids), rounded.log_shares(ids), size)) / len(ids) / 0.6931471805599453
