"""LangChain's own standard tests over every class of ours."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import (
    ChatModelIntegrationTests,
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests

from llma_rag.langchain import ChatLLMA, DocumentRetriever, FaissVectorStore, SentenceTransformerEmbeddings
from llma_rag.retrieval import DocumentStore
from tests.letters import LetterEmbedder, chunk


class _DemoModel:
    """What both suites of chat models are told of the demo model, whose chat template has no tools."""

    @property
    def chat_model_class(self):
        return ChatLLMA

    @property
    def chat_model_params(self):
        return {"model": "smollm2-135m"}

    @property
    def has_tool_calling(self):
        return False

    @property
    def has_structured_output(self):
        return False

    @property
    def supports_model_override(self):
        return False


class TestChatUnit(_DemoModel, ChatModelUnitTests):
    pass


@pytest.mark.model
class TestChatIntegration(_DemoModel, ChatModelIntegrationTests):
    @property
    def chat_model_params(self):
        return {"model": "smollm2-135m"}

    @property
    def standard_chat_model_params(self):
        return {"temperature": 0, "max_tokens": 24, "timeout": 60, "stop": [], "max_retries": 2}


class LetterEmbeddings(Embeddings):
    """Counts letters, quickly; ours for LangChain's interface."""

    model = "letters"

    def __init__(self):
        self._embedder = LetterEmbedder()

    def embed_documents(self, texts):
        return self._embedder.embed(texts).tolist()

    def embed_query(self, text):
        return self._embedder.embed_query(text).tolist()


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture(params=["in memory", "on disk"])
    def vectorstore(self, request, tmp_path):
        store = FaissVectorStore(
            self.get_embeddings(), None if request.param == "in memory" else tmp_path / "s"
        )
        yield store
        store.close()


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self):
        return DocumentRetriever

    @property
    def retriever_constructor_params(self):
        store = DocumentStore(LetterEmbedder())
        store.add([chunk(text) for text in ("aaa bbb", "ccc ddd", "eee fff", "ggg hhh", "iii jjj")])
        return {"store": store}

    @property
    def retriever_query_example(self):
        return "aaa ccc"


class _Embeddings:
    @property
    def embeddings_class(self):
        return SentenceTransformerEmbeddings

    @property
    def embedding_model_params(self):
        return {}


class TestEmbeddingsUnit(_Embeddings, EmbeddingsUnitTests):
    pass


class TestEmbeddings(_Embeddings, EmbeddingsIntegrationTests):
    pass


def test_documents_come_back_from_a_retriever_with_their_place():
    store = DocumentStore(LetterEmbedder())
    store.add([chunk("aaa", page=3)], ids=["x"])
    found = DocumentRetriever(store=store, k=1).invoke("aaa")
    assert found == [
        Document(id="x", page_content="aaa", metadata={"source": "a.txt", "start": 0, "end": 3, "page": 3})
    ]
