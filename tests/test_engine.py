"""The native engine against the model that it runs, as PyTorch runs it: the same text from the same seed.

Axes: T time, V vocabulary.
"""

from __future__ import annotations

import itertools
import json
import math
import string
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from charrnn import engine
from charrnn.checkpoint import build_model, load_model, save_model
from charrnn.cli import main
from charrnn.config import build_config
from charrnn.constraints import Constraint, Mask
from charrnn.data.vocabulary import Vocabulary
from charrnn.engine import NativeEngine, Unfit, instructions, loss_of, open_language_model
from charrnn.errors import UserError
from charrnn.generation import generate
from charrnn.models.char_rnn import CharRNN
from charrnn.ops.cells import CELLS
from charrnn.options import SamplingOptions
from charrnn.randomness import base_seed, seed_of
from charrnn.texts import Engine
from tests.sampling_options import options_of_all_kinds

LETTERS = "\n !" + string.ascii_letters
STREAM = Vocabulary(("unknown",), LETTERS)
DOCUMENTS = Vocabulary(("unknown", "end"), LETTERS)
MANY = Vocabulary(("unknown", "end"), "\n" + "".join(map(chr, range(0x4E00, 0x4E00 + 300))))  # more ids than a head in float has
GREEDY = SamplingOptions(temperature=0)
OPTIONS = {
    "plain": SamplingOptions(),
    "greedy": GREEDY,
    "hot": SamplingOptions(temperature=1.5, min_p=0.1),
    "top-k": SamplingOptions(top_k=5),
    "top-p": SamplingOptions(top_p=0.8),
    "all": SamplingOptions(top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2, repetition_window=5, no_repeat_ngram=3),
}


@dataclass(frozen=True)
class Saved:
    """A model, and its file."""

    path: Path
    network: nn.Module
    vocabulary: Vocabulary

    def native(self, **how: Any) -> NativeEngine:
        return NativeEngine(open_language_model(self.path), **how)

    def write(self, model: nn.Module | Engine, prime: str = "", *, options: SamplingOptions | None = None, **how: Any) -> list[str]:
        how = {"length": 60, "generator": 5, **how}
        steps = generate(model, self.vocabulary, self.vocabulary.encode(prime), options=options or SamplingOptions(), **how)
        return ["".join(pieces) for pieces in zip(*steps)] or [""] * how.get("num_samples", 1)


def saved(directory: Path, vocabulary: Vocabulary = STREAM, *, scale: float = 1.5, **model: Any) -> Saved:
    settings = {"embedding_size": 7, "hidden_size": 20, **model}
    config = build_config({"data": {"path": "x.txt"}, "model": settings, "train": {"max_steps": 1}}, "test")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = CharRNN(config.model, len(vocabulary)).eval()
        with torch.no_grad():
            for weight in network.parameters():
                weight.mul_(scale)  # a model with opinions, and some of them about the past
    path = directory / "model.safetensors"
    save_model(path, network, config, vocabulary, 7, {"val_nats_per_char": 3.25})
    return Saved(path, network, vocabulary)


# The same text


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "more",
    [{}, {"layer_norm": True}, {"residual": True, "embedding_size": 20}, {"tied_embeddings": True, "embedding_size": 20, "residual": True,
     "layer_norm": True}],
    ids=["plain", "layer_norm", "residual", "tied"],
)  # fmt: skip
def test_it_writes_what_pytorch_writes(tmp_path: Path, cell: str, num_layers: int, more: dict[str, Any]) -> None:
    model = saved(tmp_path, DOCUMENTS, cell=cell, num_layers=num_layers, scale=1.0 if cell == "rnn_relu" else 1.5, **more)
    native = model.native()
    for options in OPTIONS.values():
        assert model.write(native, "abc", options=options) == model.write(model.network, "abc", options=options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("vocabulary", [STREAM, DOCUMENTS, MANY], ids=["stream", "documents", "many ids"])
def test_several_texts_stops_and_documents(tmp_path: Path, vocabulary: Vocabulary, options: SamplingOptions) -> None:
    model = saved(tmp_path, vocabulary, num_layers=2)
    first = vocabulary.characters[5]
    cases: list[dict[str, Any]] = [
        {"num_samples": 7},
        {"num_samples": 3, "stop": [first]},
        {"num_samples": 2, "stop": [first + first, "\n"], "prime": first},
        {"length": 200, "continue_documents": True, "separator": "\n\n", "prime": first * 3, "num_samples": 2},
        {"length": 0},
    ]
    for case in cases:
        assert model.write(model.native(), options=options, **case) == model.write(model.network, options=options, **case), case


@pytest.mark.parametrize("hidden_size", [1, 15, 16, 17, 70, 130])
@pytest.mark.parametrize("cell", CELLS)
def test_every_size_instruction_set_and_number_of_threads(tmp_path: Path, cell: str, hidden_size: int) -> None:
    model = saved(tmp_path, cell=cell, num_layers=2, hidden_size=hidden_size, scale=1.0)
    expected = model.write(model.network, num_samples=5)
    for instruction_set, threads in itertools.product(instructions(), (1, 2)):
        native = model.native(instruction_set=instruction_set, threads=threads)
        assert model.write(native, num_samples=5) == expected, (instruction_set, threads)


@pytest.mark.parametrize(
    ("cell", "num_layers", "hidden_size"), [("lstm", 1, 800), ("lstm", 2, 470), ("gru", 2, 540), ("rnn_tanh", 2, 930), ("gru", 3, 370)]
)
def test_weights_that_fit_no_cache(tmp_path: Path, cell: str, num_layers: int, hidden_size: int) -> None:
    """Ten megabytes: they are read one way and the other, which changes nothing, wherever a piece of text ends."""
    model = saved(tmp_path, cell=cell, num_layers=num_layers, hidden_size=hidden_size, scale=1.0)
    expected = model.write(model.network, "abc", length=25, num_samples=2)
    for threads in (1, 2):
        assert model.write(model.native(threads=threads), "abc", length=25, num_samples=2) == expected, threads
    of_bytes = [model.native(int8=True, threads=threads) for threads in (1, 2)]
    assert model.write(of_bytes[0], "abc", length=25) == model.write(of_bytes[1], "abc", length=25)


def test_a_long_prime_is_read_piece_by_piece(tmp_path: Path) -> None:
    model = saved(tmp_path)
    prime = "".join(LETTERS[i * i % len(LETTERS)] for i in range(3000))
    assert model.write(model.native(), prime) == model.write(model.network, prime)


def test_an_engine_writes_one_text_after_another(tmp_path: Path) -> None:
    model = saved(tmp_path)
    native = model.native()
    once = model.write(native, "abc", num_samples=3)
    assert model.write(native, "xyz") != once[:1] and model.write(native, "abc", num_samples=3) == once


def test_a_table_that_would_be_too_large_is_done_without(tmp_path: Path) -> None:
    """Beyond 256 MB what the first layer makes of each id is not kept."""
    many = Vocabulary(("unknown",), "".join(map(chr, range(0x4E00, 0x4E00 + 9000))))
    model = saved(tmp_path, many, hidden_size=2000, embedding_size=2, cell="lstm", scale=1.0)
    assert model.write(model.native(), length=5) == model.write(model.network, length=5)


logit = st.floats(-20, 20, width=16).map(lambda x: round(x, 1))  # coarse, so that equals occur


@pytest.fixture(scope="module")
def blunt(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[float]], tuple[Saved, NativeEngine]]:
    """A model that says the same logits whatever it reads."""
    model = saved(tmp_path_factory.mktemp("blunt"), DOCUMENTS, hidden_size=2, embedding_size=2, scale=0.0)
    language = open_language_model(model.path)

    def saying(logits: Sequence[float]) -> tuple[Saved, NativeEngine]:
        bias = (list(logits) * len(DOCUMENTS))[: len(DOCUMENTS)]
        with torch.no_grad():
            model.network.get_parameter("head.bias").copy_(torch.tensor(bias))
        at = language.tensors["head.bias"]
        raw = struct.pack(f"<{len(bias)}f", *bias)
        return model, NativeEngine(language._replace(weights=language.weights[:at] + raw + language.weights[at + len(raw) :]))

    return saying


@settings(max_examples=200, deadline=None)
@given(st.lists(logit, min_size=1, max_size=55), options_of_all_kinds, st.integers(0, 2**63 - 1))
def test_filters_and_draws_are_those_of_sampling(
    blunt: Callable[[Sequence[float]], tuple[Saved, NativeEngine]], logits: list[float], options: SamplingOptions, seed: int
) -> None:
    model, native = blunt(logits)
    for case in ({"length": 12, "num_samples": 2}, {"length": 20, "continue_documents": True}):
        expected = model.write(model.network, "ab", options=options, generator=seed, **case)
        assert model.write(native, "ab", options=options, generator=seed, **case) == expected


class Alternating:
    """Capital letters and small ones in turn."""

    def __init__(self) -> None:
        self.count = 0

    @property
    def over(self) -> bool:
        return self.count == 30

    def allowed(self) -> Mask | None:
        if self.count % 3 == 2:
            return None
        known = (c.isupper() == (self.count % 3 == 0) for c in STREAM.characters)
        return np.array([False, *known])

    def advance(self, id_: int) -> None:
        self.count += 1

    def copy(self) -> Constraint:
        raise AssertionError("nobody forks here")


def test_what_a_text_may_go_on_with(tmp_path: Path) -> None:
    model = saved(tmp_path)
    one, other = (model.write(m, num_samples=2, constraints=[Alternating(), Alternating()]) for m in (model.native(), model.network))
    assert one == other and all(len(text) == 30 and text[0].isupper() and not text[1].isupper() for text in one)


# Randomness


@pytest.mark.parametrize("seed", [0, 1, 7, 2**32 - 1, 2**32, 2**33 + 5, 2**63 - 1, 123456789012345678])
def test_the_first_number_of_a_seed_is_torchs(seed: int) -> None:
    assert base_seed(seed) == base_seed(torch.Generator().manual_seed(seed))


@given(st.integers(0, 2**100), st.integers(0, 2**40))
def test_the_seeds_of_texts_are_numpys(base: int, i: int) -> None:
    assert seed_of(base, i) == int(np.random.SeedSequence((base, i)).generate_state(1, np.uint64)[0])


# Weights in bytes


@pytest.mark.parametrize("vocabulary", [STREAM, MANY], ids=["float head", "head of bytes"])
@pytest.mark.parametrize("cell", CELLS)
def test_bytes_predict_nearly_the_same(tmp_path: Path, cell: str, vocabulary: Vocabulary) -> None:
    model = saved(tmp_path, vocabulary, cell=cell, num_layers=2, hidden_size=50, scale=1.0, layer_norm=cell == "gru")
    ids = [len(vocabulary.symbols) + i * i % 50 for i in range(80)]
    exact = np.frombuffer(model.native().log_shares(ids), np.float32)
    with torch.inference_mode():
        expected = model.network(torch.tensor(ids).unsqueeze(-1), None)[0].log_softmax(-1).flatten().numpy()
    np.testing.assert_allclose(exact, expected, atol=2e-5)
    rounded = [model.native(int8=True, instruction_set=name) for name in instructions()]
    found = [np.frombuffer(one.log_shares(ids), np.float32) for one in rounded]
    assert 0 < np.abs(found[0] - exact).max() < 0.1
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=2e-3)  # whole numbers are multiplied alike; what gates round may turn one
    divergence = float((np.exp(exact.astype(float)) * (exact.astype(float) - found[-1])).sum()) / len(ids) / math.log(2)
    assert loss_of(model.native(), rounded[-1], ids) == pytest.approx(divergence, rel=1e-6) and 0 < divergence < 0.005


# Files


def test_only_a_language_model_as_training_wrote_it_is_taken(tmp_path: Path) -> None:
    config = build_config({"task": "classify", "data": {"path": "r.tsv"}, "model": {"hidden_size": 4}, "train": {"max_steps": 1}}, "test")
    path = tmp_path / "other.safetensors"
    save_model(path, CharRNN(config.model, len(STREAM), 2), config, STREAM, 1, {"val_accuracy": 0.5}, ["a", "b"])
    with pytest.raises(Unfit):
        open_language_model(path)
    model = saved(tmp_path)
    loaded = load_model(model.path)
    network = build_model(loaded).to(torch.float16)
    save_model(model.path, network, loaded.config, STREAM, 7, {"val_nats_per_char": 1.0})
    with pytest.raises(Unfit, match="is not float32"):
        open_language_model(model.path)


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    payload = path.read_bytes()
    (length,) = struct.unpack("<Q", payload[:8])
    return json.loads(payload[8 : 8 + length]), payload[8 + length :]


def rewrite(path: Path, header: dict[str, Any], weights: bytes) -> None:
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + weights)


def reconfigure(header: dict[str, Any], old: str, new: str) -> None:
    metadata = header["__metadata__"]
    assert old in metadata["config"]
    metadata["config"] = metadata["config"].replace(old, new)


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a shape": lambda h: h["head.bias"].update(shape=[1]),
    "an offset": lambda h: h["head.bias"].update(data_offsets=[0, 4 * len(STREAM)]),
    "offsets that are none": lambda h: h["head.bias"].update(data_offsets=["0", None]),
    "negative offsets": lambda h: h["head.bias"].update(data_offsets=[-4 * len(STREAM), 0]),
    "an entry": lambda h: h.update({"head.bias": 3}),
    "a tensor too few": lambda h: h.pop("head.bias"),
    "a tensor too many": lambda h: h.update({"more": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
    "the configuration": lambda h: h["__metadata__"].update(config="model: 3"),
    "a size": lambda h: h["__metadata__"].update(config=h["__metadata__"]["config"].replace("hidden_size: 20", "hidden_size: 21")),
    "a size that is text": lambda h: h["__metadata__"].update(
        config=h["__metadata__"]["config"].replace("hidden_size: 20", "hidden_size: x")
    ),
    "enormous depth": lambda h: h["__metadata__"].update(config=h["__metadata__"]["config"].replace("num_layers: 1", "num_layers: 999999")),
    "the vocabulary": lambda h: h["__metadata__"].update(vocabulary="{}"),
    "the step": lambda h: h["__metadata__"].pop("step"),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "cut off", "cut in the header", "more behind it", "empty"])
def test_a_damaged_file_is_told_of_in_the_same_words(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path).path
    whole = path.read_bytes()
    if damage in DAMAGES:
        header, weights = header_of(path)
        DAMAGES[damage](header)
        rewrite(path, header, weights)
    else:
        path.write_bytes(
            {"cut off": whole[:-5], "cut in the header": whole[:50], "more behind it": whole + b"\0" * 8, "empty": b""}[damage]
        )
    said = []
    for backend in ("auto", "torch"):
        with pytest.raises(SystemExit) as end:
            main(["sample", str(path), "--backend", backend])
        said.append((end.value.code, *capsys.readouterr()))
    assert said[0] == said[1] and said[0][0] == 2 and said[0][2].count("\n") == 1, said


def test_numbers_that_are_not_finite_are_told_of(tmp_path: Path) -> None:
    for int8, (name, weight) in itertools.product((False, True), saved(tmp_path, num_layers=2).network.named_parameters()):
        model = saved(tmp_path, num_layers=2)
        with torch.no_grad():
            model.network.get_parameter(name).view(-1)[:] = math.nan
        loaded = load_model(model.path)
        save_model(model.path, model.network, loaded.config, STREAM, 7, {"val_nats_per_char": 1.0})
        with pytest.raises(UserError, match="not finite"):
            model.write(model.native(int8=int8), "ab")
        assert weight.numel() > 0


# The command


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return (int(end.value.code or 0), *capsys.readouterr())


def test_both_backends_write_the_same_and_warn_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, DOCUMENTS, num_layers=2).path
    for flags in (
        ["--prime", "The 龍 fox"],
        ["--num-samples", 3, "--top-p", 0.9],
        ["--continue", "--stop", "a", "-n", 90, "--no-echo"],
        ["--lines", 3, "--max-line", 20, "--acrostic", "abc", "--num-samples", 2],
        ["-t", -1],
        ["--prime", "龍", "--on-unknown", "error"],
    ):
        one, other = (said(capsys, "sample", path, "--seed", 4, "--backend", backend, *flags) for backend in ("native", "torch"))
        assert one == other, flags


def test_what_only_pytorch_can_is_left_to_it_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, DOCUMENTS).path
    assert said(capsys, "sample", path, "--best-of", 2, "-n", 5)[0] == 0
    for flags, reason in (
        (["--backend", "native", "--best-of", 2], "--backend native: --best-of needs PyTorch"),
        (["--quantize", "int8", "--beam-width", 2], "--quantize int8: needs the native engine, and --beam-width needs PyTorch"),
        (["--quantize", "int8", "--backend", "torch"], "--quantize int8: needs the native engine, and --backend torch"),
    ):
        code, out, err = said(capsys, "sample", path, *flags)
        assert code == 2 and out == "" and err.startswith(f"charrnn: error: {reason}") and err.count("\n") == 1, err


def test_without_the_library_pytorch_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path).path
    expected = said(capsys, "sample", path, "--seed", 1, "-n", 20)
    monkeypatch.setattr(engine, "instructions", lambda: ())
    assert said(capsys, "sample", path, "--seed", 1, "-n", 20) == expected
    code, _, err = said(capsys, "sample", path, "--backend", "native")
    assert code == 2 and "--backend native: it was not compiled when charrnn was installed" in err


def test_what_bytes_cost_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, scale=1.0).path
    code, out, err = said(capsys, "sample", path, "--seed", 1, "-n", 700, "--quantize", "int8")
    assert code == 0 and len(out) >= 700
    assert err.startswith("charrnn: int8 costs 0.00") and err.endswith(" bits per character, over the last 500 characters of the text\n")


def test_the_native_engine_waits_for_no_heavy_import(tmp_path: Path) -> None:
    path = saved(tmp_path).path
    code = (
        "import sys\n"
        "from charrnn.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    print(sorted({'torch', 'numpy', 'safetensors', 'tqdm', 'charrnn.config'} & set(sys.modules)), end.code)"
    )
    command = [sys.executable, "-c", code, "sample", str(path), "-n", "5", "--quantize", "int8", "--num-samples", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    assert done.stdout.endswith("[] 0\n"), done


# Threads


def test_the_faster_number_of_threads_is_taken() -> None:
    for faster in (1, 2):
        threads = engine._Threads(None)
        if len(threads._choices) == 1:
            continue
        while steps := threads.trial(1e-5):
            chosen = threads.next()
            threads.took(chosen, 1e-5 if chosen == faster else 2e-5, steps)
        assert threads.next() == faster
    assert engine._Threads(2).next() == 2 and engine._Threads(2).trial(1e-5) == 0
