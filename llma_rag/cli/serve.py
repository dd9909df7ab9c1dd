"""`llma-rag serve`: the server over a document store."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from llma_rag.cli.chat import conversations_file
from llma_rag.cli.demo import packaged_store
from llma_rag.cli.printing import load_engine, status_console
from llma_rag.conversation import ChatSettings, ConversationStore
from llma_rag.errors import DataError
from llma_rag.retrieval import DocumentStore, embedder_named
from llma_rag.retrieval.embedding import DEFAULT_EMBEDDING_MODEL
from llma_rag.serving import ServerSettings, Uploads, create_app
from llma_rag.serving.server import bound_socket, is_loopback, serve

_UPLOADS = "uploads"  # in the store's folder


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
    try:
        listening = bound_socket(host, port)  # what is wrong with it is told before anything is loaded
    except OSError as error:
        raise DataError(f"cannot listen at {host}, port {port}: {error.strerror}; choose others") from error
    with ExitStack() as opened:
        opened.enter_context(contextlib.closing(listening))
        settings = replace(settings, loopback_only=is_loopback(listening))
        if not settings.loopback_only and settings.api_key is None:
            status_console.print(
                f"Anyone who reaches {host} may ask and change the documents: --api-key shuts them out",
                soft_wrap=True,
            )
        place = opened.enter_context(
            _demo() if store_folder is None else _opened(store_folder, conversations)
        )
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
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        status_console.print(
            f"{len(place.store)} passages; the page is at {address}, OpenAI's clients find the server at {address}/v1; "
            "Ctrl-C ends it",
            soft_wrap=True,
        )
        serve(app, listening)


@contextmanager
def _opened(folder: Path, conversations: Path | None) -> Iterator[_Place]:
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
