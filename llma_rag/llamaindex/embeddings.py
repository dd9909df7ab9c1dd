"""Our embedding models as LlamaIndex's embeddings."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import ConfigDict, PrivateAttr

from llma_rag.retrieval import Embedder, default_embedder, embedder_named


class SentenceTransformerEmbedding(BaseEmbedding):
    """A model of sentence-transformers on the CPU; all-MiniLM-L6-v2 by default, the one `llma-rag index` uses.

    Args:
        model_name: a hub name or a local folder; None takes all-MiniLM-L6-v2.
        **kwargs: as for every embedding of LlamaIndex, such as `embed_batch_size`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    _embedder: Embedder = PrivateAttr()

    def __init__(self, model_name: str | None = None, **kwargs: Any) -> None:
        embedder = default_embedder() if model_name is None else embedder_named(model_name)
        super().__init__(model_name=embedder.name, **kwargs)
        self._embedder = embedder

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex knows the class by."""
        return "SentenceTransformerEmbedding"

    @property
    def embedder(self) -> Embedder:
        """The same model as a `DocumentStore` wants it."""
        return self._embedder

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self._embedder.embed_query(query).tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._embedder.embed(texts).tolist()
        return vectors

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
