"""The playground as an ASGI application: the page, and the JSON API that it is made of.

Whatever computes does so in threads, for a moment at a time where a text is written: the event loop only hands on. A request that is
not understood gets a 4xx and one line.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import resources
from typing import Any, NamedTuple, TypeVar

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from charrnn import __version__
from charrnn.errors import UserError, printable, short
from charrnn.web import limits
from charrnn.web.asked import Asked, CaptionAsked, FillAsked, MediaAsked, SampleAsked, ScoreAsked, TextAsked, parse
from charrnn.web.guard import Access, Guard, Refused
from charrnn.web.hosted import Answer, Captioner, Classifier, Filler, Hosted, Listener, Tagger, Writer, Writing
from charrnn.web.openapi import described

STATIC = {"/": ("index.html", "text/html"), "/app.css": ("app.css", "text/css"), "/app.js": ("app.js", "text/javascript")}
STATIC |= {"/icon.svg": ("icon.svg", "image/svg+xml")}
PAGE = resources.files("charrnn.web").joinpath("static")

HostedT = TypeVar("HostedT", bound=Hosted)
AskedT = TypeVar("AskedT", bound=Asked)
T = TypeVar("T")


class Kind(NamedTuple):
    """What a model of one task is asked with JSON."""

    asked: type[Asked]
    model: type[Any]
    method: str


ANSWERS = {
    "/v1/score": Kind(ScoreAsked, Writer, "score"),
    "/v1/fill": Kind(FillAsked, Filler, "fill"),
    "/v1/classify": Kind(TextAsked, Classifier, "classify"),
    "/v1/tag": Kind(TextAsked, Tagger, "tag"),
}
FILES = {
    "/v1/caption": Kind(CaptionAsked, Captioner, "caption"),
    "/v1/transcribe": Kind(MediaAsked, Listener, "transcribe"),
}


class Seats:
    """So many at once, and no more. Of one event loop."""

    def __init__(self, count: int, what: str) -> None:
        self._free, self._what = count, what

    def take(self) -> None:
        """Raises Refused where there is none."""
        if not self._free:
            raise Refused(429, f"{self._what} at once are as many as this server has; try again in a moment", {"retry-after": "1"})
        self._free -= 1

    def give_back(self) -> None:
        self._free += 1

    @contextmanager
    def taken(self) -> Iterator[None]:
        self.take()
        try:
            yield
        finally:
            self.give_back()


class Playground:
    """The models, and the threads and seats that they share."""

    def __init__(self, models: Sequence[Hosted]) -> None:
        self._models = {model.called.name: model for model in models}
        self._seats = {
            model.called.name: Seats(model.pairs.seats, f"{model.pairs.seats} texts of this model")
            for model in models
            if isinstance(model, Writer)
        }
        self._answers = Seats(limits.ANSWERS, f"{limits.ANSWERS} answers")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._turns = anyio.CapacityLimiter(cores)  # of texts that are written, each a moment long
        self._long = anyio.CapacityLimiter(1)  # of what takes as long as it takes, so that it leaves a core to the texts

    def application(self) -> Starlette:
        routes = [Route(path, partial(_file, name, kind), methods=["GET"]) for path, (name, kind) in STATIC.items()]
        routes += [Route(path, partial(self._answer, kind), methods=["POST"]) for path, kind in ANSWERS.items()]
        routes += [Route(path, partial(self._answer_file, kind), methods=["POST"]) for path, kind in FILES.items()]
        routes += [
            Route("/v1/sample", self._sample, methods=["POST"]),
            Route("/v1/models", self._list, methods=["GET"]),
            Route("/v1/healthz", _health, methods=["GET"]),
            Route("/v1/openapi.json", _openapi, methods=["GET"]),
        ]
        handlers: dict[Any, Any] = {Refused: _refused, UserError: _wrong, HTTPException: _http, ClientDisconnect: _gone}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def _list(self, request: Request) -> Response:
        told = [{"name": name, "task": model.task, **model.facts()} for name, model in self._models.items()]
        return JSONResponse({"models": told})

    async def _answer(self, kind: Kind, request: Request) -> Response:
        asked = parse(kind.asked, await _json(request))
        model = self._named(asked.model, kind.model)
        with self._answers.taken():
            return await self._made(model, partial(getattr(model, kind.method), asked))

    async def _answer_file(self, kind: Kind, request: Request) -> Response:
        asked = parse(kind.asked, dict(request.query_params))
        model = self._named(asked.model, kind.model)
        with self._answers.taken():
            content = await _body(request, limits.MEDIA_BYTES)
            if not content:
                raise Refused(400, "body: is empty; expected the bytes of a file")
            return await self._made(model, partial(getattr(model, kind.method), asked, content))

    async def _made(self, model: Hosted, work: Callable[[], Answer]) -> Response:
        answer = await anyio.to_thread.run_sync(work, limiter=self._long)
        return JSONResponse({"model": model.called.name, **answer})

    async def _sample(self, request: Request) -> Response:
        asked = parse(SampleAsked, await _json(request))
        model = self._named(asked.model, Writer)
        seats = self._seats[model.called.name]
        if asked.stream:
            seats.take()  # until the last event; what is wrong is told by the status, so it has to be known before the first
            try:
                writing = await self.turn(partial(model.write, asked))
            except BaseException:
                seats.give_back()
                raise
            return Events(self, writing, model, asked.pace, seats)
        with seats.taken():
            return await self._whole(request, model, asked)

    async def _whole(self, request: Request, model: Writer, asked: SampleAsked) -> Response:
        writing = await self.turn(partial(model.write, asked))
        began = time.monotonic()
        text, bits, reason = "", list[float | None](), "end"
        try:
            while (piece := await self.turn(writing.more)) is not None:
                text += piece.text
                bits += piece.bits
                if time.monotonic() - began > limits.GENERATION_SECONDS:
                    reason = "time"
                    break
                if await request.is_disconnected():
                    raise ClientDisconnect
        finally:
            await self.ended(writing)
        told = _told(model, writing) | {"text": text, "bits": _rounded(bits)}
        return JSONResponse(told | _ending(writing, reason, len(text), time.monotonic() - began))

    async def turn(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work, limiter=self._turns)

    async def ended(self, writing: Writing) -> None:
        """Whatever happens, and whoever wants to stop: its writer must be there for others."""
        with anyio.CancelScope(shield=True):
            await self.turn(writing.close)

    def _named(self, name: str | None, kind: type[HostedT]) -> HostedT:
        """The model of a name, or the first of its kind."""
        fitting = [model for model in self._models.values() if isinstance(model, kind)]
        model = self._models.get(name) if name is not None else next(iter(fitting), None)
        can = f"expected {' or '.join(repr(model.called.name) for model in fitting[:5])}" if fitting else "none is served; serve one"
        if model is None:
            fact = f"model {short(name)}: not served" if name is not None else f"no model of task {kind.task}"
            raise Refused(404, printable(f"{fact}; {can}"))
        if not isinstance(model, kind):
            raise Refused(400, printable(f"model {short(name)}: of task {model.task}, and this needs one of task {kind.task}; {can}"))
        return model


class Events(Response):
    """A text as it is written, as server-sent events: `start`, many `piece`, and `end`, or `error`.

    It ends where its reader is gone, wherever it is.
    """

    def __init__(self, playground: Playground, writing: Writing, model: Writer, pace: float | None, seats: Seats) -> None:
        super().__init__(media_type="text/event-stream")
        self._playground, self._writing, self._model, self._pace, self._seats = playground, writing, model, pace, seats
        self._seated = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with anyio.move_on_after(limits.GENERATION_SECONDS + limits.PATIENCE):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_until_gone, receive, tasks.cancel_scope)
                    await self._write(send)
                    tasks.cancel_scope.cancel()
        finally:
            await self._leave()

    async def _leave(self) -> None:
        """Make room for another text; once."""
        if self._seated:
            self._seated = False
            try:
                await self._playground.ended(self._writing)
            finally:
                self._seats.give_back()

    async def _write(self, send: Send) -> None:
        async def event(name: str, told: Answer) -> None:
            body = f"event: {name}\ndata: {json.dumps(told)}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})

        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await event("start", _told(self._model, self._writing))
        began, count, reason = time.monotonic(), 0, "end"
        most = limits.EVENT if self._pace is None else max(1, min(limits.EVENT, round(self._pace / limits.EVENTS)))
        last: tuple[str, Answer] | None = None
        try:
            while (piece := await self._playground.turn(partial(self._writing.more, most))) is not None:
                count += len(piece.text)
                if piece.text:
                    await event("piece", {"text": piece.text, "bits": _rounded(piece.bits)})
                if time.monotonic() - began > limits.GENERATION_SECONDS:
                    reason = "time"
                    break
                if self._pace is not None:
                    await anyio.sleep(max(0.0, began + count / self._pace - time.monotonic()))
        except UserError as error:
            last = "error", {"error": str(error)}
        await self._leave()  # who has read the last event may ask for the next text at once
        await event(*(last or ("end", _ending(self._writing, reason, count, time.monotonic() - began))))
        await send({"type": "http.response.body", "body": b""})


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _told(model: Writer, writing: Writing) -> Answer:
    return {"model": model.called.name, "seed": writing.seed, "prime": writing.prime, "warnings": writing.warnings}


def _ending(writing: Writing, reason: str, count: int, seconds: float) -> Answer:
    """`reason`: length, time, or end, of a document, a verse or what was to be stopped at."""
    reason = "length" if reason == "end" and count >= writing.length else reason
    return {"reason": reason, "chars": count, "seconds": round(seconds, 3), "command": writing.command}


def _rounded(bits: Sequence[float | None]) -> list[float | None]:
    return [None if bit is None else round(bit, 3) for bit in bits]


async def _json(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, f"Content-Type: {short(kind)}; expected application/json", {"connection": "close"})
    return await _body(request, limits.JSON_BYTES)


async def _body(request: Request, most: int) -> bytes:
    """A body of at most so many bytes, that is there in time. What is left of one that is refused is not read."""
    too_large = Refused(413, f"body: too large; expected at most {most:,} bytes", {"connection": "close"})
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > most:
        raise too_large
    content = bytearray()
    try:
        with anyio.fail_after(limits.BODY_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > most:
                    raise too_large
    except TimeoutError:
        raise Refused(408, f"body: not there after {limits.BODY_SECONDS:g} s; send it again", {"connection": "close"}) from None
    return bytes(content)


async def _file(name: str, kind: str, request: Request) -> Response:
    return Response(PAGE.joinpath(name).read_bytes(), media_type=kind)


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok", "version": __version__})


async def _openapi(request: Request) -> Response:
    return JSONResponse(described())


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error.response()


async def _wrong(request: Request, error: Exception) -> Response:
    """What cannot be done as it was asked, by the names that the fields have here, and not the flags of the command line."""
    line = re.sub(r"(?<![\w-])--([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), str(error))
    return JSONResponse({"error": line}, 400)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {404: "nothing is here; /v1/openapi.json says what there is", 405: f"not with {request.method[:20]}"}
    message = known.get(error.status_code, error.detail)
    return JSONResponse({"error": printable(message)}, error.status_code, error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody reads it."""
    return Response(status_code=499)


def application(models: Sequence[Hosted], access: Access) -> ASGIApp:
    """At least one model, of distinct names."""
    return Guard(Playground(models).application(), access)
