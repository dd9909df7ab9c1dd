"""Watching documents for changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from llma_rag.errors import DocumentError
from llma_rag.retrieval.reading import SUFFIXES

_LOOK_EVERY_MS = 500


def changes(paths: Iterable[str | Path]) -> Iterator[None]:
    """Yield once when the watching has begun, then each time after documents have changed and come to rest.

    What changes while the caller is busy is not missed.

    Raises:
        DocumentError: watchfiles is not installed.
        KeyboardInterrupt: the user ends the waiting.
    """
    try:
        from watchfiles import Change, watch
    except ImportError as error:
        raise DocumentError(
            "watching needs watchfiles; install it with `pip install 'llma-rag[documents]'`"
        ) from error

    def concerns_documents(change: Change, path: str) -> bool:
        return Path(path).suffix.lower() in SUFFIXES or change is Change.deleted

    has_begun = False
    for found in watch(
        *paths,
        watch_filter=concerns_documents,
        raise_interrupt=True,
        yield_on_timeout=True,
        rust_timeout=_LOOK_EVERY_MS,
    ):
        if found or not has_begun:
            has_begun = True
            yield
