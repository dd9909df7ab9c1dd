"""Keeping a store level with files: only what is new or changed is read, what has vanished goes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llma_rag.errors import DocumentError
from llma_rag.retrieval.database import StoredDocument
from llma_rag.retrieval.discovery import absolute, as_paths, find_files
from llma_rag.retrieval.documents import Chunk, Document, Skipped
from llma_rag.retrieval.embedding import Vectors
from llma_rag.retrieval.reading import SUFFIXES, extract, load, no_documents, reader_versions
from llma_rag.retrieval.splitting import CHUNK_TOKENS, OVERLAP_TOKENS, split_documents
from llma_rag.retrieval.store import DocumentStore

_READING_VERSION = 1  # part of every fingerprint: raise it when the same file gives other text or passages
_COMMIT_CHUNKS = 64  # so much work, at most, is lost when a run is interrupted


@dataclass(slots=True)
class IndexReport:
    """What a run did, in numbers of documents where nothing else is said."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    chunks: int = 0  # passages read
    embedded_chunks: int = 0  # of them, those whose vectors were not known already
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def broken(self) -> list[Skipped]:
        """The files that should have been readable."""
        return [one for one in self.skipped if one.broken]


@dataclass(frozen=True, slots=True)
class IndexProgress:
    """How far a run is: files to read and read, passages embedded."""

    files: int
    files_done: int
    embedded_chunks: int


@dataclass(slots=True)
class _Reading:
    """A document that was read and waits to be stored."""

    document: StoredDocument
    pages: list[Document]
    chunks: list[Chunk]
    vectors: list[Vectors | None]


def index_documents(
    store: DocumentStore,
    paths: str | Path | Iterable[str | Path],
    *,
    progress: Callable[[IndexProgress], None] | None = None,
) -> IndexReport:
    """Make a store hold the documents among files and below folders, as they are now.

    A document's content decides whether it is read again. Documents that vanished below the given paths are
    removed; those from elsewhere stay. Each document is replaced at once, so a run may be interrupted at any
    moment, and the next one goes on from there. A file that cannot be read is reported, with a word if the store
    goes on holding its last readable version.

    Raises:
        DocumentError: a path does not exist, or there is nothing to index.
    """
    roots = as_paths(paths)
    sources = store.sources
    gone = [root for root in roots if not root.exists() and _below([absolute(root)], sources)]
    found = find_files([root for root in roots if root not in gone], SUFFIXES)
    report = IndexReport(skipped=found.skipped)
    known = _Known({one.source: one.fingerprint for one in store.documents()}, store.unread())
    vanished = _vanished(known.documents, roots)
    if not found.files and not vanished:
        raise no_documents(roots)
    if vanished:
        store.remove_sources(vanished)
        report.removed = len(vanished)
    store.forget_unread(_vanished(known.unread, roots))
    changed = [path for path in found.files if not _is_settled(path, known, report)]
    run = _Run(store, known, report, len(changed), progress)
    for path in changed:
        run.take(path)
    run.finish()
    report.skipped.sort(key=lambda one: one.path)
    return report


@dataclass(frozen=True, slots=True)
class _Known:
    """What the store knew before: fingerprints of documents, and of files that could not be read with the reason."""

    documents: dict[str, str]
    unread: dict[str, tuple[str, Skipped]]


def _vanished(known: Iterable[str], paths: Sequence[Path]) -> list[str]:
    roots = [absolute(path) for path in paths]
    return [source for source in _below(roots, known) if not _may_exist(Path(source))]


def _below(roots: Sequence[Path], sources: Iterable[str]) -> list[str]:
    return [source for source in sources if any(Path(source).is_relative_to(root) for root in roots)]


def _may_exist(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # a folder above it may not be read now


def _is_settled(path: Path, known: _Known, report: IndexReport) -> bool:
    """Return whether a file need not be read again, and count it then."""
    if str(path) not in known.documents and str(path) not in known.unread:
        return False
    try:
        content = load(path)
    except DocumentError:
        return False  # told when it is read
    fingerprint, problem = known.unread.get(str(path), ("", None))
    if problem is not None and fingerprint == _unread_fingerprint(content):
        report.skipped.append(problem)
        return True
    is_unchanged = known.documents.get(str(path)) == _fingerprint(content)
    report.unchanged += is_unchanged
    return is_unchanged


def _fingerprint(content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}-{_READING_VERSION}-{CHUNK_TOKENS}-{OVERLAP_TOKENS}"


def _unread_fingerprint(content: bytes) -> str:
    """Return a fingerprint that changes with the reading libraries too: newer ones may manage."""
    return f"{_fingerprint(content)}-{reader_versions()}"


class _Run:
    """Documents on their way into a store, in groups that are embedded and committed together."""

    def __init__(
        self,
        store: DocumentStore,
        known: _Known,
        report: IndexReport,
        files: int,
        progress: Callable[[IndexProgress], None] | None,
    ) -> None:
        self._store = store
        self._known = known
        self._embedder = store.embedder
        self._report = report
        self._files = files
        self._files_done = 0
        self._progress = progress
        self._waiting: list[_Reading] = []
        self._kept_any = False

    def take(self, path: Path) -> None:
        """Read a file; store what waits when it is enough."""
        content = None
        try:
            content = load(path)
            pages = extract(content, path)
        except DocumentError as error:
            may_be_remembered = content is not None and not isinstance(error.__cause__, ImportError)
            reason = str(error).removeprefix(f"{path} ")
            if str(path) in self._known.documents:
                reason += "; its last readable version stays"
            self._skip(Skipped(str(path), reason), content if may_be_remembered else None)
            return
        if not pages:
            reason = "is empty" if not content.strip() else "holds no text"
            if str(path) in self._known.documents:
                self._store.remove_sources([str(path)])
                self._report.removed += 1
            self._skip(Skipped(str(path), reason, broken=False), content)
            return
        chunks = split_documents(pages, self._embedder.count_tokens)
        document = StoredDocument(str(path), _fingerprint(content), len(chunks))
        self._waiting.append(_Reading(document, pages, chunks, self._known_vectors(str(path), chunks)))
        if str(path) in self._known.documents:
            self._report.changed += 1
        else:
            self._report.new += 1
        if sum(vector is None for reading in self._waiting for vector in reading.vectors) >= _COMMIT_CHUNKS:
            self.finish()

    def finish(self) -> None:
        """Embed and store what waits."""
        self._embed()
        with self._store.batch():
            for reading in self._waiting:
                self._store.put_document(
                    reading.document,
                    reading.pages,
                    reading.chunks,
                    np.stack([vector for vector in reading.vectors if vector is not None]),
                )
            read = {reading.document.source for reading in self._waiting}
            self._store.forget_unread(sorted(read & self._known.unread.keys()))
            if self._kept_any:
                self._store.forget_embedded()
        self._kept_any = False
        for reading in self._waiting:
            self._report.chunks += len(reading.chunks)
            self._advance()
        self._waiting = []

    def _skip(self, skipped: Skipped, content: bytes | None) -> None:
        """Report a file that was not read; with its content the reason is remembered."""
        self._report.skipped.append(skipped)
        if content is not None:
            self._store.remember_unread(_unread_fingerprint(content), skipped)
        self._advance()

    def _known_vectors(self, source: str, chunks: Sequence[Chunk]) -> list[Vectors | None]:
        """Return the vectors that an earlier version of the document or an interrupted run left."""
        by_text = {chunk.embedded_text: vector for chunk, vector in self._store.vectors_of_source(source)}
        kept = self._store.kept_embedded([_key(chunk) for chunk in chunks])
        self._kept_any |= bool(kept)
        return [by_text.get(chunk.embedded_text, kept.get(_key(chunk))) for chunk in chunks]

    def _embed(self) -> None:
        missing = [
            (reading, position)
            for reading in self._waiting
            for position, vector in enumerate(reading.vectors)
            if vector is None
        ]
        for part in _parts(missing, _COMMIT_CHUNKS):
            chunks = [reading.chunks[position] for reading, position in part]
            vectors = self._embedder.embed([chunk.embedded_text for chunk in chunks])
            for (reading, position), vector in zip(part, vectors, strict=True):
                reading.vectors[position] = vector
            if len(missing) > 2 * _COMMIT_CHUNKS:  # a long document: keep what is done of it
                self._store.keep_embedded(dict(zip(map(_key, chunks), vectors, strict=True)))
                self._kept_any = True
            self._report.embedded_chunks += len(part)
            self._tell()

    def _advance(self) -> None:
        self._files_done += 1
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(IndexProgress(self._files, self._files_done, self._report.embedded_chunks))


def _key(chunk: Chunk) -> bytes:
    return hashlib.sha256(chunk.embedded_text.encode()).digest()


def _parts(items: list[tuple[_Reading, int]], size: int) -> Iterator[list[tuple[_Reading, int]]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
