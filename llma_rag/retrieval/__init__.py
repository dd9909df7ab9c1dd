"""Documents, chunks, embeddings, and the FAISS store on disk. Knows nothing of decoding."""

from llma_rag.retrieval.database import StoredDocument
from llma_rag.retrieval.documents import Chunk, Document, Skipped
from llma_rag.retrieval.embedding import Embedder, as_embedder, default_embedder, embedder_named
from llma_rag.retrieval.indexing import IndexReport, index_documents
from llma_rag.retrieval.reading import read_documents
from llma_rag.retrieval.splitting import split_documents
from llma_rag.retrieval.store import DocumentStore, Hit, SearchMode, StoreInfo

__all__ = [
    "Chunk",
    "Document",
    "DocumentStore",
    "Embedder",
    "Hit",
    "IndexReport",
    "SearchMode",
    "Skipped",
    "StoreInfo",
    "StoredDocument",
    "as_embedder",
    "default_embedder",
    "embedder_named",
    "index_documents",
    "read_documents",
    "split_documents",
]
