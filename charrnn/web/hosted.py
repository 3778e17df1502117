"""Models as the playground has them: a name, a task, and what each can be asked. All of it is called in threads.

A language model has a writer and a reader for each text that is written, so that texts do not wait for each other; other models are
asked one thing at a time, by who calls.
"""

from __future__ import annotations

import re
import secrets
import shlex
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from charrnn.constraints import Constraint, Every
from charrnn.data.forms import parse_form
from charrnn.data.vocabulary import Vocabulary, opening
from charrnn.engine import Language, NativeEngine
from charrnn.errors import DataError, UserError, characters_listed
from charrnn.generation import generate, prepare_prime
from charrnn.options import SamplingOptions
from charrnn.texts import Engine
from charrnn.verse.build import build_verse
from charrnn.verse.options import VerseOptions
from charrnn.web import limits
from charrnn.web.asked import CaptionAsked, FillAsked, MediaAsked, SampleAsked, ScoreAsked, TextAsked
from charrnn.web.costs import Costs, NativeReader, Reader, TorchReader, score

if TYPE_CHECKING:
    from torch import nn

    from charrnn.checkpoint import Loaded

LENGTH = 500  # new characters where nobody said how many, as in `charrnn sample`
Answer = dict[str, object]


class Called(NamedTuple):
    """A model by the name it has in the menu, and as a person named it on the command line."""

    name: str
    argument: str


class Hosted(Protocol):
    called: Called
    task: str

    def facts(self) -> Answer:
        """What a page has to know of it, besides its name and task."""
        ...


class Piece(NamedTuple):
    text: str
    bits: list[float | None]  # of each character: what the model's own odds at temperature 1 make of it


class Pair(NamedTuple):
    """What one text needs of a language model."""

    writer: nn.Module | Engine
    reader: Reader


class Native:
    """Pairs of engines, each with weights of its own: as many as texts are written at once, and kept for the next."""

    def __init__(self, model: Language) -> None:
        self._model, self._lock = model, threading.Lock()
        self._idle: list[Pair] = []
        self.seats = max(1, min(limits.GENERATIONS, limits.DECODERS // (2 * max(1, len(model.weights)))))

    @contextmanager
    def pair(self) -> Iterator[Pair]:
        with self._lock:
            found = self._idle.pop() if self._idle else None
        if found is None:
            found = Pair(NativeEngine(self._model, threads=1), NativeReader(NativeEngine(self._model, threads=1)))
        try:
            yield found
        finally:
            with self._lock:
                self._idle.append(found)


class Torch:
    """One module for all texts: what each has read lies beside it."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.seats = limits.GENERATIONS

    @contextmanager
    def pair(self) -> Iterator[Pair]:
        yield Pair(self._model, TorchReader(self._model))


class Writer:
    """A language model."""

    task = "lm"

    def __init__(self, called: Called, vocabulary: Vocabulary, pairs: Native | Torch) -> None:
        self.called, self._vocabulary, self.pairs = called, vocabulary, pairs

    def facts(self) -> Answer:
        return {"characters": len(self._vocabulary.characters), "lines": "\n" in self._vocabulary, "at_once": self.pairs.seats}

    def score(self, asked: ScoreAsked) -> Answer:
        with self.pairs.pair() as pair:
            return score(pair.reader, self._vocabulary, asked.text)

    def write(self, asked: SampleAsked) -> Writing:
        """Raises UserError for what cannot go together, before anything is written."""
        return Writing(self.called, self._vocabulary, self.pairs, asked)


class Writing:
    """A text on its way. To be closed: its writer is another text's then."""

    def __init__(self, called: Called, vocabulary: Vocabulary, pairs: Native | Torch, asked: SampleAsked) -> None:
        options = SamplingOptions(
            temperature=asked.temperature,
            top_k=asked.top_k,
            top_p=asked.top_p,
            min_p=asked.min_p,
            repetition_penalty=asked.repetition_penalty,
            repetition_window=asked.repetition_window,
            no_repeat_ngram=asked.no_repeat_ngram,
        )
        verse = VerseOptions(
            form=parse_form(asked.form) if asked.form is not None else None,
            rhyme=asked.rhyme,
            tone=asked.tone,
            acrostic=asked.acrostic,
            acrostic_at=asked.acrostic_at,
            lines=asked.lines,
            max_line=asked.max_line,
        )
        if asked.stop and verse.count is not None:
            raise UserError("stop: is given with a verse, which ends where its last line does; leave it out")
        self._vocabulary = vocabulary
        primed, self.warnings = prepare_prime(vocabulary, asked.prime, place="prime")
        self.prime = primed.text
        length = LENGTH if asked.length is None else asked.length
        constraints: list[Constraint] = []
        if verse.asked:
            start, whole = build_verse(vocabulary, verse, asked.length, primed.text)
            if whole is not None and whole > limits.LENGTH:
                fact = f"the verse can take {whole:,} characters"
                raise UserError(f"lines: {fact}; expected at most {limits.LENGTH:,}; ask for a shorter one")
            length = length if whole is None else whole
            constraints = [Every([start])]
        self.seed = secrets.randbits(32) if asked.seed is None else asked.seed
        self.length = length  # new characters at most
        self.command = command(called.argument, asked, self.seed)
        self._held = ""  # written, and not handed out
        self._steps = self._written(pairs, primed.ids, options, asked.stop, constraints)

    def _written(
        self,
        pairs: Native | Torch,
        prime: Sequence[int],
        options: SamplingOptions,
        stop: Sequence[str],
        constraints: Sequence[Constraint],
    ) -> Generator[str, None, None]:
        with pairs.pair() as pair:
            self._costs = Costs(pair.reader, self._vocabulary)
            for _ in self._costs.begin(opening(self._vocabulary, prime)):
                yield ""
            steps = generate(
                pair.writer,
                self._vocabulary,
                prime,
                length=self.length,
                options=options,
                generator=self.seed,
                stop=stop,
                constraints=constraints,
            )
            with closing(steps):
                for (text,) in steps:
                    yield text

    def more(self, most: int = limits.EVENT) -> Piece | None:
        """The next characters, at most so many, none perhaps, in `limits.MOMENT` seconds or little more; None where there are no more."""
        until, over = time.perf_counter() + limits.MOMENT, False
        while len(self._held) < most and not over and time.perf_counter() < until:
            text = next(self._steps, None)
            over = text is None
            self._held += text or ""
        if over and not self._held:
            return None
        text, self._held = self._held[:most], self._held[most:]
        return Piece(text, self._costs.of(self._vocabulary.encode(text))[0])

    def close(self) -> None:
        self._steps.close()


def command(model: str, asked: SampleAsked, seed: int) -> str | None:
    """The `charrnn sample` that writes the same text; None where a shell cannot say the prime."""
    if "\0" in asked.prime + "".join(asked.stop) or "\\" in "".join(asked.stop):
        return None
    given = asked.model_dump(exclude={"model", "stream", "pace", "seed", "stop"}, exclude_defaults=True)
    words = ["charrnn", "sample", _quoted(model)]
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [f"{flag}={_quoted(str(value))}"]
    words += [f"--stop={_quoted(stop)}" for stop in asked.stop]
    return " ".join([*words, f"--seed={seed}"])


def _quoted(text: str) -> str:
    """For a shell: as it stands where it can be seen, else as bash and zsh have escapes."""
    if all(c.isprintable() or c == "\n" for c in text):
        return shlex.quote(text)
    written = re.sub(r"[\\']", r"\\\g<0>", text)
    return "$'" + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in written) + "'"


class _OneModel:
    """A model in PyTorch, under the name that it is called by."""

    def __init__(self, called: Called, loaded: Loaded, model: nn.Module) -> None:
        self.called, self._loaded, self._model = called, loaded, model


class Filler(_OneModel):
    task = "fill"

    def facts(self) -> Answer:
        return {"characters": len(self._loaded.vocabulary.characters)}

    def fill(self, asked: FillAsked) -> Answer:
        from charrnn import filling

        blanks = sum(character in filling.BLANKS for character in asked.text)
        if blanks > limits.BLANKS:
            raise UserError(f"text: {blanks:,} blanks; expected at most {limits.BLANKS}; fill some yourself, or ask in pieces")
        vocabulary, longest = self._loaded.vocabulary, self._loaded.config.data.example_length
        found = filling.fill(self._model, vocabulary, asked.text, longest=longest, top=asked.top)
        return {
            "text": asked.text,
            "fillings": [{"text": f.text, "characters": list(f.characters), "probability": f.probability} for f in found.fillings],
            "blanks": [{"at": b.place, "choices": [{"char": char, "probability": p} for char, p in b.choices]} for b in found.blanks],
            "warnings": _of_unknown(filling.unknown_to(vocabulary, asked.text)),
        }


class Classifier(_OneModel):
    task = "classify"

    def facts(self) -> Answer:
        return {"labels": list(self._loaded.labels)}

    def classify(self, asked: TextAsked) -> Answer:
        from charrnn.classifying import classify
        from charrnn.data.labelled import typed

        loaded, data = self._loaded, self._loaded.config.data
        (answer,) = classify(self._model, loaded.vocabulary, loaded.labels, typed(data, [asked.text], "text"), data.example_length)
        if isinstance(answer, DataError):
            raise answer
        return {
            "label": answer.label,
            "labels": [{"label": label, "probability": chance} for label, chance in answer.chances],
            "warnings": _of_unknown(c for c in answer.example.text if c not in loaded.vocabulary),
        }


class Tagger(_OneModel):
    task = "tag"

    def facts(self) -> Answer:
        return {"labels": list(self._loaded.labels)}

    def tag(self, asked: TextAsked) -> Answer:
        """Of a model of marks the text with them put in; of one of labels each line with the label of each character."""
        import numpy as np

        from charrnn import tagging
        from charrnn.data.labelled import typed
        from charrnn.data.marks import written_of
        from charrnn.data.script import Converter
        from charrnn.device import resolve_precision

        loaded, data = self._loaded, self._loaded.config.data
        precision = resolve_precision(loaded.config.train.precision, next(self._model.parameters()).device)
        if not asked.text.strip():
            raise UserError("text: is empty; expected some to tag")
        if data.labels != "column":
            text = Converter(data.script)(asked.text) if data.script else asked.text
            found = tagging.mark(self._model, loaded.vocabulary, data, text, precision)
            return {"marked": "".join(found.written(written_of(loaded.labels))), "lines": [], "warnings": []}
        lines = [line for line in asked.text.splitlines() if line.strip()]
        read = [example.text for example in typed(data, lines, "line") if not isinstance(example, DataError)]
        ids = np.array([i for text in read for i in loaded.vocabulary.encode(text)])
        edges = np.cumsum([0, *map(len, read)])
        labels = [loaded.labels[k] for k in tagging.tag(self._model, ids, edges, data, precision).labels]
        told = [{"text": text, "labels": labels[begin : begin + len(text)]} for text, begin in zip(read, edges.tolist())]
        return {"marked": None, "lines": told, "warnings": _of_unknown(c for text in read for c in text if c not in loaded.vocabulary)}


class Captioner(_OneModel):
    task = "caption"

    def __init__(self, called: Called, loaded: Loaded, model: nn.Module) -> None:
        """Raises UserError for a model that reads no pictures, or where nothing can read them."""
        from charrnn.data.images import require_pillow

        if loaded.config.data.images.features is not None:
            raise UserError(f"{loaded.path}: reads ready features, which a page cannot make of a picture; use charrnn caption")
        require_pillow(str(loaded.path))
        super().__init__(called, loaded, model)

    def facts(self) -> Answer:
        return {}

    def caption(self, asked: CaptionAsked, picture: bytes) -> Answer:
        from charrnn.captioning import Describe
        from charrnn.data.images import dimensions
        from charrnn.models.captioner import Captioner as Network

        assert isinstance(self._model, Network)
        config = self._loaded.config
        beam = max(asked.num, asked.beam or config.decoding.beam_width)
        decoding = config.decoding.model_copy(update={"beam_width": beam})
        describe = Describe(self._model, self._loaded.vocabulary, config.data.images, decoding, count=asked.num)

        def told(path: Path) -> Answer:
            width, height = dimensions(path)
            if width * height > limits.PIXELS:
                raise DataError(f"{path}: {width:,} x {height:,} pixels; expected at most {limits.PIXELS:,}, so make it smaller")
            (found,) = describe.files([path])
            if isinstance(found, DataError):
                raise found
            return {
                "captions": [_written(one.text, one.hypothesis) for one in found.captions],
                "width": width,
                "height": height,
                "seconds": found.took,
            }

        return _of_file(picture, "the picture", told)


class Listener(_OneModel):
    task = "transcribe"

    def __init__(self, called: Called, loaded: Loaded, model: nn.Module) -> None:
        from charrnn.data.audio import require_audio

        require_audio(str(loaded.path))
        super().__init__(called, loaded, model)

    def facts(self) -> Answer:
        return {}

    def transcribe(self, asked: MediaAsked, recording: bytes) -> Answer:
        from charrnn.data.audio import duration
        from charrnn.models.transcriber import Transcriber
        from charrnn.transcribing import Transcribe

        assert isinstance(self._model, Transcriber)
        config = self._loaded.config
        decoding = config.decoding.model_copy(update={"beam_width": asked.beam}) if asked.beam else config.decoding
        listen = Transcribe(self._model, self._loaded.vocabulary, config.data.audio, decoding)

        def told(path: Path) -> Answer:
            seconds = duration(path, config.data.audio)
            if seconds > limits.RECORDING_SECONDS:
                raise DataError(f"{path}: {seconds:,.1f} s long; expected at most {limits.RECORDING_SECONDS:g}, so cut it")
            found = listen.file(path)
            pieces = [{"start": h.start, "stop": h.stop, **_written(h.text, h.hypothesis)} for h in found.heard]
            return {
                "text": found.text,
                "confidence": found.confidence,
                "finished": found.finished,
                "seconds": found.seconds,
                "pieces": pieces,
            }

        return _of_file(recording, "the recording", told)


def _written(text: str, found: Any) -> Answer:
    """What was written of a picture or a recording, a `Hypothesis`, with the bits of each character as with a text's."""
    bits = [nats / 0.6931471805599453 for nats in found.nats[: len(text)]]
    return {"text": text, "confidence": found.confidence, "finished": found.finished, "bits": bits}


def _of_file(content: bytes, name: str, told: Callable[[Path], Answer]) -> Answer:
    """What is told of bytes that came without a file, once they have one."""
    with tempfile.TemporaryDirectory(prefix="charrnn-") as folder:
        path = Path(folder, "dropped")
        path.write_bytes(content)
        try:
            return told(path)
        except DataError as error:
            raise DataError(str(error).replace(str(path), name)) from None


def _of_unknown(characters: Any) -> list[str]:
    strange = list(dict.fromkeys(characters))
    return [f"the model does not know {characters_listed(strange)}; read as unknown"] if strange else []


def hosted(called: Called, loaded: Loaded, model: nn.Module) -> Hosted:
    """A model of any task, run with PyTorch. Raises UserError where a page can do nothing with it."""
    if loaded.config.task == "lm":
        return Writer(called, loaded.vocabulary, Torch(model))
    kinds: dict[str, Callable[[Called, Loaded, nn.Module], Hosted]] = {
        kind.task: kind for kind in (Filler, Classifier, Tagger, Captioner, Listener)
    }
    return kinds[loaded.config.task](called, loaded, model)
