"""The API in words that other programs read: OpenAPI 3.1, made of the types that requests are checked by."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from charrnn import __version__
from charrnn.web.asked import Asked, CaptionAsked, FillAsked, MediaAsked, SampleAsked, ScoreAsked, TextAsked

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
BITS: Schema = {"type": "array", "items": {"type": ["number", "null"]}, "description": "surprisal of each character in bits; null: unknown"}
WARNINGS: Schema = {"type": "array", "items": TEXT}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _each(**properties: Schema) -> Schema:
    return {"type": "array", "items": _object(**properties)}


MAYBE: Schema = {"type": ["number", "null"]}
STARTED = {"model": TEXT, "seed": COUNT, "prime": TEXT, "warnings": WARNINGS}
ENDED: dict[str, Schema] = {
    "reason": {"type": "string", "enum": ["length", "end", "time"]},
    "chars": COUNT,
    "seconds": NUMBER,
    "command": {"type": ["string", "null"], "description": "writes the same text; null where a shell cannot say the prime"},
}
WRITTEN = {"text": TEXT, "confidence": NUMBER, "finished": {"type": "boolean"}, "bits": BITS}
FIGURES = {name: MAYBE for name in ("nats_per_char", "bits_per_char", "perplexity", "accuracy")}
COUNTS = {"chars": COUNT, "scored": COUNT, "unknown": COUNT, "unknown_share": NUMBER}
CHANCES = _each(label=TEXT, probability=NUMBER)

# path: what it does, the type that is asked with, what is answered, and the kinds of a file that it reads
POSTS: dict[str, tuple[str, type[Asked], Schema, str | None]] = {
    "/v1/sample": ("Go on with a prime", SampleAsked, _object(**STARTED, text=TEXT, bits=BITS, **ENDED), None),
    "/v1/score": ("How much a model likes a text", ScoreAsked, _object(model=TEXT, **FIGURES, **COUNTS, bits=BITS), None),
    "/v1/fill": (
        "What stands in the blanks of a text",
        FillAsked,
        _object(
            model=TEXT,
            text=TEXT,
            fillings=_each(text=TEXT, characters={"type": "array", "items": TEXT}, probability=NUMBER),
            blanks=_each(at=COUNT, choices=_each(char=TEXT, probability=NUMBER)),
            warnings=WARNINGS,
        ),
        None,
    ),
    "/v1/classify": ("What kind of text this is", TextAsked, _object(model=TEXT, label=TEXT, labels=CHANCES, warnings=WARNINGS), None),
    "/v1/tag": (
        "A label for each character, or a text with its marks put in",
        TextAsked,
        _object(
            model=TEXT,
            marked={"type": ["string", "null"]},
            lines=_each(text=TEXT, labels={"type": "array", "items": TEXT}),
            warnings=WARNINGS,
        ),
        None,
    ),
    "/v1/caption": (
        "What is in a picture: JPEG, PNG, WebP, GIF or BMP",
        CaptionAsked,
        _object(model=TEXT, captions=_each(**WRITTEN), width=COUNT, height=COUNT, seconds=NUMBER),
        "image/*",
    ),
    "/v1/transcribe": (
        "What is said in a recording: WAV, FLAC, OGG or what else libsndfile reads",
        MediaAsked,
        _object(
            model=TEXT,
            text=TEXT,
            confidence=NUMBER,
            finished={"type": "boolean"},
            seconds=NUMBER,
            pieces=_each(start=NUMBER, stop=NUMBER, **WRITTEN),
        ),
        "audio/*",
    ),
}
EVENTS = (
    "with `stream`: server-sent events. `start` has model, seed, prime and warnings; each `piece` has text and bits; `end` has reason, "
    "chars, seconds and command; `error`, in its place, has error"
)
GETS: dict[str, tuple[str, Schema]] = {
    "/v1/models": ("What is served", _object(models=_each(name=TEXT, task=TEXT))),
    "/v1/healthz": ("Whether the server answers; without a token", _object(status=TEXT, version=TEXT)),
    "/v1/openapi.json": ("This text", {"type": "object"}),
}


def described() -> Schema:
    """OpenAPI 3.1."""
    kinds = [(kind, "validation") for _, kind, _, _ in POSTS.values()]
    _, definitions = models_json_schema(kinds, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    wrong = {"description": "a mistake in the request, on one line", "content": _json(_object(error=TEXT))}
    paths: Schema = {
        path: {"get": {"summary": summary, "responses": {"200": {"description": summary, "content": _json(schema)}, "4XX": wrong}}}
        for path, (summary, schema) in GETS.items()
    }
    for path in ("/v1/healthz", "/v1/openapi.json"):
        paths[path]["get"]["security"] = []
    for path, (summary, kind, answer, files) in POSTS.items():
        asked = {"$ref": f"#/components/schemas/{kind.__name__}"}
        told = {"description": summary, "content": _json(answer)}
        if path == "/v1/sample":
            told = {"description": f"{summary}; {EVENTS}", "content": _json(answer) | {"text/event-stream": {"schema": TEXT}}}
        operation: Schema = {"summary": summary, "responses": {"200": told, "4XX": wrong}}
        if files is None:
            operation["requestBody"] = {"required": True, "content": _json(asked)}
        else:
            operation["requestBody"] = {"required": True, "content": {files: {}}}
            properties: Schema = definitions["$defs"][kind.__name__]["properties"]
            operation["parameters"] = [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]
        paths[path] = {"post": operation}
    return {
        "openapi": "3.1.0",
        "info": {"title": "charrnn", "version": __version__, "description": "Character-level recurrent neural networks."},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "where the server was started with one"}},
        },
        "security": [{}, {"token": []}],
    }


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}
