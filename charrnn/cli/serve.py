"""`charrnn serve`: a page to play on, and a small JSON API."""

from __future__ import annotations

import secrets
import socket
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from charrnn.cli.arguments import Device, load, named
from charrnn.cli.output import warn
from charrnn.errors import UserError, printable

if TYPE_CHECKING:
    from charrnn.web.hosted import Called, Hosted

TOKEN_BYTES = 24  # of one that is made here
BACKLOG = 256  # connections that wait to be taken
SHORTEST = 16  # characters of one that a person makes


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="run directories or .safetensors files, of any tasks; left out, the newest run"),
    ] = None,
    host: Annotated[str, typer.Option(help="the address to listen at; any but this machine's own needs a token")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free")] = 8000,
    token: Annotated[str | None, typer.Option(help="who asks has to know it; left out, one is made up where it is needed")] = None,
    device: Device = "auto",
) -> None:
    """Serve models to a browser at this machine: a page where they write, fill in, tell and listen, and a JSON API under /v1.

    Ctrl-C ends it.
    """
    _require_web()
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: expected a number from 0 to 65535; 0 is any that is free")
    if token is not None and not (len(token) >= SHORTEST and token.isascii() and token.isprintable() and " " not in token):
        raise UserError(f"--token: expected at least {SHORTEST} letters, digits and signs without a space; leave it out to have one made")
    from charrnn.web.app import application
    from charrnn.web.guard import Access, is_loopback
    from charrnn.web.server import run

    alone = is_loopback(host)
    if not alone and token is None:
        token = secrets.token_urlsafe(TOKEN_BYTES)
    served = hosted_models(models, device)
    names = frozenset() if alone else frozenset(name.lower() for name in (host, socket.gethostname(), socket.getfqdn()))
    listening = _bound(host, port)
    with listening:
        address, bound = listening.getsockname()[:2]
        shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(address, f"[{address}]" if ":" in address else address)
        url = f"http://{shown}:{bound}/" + ("" if token is None else f"?token={quote(token, safe='')}")
        told = ", ".join(f"{model.called.name} ({model.task})" for model in served)
        if not alone:
            warn(f"--host {printable(host)}: others can reach it, and what goes there and back, the token too, is not encrypted")
        typer.echo(f"charrnn: {printable(told)} at {url}")
        run(application(served, Access(names, alone, token)), listening)


def _require_web() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("charrnn serve: needs starlette and uvicorn, which are not installed; pip install 'charrnn[web]'") from None


def hosted_models(models: list[str] | None, device: str) -> list[Hosted]:
    """Each under a name of its own: that of its run or file, with a number behind it where another has that."""
    from charrnn.model_file import find_model
    from charrnn.web.hosted import Called

    found: dict[str, Hosted] = {}
    wanted: list[str | None] = [*models] if models else [None]
    for model in wanted:
        path = named(None) if model is None else find_model(model)
        own = path.resolve().parent.name if path.name in ("best.safetensors", "last.safetensors") else path.stem
        name, number = printable(own) or "model", 1
        while name in found:
            number += 1
            name = f"{printable(own)} {number}"
        found[name] = _hosted(Called(name, str(path) if model is None else model), device)
    return list(found.values())


def _hosted(called: Called, device: str) -> Hosted:
    """With the native engine where that can run it, and without PyTorch then."""
    from charrnn.engine import Unfit, open_language_model
    from charrnn.model_file import find_model
    from charrnn.web.hosted import Native, Writer, hosted

    path = find_model(called.argument)
    if device in ("auto", "cpu"):
        try:
            language = open_language_model(path)
            return Writer(called, language.vocabulary, Native(language))
        except Unfit:
            pass  # PyTorch runs it, and says so where it cannot
    import torch

    torch.set_num_threads(1)  # what is asked at once shares the cores, one each
    loaded, network = load(path, device)
    return hosted(called, loaded, network)


def _bound(host: str, port: int) -> socket.socket:
    """Raises UserError where nothing can listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)  # who comes as soon as the address is told has to wait, and is not turned away
        except OSError:
            listening.close()
            raise
        return listening
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"--host {printable(host)} --port {port}: cannot listen there: {reason}; name another, or --port 0") from None
