"""`FaissVectorStore` and `DocumentRetriever`: the document store as LangChain's vector store and retriever."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from pydantic import ConfigDict, Field

from llma_rag.closing import Closing
from llma_rag.retrieval import Chunk, DocumentStore, Hit, SearchMode, as_embedder
from llma_rag.retrieval.embedding import unit_vectors
from llma_rag.retrieval.filters import Filter


class FaissVectorStore(Closing, VectorStore):
    """Documents in a store, in memory or in a folder: upsert, delete, filters, MMR; no pickle.

    A filter is a mapping over the metadata, such as `{"source": "a.pdf", "page": {"$gte": 3}}`; see
    `llma_rag.retrieval.filters`. The score of a search is the cosine, -1 to 1, more is nearer.

    Args:
        embedding: makes the vectors.
        folder: where to keep the store; None keeps it in memory. It may be one that `llma-rag index` made.
        read_only: leave the store to others to write; otherwise nobody else writes until `close`, or until the end of
            the `with` block that this store opens.
        name: of the embedding model, which the store remembers; by default what `embedding` says.
    """

    def __init__(
        self,
        embedding: Embeddings,
        folder: str | Path | None = None,
        *,
        read_only: bool = False,
        name: str | None = None,
    ) -> None:
        self._embedding = embedding
        embedder = as_embedder(embedding, name)
        self.store = (
            DocumentStore(embedder)
            if folder is None
            else DocumentStore.open(folder, embedder, write=not read_only)
        )

    @property
    def embeddings(self) -> Embeddings:
        """What makes the vectors."""
        return self._embedding

    def __len__(self) -> int:
        return len(self.store)

    def close(self) -> None:
        """Close the folder, so that others may write."""
        self.store.close()

    def save_local(self, folder: str | Path) -> None:
        """Make a folder hold what this store holds."""
        self.store.save(folder)

    @classmethod
    def load_local(cls, folder: str | Path, embedding: Embeddings, *, read_only: bool = True) -> Self:
        """Open the store in a folder, to search it; with `read_only=False` to change it as well."""
        return cls(embedding, folder, read_only=read_only)

    # -- changing it --------------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts and return their ids; one whose id is there already replaces it."""
        _require_nothing(kwargs)
        texts = list(texts)
        metadatas = [{} for _ in texts] if metadatas is None else metadatas
        chunks = [Chunk(text, metadata=metadata) for text, metadata in zip(texts, metadatas, strict=True)]
        if not chunks:
            return []
        filled = None if ids is None else [uuid.uuid4().hex if one is None else one for one in ids]
        return self.store.add(chunks, ids=filled)  # LangChain's documents may have an id or none

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Remove documents by id, all of them without ids; missing ones are no error."""
        _require_nothing(kwargs)
        if ids is None:
            self.store.delete_where({})
        else:
            self.store.delete(ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents of those ids that exist, in their order."""
        found = self.store.get(ids)
        return [_document(one, found[one]) for one in ids if one in found]

    # -- searching ----------------------------------------------------------------------------------

    def similarity_search(
        self,
        query: str,
        k: int = 4,
        *,
        filter: Filter | None = None,
        mode: SearchMode = "vectors",
        **kwargs: Any,
    ) -> list[Document]:
        """Return the `k` best documents; `mode` may also be `hybrid` or `words`."""
        _require_nothing(kwargs)
        return [document_of(hit) for hit in self.store.search(query, k, mode=mode, where=filter)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return the `k` nearest documents with their cosines."""
        _require_nothing(kwargs)
        hits = self.store.search(query, k, mode="vectors", where=filter)
        return [(document_of(hit), hit.score) for hit in hits]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the `k` documents nearest to a vector."""
        _require_nothing(kwargs)
        hits = self.store.search_vector(unit_vectors([embedding])[0], k, where=filter)
        return [document_of(hit) for hit in hits]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return `k` of the `fetch_k` nearest documents that are relevant and unlike each other."""
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, filter=filter, **kwargs
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return the same for a vector."""
        _require_nothing(kwargs)
        hits = self.store.search_mmr(
            unit_vectors([embedding])[0], k, pool=fetch_k, relevance_share=lambda_mult, where=filter
        )
        return [document_of(hit) for hit in hits]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda cosine: float(np.clip(cosine, 0.0, 1.0))

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        folder: str | Path | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return a new store with texts."""
        made = cls(embedding, folder, **kwargs)
        made.add_texts(texts, metadatas, ids=ids)
        return made


class DocumentRetriever(BaseRetriever):
    """The best passages of a document store, by meaning and words.

    >>> DocumentRetriever(store=DocumentStore(default_embedder()), k=3).k  # doctest: +SKIP
    3
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    store: DocumentStore = Field(exclude=True, repr=False)
    k: int = Field(default=4, ge=1)
    """Most passages."""
    mode: SearchMode = "hybrid"
    where: dict[str, Any] | None = None
    """A filter over the metadata."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        hits = self.store.search(query, self.k if k is None else k, mode=self.mode, where=self.where)
        return [document_of(hit) for hit in hits]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        sync_manager = run_manager.get_sync()
        return await asyncio.to_thread(self._get_relevant_documents, query, run_manager=sync_manager, k=k)


def document_of(hit: Hit) -> Document:
    """Return a hit as LangChain's document."""
    return _document(hit.id, hit.chunk)


def _document(identity: str, chunk: Chunk) -> Document:
    return Document(id=identity, page_content=chunk.text, metadata=chunk.place)


def _require_nothing(kwargs: dict[str, Any]) -> None:
    if kwargs:
        raise TypeError(f"unknown arguments: {', '.join(sorted(kwargs))}")
