"""The server: uvicorn, told as little as it needs."""

from __future__ import annotations

import contextlib
import socket

import uvicorn
from starlette.types import ASGIApp

from charrnn.web import limits

CLOSING = 2  # seconds that answers may still take after Ctrl-C


def server(app: ASGIApp) -> uvicorn.Server:
    """Without a log of requests, and without believing what a proxy may say: what comes from where is nobody's business."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=limits.CONNECTIONS,
            timeout_graceful_shutdown=CLOSING,
        )
    )


def run(app: ASGIApp, listening: socket.socket) -> None:
    """Until Ctrl-C or SIGTERM."""
    with contextlib.suppress(KeyboardInterrupt):  # that is how a person ends it
        server(app).run(sockets=[listening])
