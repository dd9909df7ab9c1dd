"""RAG answers of a local language model, several times faster, without changing a single token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llma_rag.lazy import lazy_names

if TYPE_CHECKING:
    from llma_rag.decoding import DraftConfig
    from llma_rag.engine import Engine, RequestOptions
    from llma_rag.errors import (
        ContextLengthError,
        DataError,
        DocumentError,
        LlmaRagError,
        ModelError,
        PromptError,
        RequestCancelledError,
        RequestTimeoutError,
        ServerError,
        StoreError,
        UnsupportedModelError,
    )
    from llma_rag.generation import Generation, Timings
    from llma_rag.prompts import documents_prompt, quoting_prompt
    from llma_rag.provenance import CopiedSpan, Reference
    from llma_rag.retrieval import (
        Chunk,
        Document,
        DocumentStore,
        Embedder,
        Hit,
        IndexReport,
        Skipped,
        StoredDocument,
        StoreInfo,
        default_embedder,
        embedder_named,
        index_documents,
        read_documents,
        split_documents,
    )
    from llma_rag.streams import AsyncTextStream, TextStream

__version__ = "0.1.0"

__all__ = [
    "AsyncTextStream",
    "Chunk",
    "ContextLengthError",
    "CopiedSpan",
    "DataError",
    "Document",
    "DocumentError",
    "DocumentStore",
    "DraftConfig",
    "Embedder",
    "Engine",
    "Generation",
    "Hit",
    "IndexReport",
    "LlmaRagError",
    "ModelError",
    "PromptError",
    "Reference",
    "RequestCancelledError",
    "RequestOptions",
    "RequestTimeoutError",
    "ServerError",
    "Skipped",
    "StoreError",
    "StoreInfo",
    "StoredDocument",
    "TextStream",
    "Timings",
    "UnsupportedModelError",
    "__version__",
    "default_embedder",
    "documents_prompt",
    "embedder_named",
    "index_documents",
    "quoting_prompt",
    "read_documents",
    "split_documents",
]

_HOMES = {
    "ContextLengthError": "errors",
    "DataError": "errors",
    "DocumentError": "errors",
    "LlmaRagError": "errors",
    "ModelError": "errors",
    "PromptError": "errors",
    "RequestCancelledError": "errors",
    "RequestTimeoutError": "errors",
    "ServerError": "errors",
    "StoreError": "errors",
    "UnsupportedModelError": "errors",
    "DraftConfig": "decoding",
    "Engine": "engine",
    "RequestOptions": "engine",
    "Generation": "generation",
    "Timings": "generation",
    "AsyncTextStream": "streams",
    "TextStream": "streams",
    "documents_prompt": "prompts",
    "quoting_prompt": "prompts",
    "CopiedSpan": "provenance",
    "Reference": "provenance",
    "Chunk": "retrieval",
    "Document": "retrieval",
    "DocumentStore": "retrieval",
    "Embedder": "retrieval",
    "Hit": "retrieval",
    "IndexReport": "retrieval",
    "Skipped": "retrieval",
    "StoreInfo": "retrieval",
    "StoredDocument": "retrieval",
    "default_embedder": "retrieval",
    "embedder_named": "retrieval",
    "index_documents": "retrieval",
    "read_documents": "retrieval",
    "split_documents": "retrieval",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
