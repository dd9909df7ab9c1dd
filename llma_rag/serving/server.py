"""Listening: a socket, and a server that gives answers some time once it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket

import uvicorn
from fastapi import FastAPI

_SHUTDOWN_S = 10.0  # that answers may still take once the server is told to stop
_LAST_EVENTS_S = 5  # that clients may take to hear that theirs has ended
_MOST_CONNECTIONS = 1024


class Server(uvicorn.Server):
    """Gives answers some time once it is told to stop, then ends them with a word.

    Args:
        app: made by `create_app`.
        **options: of `uvicorn.Config`.
    """

    def __init__(self, app: FastAPI, **options: object) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                timeout_graceful_shutdown=int(_SHUTDOWN_S) + _LAST_EVENTS_S,
                limit_concurrency=_MOST_CONNECTIONS,
                server_header=False,
                **options,  # type: ignore[arg-type]
            )
        )
        self._stop_answers = app.state.stop_answers

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for connections to end, for a while."""
        timer = asyncio.get_running_loop().call_later(_SHUTDOWN_S, self._stop_answers)
        await super().shutdown(sockets)
        timer.cancel()


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM."""
    # uvicorn finishes its work at either, then raises it again; the caller still has things to close
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        Server(app, log_config=_log_config()).run(sockets=[listening])


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket at an address that does not listen yet.

    Raises:
        OSError: there is no such address, or another program has it.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def is_loopback(bound: socket.socket) -> bool:
    """Return whether only this machine reaches a socket."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def _log_config() -> dict[str, object]:
    """Return uvicorn's logging with this library's warnings beside its own."""
    loggers = {
        **uvicorn.config.LOGGING_CONFIG["loggers"],
        "llma_rag": {"handlers": ["default"], "level": "INFO"},
    }
    return {**uvicorn.config.LOGGING_CONFIG, "loggers": loggers}
