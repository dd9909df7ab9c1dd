"""The document store: passages with their vectors and words, searchable, in memory or in one folder on disk.

On disk, `store.sqlite` holds everything but the bulk of the vectors, which lie in `vectors-….faiss`. A change is
one SQLite transaction that also remembers the vectors it added and removed. From time to time a new FAISS file
takes these in: it is written whole under a new name, then one transaction makes the manifest name it. So a process
killed at any moment leaves the state before a change or after it. Nothing is pickled.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from llma_rag.closing import Closing
from llma_rag.errors import StoreError
from llma_rag.retrieval.database import Database, StoredDocument, VectorChange
from llma_rag.retrieval.documents import Chunk, Document, Skipped
from llma_rag.retrieval.embedding import Embedder, Vectors
from llma_rag.retrieval.filters import Filter
from llma_rag.retrieval.folder import StoreFolder
from llma_rag.retrieval.ranking import maximal_marginal_relevance, reciprocal_rank_fusion
from llma_rag.retrieval.vectors import EXACT_UP_TO, IndexShape, VectorIndex

SearchMode = Literal["hybrid", "vectors", "words"]

_FORMAT = 3
_POOL = 50  # candidates that each ranking gives to a hybrid search, at least
_WORDS_VOTE_FROM = 0.5  # coverage: where no passage has half of what the query says, words only mislead
_LOG_SHARE = 0.1  # of the vectors: as many changes may wait for the next FAISS file when a writer closes
_LOG_MOST = 4096  # changes that may wait while it writes, or a quarter of the vectors if that is more
_ATTEMPTS = 5  # at reading a state while a writer replaces files


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found.

    Attributes:
        id: its id in the store.
        score: what it was ranked by: reciprocal ranks (hybrid), similarity (vectors) or BM25 (words).
        similarity: the cosine with the query, -1 to 1; None where only words were searched.
    """

    chunk: Chunk
    id: str
    score: float
    similarity: float | None

    @property
    def text(self) -> str:
        """The passage."""
        return self.chunk.text

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Where the passage stands (`source`, characters `start` to `end`, `page`, `headings`), and its metadata."""
        return self.chunk.place


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store holds and how it is searched."""

    format: int
    embedding_model: str
    dimension: int | None
    documents: int
    chunks: int
    index: str
    lists: int
    probes: int
    recall: float
    bytes_on_disk: int


class DocumentStore(Closing):
    """Passages that can be searched by meaning and by words; this constructor keeps them in memory.

    Any number of threads may use a store, one after another.

    Args:
        embedder: makes the vectors of passages and queries.
        exact_up_to: vectors up to which the search is exact.
    """

    def __init__(self, embedder: Embedder, *, exact_up_to: int = EXACT_UP_TO) -> None:
        database = Database(None, write=True)
        database.create(_new_manifest(embedder))
        self._prepare(embedder, exact_up_to, None, database, write=True)

    def _prepare(
        self,
        embedder: Embedder,
        exact_up_to: int,
        folder: StoreFolder | None,
        database: Database,
        *,
        write: bool,
    ) -> None:
        self._embedder = embedder
        self._exact_up_to = exact_up_to
        self._folder = folder
        self._database = database
        self._write = write
        self._lock = threading.RLock()
        self._index: VectorIndex | None = None
        self._dimension: int | None = None  # known from the first vectors on, before the index takes them in
        self._in_batch = False
        self._vector_file: str | None = None
        self._sequence = 0  # of the last change that the index has taken in
        self._closed = False

    # -- opening and closing ------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        folder: str | Path,
        embedder: Embedder,
        *,
        write: bool = False,
        verify: bool = True,
        exact_up_to: int = EXACT_UP_TO,
    ) -> DocumentStore:
        """Open the store in a folder, to search it or, with `write`, also to change it.

        With `write` the folder is made where it is missing, and no other process can write until `close`.
        Readers go on, and see each change when it is complete; one that has no leave to write in the folder may
        see the store as it was when it opened it.

        Args:
            folder: the store's place.
            embedder: the one that the store was made with.
            write: whether to change it.
            verify: read everything once and compare checksums; takes about 25 ms per 1,000 passages.
            exact_up_to: vectors up to which the search is exact, where this call writes.

        Raises:
            StoreError: there is no store, it is corrupt, another embedding model made it, or another
                process is writing.
        """
        place = StoreFolder(folder)
        if write:
            place.make()
            place.lock()
        try:
            store = cls.__new__(cls)
            store._prepare(
                embedder, exact_up_to, place, _open_database(place, embedder if write else None), write=write
            )
            try:
                store._require_own_manifest()
                if verify:
                    with store._database.transaction(write=False):
                        store._database.verify()
                store._load()
            except BaseException:
                store._database.close()
                raise
        except BaseException:
            if write:
                place.unlock()
            raise
        return store

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Return whether there is a store in the folder, be it damaged."""
        place = StoreFolder(folder)
        if not place.database.is_file():
            return False
        try:
            with closing(Database(place.database, write=False)) as database:
                return not database.is_empty or place.has_vectors
        except StoreError:
            return True

    @staticmethod
    def embedding_model(folder: str | Path) -> str:
        """Return the name of the embedding model that a store was made with.

        Raises:
            StoreError: there is no store, or it is corrupt.
        """
        database = _open_database(StoreFolder(folder), None)
        try:
            return str(_checked_manifest(database)["embedding_model"])
        finally:
            database.close()

    def close(self) -> None:
        """Write what waits to be written, and let other writers in. Closing twice does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if self._folder is not None and self._write:
                    with self._database.transaction(write=False):
                        self._catch_up()
                    waiting = self._database.count_changes()
                    if waiting > _LOG_SHARE * self._size():
                        self._write_vector_file()
                    if waiting:
                        self._database.shrink()
            finally:
                self._database.close()
                if self._folder is not None and self._write:
                    self._folder.unlock()

    # -- what is in it ------------------------------------------------------------------------------

    def __len__(self) -> int:
        with self._reading():
            return self._size()

    @property
    def sources(self) -> list[str]:
        """The sources of all passages, sorted."""
        return list(self.count_by_source())

    def count_by_source(self) -> dict[str, int]:
        """Return the sources of all passages, sorted, with their numbers of passages."""
        with self._reading():
            return self._database.count_by_source()

    def documents(self) -> list[StoredDocument]:
        """Return the documents that were read from files, sorted by source."""
        with self._reading():
            return self._database.documents()

    def info(self) -> StoreInfo:
        """Return what the store holds and how it is searched."""
        with self._reading():
            shape = self._index.shape if self._index else IndexShape()
            return StoreInfo(
                format=_FORMAT,
                embedding_model=self._embedder.name,
                dimension=self._index.dimension if self._index else None,
                documents=len(self._database.count_by_source()),
                chunks=self._size(),
                index=shape.kind,
                lists=shape.lists,
                probes=shape.probes,
                recall=shape.recall,
                bytes_on_disk=self._folder.bytes_on_disk() if self._folder else 0,
            )

    def get(self, ids: Sequence[str]) -> dict[str, Chunk]:
        """Return the passages of those ids that exist."""
        with self._reading(in_batch=True):
            return self._chunks_by_id(list(self._database.numbers_of_ids(ids).values()))

    def find(self, where: Filter, limit: int | None = None) -> dict[str, Chunk]:
        """Return the passages that a filter lets through, by id, oldest first; see `llma_rag.retrieval.filters`."""
        with self._reading(in_batch=True):
            return self._chunks_by_id(self._database.numbers_where(where, -1 if limit is None else limit))

    @property
    def embedder(self) -> Embedder:
        """What makes the vectors."""
        return self._embedder

    def pages(self, source: str) -> list[Document]:
        """Return the text of a document that was read from a file, one document per page."""
        with self._reading(in_batch=True):
            return self._database.pages(source)

    def neighbours(self, hit: Hit, before: int = 1, after: int = 1) -> list[Chunk]:
        """Return the passages that stand before and after a hit in its document, in the document's order."""
        with self._reading():
            numbers = self._database.numbers_of_source(hit.chunk.source)
            here = self._database.numbers_of_ids([hit.id]).get(hit.id)
            if here is None:
                return []
            position = numbers.index(here)
            around = numbers[max(0, position - before) : position] + numbers[position + 1 :][:after]
            return [stored.chunk for stored in self._database.chunks(around)]

    # -- changing it --------------------------------------------------------------------------------

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Make all changes inside happen at once, or none of them where an error leaves the block."""
        with self._lock:
            if self._in_batch:
                yield  # inside another batch
                return
            self._require_open()
            if not self._write:
                raise StoreError(
                    f"the store {self._folder and self._folder.path} was opened for reading; open it for writing"
                )
            self._in_batch = True
            try:
                with self._database.transaction():
                    self._catch_up()
                    yield
            finally:
                self._in_batch = False
                self._dimension = self._index.dimension if self._index is not None else None
            with self._reading():
                pass
            if self._folder is None:
                self._settle_in_memory()
            elif self._database.count_changes() > max(_LOG_MOST, self._size() // 4):
                with suppress(StoreError):  # nothing is lost: `close` tries again, and tells
                    self._write_vector_file()

    def add(
        self, chunks: Sequence[Chunk], vectors: Vectors | None = None, *, ids: Sequence[str] | None = None
    ) -> list[str]:
        """Add passages and return their ids; one whose id is there already replaces it.

        Args:
            chunks: the passages.
            vectors: their unit vectors, (passages, dimension); made by the embedder where not given.
            ids: theirs; new ones where not given.

        Raises:
            ValueError: the numbers of passages, vectors and ids differ, or an id comes twice.
        """
        ids = [uuid.uuid4().hex for _ in chunks] if ids is None else list(ids)
        if len(ids) != len(chunks) or len(set(ids)) != len(ids):
            raise ValueError(f"there must be one id of its own per chunk, got {len(ids)} for {len(chunks)}")
        self._require_open()
        if not chunks:
            return []
        if vectors is None:
            vectors = self._embedder.embed([chunk.embedded_text for chunk in chunks])
        vectors = self._checked_vectors(vectors, len(chunks))
        with self.batch():
            self._dimension = vectors.shape[1]
            self._remove(list(self._database.numbers_of_ids(ids).values()))
            self._database.log_added(self._database.insert_chunks(ids, chunks), vectors)
        return ids

    def put_document(
        self,
        document: StoredDocument,
        pages: Sequence[Document],
        chunks: Sequence[Chunk],
        vectors: Vectors,
    ) -> None:
        """Add a document with its text and passages, in place of an earlier one of the same source."""
        with self.batch():
            self.remove_sources([document.source])
            self._database.insert_document(document, pages)
            self.add(chunks, vectors)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove passages by id; return how many there were."""
        with self.batch():
            return self._remove(list(self._database.numbers_of_ids(ids).values()))

    def delete_where(self, where: Filter) -> int:
        """Remove the passages that a filter lets through; return how many there were."""
        with self.batch():
            return self._remove(self._database.numbers_where(where))

    def remove_sources(self, sources: Sequence[str]) -> int:
        """Remove documents with all their passages; return how many passages there were."""
        with self.batch():
            self._database.delete_documents(sources)
            return self._remove(
                [number for one in dict.fromkeys(sources) for number in self._database.numbers_of_source(one)]
            )

    def save(self, folder: str | Path) -> None:
        """Make the store in a folder hold what this one holds, at once."""
        with self._reading(), DocumentStore.open(folder, self._embedder, write=True) as other, other.batch():
            other.delete_where({})
            other._database.delete_documents([document.source for document in other._database.documents()])
            stored = self._database.chunks(self._database.all_numbers().tolist())
            if stored:
                vectors = self._require_index().vectors_of([one.number for one in stored])
                other.add([one.chunk for one in stored], vectors, ids=[one.id for one in stored])
            for document in self._database.documents():
                other._database.insert_document(document, self._database.pages(document.source))

    # -- what indexing remembers ----------------------------------------------------------------------

    def remember_unread(self, fingerprint: str, skipped: Skipped) -> None:
        """Remember why a file of this fingerprint was not read."""
        with self.batch():
            self._database.remember_unread(fingerprint, skipped)

    def unread(self) -> dict[str, tuple[str, Skipped]]:
        """Return the files that were not read by path, each with its fingerprint and the reason."""
        with self._reading():
            return self._database.unread()

    def forget_unread(self, paths: Sequence[str]) -> None:
        """Forget files that are read now, or gone."""
        if paths:
            with self.batch():
                self._database.forget_unread(paths)

    def keep_embedded(self, vectors: Mapping[bytes, Vectors]) -> None:
        """Keep vectors under keys, so that an interrupted run need not make them again."""
        if vectors:
            with self.batch():
                self._database.keep_embedded(list(vectors), np.stack(list(vectors.values())))

    def kept_embedded(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        """Return those of the kept vectors that there are."""
        with self._reading(in_batch=True):
            return self._database.kept_embedded(keys)

    def forget_embedded(self) -> None:
        """Forget the kept vectors."""
        with self.batch():
            self._database.forget_embedded()

    def vectors_of_source(self, source: str) -> list[tuple[Chunk, Vectors]]:
        """Return a document's passages with their vectors."""
        with self._reading():
            numbers = self._database.numbers_of_source(source)
            if not numbers:
                return []
            vectors = self._require_index().vectors_of(numbers)
            chunks = self._database.chunks(numbers)
            return [(stored.chunk, vector) for stored, vector in zip(chunks, vectors, strict=True)]

    # -- searching ----------------------------------------------------------------------------------

    def search(
        self,
        query: str,
        k: int = 5,
        *,
        mode: SearchMode = "hybrid",
        vector: Vectors | None = None,
        where: Filter | None = None,
    ) -> list[Hit]:
        """Return the `k` best passages for a query, best first; fewer where there are fewer.

        Args:
            query: the question.
            k: most passages.
            mode: by meaning and words joined by reciprocal rank (by meaning alone where no passage has half of
                the query's words, weighted by rarity), or by one of the two.
            vector: the query's unit vector, (dimension,); made by the embedder where not given.
            where: a filter over metadata; see `llma_rag.retrieval.filters`.
        """
        _require_positive(k)
        if mode not in get_args(SearchMode):
            raise ValueError(f"mode must be one of {', '.join(get_args(SearchMode))}, got {mode!r}")
        if mode == "words":
            vector = None
        elif vector is None:
            vector = self._query_vector(query)
        else:
            vector = self._checked_vectors(np.asarray(vector, np.float32)[None], 1)[0]
        pool = k if mode != "hybrid" else max(_POOL, 4 * k)
        with self._reading():
            ranked = self._nearest(vector, pool, where) if vector is not None else {}
            if mode != "vectors":
                matches = self._database.search_words(query, pool, where)
                if mode == "words":
                    ranked = matches.scores
                elif matches.coverage >= _WORDS_VOTE_FROM:
                    ranked = reciprocal_rank_fusion([list(ranked), list(matches.scores)])
                else:
                    ranked = reciprocal_rank_fusion([list(ranked)])
            return self._hits(dict(list(ranked.items())[:k]), vector)

    def search_vector(self, vector: Vectors, k: int = 5, *, where: Filter | None = None) -> list[Hit]:
        """Return the `k` passages nearest to a unit vector (dimension,), best first."""
        _require_positive(k)
        vector = self._checked_vectors(np.asarray(vector, np.float32)[None], 1)[0]
        with self._reading():
            return self._hits(self._nearest(vector, k, where), vector)

    def search_mmr(
        self,
        query: str | Vectors,
        k: int = 5,
        *,
        pool: int = 20,
        relevance_share: float = 0.5,
        where: Filter | None = None,
    ) -> list[Hit]:
        """Return `k` of the `pool` nearest passages that are relevant and unlike each other (MMR).

        Args:
            query: the question, or its unit vector.
            k: most passages.
            pool: passages to choose from.
            relevance_share: λ; 1 looks at relevance alone, 0 at difference alone.
            where: a filter over metadata.
        """
        _require_positive(k)
        if not 0 <= relevance_share <= 1:
            raise ValueError(f"relevance_share must be from 0 to 1, got {relevance_share}")
        vector = (
            self._query_vector(query)
            if isinstance(query, str)
            else self._checked_vectors(np.asarray(query, np.float32)[None], 1)[0]
        )
        with self._reading():
            nearest = self._nearest(vector, max(pool, k), where)
            if not nearest:
                return []
            numbers = list(nearest)
            candidates = self._require_index().vectors_of(numbers)
            rows = maximal_marginal_relevance(vector, candidates, k, relevance_share)
            return self._hits({numbers[row]: nearest[numbers[row]] for row in rows}, vector)

    def _nearest(self, vector: Vectors, k: int, where: Filter | None) -> dict[int, float]:
        if self._index is None or not len(self._index):
            return {}
        among = None if not where else np.array(self._database.numbers_where(where), np.int64)
        if among is not None and not len(among):
            return {}
        return dict(zip(*self._index.search(vector, k, among), strict=True))

    def _hits(self, ranked: Mapping[int, float], vector: Vectors | None) -> list[Hit]:
        if not ranked:
            return []
        similarities = (
            [None] * len(ranked)
            if vector is None
            else (self._require_index().vectors_of(list(ranked)) @ vector).tolist()
        )
        stored = self._database.chunks(list(ranked))
        return [
            Hit(one.chunk, one.id, score, similarity)
            for one, score, similarity in zip(stored, ranked.values(), similarities, strict=True)
        ]

    def _query_vector(self, query: str) -> Vectors:
        vector: Vectors = self._checked_vectors(self._embedder.embed_query(query)[None], 1)[0]
        return vector

    # -- keeping vectors and rows together ----------------------------------------------------------

    def _chunks_by_id(self, numbers: Sequence[int]) -> dict[str, Chunk]:
        return {stored.id: stored.chunk for stored in self._database.chunks(numbers)}

    @contextmanager
    def _reading(self, *, in_batch: bool = False) -> Iterator[None]:
        """See one state of the database and the vectors inside, the newest there is."""
        with self._lock:
            self._require_open()
            if self._database.in_transaction:
                if self._in_batch and not in_batch:
                    raise StoreError("a batch is under way; leave it before you search or count")
                yield
                return
            with ExitStack() as transaction:
                self._begin_reading(transaction)
                yield

    def _begin_reading(self, transaction: ExitStack) -> None:
        for _ in range(_ATTEMPTS):
            transaction.enter_context(self._database.transaction(write=False))
            try:
                self._catch_up()
            except FileNotFoundError:  # a writer has just replaced the vector file
                transaction.close()
            else:
                return
        raise self._database.corrupt("a vector file is missing")

    def _load(self) -> None:
        with self._reading():
            pass

    def _catch_up(self) -> None:
        """Let the index take in all changes since the last look, this process's own or another's.

        An interruption at any point is made up for the next time.
        """
        last = self._database.last_sequence()
        entry = self._vectors_entry()
        is_replaced = entry["name"] != self._vector_file or entry["sequence"] > self._sequence
        if not is_replaced and last == self._sequence:
            return
        if is_replaced:
            self._index = self._read_vector_file(entry)
            self._vector_file, self._sequence = entry["name"], entry["sequence"]
        self._apply(self._database.changes_after(self._sequence))
        numbers = np.sort(self._index.numbers) if self._index is not None else np.empty(0, np.int64)
        if not np.array_equal(numbers, self._database.all_numbers()):
            self._vector_file = None
            raise self._database.corrupt("passages and vectors are not the same")
        self._sequence = last
        self._dimension = self._index.dimension if self._index is not None else None

    def _apply(self, changes: Sequence[VectorChange]) -> None:
        """Bring the index to where the changes lead, whether or not it took some of them in before."""
        after = {change.number: change.vector for change in changes}
        if self._index is not None and after:
            self._index.remove(np.array(list(after), np.int64))
        added = {number: vector for number, vector in after.items() if vector is not None}
        if not added:
            return
        if self._index is None:
            self._index = VectorIndex(len(next(iter(added.values()))), self._exact_up_to)
        if any(len(vector) != self._index.dimension for vector in added.values()):
            raise self._database.corrupt("vectors have different dimensions")
        self._index.add(np.array(list(added), np.int64), np.stack(list(added.values())))

    def _settle_in_memory(self) -> None:
        """Drop the changes, which nobody else reads, and keep the index quick."""
        with self._database.transaction():
            self._database.forget_changes(self._sequence)
        if self._index is not None:
            self._index.reorganize()

    def _read_vector_file(self, entry: Mapping[str, Any]) -> VectorIndex | None:
        assert self._folder is not None
        if entry["name"] is None:
            return None
        try:
            content = self._folder.read_vectors(entry["name"], entry["sha256"])
            shape = IndexShape(**entry["shape"])
            return VectorIndex.from_bytes(content, entry["dimension"], shape, self._exact_up_to)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, TypeError) as error:
            raise self._database.corrupt(f"the vectors cannot be read: {error}") from error

    def _vectors_entry(self) -> dict[str, Any]:
        return dict(_checked_manifest(self._database)["vectors"])

    def _write_vector_file(self) -> None:
        """Put all vectors into a new file, and let the manifest name it instead of the changes."""
        if self._folder is None or self._index is None:
            return
        self._index.reorganize()
        entry: dict[str, Any] = {
            **self._folder.write_vectors(self._index.to_bytes()),
            "dimension": self._index.dimension,
            "sequence": self._sequence,
            "shape": asdict(self._index.shape),
        }
        with self._database.transaction():
            self._database.write_manifest({"vectors": entry})
            self._database.forget_changes(self._sequence)
        self._folder.remove_vectors_but(entry["name"])
        self._vector_file = entry["name"]

    def _remove(self, numbers: Sequence[int]) -> int:
        if numbers:
            self._database.delete_chunks(numbers)
            self._database.log_removed(numbers)
        return len(numbers)

    def _size(self) -> int:
        return len(self._index) if self._index is not None else 0

    def _require_index(self) -> VectorIndex:
        if self._index is None:
            raise self._database.corrupt("it has passages and no vectors")
        return self._index

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed; open it again")

    def _require_own_manifest(self) -> None:
        assert self._folder is not None
        made_by = _checked_manifest(self._database)["embedding_model"]
        if made_by == self._embedder.name:
            return
        if self._write and not self._database.count_chunks():  # nothing of that model's is in it
            with self._database.transaction():
                self._database.write_manifest(_new_manifest(self._embedder))
            return
        raise StoreError(
            f"the store {self._folder.path} was made with the embedding model {made_by!r}, not "
            f"{self._embedder.name!r}; open it with that one, or index into another folder"
        )

    def _checked_vectors(self, vectors: Vectors, count: int) -> Vectors:
        vectors = np.ascontiguousarray(vectors, np.float32)
        dimension = self._dimension or vectors.shape[-1]
        if vectors.shape != (count, dimension):
            raise ValueError(f"vectors must have the shape ({count}, {dimension}), got {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise ValueError("vectors must be finite numbers")
        return vectors


def _new_manifest(embedder: Embedder) -> dict[str, Any]:
    vectors: dict[str, Any] = {"name": None, "sha256": None, "dimension": None, "sequence": 0, "shape": {}}
    return {"format": _FORMAT, "embedding_model": embedder.name, "vectors": vectors}


def _open_database(folder: StoreFolder, writer: Embedder | None) -> Database:
    if writer is None or (folder.path / "manifest.json").exists():
        folder.require()
    database = Database(folder.database, write=writer is not None)
    try:
        if database.is_empty:  # new, or its first writer was killed before it wrote anything
            if folder.has_vectors:
                raise database.corrupt("its tables are gone")
            if writer is None:
                raise folder.missing()
            database.create(_new_manifest(writer))
    except BaseException:
        database.close()
        raise
    return database


def _checked_manifest(database: Database) -> dict[str, Any]:
    """Return the manifest; its values have the types that they should have."""
    manifest = database.manifest()
    if manifest.get("format", _FORMAT) != _FORMAT:
        raise StoreError(
            f"{database.place} has format {manifest['format']!r}, this version reads {_FORMAT}; "
            "remove it and index again"
        )
    try:
        vectors = manifest["vectors"]
        IndexShape(**vectors["shape"])
        is_right = (
            isinstance(manifest["embedding_model"], str)
            and (
                vectors["name"] is None
                or (isinstance(vectors["name"], str) and _is_count(vectors["dimension"]))
            )
            and _is_count(vectors["sequence"])
            and all(_is_count(value) for name, value in vectors["shape"].items() if name != "recall")
            and isinstance(vectors["shape"].get("recall", 1.0), float | int)
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise database.corrupt("its manifest cannot be read") from error
    if not is_right:
        raise database.corrupt("its manifest cannot be read")
    return manifest


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _require_positive(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
