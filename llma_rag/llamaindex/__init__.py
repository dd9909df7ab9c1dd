"""LlamaIndex: a model, a vector store, and ways for retrieved nodes to reach the model as references."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    """Import a public name on first use: a vector store needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"llma_rag.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
