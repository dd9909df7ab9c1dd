"""`FaissVectorStore`: the document store as LlamaIndex's vector store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, MetadataMode, TextNode
from llama_index.core.settings import Settings
from llama_index.core.vector_stores.types import (
    DEFAULT_PERSIST_FNAME,
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
from pydantic import PrivateAttr

from llma_rag.closing import Closing
from llma_rag.errors import StoreError
from llma_rag.retrieval import Chunk, DocumentStore, Embedder, Hit, as_embedder
from llma_rag.retrieval.embedding import Vectors, unit_vectors
from llma_rag.retrieval.filters import Filter

_NODE = "_node_content"  # where LlamaIndex keeps what a node has beside text and metadata
_UNNAMED = "unnamed"  # what a store remembers that was made without an embedding model
_POINTERS = ("IndexNode", "ImageNode")  # nodes that an index names in its queries, beside all the others
_MODES = ("default", "hybrid", "semantic_hybrid", "text_search", "sparse", "mmr")
_POOL = 20  # of passages that MMR chooses from, as in LangChain; times what is asked for in LlamaIndex


class FaissVectorStore(Closing, BasePydanticVectorStore):
    """Nodes in a store, in memory or in a folder: upsert, delete, filters, hybrid search, MMR; no pickle.

    Similarities are cosines, -1 to 1, more is nearer; in hybrid search they are reciprocal ranks, in text search BM25.

    Args:
        folder: where to keep the store; None keeps it in memory. It may be one that `llma-rag index` made.
        embed_model: makes the vectors outside, as `VectorStoreIndex` does; its name is what the store remembers, so
            that vectors of two models never meet. Where not given, it is the one that the folder remembers, or for a
            new one `Settings.embed_model`.
        read_only: leave the store to others to write; otherwise nobody else writes until `close`, or until the end of
            the `with` block that this store opens.
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    _store: DocumentStore = PrivateAttr()
    _folder: Path | None = PrivateAttr()

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        embed_model: BaseEmbedding | Embedder | None = None,
        read_only: bool = False,
    ) -> None:
        super().__init__(stores_text=True)
        self._folder = None if folder is None else Path(folder).resolve()
        embedder = _named(embed_model, folder)
        self._store = (
            DocumentStore(embedder)
            if folder is None
            else DocumentStore.open(folder, embedder, write=not read_only)
        )

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex knows the class by."""
        return "LlmaRagFaissVectorStore"

    @property
    def client(self) -> DocumentStore:
        """The store below."""
        return self._store

    def close(self) -> None:
        """Close the folder, so that others may write."""
        self._store.close()

    def persist(self, persist_path: str, fs: Any = None) -> None:
        """Make a folder hold what this store holds.

        Raises:
            ValueError: a file system other than the local one is given.
            StoreError: there is a file instead of a folder, such as another vector store's.
        """
        if self._folder is not None and Path(persist_path).resolve() == self._folder:
            return  # every change is there already
        if Path(persist_path).is_file():
            raise StoreError(f"{persist_path} is a file, perhaps of another vector store; persist elsewhere")
        if fs is not None and "file" not in np.atleast_1d(fs.protocol):
            raise ValueError(f"the store is kept on the local file system only, got {fs.protocol}")
        self._store.save(persist_path)

    @classmethod
    def from_persist_path(
        cls,
        persist_path: str,
        *,
        embed_model: BaseEmbedding | Embedder | None = None,
        read_only: bool = False,
    ) -> Self:
        """Open the store that `persist` made.

        Raises:
            StoreError: there is none.
        """
        if not DocumentStore.exists(persist_path):
            raise StoreError(f"no FaissVectorStore of llma_rag was persisted in {persist_path}")
        return cls(persist_path, embed_model=embed_model, read_only=read_only)

    @classmethod
    def from_persist_dir(
        cls,
        persist_dir: str = "./storage",
        *,
        namespace: str = "default",
        embed_model: BaseEmbedding | Embedder | None = None,
        read_only: bool = False,
    ) -> Self:
        """Open the store that `StorageContext.persist(persist_dir)` made.

        Raises:
            StoreError: there is none.
        """
        path = Path(persist_dir) / f"{namespace}__{DEFAULT_PERSIST_FNAME}"
        return cls.from_persist_path(str(path), embed_model=embed_model, read_only=read_only)

    # -- changing it --------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes with their embeddings and return their ids; one whose id is there already replaces it.

        Raises:
            ValueError: a node has no embedding.
        """
        if not nodes:
            return []
        chunks = [
            Chunk(
                node.get_content(metadata_mode=MetadataMode.NONE),
                metadata=node_to_metadata_dict(node, remove_text=True),
            )
            for node in nodes
        ]
        vectors = unit_vectors([node.get_embedding() for node in nodes])
        return self._store.add(chunks, vectors, ids=[node.node_id for node in nodes])

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes."""
        return await asyncio.to_thread(self.add, nodes)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove the nodes of a document."""
        self._store.delete_where({"ref_doc_id": ref_doc_id})

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove the nodes of a document."""
        await asyncio.to_thread(self.delete, ref_doc_id)

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Remove the nodes that have one of the ids and pass the filters.

        Raises:
            ValueError: neither is given; `clear` removes all.
        """
        where = _where(filters, node_ids=node_ids)
        if not where:
            raise ValueError("delete_nodes needs node_ids or filters; clear() removes all nodes")
        self._store.delete_where(where)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Remove nodes."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters)

    def clear(self) -> None:
        """Remove all nodes."""
        self._store.delete_where({})

    async def aclear(self) -> None:
        """Remove all nodes."""
        await asyncio.to_thread(self.clear)

    # -- searching ----------------------------------------------------------------------------------

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Return the nodes that have one of the ids and pass the filters; all nodes without either."""
        found = self._store.find(_where(filters, node_ids=node_ids))
        wanted = found if node_ids is None else [one for one in node_ids if one in found]
        return [_node(one, found[one]) for one in wanted]

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Return nodes."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nodes that fit a query best, best first.

        Args:
            query: with an embedding, and for text and hybrid search with a text.
            **kwargs: for MMR, `mmr_threshold` (1 looks at relevance alone, 0 at difference alone) and
                `mmr_prefetch_k`, or `mmr_prefetch_factor`, how many nodes it chooses from.

        Raises:
            TypeError: an argument is not known.
            ValueError: the mode is not known here, or the query lacks what it needs.
        """
        hits = self._search(query, **kwargs)
        return VectorStoreQueryResult(
            nodes=[_node(hit.id, hit.chunk) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nodes that fit a query best."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    def _search(
        self,
        query: VectorStoreQuery,
        *,
        mmr_threshold: float | None = None,
        mmr_prefetch_k: int | None = None,
        mmr_prefetch_factor: float | None = None,
    ) -> list[Hit]:
        mode, k = query.mode, query.similarity_top_k
        where = _where(query.filters, among=self._among(query.node_ids), document_ids=query.doc_ids or None)
        unused = [name for name in ("alpha", "sparse_top_k") if getattr(query, name) is not None]
        if unused:
            raise ValueError(
                f"{' and '.join(unused)} have no effect here: hybrid search joins by reciprocal rank"
            )
        if mode in (VectorStoreQueryMode.TEXT_SEARCH, VectorStoreQueryMode.SPARSE):
            return self._store.search(_text(query), k, mode="words", where=where)
        vector = _vector(query)
        if mode == VectorStoreQueryMode.DEFAULT:
            return self._store.search_vector(vector, k, where=where)
        if mode in (VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.SEMANTIC_HYBRID):
            k = query.hybrid_top_k or k
            return self._store.search(_text(query), k, vector=vector, where=where)
        if mode == VectorStoreQueryMode.MMR:
            given = mmr_threshold if mmr_threshold is not None else query.mmr_threshold
            pool = mmr_prefetch_k or (
                int(mmr_prefetch_factor * k) if mmr_prefetch_factor else max(_POOL, 4 * k)
            )
            return self._store.search_mmr(
                vector, k, pool=pool, relevance_share=0.5 if given is None else given, where=where
            )
        raise ValueError(f"the query mode must be one of {', '.join(_MODES)}, got {mode.value}")

    def _among(self, node_ids: list[str] | None) -> Filter | None:
        """Return a filter for the nodes that a query names.

        An index that leaves texts to its store names its nodes of certain kinds only, and means all others as well.
        """
        if not node_ids:
            return None
        named: Filter = {"id": {"$in": node_ids}}
        kinds = {chunk.metadata.get("_node_type") for chunk in self._store.get(node_ids).values()}
        return {"$or": [named, {"_node_type": {"$nin": _POINTERS}}]} if kinds <= {*_POINTERS} else named

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a FaissVectorStore cannot be pickled or copied; open its folder again")


class _Outside:
    """Stands for an embedding model that is not known here; vectors come with nodes and queries."""

    def __init__(self, name: str) -> None:
        self.name = name

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def embed(self, texts: Sequence[str]) -> Vectors:
        raise ValueError("nodes must have embeddings: the store makes none")

    def embed_query(self, text: str) -> Vectors:
        raise ValueError("the query must have an embedding: the store makes none")


def _named(embed_model: BaseEmbedding | Embedder | None, folder: str | Path | None) -> Embedder:
    """Return what stands for the embedding model; without one, for the one that a folder remembers."""
    remembered = DocumentStore.embedding_model(folder) if folder and DocumentStore.exists(folder) else None
    if remembered == _UNNAMED or (remembered is not None and embed_model is None):
        return _Outside(remembered)
    embed_model = embed_model or Settings._embed_model
    return _Outside(_UNNAMED) if embed_model is None else as_embedder(embed_model)


def _vector(query: VectorStoreQuery) -> Vectors:
    if query.query_embedding is None:
        raise ValueError(f"a query in mode {query.mode.value} must have a query_embedding")
    vector: Vectors = unit_vectors([query.query_embedding])[0]
    return vector


def _text(query: VectorStoreQuery) -> str:
    if query.query_str is None:
        raise ValueError(f"a query in mode {query.mode.value} must have a query_str")
    return query.query_str


def _node(identity: str, chunk: Chunk) -> BaseNode:
    """Return a passage as the node that it was, or as a new one where `llma-rag index` has put it in."""
    if _NODE in chunk.metadata:
        return metadata_dict_to_node(dict(chunk.metadata), text=chunk.text)
    return TextNode(id_=identity, text=chunk.text, metadata=chunk.place)


_NOTHING: Filter = {"$not": {}}


# -- filters --------------------------------------------------------------------------------------------

_OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
    FilterOperator.CONTAINS: "$contains",
    FilterOperator.TEXT_MATCH: "$contains",
    FilterOperator.TEXT_MATCH_INSENSITIVE: "$icontains",
}


def _where(
    filters: MetadataFilters | None,
    *,
    node_ids: list[str] | None = None,
    among: Filter | None = None,
    document_ids: list[str] | None = None,
) -> Filter:
    """Return LlamaIndex's conditions as one filter of ours."""
    conditions: list[Filter] = []
    if filters is not None and filters.filters:
        conditions.append(_joined(filters))
    if among is not None:
        conditions.append(among)
    if node_ids is not None:
        conditions.append({"id": {"$in": node_ids}})
    if document_ids is not None:
        conditions.append({"ref_doc_id": {"$in": document_ids}})
    return {"$and": conditions} if conditions else {}


def _joined(filters: MetadataFilters) -> Filter:
    parts = [_joined(one) if isinstance(one, MetadataFilters) else _condition(one) for one in filters.filters]
    if filters.condition == FilterCondition.OR:
        return _either(parts)
    if filters.condition == FilterCondition.NOT:
        return {"$not": _either(parts)}
    return _all(parts)


def _either(parts: list[Filter]) -> Filter:
    return {"$or": parts} if parts else _NOTHING


def _all(parts: list[Filter]) -> Filter:
    return {"$and": parts} if parts else {}


def _condition(one: MetadataFilter) -> Filter:
    key = "metadata.id" if one.key == "id" else one.key
    if one.operator == FilterOperator.IS_EMPTY:
        return {"$or": [{key: {"$exists": False}}, {key: {"$in": ["", "[]"]}}]}
    if one.operator in (FilterOperator.ANY, FilterOperator.ALL):
        values = one.value if isinstance(one.value, list) else [one.value]
        parts: list[Filter] = [{key: {"$contains": value}} for value in values]
        return _either(parts) if one.operator == FilterOperator.ANY else _all(parts)
    return {key: {_OPERATORS[one.operator]: one.value}}
