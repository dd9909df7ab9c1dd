"""The document store: passages, their vectors in a FAISS index, and both on disk in one folder.

On disk, `manifest.json` names a vector file and a passage file and holds their digests. Saving writes new
files first and replaces the manifest last, in one step: a process that is killed leaves the old state or
the new one, and at most some files that nobody names, which the next save removes. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from filelock import FileLock, Timeout

from llma_rag.errors import StoreError
from llma_rag.files import write_atomically
from llma_rag.retrieval.documents import Chunk
from llma_rag.retrieval.embedding import Embedder, Vectors

_FORMAT = 1
_MANIFEST = "manifest.json"
_LOCK = ".lock"
_MAX_FILE_BYTES = 16 * 2**30


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found, with its similarity to the query (-1 to 1)."""

    chunk: Chunk
    score: float

    @property
    def text(self) -> str:
        """The passage."""
        return self.chunk.text

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Where the passage stands: `source`, and its characters `start` to `end` there."""
        return {"source": self.chunk.source, "start": self.chunk.start, "end": self.chunk.end}


class DocumentStore:
    """Passages that can be searched by meaning.

    Args:
        embedder: makes the vectors of passages and queries.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._chunks: list[Chunk] = []
        self._index = faiss.IndexFlatIP(embedder.dimension)

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def sources(self) -> list[str]:
        """The documents' sources, sorted."""
        return sorted({chunk.source for chunk in self._chunks})

    def add(self, chunks: Sequence[Chunk], vectors: Vectors | None = None) -> None:
        """Add passages, embedding them unless their vectors (passages, dimension) are given."""
        if vectors is None:
            vectors = self._embedder.embed([chunk.text for chunk in chunks])
        if vectors.shape != (len(chunks), self._index.d):
            raise ValueError(
                f"vectors must have the shape ({len(chunks)}, {self._index.d}), got {vectors.shape}"
            )
        self._index.add(np.ascontiguousarray(vectors, np.float32))
        self._chunks.extend(chunks)

    def remove_sources(self, sources: Sequence[str]) -> int:
        """Remove all passages of these documents; return how many there were."""
        gone = set(sources)
        kept = [row for row, chunk in enumerate(self._chunks) if chunk.source not in gone]
        removed = len(self._chunks) - len(kept)
        if removed:
            vectors = self._index.reconstruct_n(0, self._index.ntotal)[kept]
            self._index = faiss.IndexFlatIP(self._index.d)
            self._index.add(np.ascontiguousarray(vectors))
            self._chunks = [self._chunks[row] for row in kept]
        return removed

    def search(self, query: str, k: int = 5) -> list[Hit]:
        """Return the `k` passages most similar to the query, best first; fewer where there are fewer."""
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if not self._chunks:
            return []
        scores, rows = self._index.search(self._embedder.embed([query]), min(k, len(self._chunks)))
        return [Hit(self._chunks[row], float(score)) for row, score in zip(rows[0], scores[0], strict=True)]

    def save(self, folder: str | Path) -> None:
        """Write the store to a folder; at any moment the folder holds the old state or the new."""
        folder = Path(folder)
        with DocumentStore.locked(folder):
            self._write(folder)

    @staticmethod
    @contextmanager
    def locked(folder: str | Path) -> Iterator[None]:
        """Keep other writers out, for opening, changing and saving a store; saving alone does it itself.

        Raises:
            StoreError: another process is writing, or the folder cannot hold a store.
        """
        folder = Path(folder)
        _make_folder(folder)
        try:
            with FileLock(folder / _LOCK, timeout=0, is_singleton=True):  # the system frees a dead holder's
                yield
        except Timeout:
            raise StoreError(f"another process is writing to the store {folder}; try again later") from None

    def _write(self, folder: Path) -> None:
        vectors = faiss.serialize_index(self._index).tobytes()
        passages = b"".join(
            json.dumps(asdict(chunk), ensure_ascii=False).encode() + b"\n" for chunk in self._chunks
        )
        named = {
            "vectors": _write_content(folder, "vectors", "faiss", vectors),
            "passages": _write_content(folder, "passages", "jsonl", passages),
        }
        manifest = {
            "format": _FORMAT,
            "embedding_model": self._embedder.name,
            "dimension": self._index.d,
            "passages": len(self._chunks),
            "files": named,
        }
        write_atomically(folder / _MANIFEST, json.dumps(manifest, indent=2).encode())
        _remove_unnamed(folder, {file["name"] for file in named.values()})

    @classmethod
    def open(cls, folder: str | Path, embedder: Embedder) -> DocumentStore:
        """Open a store from its folder.

        Raises:
            StoreError: there is no store, it is corrupt, or another embedding model made it.
        """
        folder = Path(folder)
        try:
            return cls._read(folder, embedder)
        except StoreError:
            return cls._read(folder, embedder)  # a writer may have replaced the files meanwhile

    @classmethod
    def _read(cls, folder: Path, embedder: Embedder) -> DocumentStore:
        manifest = _read_manifest(folder)
        made_by = (manifest["embedding_model"], manifest["dimension"])
        if made_by != (embedder.name, embedder.dimension):
            raise StoreError(
                f"the store {folder} was made with the embedding model {made_by[0]!r} of dimension {made_by[1]}, "
                f"not {embedder.name!r} of dimension {embedder.dimension}; open it with that one or index again"
            )
        store = cls(embedder)
        store._index = _parse_vectors(folder, _read_content(folder, manifest, "vectors"))
        store._chunks = _parse_passages(folder, _read_content(folder, manifest, "passages"))
        if not store._index.ntotal == len(store._chunks) == manifest["passages"]:
            raise _corrupt(folder, "vectors and passages differ in number")
        return store

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Return whether there is a store in the folder."""
        return (Path(folder) / _MANIFEST).is_file()

    @staticmethod
    def require(folder: str | Path) -> None:
        """Raise StoreError unless there is a store in the folder, with a readable manifest."""
        _read_manifest(Path(folder))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder {folder} cannot be made: {error.strerror}") from error
    if not (folder / _MANIFEST).exists() and any(folder.glob("[!.]*")):
        named_by_us = all(path.name.startswith(("vectors-", "passages-")) for path in folder.glob("[!.]*"))
        if not named_by_us:  # a killed first save may leave such files, and nothing else
            raise StoreError(f"the folder {folder} holds other files and no store; name an empty folder")


def _write_content(folder: Path, kind: str, suffix: str, content: bytes) -> dict[str, str]:
    digest = hashlib.sha256(content).hexdigest()
    name = f"{kind}-{digest[:16]}.{suffix}"
    write_atomically(folder / name, content)
    return {"name": name, "sha256": digest}


def _remove_unnamed(folder: Path, named: set[str]) -> None:
    for pattern in ("vectors-*", "passages-*", ".vectors-*", ".passages-*", f".{_MANIFEST}.*"):
        for path in folder.glob(pattern):
            if path.name not in named:
                path.unlink(missing_ok=True)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    if not path.is_file():
        raise StoreError(
            f"there is no store in {folder}; make one with `llma-rag index PATH --store {folder}`"
        )
    try:
        manifest = json.loads(path.read_bytes())
        format_version = manifest["format"]
        if format_version != _FORMAT:
            raise StoreError(
                f"the store {folder} has format {format_version!r}, this version reads {_FORMAT}; index again"
            )
        for kind in ("vectors", "passages"):
            name, digest = manifest["files"][kind]["name"], manifest["files"][kind]["sha256"]
            if Path(name).name != name or not isinstance(digest, str):
                raise ValueError(name)
        if not isinstance(manifest["embedding_model"], str):
            raise TypeError("embedding_model")
        for number in (manifest["dimension"], manifest["passages"]):
            if not isinstance(number, int):
                raise TypeError("dimension and passages")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _corrupt(folder, f"{_MANIFEST} cannot be read") from error
    return dict(manifest)


def _read_content(folder: Path, manifest: Mapping[str, Any], kind: str) -> bytes:
    entry = manifest["files"][kind]
    path: Path = folder / entry["name"]
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise _corrupt(folder, f"{path.name} has over {_MAX_FILE_BYTES} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise _corrupt(folder, f"{path.name} cannot be read") from error
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise _corrupt(folder, f"{path.name} is not what was written")
    return content


def _parse_vectors(folder: Path, content: bytes) -> Any:
    try:
        index = faiss.deserialize_index(np.frombuffer(content, np.uint8))
    except RuntimeError as error:
        raise _corrupt(folder, "the vectors cannot be read") from error
    if not isinstance(index, faiss.IndexFlatIP):
        raise _corrupt(folder, f"the vectors are a {type(index).__name__}")
    return index


def _parse_passages(folder: Path, content: bytes) -> list[Chunk]:
    try:
        return [Chunk(**json.loads(line)) for line in content.splitlines()]
    except (ValueError, TypeError) as error:
        raise _corrupt(folder, "the passages cannot be read") from error


def _corrupt(folder: Path, reason: str) -> StoreError:
    return StoreError(
        f"the store {folder} is corrupt: {reason}; remove the folder and index the documents again"
    )
