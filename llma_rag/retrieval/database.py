"""The SQLite side of a store: chunks, documents, the words index, and changes of vectors not yet in the FAISS file.

Every row carries a checksum of what it holds, because SQLite itself notices damage to its structure only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import operator
import os
import re
import sqlite3
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llma_rag.errors import StoreError
from llma_rag.retrieval.documents import Chunk, Document, Skipped
from llma_rag.retrieval.embedding import Vectors
from llma_rag.retrieval.filters import CASEFOLD, Filter, to_sql
from llma_rag.retrieval.vectors import Numbers

_BUSY_MS = 30_000
_MAX_PARAMETERS = 500
_COMMON_AT_LEAST = 20  # chunks
_NO_WORD = re.compile(r"[^\w\u0300-\u036f]|_")
_COMMON_SHARE = 0.05  # of the chunks: a word in more of them tells little, and takes long to rank by

_SCHEMA = """
CREATE TABLE manifest (name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE documents (
    source TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, chunks INTEGER NOT NULL, checksum BLOB NOT NULL
);
CREATE TABLE pages (
    source TEXT NOT NULL, page INTEGER NOT NULL, format TEXT NOT NULL, text TEXT NOT NULL, checksum BLOB NOT NULL,
    PRIMARY KEY (source, page)
);
CREATE TABLE chunks (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, source TEXT NOT NULL, page INTEGER,
    "start" INTEGER NOT NULL, "end" INTEGER NOT NULL, headings TEXT NOT NULL, text TEXT NOT NULL,
    metadata TEXT NOT NULL, title TEXT NOT NULL, checksum BLOB NOT NULL
);
CREATE INDEX chunks_by_source ON chunks (source);
CREATE VIRTUAL TABLE words USING fts5 (
    text, title, content = 'chunks', content_rowid = 'number', tokenize = 'porter unicode61 remove_diacritics 2'
);
CREATE TABLE changes (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, number INTEGER NOT NULL, vector BLOB, checksum BLOB NOT NULL
);
CREATE TABLE embedded (key BLOB PRIMARY KEY, vector BLOB NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE unread (
    path TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, reason TEXT NOT NULL, broken INTEGER NOT NULL, checksum BLOB NOT NULL
);
"""
# all but the tables that the words index keeps for itself
_OUR_SCHEMA = (
    "SELECT type, name, sql FROM sqlite_schema WHERE type != 'table' OR name NOT GLOB 'words_*' ORDER BY 1, 2"
)

_CHUNK_COLUMNS = 'number, id, source, page, "start", "end", headings, text, metadata, title, checksum'


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk with its id, and the number under which its vector lies."""

    number: int
    id: str
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document that was read into the store.

    Attributes:
        source: the file.
        fingerprint: what its content and the way of reading it were; equal means unchanged.
        chunks: how many there are of it.
    """

    source: str
    fingerprint: str
    chunks: int


@dataclass(frozen=True, slots=True)
class VectorChange:
    """A vector that came under a number, or went from it."""

    sequence: int
    number: int
    vector: Vectors | None


@dataclass(frozen=True, slots=True)
class WordMatches:
    """Chunks found by their words.

    Attributes:
        scores: the BM25 score by number, best first.
        coverage: how much of the query's telling words the best chunk has, weighted by rarity, 0 to 1.
    """

    scores: dict[int, float]
    coverage: float


class Database:
    """A connection to a store's SQLite file, or to one in memory.

    Args:
        path: the file; None keeps all in memory.
        write: whether rows may be changed; the file is made where it is missing, without tables.

    Raises:
        StoreError: the file is no store of ours, or is damaged.
    """

    def __init__(self, path: Path | None, *, write: bool) -> None:
        self.place = "the store in memory" if path is None else f"the store {path.parent}"
        with self._errors():
            self._connection = _connect(path, write=write)
        try:
            if not self.is_empty and self._rows(_OUR_SCHEMA) != _expected_schema():
                raise self.corrupt("its tables are not those that this version makes")
        except BaseException:
            self._connection.close()
            raise

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing yet, not even tables."""
        if self._rows("SELECT 1 FROM sqlite_schema LIMIT 1"):
            return False
        if self._rows("PRAGMA page_count")[0][0] > 1:
            raise self.corrupt("its tables are gone")
        return True

    def create(self, manifest: Mapping[str, Any]) -> None:
        """Make the tables of a new store and let it say what it is."""
        with self.transaction():
            for statement in _SCHEMA.split(";\n"):
                self._change(statement)
            self.write_manifest(manifest)

    def close(self) -> None:
        """Close the connection; the last one to close leaves a single file."""
        with self._errors():
            self._connection.close()

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[None]:
        """Make all inside happen or none of it; for reading, see one state inside."""
        try:
            self._change("BEGIN IMMEDIATE" if write else "BEGIN")
            yield
            self._change("COMMIT")
        except BaseException:
            with self._errors():
                self._connection.rollback()
            raise

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is under way."""
        return self._connection.in_transaction

    # -- manifest -----------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        """Return what the store says of itself."""
        rows = self._rows("SELECT name, value, checksum FROM manifest")
        try:
            return {name: json.loads(value) for name, value in map(self._checked, rows)}
        except ValueError as error:
            raise self.corrupt("its manifest cannot be read") from error

    def write_manifest(self, values: Mapping[str, Any]) -> None:
        """Set or replace entries of the manifest."""
        self._change_each(
            "INSERT OR REPLACE INTO manifest VALUES (?, ?, ?)",
            [_checked_row((name, json.dumps(value))) for name, value in values.items()],
        )

    # -- chunks -------------------------------------------------------------------------------------

    def insert_chunks(self, ids: Sequence[str], chunks: Sequence[Chunk]) -> Numbers:
        """Add chunks under new ids; return the new numbers, which were never used before."""
        first = self._last_used("chunks") + 1
        rows = [
            _checked_row((first + position, _text("id", identity), *_chunk_values(chunk)))
            for position, (identity, chunk) in enumerate(zip(ids, chunks, strict=True))
        ]
        self._change_each(
            f"INSERT INTO chunks ({_CHUNK_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
        )
        self._change_each(
            "INSERT INTO words (rowid, text, title) VALUES (?, ?, ?)",
            [(row[0], row[7], row[9]) for row in rows],
        )
        return np.arange(first, first + len(rows), dtype=np.int64)

    def delete_chunks(self, numbers: Sequence[int]) -> None:
        """Remove the chunks of these numbers; a document that loses some no longer counts as read."""
        sources = set()
        for part in _parts(numbers):
            query = f"SELECT DISTINCT source FROM chunks WHERE number IN ({_marks(part)})"
            sources |= {source for (source,) in self._rows(query, part)}
            self._change(
                "INSERT INTO words (words, rowid, text, title) "
                f"SELECT 'delete', number, text, title FROM chunks WHERE number IN ({_marks(part)})",
                part,
            )
            self._change(f"DELETE FROM chunks WHERE number IN ({_marks(part)})", part)
        for part in _parts(sorted(sources)):
            for (source,) in self._rows(
                f"SELECT source FROM documents WHERE source IN ({_marks(part)})", part
            ):
                row = (source, "", len(self.numbers_of_source(source)))
                self._change("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?)", _checked_row(row))

    def chunks(self, numbers: Sequence[int]) -> list[StoredChunk]:
        """Return the chunks of these numbers, in their order; a missing one is an error."""
        found: dict[int, StoredChunk] = {}
        for part in _parts(numbers):
            for row in self._rows(
                f"SELECT {_CHUNK_COLUMNS} FROM chunks WHERE number IN ({_marks(part)})", part
            ):
                found[row[0]] = self._stored(row)
        if len(found) < len(set(numbers)):
            raise self.corrupt("a passage that has a vector is missing")
        return [found[number] for number in numbers]

    def numbers_of_ids(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the numbers of those ids that exist."""
        found: dict[str, int] = {}
        for part in _parts([_text("id", one) for one in ids]):
            found.update(self._rows(f"SELECT id, number FROM chunks WHERE id IN ({_marks(part)})", part))
        return found

    def numbers_where(self, where: Filter, limit: int = -1) -> list[int]:
        """Return the numbers of the chunks that a filter lets through, oldest first."""
        condition, parameters = to_sql(where)
        query = f"SELECT number FROM chunks WHERE {condition} ORDER BY number LIMIT ?"
        return [number for (number,) in self._rows(query, [*parameters, limit])]

    def numbers_of_source(self, source: str) -> list[int]:
        """Return the numbers of a document's chunks, in the document's order."""
        return [
            number
            for (number,) in self._rows(
                "SELECT number FROM chunks WHERE source = ? ORDER BY number", [source]
            )
        ]

    def all_numbers(self) -> Numbers:
        """Return the numbers of all chunks, sorted."""
        return np.array(
            [number for (number,) in self._rows("SELECT number FROM chunks ORDER BY number")], np.int64
        )

    def count_by_source(self) -> dict[str, int]:
        """Return the sources of all chunks, sorted, with their numbers of chunks."""
        return dict(self._rows("SELECT source, count(*) FROM chunks GROUP BY source ORDER BY source"))

    def count_chunks(self) -> int:
        """Return how many chunks there are."""
        return int(self._rows("SELECT count(*) FROM chunks")[0][0])

    # -- words --------------------------------------------------------------------------------------

    def search_words(self, query: str, k: int, where: Filter | None = None) -> WordMatches:
        """Return the `k` chunks that best have the query's words, by BM25."""
        total = self.count_chunks()
        counts = self._telling_words(query, total)
        if not counts:
            return WordMatches({}, 0.0)
        condition, parameters = to_sql(where) if where else ("1", [])
        among = f"AND rowid IN (SELECT number FROM chunks WHERE {condition})" if where else ""
        found = self._rows(
            f"SELECT rowid, -bm25(words) FROM words WHERE words MATCH ? {among} ORDER BY rank, rowid LIMIT ?",
            [" OR ".join(f'"{word}"' for word in counts), *parameters, k],
        )
        weight = sum(max(math.log((total - n + 0.5) / (n + 0.5)), 1e-6) for n in counts.values())
        return WordMatches(dict(found), min(1.0, found[0][1] / weight) if found else 0.0)

    def _telling_words(self, query: str, total: int) -> dict[str, int]:
        """Return the query's words with the numbers of chunks, of so many, that have them, without those in none.

        The commonest are left out too, unless there are no others.
        """
        most = max(_COMMON_AT_LEAST, int(_COMMON_SHARE * total))
        counts = {word: self._chunks_with(word, most + 1) for word in _NO_WORD.sub(" ", query).split()}
        telling = {word: count for word, count in counts.items() if 0 < count <= most}
        return telling or {word: self._chunks_with(word, total) for word, count in counts.items() if count}

    def _chunks_with(self, word: str, limit: int) -> int:
        query = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
        return int(self._rows(query, [f'"{word}"', limit])[0][0])

    # -- documents ----------------------------------------------------------------------------------

    def insert_document(self, document: StoredDocument, pages: Iterable[Document]) -> None:
        """Add a document with its text."""
        row = (_text("source", document.source), document.fingerprint, document.chunks)
        self._change("INSERT INTO documents VALUES (?, ?, ?, ?)", _checked_row(row))
        self._change_each(
            "INSERT INTO pages VALUES (?, ?, ?, ?, ?)",
            [_checked_row((page.source, page.page or 0, page.format, page.text)) for page in pages],
        )

    def delete_documents(self, sources: Sequence[str]) -> None:
        """Remove documents and their text, not their chunks."""
        for part in _parts(sources):
            self._change(f"DELETE FROM documents WHERE source IN ({_marks(part)})", part)
            self._change(f"DELETE FROM pages WHERE source IN ({_marks(part)})", part)

    def documents(self) -> list[StoredDocument]:
        """Return the documents, sorted by source."""
        rows = self._rows("SELECT source, fingerprint, chunks, checksum FROM documents ORDER BY source")
        return [StoredDocument(*self._checked(row)) for row in rows]

    def pages(self, source: str) -> list[Document]:
        """Return a document's text, page by page."""
        rows = self._rows(
            "SELECT source, page, format, text, checksum FROM pages WHERE source = ? ORDER BY page", [source]
        )
        return [
            Document(text, source, page or None, text_format)
            for source, page, text_format, text in map(self._checked, rows)
        ]

    def remember_unread(self, fingerprint: str, skipped: Skipped) -> None:
        """Remember why a file was not read, so that it need not be tried again."""
        row = (skipped.path, fingerprint, skipped.reason, int(skipped.broken))
        self._change("INSERT OR REPLACE INTO unread VALUES (?, ?, ?, ?, ?)", _checked_row(row))

    def unread(self) -> dict[str, tuple[str, Skipped]]:
        """Return the files that were not read by path, each with its fingerprint and the reason."""
        rows = map(
            self._checked, self._rows("SELECT path, fingerprint, reason, broken, checksum FROM unread")
        )
        return {path: (mark, Skipped(path, reason, bool(broken))) for path, mark, reason, broken in rows}

    def forget_unread(self, paths: Sequence[str]) -> None:
        """Forget files that are read now, or gone."""
        for part in _parts(paths):
            self._change(f"DELETE FROM unread WHERE path IN ({_marks(part)})", part)

    # -- vectors on their way -----------------------------------------------------------------------

    def log_added(self, numbers: Numbers, vectors: Vectors) -> None:
        """Remember that vectors came."""
        self._change_each(
            "INSERT INTO changes (number, vector, checksum) VALUES (?, ?, ?)",
            [
                _checked_row((number, _vector_bytes(vector)))
                for number, vector in zip(numbers.tolist(), vectors, strict=True)
            ],
        )

    def log_removed(self, numbers: Sequence[int]) -> None:
        """Remember that vectors went."""
        self._change_each(
            "INSERT INTO changes (number, vector, checksum) VALUES (?, ?, ?)",
            [_checked_row((number, None)) for number in numbers],
        )

    def last_sequence(self) -> int:
        """Return the number of changes there ever were."""
        return self._last_used("changes")

    def changes_after(self, sequence: int) -> list[VectorChange]:
        """Return the remembered changes after a sequence number."""
        rows = self._rows("SELECT * FROM changes WHERE sequence > ? ORDER BY sequence", [sequence])
        changes = []
        for row in rows:
            number, vector = self._checked(row[1:])
            changes.append(VectorChange(row[0], number, None if vector is None else _vector(vector)))
        return changes

    def count_changes(self) -> int:
        """Return how many changes are remembered."""
        return int(self._rows("SELECT count(*) FROM changes")[0][0])

    def forget_changes(self, sequence: int) -> None:
        """Forget the remembered changes up to a sequence number; their numbering goes on."""
        self._change("DELETE FROM changes WHERE sequence <= ?", [sequence])

    def keep_embedded(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        """Keep vectors of a document that is not finished."""
        self._change_each(
            "INSERT OR REPLACE INTO embedded VALUES (?, ?, ?)",
            [_checked_row((key, _vector_bytes(vector))) for key, vector in zip(keys, vectors, strict=True)],
        )

    def kept_embedded(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        """Return those of the kept vectors."""
        found = {}
        for part in _parts(keys):
            query = f"SELECT key, vector, checksum FROM embedded WHERE key IN ({_marks(part)})"
            for row in self._rows(query, part):
                key, vector = self._checked(row)
                found[key] = _vector(vector)
        return found

    def forget_embedded(self) -> None:
        """Forget the kept vectors."""
        self._change("DELETE FROM embedded")

    # -- upkeep -------------------------------------------------------------------------------------

    def shrink(self) -> None:
        """Give unused pages back to the file system and write the log into the file."""
        with self._errors():
            self._connection.execute("PRAGMA incremental_vacuum").fetchall()
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def verify(self) -> None:
        """Read everything once: structure, every row's checksum, and the words index.

        Raises:
            StoreError: something is not what was written.
        """
        with self._errors():
            problems = self._rows("PRAGMA integrity_check(1)")
            if problems != [("ok",)]:
                raise self.corrupt(" ".join(str(problems[0][0]).split()))
            for columns, name in (
                (_CHUNK_COLUMNS, "chunks"),
                ("source, fingerprint, chunks, checksum", "documents"),
                ("source, page, format, text, checksum", "pages"),
                ("number, vector, checksum", "changes"),
                ("key, vector, checksum", "embedded"),
                ("path, fingerprint, reason, broken, checksum", "unread"),
            ):
                for row in self._connection.execute(f"SELECT {columns} FROM {name}"):
                    self._checked(row)
            with closing(
                sqlite3.connect(":memory:")
            ) as copy:  # the check is an INSERT, readers may not write
                self._connection.backup(copy)
                copy.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)")

    def corrupt(self, reason: str) -> StoreError:
        """Return the error that says so."""
        return StoreError(
            f"{self.place} is corrupt: {reason}; remove the folder and index the documents again"
        )

    def _stored(self, row: Sequence[Any]) -> StoredChunk:
        number, identity, source, page, start, end, headings, text, metadata, _title = self._checked(row)
        chunk = Chunk(text, source, start, end, page, tuple(json.loads(headings)), json.loads(metadata))
        return StoredChunk(number, identity, chunk)

    def _checked(self, row: Sequence[Any]) -> Sequence[Any]:
        *values, checksum = row
        if checksum != _checksum(values):
            raise self.corrupt("a row is not what was written")
        return values

    def _rows(self, query: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with self._errors():
            return self._connection.execute(query, parameters).fetchall()

    def _change(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        with self._errors():
            self._connection.execute(statement, parameters)

    def _change_each(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        with self._errors():
            self._connection.executemany(statement, rows)

    def _last_used(self, table: str) -> int:
        rows = self._rows("SELECT seq FROM sqlite_sequence WHERE name = ?", [table])
        return int(rows[0][0]) if rows else 0

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._translated(error) from error
        except UnicodeDecodeError as error:
            raise self.corrupt(f"a text is not UTF-8: {error.reason}") from error

    def _translated(self, error: sqlite3.DatabaseError) -> StoreError:
        reason = " ".join(str(error).split())
        primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if primary == sqlite3.SQLITE_BUSY:
            return StoreError(f"another process is writing to {self.place}; try again later")
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self.corrupt(reason)
        return StoreError(f"{self.place} cannot do this: {reason}")


def _connect(path: Path | None, *, write: bool) -> sqlite3.Connection:
    if path is None:
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    else:
        mode = "rwc" if write else _reading_mode(path)
        connection = sqlite3.connect(
            f"file:{urllib.parse.quote(str(path.resolve()))}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=_BUSY_MS / 1000,
        )
        if mode == _SNAPSHOT:
            with closing(connection) as file:
                connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
                file.backup(connection)
    connection.create_function(CASEFOLD, 1, _casefold, deterministic=True)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    if path is not None and not write:
        connection.execute("PRAGMA query_only = ON")
    if write:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    return connection


_SNAPSHOT = "ro&immutable=1"


def _reading_mode(path: Path) -> str:
    """Return how SQLite opens a file for reading; without leave to write beside it, only when nobody writes it."""
    if os.access(path.parent, os.W_OK) and os.access(path, os.W_OK):
        return "rw"
    return "ro" if path.with_name(f"{path.name}-wal").exists() else _SNAPSHOT


def _casefold(value: Any) -> str | None:
    return value.casefold() if isinstance(value, str) else None


@functools.cache
def _expected_schema() -> list[Any]:
    with closing(sqlite3.connect(":memory:")) as made:
        made.executescript(_SCHEMA)
        return made.execute(_OUR_SCHEMA).fetchall()


def _chunk_values(chunk: Chunk) -> tuple[Any, ...]:
    """Return a chunk's columns as plain texts and numbers, which come back from SQLite as they went in."""
    try:
        metadata = json.dumps(chunk.metadata, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a chunk's metadata must be what JSON can hold: {error}") from error
    return (
        _text("source", chunk.source),
        None if chunk.page is None else _number("page", chunk.page),
        _number("start", chunk.start),
        _number("end", chunk.end),
        json.dumps([_text("heading", heading) for heading in chunk.headings], ensure_ascii=False),
        _text("text", chunk.text),
        _text("metadata", metadata),
        _text("title", chunk.title),
    )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a chunk's {name} must be a string, got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a chunk's {name} must be valid Unicode: {error}") from error
    return "".join(value)  # not of a subclass


def _number(name: str, value: Any) -> int:
    try:
        number = int(operator.index(value))
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise ValueError(f"a chunk's {name} must be a whole number from 0 to 2**63 - 1, got {value!r}")
    return number


def _checked_row(values: Sequence[Any]) -> tuple[Any, ...]:
    return (*values, _checksum(values))


def _checksum(values: Sequence[Any]) -> bytes:
    state = hashlib.blake2b(digest_size=8)
    for value in values:
        content = value if isinstance(value, bytes) else str(value).encode()
        state.update(f"{type(value).__name__}{len(content)}:".encode())
        state.update(content)
    return state.digest()


def _vector_bytes(vector: Vectors) -> bytes:
    return np.asarray(vector, "<f4").tobytes()


def _vector(content: bytes) -> Vectors:
    return np.frombuffer(content, "<f4").astype(np.float32)


def _parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(values), _MAX_PARAMETERS):
        yield values[begin : begin + _MAX_PARAMETERS]


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
