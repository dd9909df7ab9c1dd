"""Embeddings between LangChain and the store: ours as LangChain's, LangChain's as the store's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from langchain_core.embeddings import Embeddings

from llma_rag.retrieval import Embedder, default_embedder, embedder_named
from llma_rag.retrieval.embedding import Vectors


class SentenceTransformerEmbeddings(Embeddings):
    """A model of sentence-transformers on the CPU; all-MiniLM-L6-v2 by default, the one `llma-rag index` uses.

    Args:
        model: a hub name or a local folder; None takes all-MiniLM-L6-v2.
    """

    def __init__(self, model: str | None = None) -> None:
        self.embedder = default_embedder() if model is None else embedder_named(model)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a unit vector per text."""
        vectors: list[list[float]] = self.embedder.embed(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Return the unit vector of a question."""
        vector: list[float] = self.embedder.embed_query(text).tolist()
        return vector


class EmbedderFromEmbeddings:
    """Any of LangChain's embeddings as the store wants them: named, as arrays of unit vectors.

    Args:
        embeddings: the vectors' maker.
        name: what the store remembers; by default the embeddings' model, else their class.
    """

    def __init__(self, embeddings: Embeddings, name: str | None = None) -> None:
        self._embeddings = embeddings
        self.name = name or _name(embeddings)

    def count_tokens(self, text: str) -> int:
        """Return about how many tokens a text has; the embeddings do not tell."""
        return max(len(text) // 4, len(text.split()))

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one unit vector per text, (texts, dimension)."""
        return units(self._embeddings.embed_documents(list(texts)))

    def embed_query(self, text: str) -> Vectors:
        """Return the unit vector of a question, (dimension,)."""
        vector: Vectors = units([self._embeddings.embed_query(text)])[0]
        return vector


def as_embedder(embeddings: Embeddings, name: str | None = None) -> Embedder:
    """Return embeddings as the store wants them."""
    if isinstance(embeddings, SentenceTransformerEmbeddings) and name is None:
        return embeddings.embedder
    return EmbedderFromEmbeddings(embeddings, name)


def units(vectors: Sequence[Sequence[float]]) -> Vectors:
    """Return vectors as an array whose rows have length 1."""
    made = np.asarray(vectors, np.float32)
    return np.asarray(made / np.maximum(np.linalg.norm(made, axis=-1, keepdims=True), 1e-12), np.float32)


def _name(embeddings: Embeddings) -> str:
    for attribute in ("model", "model_name", "model_id"):
        value = getattr(embeddings, attribute, None)
        if isinstance(value, str) and value:
            return value
    return type(embeddings).__name__
