"""Waiting until documents change."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llma_rag.errors import DocumentError
from llma_rag.retrieval.reading import SUFFIXES


def wait_for_changes(paths: Iterable[str | Path]) -> None:
    """Return when documents among the files and folders have changed, and the changes have come to rest.

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

    next(iter(watch(*paths, watch_filter=concerns_documents, raise_interrupt=True)))
