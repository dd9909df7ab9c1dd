"""Documents that clients send: kept as files, indexed one after another in the background, listed with their state."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from llma_rag.closing import Closing
from llma_rag.errors import DocumentError
from llma_rag.files import TEMPORARY, write_atomically
from llma_rag.retrieval import Document, DocumentStore, index_documents
from llma_rag.retrieval.indexing import IndexProgress
from llma_rag.retrieval.reading import MAX_FILE_BYTES, SUFFIXES

_log = logging.getLogger(__name__)
_MOST_NAME_BYTES = 200
_NOT_IN_NAMES = '/\\:*?"<>|'
_PIECE_BYTES = 2**20
_CLOSING_S = 10

State = Literal["waiting", "indexing", "indexed", "failed"]


@dataclass(frozen=True, slots=True)
class DocumentState:
    """A document as clients see it.

    Attributes:
        id: made from `source`.
        name: of the file.
        source: where it is; clients are not told.
        state: `waiting` to be indexed, `indexing`, `indexed`, or `failed` for the reason in `error`.
        passages: of it in the store.
        uploaded: whether it was sent to the server; deleting it deletes the file.
    """

    id: str
    name: str
    source: str
    state: State
    passages: int
    uploaded: bool
    bytes: int | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as data, without the path."""
        data = asdict(self)
        del data["source"]
        return {"object": "document", **data}


class Uploads(Closing):
    """The documents of a store, and a folder of uploaded ones that a thread indexes into it.

    Args:
        store: open for writing.
        folder: of the uploaded files; it is made where missing, and what is in it is indexed.
    """

    def __init__(self, store: DocumentStore, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._store = store
        self._folder = folder.resolve()
        self._changed = threading.Condition()
        self._closing = False
        self._waiting: dict[Path, None] = {}  # in their order
        self._indexing: Path | None = None
        self._embedded = 0  # passages of it
        self._failures: dict[Path, str] = {}
        for left in self._folder.glob(f".*{TEMPORARY}"):
            left.unlink()  # an upload was interrupted
        self._mark({*self._files(), *(path for path in map(Path, store.sources) if self._is_uploaded(path))})
        self._thread = threading.Thread(target=self._run, name="indexing", daemon=True)
        self._thread.start()

    def put(self, name: str, content: BinaryIO) -> DocumentState:
        """Keep a document, in place of an earlier one of the same name, and have it indexed.

        Raises:
            DocumentError: the name is no plain name of a document, or the document is too big.
        """
        path = self._folder / checked_name(name)
        write_atomically(path, _pieces(content, name))
        self._mark([path])
        return self._state(path, self._store.count_by_source())

    def delete(self, document_id: str) -> bool:
        """Take a document out of the store, an uploaded one also out of the folder; return whether there was one."""
        found = self.get(document_id)
        if found is None:
            return False
        path = Path(found.source)
        if found.uploaded:
            path.unlink(missing_ok=True)
        self._store.remove_sources([found.source])
        if found.uploaded:
            self._mark([path])  # it may be on its way into the store just now
        return True

    def get(self, document_id: str) -> DocumentState | None:
        """Return a document, None where there is none of this id."""
        return next((one for one in self.documents() if one.id == document_id), None)

    def documents(self) -> list[DocumentState]:
        """Return all documents, sorted by source."""
        passages = self._store.count_by_source()
        sources = {*passages, *map(str, self._files())}
        return [self._state(Path(source), passages) for source in sorted(sources)]

    def pages(self, document_id: str) -> list[Document] | None:
        """Return a document's text page by page, None where there is no such document; its passages where that is all."""
        found = self.get(document_id)
        if found is None:
            return None
        pages = self._store.pages(found.source)
        if pages:
            return pages
        return [
            Document(chunk.text, chunk.source, chunk.page)
            for chunk in self._store.find({"source": found.source}).values()
        ]

    @property
    def progress(self) -> dict[str, Any] | None:
        """What is being indexed: its name, passages embedded so far, and documents that wait; None while idle."""
        with self._changed:
            if self._indexing is None:
                return None
            return {
                "name": self._indexing.name,
                "embedded_passages": self._embedded,
                "waiting": len(self._waiting),
            }

    def close(self) -> None:
        """Stop the indexing; what is unfinished goes on when the folder is opened again."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSING_S)  # reading a long document cannot be interrupted, and need not end

    # -- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while (path := self._next()) is not None:
            failure = None
            try:
                failure = self._index(path)
            except _StoppedError:
                return
            except _DeletedError:
                self._store.remove_sources([str(path)])
            except Exception as error:  # the next document may do; clients see what is wrong
                if self._closing:
                    return
                failure = _reason(error)
            with self._changed:
                self._indexing = None
                self._failures.pop(path, None)
                if failure is not None and path.exists():
                    self._failures[path] = failure

    def _next(self) -> Path | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if self._closing:
                return None
            self._indexing = next(iter(self._waiting))
            del self._waiting[self._indexing]
            self._embedded = 0
            return self._indexing

    def _index(self, path: Path) -> str | None:
        """Make the store hold a document as it is now; return why it could not be read."""
        problem = None
        if path.exists():
            report = index_documents(self._store, [path], progress=self._tell)
            problem = next((one.reason for one in report.skipped), None)
        if not path.exists():  # deleted, perhaps while it was read
            self._store.remove_sources([str(path)])
        return problem

    def _tell(self, progress: IndexProgress) -> None:
        if self._closing:
            raise _StoppedError
        if self._indexing is not None and not self._indexing.exists():
            raise _DeletedError
        self._embedded = progress.embedded_chunks

    # -- states ---------------------------------------------------------------------------------------

    def _mark(self, paths: Iterable[Path]) -> None:
        with self._changed:
            self._waiting.update(dict.fromkeys(sorted(paths)))
            self._changed.notify()

    def _state(self, path: Path, passages: Mapping[str, int]) -> DocumentState:
        with self._changed:
            is_waiting, is_indexing = path in self._waiting, path == self._indexing
            failure = self._failures.get(path)
        state: State = "indexed"
        if is_waiting:
            state = "waiting"
        elif is_indexing:
            state = "indexing"
        elif failure is not None:
            state = "failed"
        source, uploaded = str(path), self._is_uploaded(path)
        size = None
        if uploaded:
            with contextlib.suppress(OSError):
                size = path.stat().st_size
        return DocumentState(
            document_id(source), path.name, source, state, passages.get(source, 0), uploaded, size, failure
        )

    def _is_uploaded(self, path: Path) -> bool:
        return path.parent == self._folder

    def _files(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if path.is_file() and _is_document_name(path.name)]


class _StoppedError(Exception):
    """The server shuts down."""


class _DeletedError(Exception):
    """The document that is being indexed is not wanted any more."""


def document_id(source: str) -> str:
    """Return what clients call a document."""
    return "doc-" + hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _is_document_name(name: str) -> bool:
    try:
        checked_name(name)
    except DocumentError:
        return False
    return True


def checked_name(name: str) -> str:
    """Return the name of a document, if it is one and nothing else.

    Raises:
        DocumentError: it is a path, hidden, too long, cannot be shown, or does not end as a document's does.
    """
    if not name or not name.isprintable() or set(name) & set(_NOT_IN_NAMES) or name.startswith("."):
        raise DocumentError(
            f"a document's name must not begin with a dot, nor hold control characters or any of {_NOT_IN_NAMES}, got {name!r}"
        )
    if len(name.encode("utf-8", "surrogatepass")) > _MOST_NAME_BYTES:
        raise DocumentError(f"a document's name may have {_MOST_NAME_BYTES} bytes, got {name!r}")
    if Path(name).suffix.lower() not in SUFFIXES:
        raise DocumentError(
            f"{name!r} is not a document: it must end with one of {' '.join(sorted(SUFFIXES))}"
        )
    return name


def _pieces(content: BinaryIO, name: str) -> Iterator[bytes]:
    read = 0
    while piece := content.read(_PIECE_BYTES):
        read += len(piece)
        if read > MAX_FILE_BYTES:
            raise DocumentError(
                f"{name!r} has over {MAX_FILE_BYTES} bytes, the most that are read; split it first"
            )
        yield piece


def _reason(error: Exception) -> str:
    """Return what clients are told of an error; all of it goes into the log."""
    _log.error("a document could not be indexed", exc_info=error)
    return (
        str(error) if isinstance(error, DocumentError) else "the server could not index it; its log says why"
    )
