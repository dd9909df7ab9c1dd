"""Files on disk: the cache folder and atomic writes."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path

import platformdirs

TEMPORARY = ".part"  # how the names of files end that are being written; they begin with a dot


def cache_path(name: str) -> Path:
    """Return where a folder of the user's cache is; LLMA_RAG_CACHE moves the cache."""
    return Path(os.environ.get("LLMA_RAG_CACHE") or platformdirs.user_cache_dir("llma_rag")) / name


def cache_folder(name: str) -> Path:
    """Return a folder of the user's cache, making it where needed."""
    folder = cache_path(name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file, in pieces where they are given, so that it always holds the old or the new, whole and on disk."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power cut, where the system lets folders be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
