#!/usr/bin/env python
"""Reads spoilt and hostile files of every kind that charrnn reads, and says what came of it.

    python scripts/fuzz.py [KIND …] [--count 1000] [--seed 0] [--only NUMBER]

Each must be read, or be refused by a UserError of one line: no other exception, no dead process, no more than 5 seconds of a
processor or 300 of a clock, no more than 500 MB of memory above what was taken before, no code run. Cases run in forked children,
and a case follows from kind, seed and number alone: --only runs one of them in this process, with its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gzip
import io
import itertools
import json
import mmap
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import wave
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from charrnn.checkpoint import SEAL, build_model, load_model, load_state, save_model, save_state
from charrnn.config import Config, build_config, load_config
from charrnn.data.vocabulary import Vocabulary
from charrnn.device import resolve_device
from charrnn.engine import NativeEngine, Unfit, open_language_model
from charrnn.errors import LONGEST, UserError
from charrnn.generation import generate
from charrnn.model_file import UNSUMMED, checksum, find_model
from charrnn.novelty import keep_text, kept_index
from charrnn.options import SamplingOptions
from charrnn.planning import can_be_scored
from charrnn.run_directory import RunDirectory
from charrnn.tasks import load_task
from charrnn.training import Trainer

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data/sample"
CPU_SECONDS, WALL_SECONDS, MEGABYTES = 5, 300, 500  # the clock is for what waits: other programs may hold the processors
HARD_LIMIT = 4 << 30  # bytes of address space above what there is: what asks for more gets a MemoryError, which is a finding
BATCH = 100  # cases of a child
HUGE = (0, -1, 1, 255, 2**31 - 1, 2**31, 2**32, 2**60, 2**63 - 1, 2**63, 2**64 - 1, 10**30, 1e308, float("nan"), float("inf"))
WORDS = (
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b'"', b"'", b"\\", b"{", b"}", b"[", b"]", b",", b"\t", b"\r\n", b"\n", b": ", b"- ",
    b"&a ", b"*a", b"!!python/object/apply:os.mkdir [/x]", b"null", b"true", b"NaN", b"1e999", b"9" * 5000, b"-1", b"0",
    b"\xf0\x9f\x98\x80", b"\xe2\x80\xae", b"\x1b[31m", b"../" * 8,
)  # fmt: skip


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


class Silent:
    """A Reporter that nobody hears."""

    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def encoding(self, done: int, total: int) -> None: ...
    def stepped(self, step: int, progress: float) -> None: ...
    def step(self, report: Any) -> None: ...
    def evaluated(self, metrics: dict[str, float], sample: str, is_best: bool) -> None: ...
    def done(self, outcome: Any) -> None: ...


class Case(NamedTuple):
    """What is done to which file, in words, and how it is read."""

    name: str
    read: Callable[[], object]


# How bytes are spoilt


def spoilt(content: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """A few random changes: bits, bytes, pieces cut out, put in, doubled, or taken from another file."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(found) + 1)
        size = min(rng.choice((1, 2, 4, 8, 64, 1024)), max(0, len(found) - at))
        match rng.randrange(9):
            case 0 if found:
                found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
            case 1:
                found[at : at + size] = rng.randbytes(size)
            case 2:
                del found[at : at + size]
            case 3:
                found[at:at] = rng.choice(WORDS)
            case 4:
                found[at : at + size] = rng.choice(WORDS)
            case 5:
                found[at:at] = bytes(found[at : at + size]) * rng.choice((1, 2, 100))
            case 6:
                del found[at:]
            case 7 if others:
                other = rng.choice(others)
                found[at:] = other[rng.randrange(len(other) + 1) :]
            case 8:
                number = rng.choice(HUGE)
                found[at : at + 8] = struct.pack("<Q", number % 2**64 if isinstance(number, int) else 0)
    return bytes(found)


def somewhere(value: Any, rng: random.Random, change: Callable[[Any], Any], depth: int = 0) -> Any:
    """A copy of nested values in which one, anywhere, is changed."""
    if depth and (not isinstance(value, dict | list | tuple) or not value or rng.random() < 0.15):
        return change(value)
    if isinstance(value, dict):
        if not value:
            return change(value)
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {(f"{k}x" if k == key else k): v for k, v in value.items()}
        return {k: somewhere(v, rng, change, depth + 1) if k == key else v for k, v in value.items()}
    if isinstance(value, list | tuple) and value:
        at = rng.randrange(len(value))
        return type(value)(somewhere(v, rng, change, depth + 1) if i == at else v for i, v in enumerate(value))
    return change(value)


def strange(rng: random.Random) -> Any:
    """A value that is none of those expected."""
    nested: Any = []
    for _ in range(50):
        nested = [nested]
    return rng.choice([*HUGE, None, True, "", "x", "\ud800", "\0", "9" * 5000, [], {}, [[]], {"a": {}}, nested, ["x"] * 1000, -0.0, 1.5])


# Checkpoints


class Checkpoints:
    """Models: what `charrnn sample`, `info` and the others read."""

    def __init__(self, folder: Path, marker: Path) -> None:
        self.folder, self.marker = folder, marker
        vocabulary = Vocabulary(("unknown", "end"), "\n abcdefgh")
        self.vocabulary = vocabulary
        sizes = {"embedding_size": 4, "hidden_size": 4}
        self.bases: list[bytes] = []
        kinds: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
            ("lm", sizes, ()),
            ("lm", {**sizes, "tied_embeddings": True, "layer_norm": True, "num_layers": 2, "cell": "gru"}, ()),
            ("classify", {**sizes, "bidirectional": True, "bigrams": {"max_size": 3}}, ("a", "b")),
            ("tag", {**sizes, "crf": True}, ("O", "B", "I")),
            ("transcribe", {**sizes, "decoder": {"hidden_size": 4, "attention_size": 3, "location_filters": 2}}, ()),
            ("caption", {**sizes, "cnn": {"width": 2, "stages": 2}}, ()),
        ]
        from charrnn.models import build_architecture

        for task, model, labels in kinds:
            data = {
                "path": "x.tsv",
                **({"audio": {"num_mels": 4}} if task == "transcribe" else {"images": {"size": 16}} if task == "caption" else {}),
            }
            config = build_config({"task": task, "data": data, "model": model, "train": {"max_steps": 1}}, "fuzz")
            path = folder / "base.safetensors"
            save_model(path, build_architecture(config, len(vocabulary), len(labels) or None), config, vocabulary, 1, {}, labels)
            self.bases.append(path.read_bytes())
        self.text = folder / "text.safetensors"

    def case(self, rng: random.Random) -> Case:
        base = rng.choice(self.bases)
        (length,) = struct.unpack("<Q", base[:8])
        header, tensors = json.loads(base[8 : 8 + length]), base[8 + length :]
        path = self.folder / rng.choice(("best.safetensors", "last.safetensors", "m.safetensors"))
        match rng.randrange(12):
            case 0 | 1:
                name, content = "bytes", spoilt(base, rng, self.bases)
            case 2 | 3:
                name, content = "bytes, with the checksum made right", self._summed(spoilt(base, rng, self.bases))
            case 4:
                name, content = (
                    "length of the header",
                    struct.pack("<Q", rng.choice([n for n in HUGE if isinstance(n, int) and 0 <= n < 2**64])) + base[8:],
                )
            case 5 | 6:
                name = "values of the header"
                content = self._made(somewhere(header, rng, lambda value: strange(rng)), tensors)
            case 7 | 8:
                key = rng.choice(["config", "config", "config", "vocabulary", "metrics", "labels", "step", "format_version"])
                name = f"metadata: {key}"
                text = header["__metadata__"].get(key, "[]")
                hostile = self._hostile(rng, text) if rng.random() < 0.5 else spoilt(text.encode(), rng).decode(errors="replace")
                content = self._made({**header, "__metadata__": {**header["__metadata__"], key: hostile}}, tensors)
            case 9:
                name, giant = "shapes", json.loads(json.dumps(header))
                tensor = giant[rng.choice([key for key in giant if key != "__metadata__"])]
                tensor["shape"] = rng.choice([[1 << 60], [1 << 32, 1 << 32], [0], [-1, -4], [1] * 10_000, [0, 1 << 63], [2**64]])
                tensor["data_offsets"] = rng.choice([tensor["data_offsets"], [0, 1 << 62], [0, 0], [5, 1], [-4, 4], [1e9, 2e9]])
                content = self._made(giant, tensors)
            case 10:
                name = "weights"
                weights = np.frombuffer(tensors, np.float32).copy()
                weights[rng.randrange(len(weights))] = rng.choice([np.nan, np.inf, 1e38, -1e38, 1e-45])
                content = self._made(header, weights.tobytes())
            case _:
                name, content = "a bomb", bomb(self.marker, rng)
        path.write_bytes(content)
        if rng.random() < 0.1:
            return self._text(rng)
        return Case(f"{path.name}: {name}", lambda: self.read(path))

    def _text(self, rng: random.Random) -> Case:
        path = self.folder / rng.choice(("text.safetensors", "text.index.safetensors"))
        keep_text(self.text, np.array([2, 3, 4, 5] * 50, np.uint8), self.vocabulary)
        kept_index(self.folder / "best.safetensors", self.vocabulary)
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        match rng.randrange(3):
            case 0:
                content = spoilt(content, rng)
            case 1:
                header = somewhere(json.loads(content[8 : 8 + length]), rng, lambda value: strange(rng))
                content = self._made(header, content[8 + length :])
            case _:
                content = bomb(self.marker, rng)
        path.write_bytes(content)

        def read() -> None:
            index, _ = kept_index(self.folder / "best.safetensors", self.vocabulary)
            index.completed(3, [2, 3], [4, 5, 2, 3])

        return Case(f"{path.name}: as a run's own text", read)

    def _hostile(self, rng: random.Random, text: str) -> str:
        sizes = {key: rng.choice([1 << 20, 1000, 1 << 60, 0, -1]) for key in ("hidden_size", "embedding_size", "num_layers")}
        grown = re.sub(
            r"(hidden_size|embedding_size|num_layers|max_size|width|num_mels|levels): \d+",
            lambda m: f"{m[1]}: {sizes.get(m[1], 1 << 20)}",
            text,
        )
        return rng.choice(
            [grown, *hostile_yaml(rng), "[" * 100_000, '{"symbols": ["unknown"], "characters": "' + "a" * 100_000 + '"}', "9" * 100_000]
        )

    def _made(self, header: Any, tensors: bytes) -> bytes:
        raw = json.dumps(header, separators=(",", ":")).encode("utf-8", "surrogatepass")
        return self._summed(struct.pack("<Q", len(raw)) + raw + tensors)

    def _summed(self, content: bytes) -> bytes:
        """With the checksum that it would have, where it has a place for one."""
        found = re.search(rb'"checksum":"([0-9a-f]{32})"', content)
        if len(content) < 8 or not found:
            return content
        (length,) = struct.unpack("<Q", content[:8])
        content = content.replace(found[1], UNSUMMED.encode(), 1)
        return content.replace(UNSUMMED.encode(), checksum(content[: 8 + length], [content[8 + length :]]).encode(), 1)

    def read(self, path: Path) -> None:
        failed: UserError | None = None
        try:
            language = open_language_model(path)
            steps = generate(NativeEngine(language), language.vocabulary, [2], length=3, options=SamplingOptions(), generator=1)
            list(steps)
        except Unfit:
            pass
        except UserError as refused:
            failed = refused
        find_model(str(path))
        loaded = load_model(path)
        build_model(loaded)
        if failed and "damaged" in str(failed):
            raise AssertionError(f"one reader refuses it and the other does not: {failed}")


def bomb(marker: Path, rng: random.Random) -> bytes:
    """A pickle, or what a library would open as one, that runs code."""
    armed = Bomb(marker)
    into = io.BytesIO()
    match rng.randrange(5):
        case 0:
            return pickle.dumps({"state_version": 1, "model": armed}, protocol=rng.randrange(6))
        case 1:
            torch.save({"state_version": 2, "model": armed}, into)
        case 2:
            torch.save({"state_version": 1, "model": armed}, into, _use_new_zipfile_serialization=False)
        case 3:
            np.save(into, np.array([armed, armed], dtype=object), allow_pickle=True)
        case _:
            np.savez(into, x=np.array([armed], dtype=object))
    return into.getvalue()


# States


class States:
    """What a run resumes from."""

    def __init__(self, folder: Path, marker: Path) -> None:
        self.folder, self.marker = folder, marker
        (folder / "text.txt").write_text("the cat sat on a mat. " * 30)
        sections = {
            "data": {"path": str(folder / "text.txt"), "cache": str(folder / "cache")},
            "model": {"embedding_size": 3, "hidden_size": 4},
        }
        train = {"max_steps": 9, "batch_size": 3, "tbptt_window": 5, "precision": "fp32", "threads": 1, "ema_decay": 0.9}
        config = build_config({**sections, "run": str(folder / "run"), "device": "cpu", "train": train}, "fuzz")
        task = load_task(config)
        self.run = RunDirectory(folder / "run")
        self.run.make(config, resume=False)
        self.trainer = Trainer(task, self.run, Silent(), resolve_device("cpu"))
        with self.trainer.shards:
            for _ in range(3):
                self.trainer.step()
            self.trainer.evaluate()
            self.trainer.save()
        self.base = self.run.state.read_bytes()
        self.state = load_state(self.run.state)

    def case(self, rng: random.Random) -> Case:
        path = self.folder / "run" / rng.choice(("last.state.pt", "previous.state.pt"))
        whole = self.base[: self.base.rindex(SEAL)]
        match rng.randrange(8):
            case 0:
                name, content = "bytes", spoilt(self.base, rng)
            case 1 | 2:
                name, content = "bytes, with the checksum made right", sealed(spoilt(whole, rng))
            case 3 | 4 | 5:
                name = "values"
                save_state(path, somewhere(self.state, rng, lambda value: self._strange(value, rng)))
                content = path.read_bytes()
            case 6:
                name, content = "a bomb", bomb(self.marker, rng)
                content = sealed(content) if rng.random() < 0.5 else content
            case _:
                name, content = "records", sealed(self._records(whole, rng))
        path.write_bytes(content)
        return Case(f"{path.name}: {name}", lambda: self.read(path))

    def _strange(self, value: Any, rng: random.Random) -> Any:
        if not isinstance(value, torch.Tensor) or rng.random() < 0.2:
            return rng.choice([strange(rng), torch.zeros(3)])
        shape = tuple(value.shape)
        found = [
            torch.zeros(()), torch.zeros(0), torch.full_like(value, -1) if value.dtype != torch.bool else value, value.to(torch.int64),
            value.to(torch.float64), torch.zeros(1).expand(1 << 40), torch.zeros(1).expand(1 << 30, 1 << 30), value.unsqueeze(0),
            torch.sparse_coo_tensor(size=(1 << 30, 1 << 30)), torch.zeros(3, dtype=torch.complex64), value.reshape(-1)[:1],
            torch.zeros(2, 3).T, torch.full(shape, float("nan")), torch.zeros(shape, dtype=torch.float16),
        ]  # fmt: skip
        return rng.choice(found)

    def _records(self, whole: bytes, rng: random.Random) -> bytes:
        """The archive packed anew: deflated, a record blown up, left out, or holding something else."""
        into, how = io.BytesIO(), rng.randrange(5)
        with (
            zipfile.ZipFile(io.BytesIO(whole)) as old,
            zipfile.ZipFile(into, "w", zipfile.ZIP_DEFLATED if how == 0 else zipfile.ZIP_STORED) as new,
        ):
            chosen = rng.choice(old.namelist())
            for name in old.namelist():
                content = old.read(name)
                if name == chosen:
                    if how == 1:
                        content = spoilt(content, rng)
                    elif how == 2:
                        continue
                    elif how == 3:
                        content = pickle.dumps(Bomb(self.marker))
                if how == 4 and name.endswith("data.pkl"):
                    # Sizes of storages are numbers in the pickle: K one byte, M two, J four.
                    content = re.sub(rb"K[\x04-\xff]", lambda m: b"J\xff\xff\xff\x7f" if rng.random() < 0.2 else m[0], content)
                new.writestr(name, content)
            if how == 0:
                new.writestr("archive/data/99", bytes(300 << 20))
        return into.getvalue()

    def read(self, path: Path) -> None:
        self.trainer.resume(load_state(path), path)
        with self.trainer.shards:
            self.trainer.step()
            self.trainer.capture()


def sealed(content: bytes) -> bytes:
    return content + SEAL + checksum(b"", [content]).encode() + b"\n"


# Configurations


def hostile_yaml(rng: random.Random) -> list[str]:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, rng.choice((5, 9, 30)))
    )
    merged = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], y{i}: 1}}\n" for i in range(1, 25))
    return [
        laughs, merged, laughs + "train: *a4\n", "data:\n  path: &p [*p]\ntrain: {max_steps: 1}\n", "&a [*a, *a]",
        "data: &d {path: x, vocabulary: *d}\ntrain: {max_steps: 1}", "[" * 100_000, "{a: " * 50_000, "- " * 100_000,
        "a: " + "[" * 3000 + "]" * 3000, "? " * 20_000, "!!python/object/apply:os.mkdir [/tmp/x]", "a: !!binary " + "A" * 10**6,
        "train: {max_steps: 1" + "0" * 5000 + "}",
        "data: {path: x}\nmodel: {hidden_size: 1048576, num_layers: 1000}\ntrain: {max_steps: 1}\n",
        "data: {path: x}\nmodel: {hidden_size: 1e30}\ntrain: {max_steps: .inf}\n", "\0", "\ufeff" * 3, "data:\n\tpath: x",
        "%YAML 9.9\n---\nx: 1", "--- \n--- \n" * 1000, 'data: {path: "\\ud800"}\ntrain: {max_steps: 1}', "x" * 5 * 10**6,
        "a: " + "1" * 10**6, "data: {pattern: '(a+)+$" + "(" * 500 + "', path: x}\ntrain: {max_steps: 1}", "seed: 0x" + "f" * 100_000,
        "seed: " + "1_" * 50_000 + "1", "a: 2001-01-01T" + "0" * 100_000, "<<: [1]", "{}: 1\n[1]: 2\n", "!!set {a, b}", "!!omap [a: 1]",
        "!!timestamp x", "=: 1",
    ]  # fmt: skip


class Configs:
    """What `charrnn train --config` reads."""

    def __init__(self, folder: Path, marker: Path) -> None:
        self.folder, self.marker = folder, marker
        config = build_config({"data": {"path": "x.txt"}, "train": {"max_steps": 1, "class_weights": None}}, "fuzz")
        self.bases = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))] + [config.to_yaml().encode()] * 3

    def case(self, rng: random.Random) -> Case:
        path = self.folder / "config.yaml"
        base = rng.choice(self.bases)
        match rng.randrange(4):
            case 0:
                name, content = "bytes", spoilt(base, rng, self.bases)
            case 1:
                import yaml

                name = "values"
                values = somewhere(yaml.safe_load(base), rng, lambda value: strange(rng))
                content = yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")
            case 2:
                name, content = "hostile", rng.choice(hostile_yaml(rng)).encode("utf-8", "surrogatepass")
            case _:
                name, content = (
                    "mixed",
                    rng.choice([base + rng.choice(hostile_yaml(rng)).encode("utf-8", "surrogatepass"), bomb(self.marker, rng)]),
                )
        path.write_bytes(content)

        def read() -> None:
            config = load_config(path)
            assert build_config(config.model_dump(mode="json"), "again") == config
            self.folder.joinpath("again.yaml").write_text(config.to_yaml(), encoding="utf-8", errors="surrogateescape")
            assert load_config(self.folder / "again.yaml") == config

        return Case(f"config.yaml: {name}", read)


# Corpora and manifests


def poems() -> dict[str, bytes]:
    """A small text in each format, by the name of a file that is read as it."""
    lines = ["the cat sat", "on a mat", "and saw a dog", "far away"] * 5
    records = [{"title": f"t{i}", "author": "me", "text": line, "label": "ab"[i % 2]} for i, line in enumerate(lines)]
    chinese = [{"title": "x", "author": "y", "paragraphs": [line, line]} for line in lines]
    csv = "title,text,label\n" + "".join(f'"t{i}","{line}, ""she"" said",{"ab"[i % 2]}\n' for i, line in enumerate(lines))
    zipped, plain = io.BytesIO(), "\n".join(lines).encode()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(f"poems/{i}.txt", plain)
    return {
        "stream.txt": plain,
        "lines.txt": plain,
        "blocks.txt": "\n\n".join(lines).encode(),
        "titles.txt": "".join(f"Title:\n{line}\n\n" for line in lines).encode(),
        "tunes.abc": "".join(f"X:{i}\nT:{line}\nabc\n" for i, line in enumerate(lines)).encode(),
        "chinese.json": json.dumps(chinese, ensure_ascii=False).encode(),
        "records.jsonl": "".join(json.dumps(record) + "\n" for record in records).encode(),
        "records.csv": csv.encode(),
        "records.tsv": ("text\tlabel\n" + "".join(f"{line}\t{'ab'[i % 2]}\n" for i, line in enumerate(lines))).encode(),
        "song.lrc": ("[ti:x]\n[offset:+10]\n" + "".join(f"[00:{i:02}.5][01:{i:02}.5]{line}\n" for i, line in enumerate(lines))).encode(),
        "packed.txt.gz": gzip.compress(plain),
        "packed.jsonl.gz": gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()),
        "packed.zip": zipped.getvalue(),
        "legacy.txt": ("café naïve\n" * 40).encode("latin-1"),
        "wide.txt": ("\n".join(lines)).encode("utf-16"),
    }


FORMATS = {
    "lines.txt": "lines",
    "blocks.txt": "blank_lines",
    "titles.txt": "title_body",
    "tunes.abc": "pattern",
    "chinese.json": "chinese_poetry",
}


def hostile_text(name: str, rng: random.Random, marker: Path) -> bytes:
    """What was made to harm a reader of such a file."""
    deep = rng.choice([b"[", b'{"a":', b'{"text":['])
    found = [
        b"", b"\0" * 1000, b"\xff" * 1000, b"\n" * 10**6, b"a" * (3 << 20), b"a," * 10**6, b"\t" * 10**6, deep * 100_000,
        deep * 100_000 + b"]" * 100_000, b'{"text": "\\ud800"}\n' * 5, b'{"text": ' + b"1" * 10_000 + b"}\n",
        b'{"text": "' + b"x" * (3 << 20) + b'"}\n', b'text,label\n"' + b"x" * (3 << 20), b'text\n"' * 1000, b"text,text\n1,2\n",
        ",".join(map(str, range(100_000))).encode() + b"\n", b"text,label\n" + b"x" * 10**6 + b",a\n", b"[00:00]" * 10**5,
        b"[99999999999999999999:00.0]x\n", b"[offset:nan]\n[00:01.0]x\n[00:02.0]y\n", b"[offset:1e400]\n[00:01.0]x",
        "\u202e\u2066\x1b[31m".encode() * 100, b"\xef\xbb\xbf" * 100, b"X:" * 10**5, b"\r" * 10**6,
        b'[{"paragraphs": "x"}, {"paragraphs": [1, null, {}]}, 5]', b'{"images": ' + b"[" * 10**5, bomb(marker, rng),
        b"\xff\xfe" + b"a\0" * 1001 + b"b",
    ]  # fmt: skip
    content = rng.choice(found)
    if name.endswith(".gz"):
        return rng.choice(
            [
                gzip.compress(bytes(100 << 20)),
                gzip.compress(gzip.compress(bytes(50 << 20))),
                gzip.compress(content),
                gzip.compress(b"ab") * 10_000,
            ]
        )
    if name.endswith(".zip"):
        into = io.BytesIO()
        with (
            warnings.catch_warnings(),
            zipfile.ZipFile(into, "w", rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])) as archive,
        ):
            warnings.simplefilter("ignore")
            match rng.randrange(5):
                case 0:
                    archive.writestr("bomb.txt", bytes(100 << 20))
                case 1:
                    archive.writestr(rng.choice(["../../out.txt", "/etc/x", "a\\..\\b.txt", "C:\\x", ".", "x" * 60_000]), "text")
                case 2:
                    for _ in range(3000):
                        archive.writestr("same.txt", "text")
                case 3:
                    archive.writestr("inner.zip", b"PK")
                case _:
                    archive.writestr("a.jsonl", content)
        made = bytearray(into.getvalue())
        if rng.random() < 0.3:  # it claims to hold little
            at = made.rindex(b"PK\x01\x02")
            made[at + 20 : at + 28] = struct.pack("<II", rng.choice([1, 2**31, 2**32 - 1]), rng.choice([1, 2**31, 2**32 - 1]))
        return bytes(made)
    return content


class Corpora:
    """Text in all formats, and what of it lies in the cache."""

    def __init__(self, folder: Path, marker: Path) -> None:
        self.folder, self.marker = folder, marker
        self.bases = poems()

    def case(self, rng: random.Random) -> Case:
        name = rng.choice(list(self.bases))
        match rng.randrange(5):
            case 0 | 1:
                how, content = "bytes", spoilt(self.bases[name], rng, list(self.bases.values()))
            case 2:
                how, content = "hostile", hostile_text(name, rng, self.marker)
            case 3 if name.endswith(".gz"):
                how, content = "spoilt, then packed", gzip.compress(spoilt(gzip.decompress(self.bases[name]), rng))
            case 3:
                how, content = "mixed", self.bases[name] + hostile_text(name, rng, self.marker)
            case _:
                how, content = "the cache", self.bases[name]
        path = self.folder / name
        path.write_bytes(content)
        formatted = FORMATS.get(name, "auto")
        data: dict[str, Any] = {"path": str(path), "cache": str(self.folder / "cache"), "format": formatted}
        if formatted == "pattern":
            data["pattern"] = "^X:"
        if name == "song.lrc":
            data["val_fraction"] = 0  # it is one document
        if how == "the cache":
            self._spoil_cache(data, rng)
        return Case(f"{name}: {how}", lambda: read_task("lm", data, {"batch_size": 2, "tbptt_window": 8}))

    def _spoil_cache(self, data: dict[str, Any], rng: random.Random) -> None:
        read_task("lm", data, {})
        files = [file for file in (self.folder / "cache").rglob("*") if file.is_file()]
        for file in rng.sample(files, rng.choice((1, len(files)))):
            content = file.read_bytes()
            if file.suffix == ".json" and rng.random() < 0.5:
                file.write_text(json.dumps(somewhere(json.loads(content), rng, lambda value: strange(rng))))
            else:
                file.write_bytes(rng.choice([spoilt(content, rng), bomb(self.marker, rng), rng.randbytes(len(content)), b""]))


def read_task(task: str, data: dict[str, Any], train: dict[str, Any], model: dict[str, Any] | None = None) -> None:
    """As `charrnn train` would, up to the first batches."""
    sizes = {"embedding_size": 3, "hidden_size": 3, **(model or {})}
    config: Config = build_config({"task": task, "device": "cpu", "data": data, "model": sizes, "train": {"max_steps": 1, **train}}, "fuzz")
    found = load_task(config)
    network = found.model()
    for batch in itertools.islice(found.batches("train"), 3):
        found.loss(network, batch, None)
    can_be_scored(found)


class Manifests:
    """Files that name others, or that have labels beside the text."""

    def __init__(self, folder: Path, marker: Path) -> None:
        self.folder, self.marker = folder, marker
        self.bases: dict[str, bytes] = {}

    def data(self, name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Task, `data` and `model` with which a file of that name is read."""
        raise NotImplementedError

    def spoilt_file(self, rng: random.Random) -> tuple[str, str, bytes] | None:
        """Another file than the manifest: its name, what is done to it, and what it then holds."""
        return None

    def prepare(self) -> None:
        """Put the files there that the manifests name."""

    def case(self, rng: random.Random) -> Case:
        name = rng.choice(list(self.bases))
        self.prepare()
        other = self.spoilt_file(rng) if rng.random() < 0.4 else None
        content = self.bases[name]
        if other is not None:
            how = f"{other[0]}, {other[1]}"
            (self.folder / other[0]).write_bytes(other[2])
        else:
            match rng.randrange(4):
                case 0 | 1:
                    how, content = "bytes", spoilt(content, rng, list(self.bases.values()))
                case 2:
                    how, content = "hostile", hostile_text(name, rng, self.marker)
                case _:
                    how, content = "mixed", content + hostile_text(name, rng, self.marker)
        (self.folder / name).write_bytes(content)
        task, data, model = self.data(name)
        data = {"path": str(self.folder / name), "cache": str(self.folder / "cache"), **data}
        return Case(f"{name}: {how}", lambda: read_task(task, data, {"batch_size": 2}, model))


class Labelled(Manifests):
    """Text with labels, for classify."""

    def __init__(self, folder: Path, marker: Path) -> None:
        super().__init__(folder, marker)
        self.bases = {name: content for name, content in poems().items() if name.startswith("records") or name == "packed.jsonl.gz"}

    def data(self, name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
        return "classify", {"example_length": 64}, {"bidirectional": True}


class Columns(Manifests):
    """CoNLL, for tag."""

    def __init__(self, folder: Path, marker: Path) -> None:
        super().__init__(folder, marker)
        words = (SAMPLE / "places.conll").read_bytes().splitlines(keepends=True)[:300]
        self.bases = {"tags.conll": b"".join(words), "tags.txt": b"a B\nb I\nc O\n\n" * 20, "tags.conll.gz": gzip.compress(b"".join(words))}

    def data(self, name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
        return "tag", {"format": "conll"}, {}


class Captions(Manifests):
    """Pictures, or ready features of them, with captions."""

    def __init__(self, folder: Path, marker: Path) -> None:
        super().__init__(folder, marker)
        self.pictures = [path.read_bytes() for path in sorted((SAMPLE / "shapes/pictures").glob("*.png"))[:12]]
        names = [f"{i}.png" for i in range(12)]
        rows = [(name, f"a shape of kind {i % 3}") for i, name in enumerate(names)]
        features, tensor = io.BytesIO(), io.BytesIO()
        np.save(features, np.ones(4, np.float32))
        np.save(tensor, np.ones((12, 4), np.float32))
        self.array, self.feature = tensor.getvalue(), features.getvalue()
        from safetensors.numpy import save

        self.tensors = save({"x": np.ones(4, np.float32)})
        karpathy = {"images": [{"filename": name, "split": "train", "sentences": [{"raw": said}]} for name, said in rows]}
        tab = [f"{name}\t{said}\n" for name, said in rows]
        self.bases = {
            "captions.tsv": "".join(["image\tcaption\n", *tab]).encode(),
            "captions.csv": ("image,caption\n" + "".join(f"{name},{said}\n" for name, said in rows)).encode(),
            "captions.jsonl": "".join(json.dumps({"image": name, "caption": said}) + "\n" for name, said in rows).encode(),
            "karpathy.json": json.dumps(karpathy).encode(),
            "tokens.token.txt": "".join(f"{name}#0\t{said}\n" for name, said in rows).encode(),
            "array.tsv": "".join(["image\tcaption\n", *tab]).encode(),
            "npy.tsv": "".join(["image\tcaption\n", *tab]).replace(".png", ".npy").encode(),
            "tensor.tsv": "".join(["image\tcaption\n", *tab]).replace(".png", ".safetensors").encode(),
        }

    def prepare(self) -> None:
        for i, picture in enumerate(self.pictures):
            (self.folder / f"{i}.png").write_bytes(picture)
            (self.folder / f"{i}.npy").write_bytes(self.feature)
            (self.folder / f"{i}.safetensors").write_bytes(self.tensors)
        (self.folder / "shelf.npy").write_bytes(self.array)
        (self.folder / "shelf.txt").write_text("".join(f"{i}.png\n" for i in range(12)))

    def data(self, name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
        ready = name in ("array.tsv", "npy.tsv", "tensor.tsv")
        images: dict[str, Any] = {"features": 4} if ready else {"size": 16, "workers": 1}
        if name == "array.tsv":
            images["folder"] = str(self.folder / "shelf.npy")
        return "caption", {"images": images}, {} if ready else {"cnn": {"width": 2, "stages": 2}}

    def spoilt_file(self, rng: random.Random) -> tuple[str, str, bytes] | None:
        giant = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 6, 0, 0, 0)
        header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
        claims = [
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904,), }",
            b"{'descr': '|O', 'fortran_order': False, 'shape': (4,), }",
            b"(" * 118,
        ]
        by_name: dict[str, list[bytes]] = {
            "0.png": [
                self.pictures[0][:16] + giant + self.pictures[0][29:],
                b"GIF89a" + b"\xff" * 100,
                b"\xff\xd8\xff\xe0" * 10,
                b"II*\0" + b"\xff" * 99,
                b"<svg/>",
            ],
            "0.npy": [header + rng.choice(claims).ljust(117) + b"\n" + bytes(16)],
            "0.safetensors": [struct.pack("<Q", 2**60) + b"{}", self.tensors.replace(b"[4]", b"[0]"), self.tensors.replace(b"F32", b"F8_")],
            "shelf.npy": [header + rng.choice(claims).ljust(117) + b"\n" + bytes(16), self.array.replace(b"(12, 4)", b"(4, 12)")],
            "shelf.txt": [b"\0" * 99, b"a\n" * 10**5, b"\xff"],
        }
        name = rng.choice(list(by_name))
        whole = (self.folder / name).read_bytes()
        how = rng.choice(["bytes", "bytes", "hostile", "a bomb"])
        return (
            name,
            how,
            spoilt(whole, rng) if how == "bytes" else rng.choice(by_name[name]) if how == "hostile" else bomb(self.marker, rng),
        )


class Recordings(Manifests):
    """Sound, or ready features of it, with transcripts."""

    def __init__(self, folder: Path, marker: Path) -> None:
        super().__init__(folder, marker)
        self.sounds: dict[str, bytes] = {}
        for i in range(6):
            into = io.BytesIO()
            with wave.open(into, "wb") as out:
                out.setparams((1, 2, 8000, 0, "NONE", ""))
                out.writeframes((np.sin(np.arange(2400) / (3 + i)) * 9000).astype("<i2").tobytes())
            self.sounds[f"{i}.wav"] = into.getvalue()
        features = io.BytesIO()
        np.save(features, np.ones((30, 4), np.float32))
        self.sounds["ready.npy"] = features.getvalue()
        rows = [(name, "one two"[: 3 + i % 2]) for i, name in enumerate(self.sounds)]
        self.bases = {
            "sounds.tsv": ("audio\ttranscript\n" + "".join(f"{name}\t{said}\n" for name, said in rows)).encode(),
            "sounds.csv": ("audio,transcript\n" + "".join(f"{name},{said}\n" for name, said in rows)).encode(),
            "sounds.jsonl": "".join(json.dumps({"audio": name, "transcript": said}) + "\n" for name, said in rows).encode(),
        }

    def prepare(self) -> None:
        for name, sound in self.sounds.items():
            (self.folder / name).write_bytes(sound)

    def data(self, name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
        sizes = {"hidden_size": 3, "attention_size": 3, "location_filters": 2}
        audio = {"sample_rate": 8000, "num_mels": 4, "window_length": 200, "hop_length": 80}
        return "transcribe", {"audio": audio, "val_fraction": 0.2}, {"decoder": sizes, "pyramid": {"levels": 1}}

    def spoilt_file(self, rng: random.Random) -> tuple[str, str, bytes] | None:
        name = rng.choice(["0.wav", "0.wav", "ready.npy"])
        whole = self.sounds[name]
        how = rng.choice(["bytes", "bytes", "sizes", "a bomb"])
        if how == "sizes":
            made = bytearray(whole)
            for at in rng.sample([4, 16, 22, 24, 28, 32, 34, 40], 2):
                made[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 10**6]))
            return name, how, bytes(made)
        return name, how, spoilt(whole, rng) if how == "bytes" else bomb(self.marker, rng)


# Runs


class Runs:
    """The files of a run directory, as `charrnn runs`, `watch`, `report` and `info` look at them."""

    def __init__(self, folder: Path, marker: Path) -> None:
        self.folder, self.marker = folder, marker
        self.made = States(folder, marker).run.path
        reports = [
            {"step": step, "epoch": 0.1 * step, "seconds": step / 7, "chars": 9 * step, "nats_per_char": 3 / step} for step in range(1, 40)
        ]
        told = [{"val_nats_per_char": 2.5, "val_bits_per_char": 3.6, **report} for report in reports[::5]]
        beat = {"time": 1.7e9, "host": "here", "pid": 1, "step": 3, "progress": 0.5, "state": "failed", "why": "x"}
        (self.made / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in reports + told))
        (self.made / "samples.txt").write_text("=== step 3 ===\nthe cat\n\n" * 9)
        (self.made / "heartbeat.json").write_text(json.dumps(beat) + "\n")
        self.bases = {path.name: path.read_bytes() for path in self.made.iterdir() if path.is_file()}

    def case(self, rng: random.Random) -> Case:
        for name, content in self.bases.items():
            (self.made / name).write_bytes(content)
        name = rng.choice([*self.bases, "metrics.jsonl", "metrics.jsonl", "config.yaml", "heartbeat.json", "samples.txt"])
        content = self.bases[name]
        match rng.randrange(4):
            case 0 | 1:
                how, content = "bytes", spoilt(content, rng, list(self.bases.values()))
            case 2 if name in ("metrics.jsonl", "heartbeat.json"):
                how = "values"
                lines = [somewhere(json.loads(line), rng, lambda value: strange(rng)) for line in content.splitlines()]
                content = "".join(json.dumps(line) + "\n" for line in lines).encode()
            case _:
                yaml = [text.encode("utf-8", "surrogatepass") for text in hostile_yaml(rng)]
                how, content = "hostile", rng.choice([hostile_text(name, rng, self.marker), rng.choice(yaml), bomb(self.marker, rng)])
        (self.made / name).write_bytes(content)
        page = str(self.folder / "page.html")
        commands = [
            ["runs", "list", str(self.folder)],
            ["watch", "--once", str(self.made)],
            ["report", str(self.made), "--out", page],
            ["info", str(self.made)],
        ]
        chosen = rng.choice(commands)
        return Case(f"{name}: {how}; charrnn {chosen[0]}", lambda: command(chosen))


def command(arguments: list[str]) -> None:
    """As at the command line. A mistake of the user's is raised as one."""
    from charrnn.cli import main

    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
    assert code in (0, 2), f"exit code {code}: {said.getvalue()}"
    if code == 2:
        errors = [line for line in said.getvalue().splitlines() if not line.startswith("charrnn: warning: ")]
        assert len(errors) == 1 and errors[0].startswith("charrnn: error: "), said.getvalue()
        raise UserError(errors[0])


KINDS: dict[str, Callable[[Path, Path], Any]] = {
    "checkpoints": Checkpoints,
    "states": States,
    "configs": Configs,
    "corpora": Corpora,
    "captions": Captions,
    "recordings": Recordings,
    "labelled": Labelled,
    "conll": Columns,
    "runs": Runs,
}


# The cases of a kind


class Finding(NamedTuple):
    number: int
    name: str
    what: str


class Ground:
    """Where the cases of one kind run."""

    def __init__(self, kind: str, seed: int, top: Path) -> None:
        self.kind, self.seed = kind, seed
        self.folder, self.marker = top / kind, top / f"{kind}-was-run"
        self.folder.mkdir()
        self.maker = KINDS[kind](self.folder, self.marker)

    def run(self, number: int) -> tuple[str, str, float]:
        """One case in this process: its name, what came of it, and the megabytes it took. Exceptions that nobody foresaw go on."""
        rng = random.Random(f"{self.kind}-{self.seed}-{number}")
        case: Case = self.maker.case(rng)
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        try:
            case.read()
            outcome = "read"
        except UserError as refused:
            outcome = "refused"
            for line in refused.lines:
                assert "\n" not in line and line.isprintable() and len(line) <= LONGEST + 3, f"not one line: {line!r}"
        finally:
            taken = memory("VmHWM") - before
        assert not self.marker.exists(), "code was run"
        return case.name, outcome, taken

    def clear(self) -> None:
        shutil.rmtree(self.folder / "cache", ignore_errors=True)


def memory(name: str) -> float:
    """Megabytes, as the system counts them."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    assert found, f"no {name} in /proc/self/status"
    return int(found[1]) / 1024


def in_child(ground: Ground, numbers: range, shared: mmap.mmap, log: Path) -> None:
    """Run cases in a row, each with its own time, and write a line of JSON for each. Never returns."""
    usage = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (usage + HARD_LIMIT, usage + HARD_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(log.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    faulthandler.register(signal.SIGPROF, chain=True)
    faulthandler.enable()
    with open(log, "a") as out:
        for number in numbers:
            shared[:8] = struct.pack("<q", number)
            started = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, 2 * CPU_SECONDS)  # making the case included
            try:
                name, outcome, taken = ground.run(number)
                trace = ""
            except BaseException as error:
                name, outcome, taken, trace = (
                    "?",
                    f"{type(error).__name__}: {str(error)[:300]}",
                    0.0,
                    traceback.format_exc(limit=-4)[-2000:],
                )
            signal.setitimer(signal.ITIMER_PROF, 0)
            line = {
                "number": number,
                "name": name,
                "outcome": outcome,
                "megabytes": taken,
                "seconds": time.process_time() - started,
                "trace": trace,
            }
            print(json.dumps(line), file=out, flush=True)
            ground.clear()
    os._exit(0)


def fuzz(ground: Ground, count: int, log: Path) -> list[Finding]:
    """All cases of a kind. What was found wrong."""
    shared, first = mmap.mmap(-1, 8), 0
    findings: list[Finding] = []
    while first < count:
        numbers = range(first, min(count, first + BATCH))
        shared[:8] = struct.pack("<q", first)
        child = os.fork()
        if child == 0:
            try:
                in_child(ground, numbers, shared, log)
            finally:
                os._exit(1)
        at, since = first, time.monotonic()
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            (now,) = struct.unpack("<q", shared[:8])
            if now != at:
                at, since = now, time.monotonic()
            if ended:
                break
            if time.monotonic() - since > WALL_SECONDS:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                status = signal.SIGKILL
                break
            time.sleep(0.02)
        if status == 0:
            first = numbers.stop
            continue
        ending = "hang" if os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGKILL) else f"dead process, signal {os.WTERMSIG(status)}"
        findings.append(Finding(at, "?", ending))
        first = at + 1
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if line["outcome"] not in ("read", "refused"):
            findings.append(Finding(line["number"], line["name"], line["outcome"] + "\n" + line["trace"]))
        elif line["megabytes"] > MEGABYTES:
            findings.append(Finding(line["number"], line["name"], f"{line['megabytes']:.0f} MB"))
        elif line["seconds"] > CPU_SECONDS:
            findings.append(Finding(line["number"], line["name"], f"{line['seconds']:.1f} s"))
    told = Counter(line["outcome"] for line in lines if line["outcome"] in ("read", "refused"))
    most, slowest = max((line["megabytes"] for line in lines), default=0.0), max((line["seconds"] for line in lines), default=0.0)
    print(
        f"{ground.kind}: {count:,} cases, {told['read']:,} read, {told['refused']:,} refused, {len(findings):,} wrong; "
        f"at most {most:.0f} MB and {slowest:.1f} s of a processor; seed {ground.seed}",
        flush=True,
    )
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--count", type=int, default=1000, help="cases of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="run this case alone, in this process")
    args = parser.parse_args()
    if unknown := [kind for kind in args.kinds if kind not in KINDS]:
        parser.error(f"{unknown[0]!r} is no kind; expected one of {', '.join(KINDS)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="charrnn-fuzz-") as top:
        for kind in args.kinds or KINDS:
            ground = Ground(kind, args.seed, Path(top))
            if args.only is not None:
                name, outcome, taken = ground.run(args.only)
                print(f"{kind} {args.only}: {name}: {outcome}, {taken:.0f} MB")
                continue
            for finding in fuzz(ground, args.count, Path(top) / f"{kind}.log"):
                wrong += 1
                print(f"{kind} {finding.number}: {finding.name}: {finding.what}", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
