"""LangChain: models, a vector store, a retriever, and chains that hand references to the model.

Everything needs `langchain-core` only; `ReferenceMiddleware` needs `langchain` (`pip install 'llma-rag[langchain]'`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llma_rag.lazy import lazy_names

if TYPE_CHECKING:
    from llma_rag.langchain.chains import (
        conversation_references,
        create_reference_documents_chain,
        earlier_answers,
        remember_answers,
        with_references,
    )
    from llma_rag.langchain.chat import ChatLLMA
    from llma_rag.langchain.embeddings import SentenceTransformerEmbeddings
    from llma_rag.langchain.llm import LLMA
    from llma_rag.langchain.middleware import ReferenceMiddleware
    from llma_rag.langchain.vectorstore import DocumentRetriever, FaissVectorStore
    from llma_rag.references import AnswerMemory

__all__ = [
    "LLMA",
    "AnswerMemory",
    "ChatLLMA",
    "DocumentRetriever",
    "FaissVectorStore",
    "ReferenceMiddleware",
    "SentenceTransformerEmbeddings",
    "conversation_references",
    "create_reference_documents_chain",
    "earlier_answers",
    "remember_answers",
    "with_references",
]

_HOMES = {
    "LLMA": "langchain.llm",
    "AnswerMemory": "references",
    "ChatLLMA": "langchain.chat",
    "DocumentRetriever": "langchain.vectorstore",
    "FaissVectorStore": "langchain.vectorstore",
    "ReferenceMiddleware": "langchain.middleware",
    "SentenceTransformerEmbeddings": "langchain.embeddings",
    "conversation_references": "langchain.chains",
    "create_reference_documents_chain": "langchain.chains",
    "earlier_answers": "langchain.chains",
    "remember_answers": "langchain.chains",
    "with_references": "langchain.chains",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
