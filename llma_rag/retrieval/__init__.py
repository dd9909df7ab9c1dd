"""Documents, chunks, embeddings, and the FAISS store on disk. Knows nothing of decoding."""

from llma_rag.retrieval.documents import Chunk, Document, read_documents
from llma_rag.retrieval.embedding import Embedder, default_embedder
from llma_rag.retrieval.splitting import split_documents
from llma_rag.retrieval.store import DocumentStore, Hit

__all__ = [
    "Chunk",
    "Document",
    "DocumentStore",
    "Embedder",
    "Hit",
    "default_embedder",
    "read_documents",
    "split_documents",
]
