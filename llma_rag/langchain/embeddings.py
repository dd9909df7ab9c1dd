"""Our embedding models as LangChain's embeddings."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from llma_rag.retrieval import default_embedder, embedder_named


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
