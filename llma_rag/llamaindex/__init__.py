"""LlamaIndex: a model, a vector store, and ways for retrieved nodes to reach the model as references."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llma_rag.lazy import lazy_names

if TYPE_CHECKING:
    from llma_rag.llamaindex.embeddings import SentenceTransformerEmbedding
    from llma_rag.llamaindex.figures import FiguresHandler, copied_from_sources
    from llma_rag.llamaindex.llm import LLMA
    from llma_rag.llamaindex.references import ReferencePostprocessor
    from llma_rag.llamaindex.synthesizer import ReferenceSynthesizer
    from llma_rag.llamaindex.vectorstore import FaissVectorStore
    from llma_rag.references import AnswerMemory

__all__ = [
    "LLMA",
    "AnswerMemory",
    "FaissVectorStore",
    "FiguresHandler",
    "ReferencePostprocessor",
    "ReferenceSynthesizer",
    "SentenceTransformerEmbedding",
    "copied_from_sources",
]

_HOMES = {
    "LLMA": "llamaindex.llm",
    "AnswerMemory": "references",
    "FaissVectorStore": "llamaindex.vectorstore",
    "FiguresHandler": "llamaindex.figures",
    "ReferencePostprocessor": "llamaindex.references",
    "ReferenceSynthesizer": "llamaindex.synthesizer",
    "SentenceTransformerEmbedding": "llamaindex.embeddings",
    "copied_from_sources": "llamaindex.figures",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
