"""Small models of every task, a server of them in this process, and what a program asks of it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from charrnn.cli.serve import hosted_models
from charrnn.config import build_config
from charrnn.web.app import application
from charrnn.web.guard import Access
from charrnn.web.server import server
from tests.cli.learning import learn

SAMPLE = Path(__file__).parents[2] / "data/sample"
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>&amp;\u202egnp.exe\u202c\0'
JSON = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def make_models(folder: Path) -> None:
    """As `NAME.safetensors`: writes, hostile, fill, classify, tag, marks, caption and hear, all of seconds of training."""
    small = {"embedding_size": 12, "hidden_size": 24}
    songs = folder / "songs.txt"
    songs.write_text((SAMPLE / "lyrics.txt").read_text(encoding="utf-8")[:6000], encoding="utf-8")
    hostile = folder / "hostile.txt"
    hostile.write_text((HOSTILE + "\n") * 60, encoding="utf-8")
    shapes, tones = SAMPLE / "shapes", SAMPLE / "tones"
    settings: dict[str, tuple[int, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
        "writes": (30, {"path": str(songs), "documents": "lines"}, small, {}),
        "hostile": (150, {"path": str(hostile), "encoding": "utf-8"}, {"embedding_size": 16, "hidden_size": 48}, {}),
        "fill": (20, {"path": str(songs), "documents": "lines"}, small, {"task": "fill"}),
        "classify": (10, {"path": str(SAMPLE / "reviews.tsv")}, small, {"task": "classify"}),
        "tag": (10, {"path": str(SAMPLE / "places.conll"), "labels": "column"}, small, {"task": "tag"}),
        "marks": (
            5,
            {"path": str(SAMPLE / "prose.txt"), "documents": "lines", "labels": "punctuation", "example_length": 64},
            small,
            {"task": "tag"},
        ),
        "caption": (
            4,
            {"path": str(shapes / "captions.tsv"), "images": {"size": 32}},
            small | {"cnn": {"width": 4, "stages": 3}},
            {"task": "caption"},
        ),
        "hear": (4, {"path": str(tones / "train.tsv"), "audio": {"sample_rate": 8000, "num_mels": 16}}, small, {"task": "transcribe"}),
    }
    for name, (steps, data, model, task) in settings.items():
        config = {"data": {"val_fraction": 0.0, "cache": str(folder / "cache"), **data}, "model": model, "device": "cpu"} | task
        learn(build_config(config | {"train": {"max_steps": 1, "batch_size": 8}}, name), folder / f"{name}.safetensors", steps, 2e-2)


@contextmanager
def served(*models: Path, access: Access | None = None) -> Iterator[int]:
    """The port of a server of these models, in a thread."""
    app = application(hosted_models([str(model) for model in models], "cpu"), access or Access())
    running = server(app)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not running.started:
                time.sleep(0.01)
                assert thread.is_alive()
            yield listening.getsockname()[1]
        finally:
            running.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def ask(port: int, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def post(port: int, path: str, asked: object, **headers: str) -> Answer:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(port, "POST", path, json.dumps(asked).encode(), JSON | more)


def events(body: bytes) -> list[tuple[str, Any]]:
    found = []
    for block in body.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found
