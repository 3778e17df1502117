#!/usr/bin/env python3
"""How fast a large text is indexed and how much memory that takes, above an empty run: text is made, encoded, measured.

Each size runs in a process of its own; "above" is its peak resident memory less that of the same run with a text of a few
lines. Memory-mapped pages that the system may take back at any time count as resident too. Prints one markdown table.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

KINDS = ("stream", "lines", "jsonl", "json", "jsonl without duplicates")
CHUNK = 1 << 20  # characters made at a time


def words(count: int, random: np.random.Generator) -> str:
    """Chinese characters, frequent and rare ones, in lines of seven with their marks."""
    points = 0x4E00 + np.minimum(random.zipf(1.2, count) - 1, 5999)
    lines = points.astype(np.uint32)[: count // 7 * 7].reshape(-1, 7)
    marks = np.tile([ord("，"), ord("。")], len(lines))[: len(lines)].astype(np.uint32)
    return np.column_stack([lines, marks]).tobytes().decode("utf-32-le")


def poems(random: np.random.Generator) -> Iterator[str]:
    """Quatrains, for ever."""
    while True:
        text = words(CHUNK, random)
        yield from (text[at : at + 32] for at in range(0, len(text) - 31, 32))


def make(kind: str, path: Path, size: int) -> None:
    """A text of about `size` bytes."""
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        if kind == "json":
            file.write("[\n")
        for number, poem in enumerate(poems(np.random.default_rng(1))):
            if kind in ("stream", "lines"):
                line = poem + "\n"
            elif kind == "json":
                line = ("" if number == 0 else ",\n") + json.dumps({"title": f"其{number}", "paragraphs": [poem]}, ensure_ascii=False)
            else:
                line = json.dumps({"text": poem, "n": number}, ensure_ascii=False) + "\n"
            file.write(line)
            written += len(line.encode())
            if written >= size:
                break
        if kind == "json":
            file.write("\n]\n")


def measure(kind: str, path: Path, cache: Path) -> None:
    """In a process of its own: index, and tell what it took."""
    from charrnn.config import DataConfig
    from charrnn.data.corpus import load_corpus

    settings: dict[str, object] = {"path": str(path), "cache": str(cache)}
    if kind == "lines":
        settings["documents"] = "lines"
    if kind.endswith("duplicates"):
        settings["filters"] = {"drop_duplicates": True}
    began = time.perf_counter()
    corpus = load_corpus(DataConfig.model_validate(settings), 1)
    seconds = time.perf_counter() - began
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(corpus.ids), corpus.documents]))


def run(kind: str, size: int, folder: Path) -> tuple[float, float, int, int, int]:
    suffix = {"stream": "txt", "lines": "txt", "json": "json"}.get(kind, "jsonl")
    path = folder / f"text.{suffix}"
    make(kind, path, size)
    command = [sys.executable, __file__, "--measure", kind, str(path), str(folder / "cache")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak, characters, documents = json.loads(ran.stdout)
    read = path.stat().st_size
    path.unlink()
    return seconds, peak, characters, documents, read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000, help="of each text")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--folder", help="where the texts are made: about three times their size is needed there")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        kind, path, cache = args.measure
        measure(kind, Path(path), Path(cache))
        return
    print("| text | MB | documents | characters | index, s | MB/s | peak, MiB | above an empty run, MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind in args.kinds:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            _, empty, *_ = run(kind, 3000, Path(folder))
            seconds, peak, characters, documents, read = run(kind, args.megabytes * 10**6, Path(folder))
        row = [kind, f"{read / 1e6:,.0f}", f"{documents:,}", f"{characters:,}", f"{seconds:.1f}", f"{read / 1e6 / seconds:.0f}"]
        print("| " + " | ".join([*row, f"{peak:.0f}", f"{peak - empty:.0f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
