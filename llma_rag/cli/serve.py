"""`llma-rag serve`: the server over a document store."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import uvicorn

from llma_rag.cli.chat import conversations_file
from llma_rag.cli.demo import packaged_store
from llma_rag.cli.printing import load_engine, status_console
from llma_rag.conversation import ChatSettings, ConversationStore
from llma_rag.errors import DataError
from llma_rag.retrieval import DocumentStore, embedder_named
from llma_rag.retrieval.embedding import DEFAULT_EMBEDDING_MODEL
from llma_rag.serving import ServerSettings, create_app
from llma_rag.serving.uploads import Uploads

_UPLOADS = "uploads"  # in the store's folder
_SHUTDOWN_S = 10  # that answers may still take once the server is told to stop
_LAST_EVENTS_S = 5  # that clients may take to hear that theirs has ended


@dataclass(frozen=True, slots=True)
class _Place:
    """Documents to serve, and where clients' own go."""

    store: DocumentStore
    uploads: Path
    conversations: ConversationStore
    about: str


def run_serve(
    store_folder: Path | None,
    model: str,
    dtype: str,
    width: int | None,
    host: str,
    port: int,
    conversations: Path | None,
    chat_settings: ChatSettings,
    settings: ServerSettings,
) -> None:
    """Serve until interrupted; without a folder the packaged documents, and nothing is kept."""
    listening = _bound(host, port)
    settings = replace(settings, loopback_only=_is_loopback(host))
    if not settings.loopback_only and settings.api_key is None:
        status_console.print(
            f"Anyone who reaches {host} may ask and change the documents: --api-key shuts them out",
            soft_wrap=True,
        )
    with ExitStack() as opened:
        opened.enter_context(contextlib.closing(listening))
        place = opened.enter_context(_demo() if store_folder is None else _kept(store_folder, conversations))
        engine = load_engine(model, dtype, width)
        uploads = opened.enter_context(Uploads(place.store, place.uploads))
        app = create_app(
            engine,
            place.store,
            uploads,
            place.conversations,
            about=place.about,
            chat_settings=chat_settings,
            settings=settings,
        )
        config = uvicorn.Config(
            app,
            timeout_graceful_shutdown=_SHUTDOWN_S + _LAST_EVENTS_S,
            server_header=False,
            log_config=_log_config(),
        )
        address = f"[{host}]" if ":" in host else host
        status_console.print(
            f"{len(place.store)} passages; OpenAI's clients find the server at "
            f"http://{address}:{listening.getsockname()[1]}/v1; Ctrl-C ends it",
            soft_wrap=True,
        )
        # uvicorn finishes its work at either signal, then raises it again; what is open here is still to be closed
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            Server(config, app.state.stop_answers).run(sockets=[listening])


class Server(uvicorn.Server):
    """Gives answers some time once it is told to stop, then ends them with a word."""

    def __init__(self, config: uvicorn.Config, stop_answers: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop_answers = stop_answers

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for connections to end, for a while."""
        timer = asyncio.get_running_loop().call_later(_SHUTDOWN_S, self._stop_answers)
        await super().shutdown(sockets)
        timer.cancel()


@contextmanager
def _kept(folder: Path, conversations: Path | None) -> Iterator[_Place]:
    """Open a store for writing, a new one where there is none."""
    is_new = not DocumentStore.exists(folder)
    embedder = embedder_named(DEFAULT_EMBEDDING_MODEL if is_new else DocumentStore.embedding_model(folder))
    if is_new:
        embedder.load()
    with (
        DocumentStore.open(folder, embedder, write=True) as store,
        ConversationStore(conversations or conversations_file()) as kept,
    ):
        yield _Place(store, folder / _UPLOADS, kept, str(folder.resolve()))


@contextmanager
def _demo() -> Iterator[_Place]:
    with tempfile.TemporaryDirectory() as folder, packaged_store() as store, ConversationStore() as kept:
        yield _Place(store, Path(folder), kept, "")


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket at an address, not listening yet: what is wrong with it is told before anything is loaded."""
    try:
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
    except OSError as error:
        raise DataError(f"cannot listen at {host}, port {port}: {error.strerror}; choose others") from error
    return bound


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _log_config() -> dict[str, object]:
    """Return uvicorn's logging with this library's warnings beside its own."""
    loggers = {
        **uvicorn.config.LOGGING_CONFIG["loggers"],
        "llma_rag": {"handlers": ["default"], "level": "INFO"},
    }
    return {**uvicorn.config.LOGGING_CONFIG, "loggers": loggers}
