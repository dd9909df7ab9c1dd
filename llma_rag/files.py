"""Files on disk: the cache folder, atomic writes, digests."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import platformdirs

_CHUNK_BYTES = 1 << 20


def cache_folder(name: str) -> Path:
    """Return (and make) a folder in the user's cache; LLMA_RAG_CACHE moves the cache."""
    root = os.environ.get("LLMA_RAG_CACHE") or platformdirs.user_cache_dir("llma_rag")
    folder = Path(root) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment it holds the old content or the new, whole and on disk."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
