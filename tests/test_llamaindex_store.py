"""LlamaIndex's vector store: whatever is added and deleted, a query returns the right node."""

from __future__ import annotations

import pickle
import random

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core import (
    Document,
    Settings,
    SimpleDirectoryReader,
    StorageContext,
    VectorStoreIndex,
    load_index_from_storage,
)
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import IndexNode, MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    SimpleVectorStore,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.types import VectorStoreQueryMode
from pydantic import ValidationError

from llma_rag.errors import StoreError
from llma_rag.llamaindex import LLMA, FaissVectorStore, SentenceTransformerEmbedding
from llma_rag.retrieval import DocumentStore, index_documents
from tests.letters import LetterEmbedder
from tests.test_llamaindex_llm import LetterEmbedding


def node(text, identity=None, document=None, **metadata):
    made = TextNode(text=text, metadata=metadata, embedding=LetterEmbedder().embed_query(text).tolist())
    if identity is not None:
        made.id_ = identity
    if document is not None:
        made.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=document)
    return made


def query(text, k=1, **more):
    embedding = LetterEmbedder().embed_query(text).tolist()
    return VectorStoreQuery(query_embedding=embedding, query_str=text, similarity_top_k=k, **more)


@pytest.fixture(params=["in memory", "on disk"])
def store(request, tmp_path):
    with FaissVectorStore(None if request.param == "in memory" else tmp_path / "s") as made:
        yield made


NODES = [
    node("aaa bbb", "1", "x", page=1, tags=["red", "blue"], lang="Deutsch"),
    node("ccc ddd", "2", "x", page=2, tags=["red"], lang="english"),
    node("eee fff", "3", "y", page=3, tags=[], lang=""),
    node("ggg hhh", "4"),
]


def test_a_query_returns_whole_nodes_with_scores_that_rise_with_similarity(store):
    assert store.add(NODES) == ["1", "2", "3", "4"]
    found = store.query(query("ccc", 3))
    assert found.ids[0] == "2"
    assert found.nodes[0].get_content() == "ccc ddd"
    assert found.nodes[0].metadata == NODES[1].metadata
    assert found.nodes[0].ref_doc_id == "x"
    assert found.similarities == sorted(found.similarities, reverse=True)
    same = store.query(query("ccc ddd"))
    assert same.similarities[0] == pytest.approx(1.0, abs=1e-5)


def test_other_kinds_of_nodes_come_back_as_they_were(store):
    index_node = IndexNode(
        text="aaa", index_id="inner", embedding=LetterEmbedder().embed_query("aaa").tolist()
    )
    index_node.excluded_llm_metadata_keys = ["page"]
    store.add([index_node])
    (found,) = store.query(query("aaa")).nodes
    assert isinstance(found, IndexNode)
    assert (found.index_id, found.excluded_llm_metadata_keys) == ("inner", ["page"])
    assert found.get_content(metadata_mode=MetadataMode.LLM) == "aaa"


@given(
    st.lists(st.tuples(st.sampled_from(["add", "delete", "delete nodes"]), st.integers(0, 7)), max_size=20)
)
def test_after_any_adds_and_deletes_a_query_returns_the_right_node(changes):
    with FaissVectorStore() as store:
        expected = {}
        for change, number in changes:
            name, text = f"n{number}", "abcdefgh"[number] * 3
            if change == "add":
                store.add([node(text, name, f"d{number % 3}")])
                expected[name] = text
            elif change == "delete":
                store.delete(f"d{number % 3}")
                expected = {one: text for one, text in expected.items() if int(one[1:]) % 3 != number % 3}
            else:
                store.delete_nodes([name])
                expected.pop(name, None)
        assert {one.node_id: one.get_content() for one in store.get_nodes()} == expected
        for name, text in expected.items():
            assert store.query(query(text)).ids == [name]


async def test_the_asynchronous_methods_do_the_same(store):
    await store.async_add(NODES)
    assert (await store.aquery(query("eee"))).ids == ["3"]
    assert [one.node_id for one in await store.aget_nodes(["3", "1", "9"])] == ["3", "1"]
    await store.adelete("x")
    await store.adelete_nodes(["4"])
    assert [one.node_id for one in await store.aget_nodes()] == ["3"]
    await store.aclear()
    assert await store.aget_nodes() == []
    assert store.query(query("aaa")).ids == []


def where(key, operator, value=None):
    return MetadataFilters(filters=[MetadataFilter(key=key, operator=operator, value=value)])


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (where("page", "==", 2), ["2"]),
        (where("page", "!=", 2), ["1", "3", "4"]),
        (where("page", ">", 1), ["2", "3"]),
        (where("page", ">=", 3), ["3"]),
        (where("page", "<", 2), ["1"]),
        (where("page", "<=", 2), ["1", "2"]),
        (where("page", "in", [1, 3]), ["1", "3"]),
        (where("page", "nin", [1, 3]), ["2", "4"]),
        (where("tags", "contains", "blue"), ["1"]),
        (where("tags", "any", ["blue", "red"]), ["1", "2"]),
        (where("tags", "all", ["blue", "red"]), ["1"]),
        (where("lang", "text_match", "eut"), ["1"]),
        (where("lang", "text_match", "ENG"), []),
        (where("lang", "text_match_insensitive", "ENG"), ["2"]),
        (where("lang", "is_empty"), ["3", "4"]),
        (where("tags", "is_empty"), ["3", "4"]),
        (where("ref_doc_id", "==", "y"), ["3"]),
    ],
)
def test_filters(store, filters, expected):
    store.add(NODES)
    assert sorted(store.query(query("a", 4, filters=filters)).ids) == expected
    assert sorted(one.node_id for one in store.get_nodes(filters=filters)) == expected
    turned = MetadataFilters(filters=[filters], condition=FilterCondition.NOT)
    assert sorted(store.query(query("a", 4, filters=turned)).ids) == sorted(
        {"1", "2", "3", "4"} - {*expected}
    )


def test_filters_are_joined_and_nested(store):
    store.add(NODES)
    either = MetadataFilters(
        filters=[
            MetadataFilter(key="page", value=1),
            MetadataFilters(
                filters=[
                    MetadataFilter(key="page", value=1, operator=FilterOperator.GT),
                    MetadataFilter(key="tags", value="red", operator=FilterOperator.CONTAINS),
                ]
            ),
        ],
        condition=FilterCondition.OR,
    )
    assert sorted(store.query(query("a", 4, filters=either)).ids) == ["1", "2"]
    store.delete_nodes(filters=either)
    assert [one.node_id for one in store.get_nodes()] == ["3", "4"]
    assert store.query(query("a", 4, doc_ids=["y"])).ids == ["3"]
    assert store.query(query("a", 4, node_ids=["4"])).ids == ["4"]
    for nothing in (None, MetadataFilters(filters=[])):
        with pytest.raises(ValueError, match=r"clear\(\) removes all nodes"):
            store.delete_nodes(filters=nothing)
    for operator, found in (("any", []), ("all", ["3", "4"])):
        assert sorted(store.query(query("a", 4, filters=where("tags", operator, []))).ids) == found


def test_keys_that_passages_have_themselves_are_found_in_the_metadata_too(store):
    store.add([node("aaa", "1", id="42", headings=["X"]), node("bbb", "2", id="43", headings=["Y"])])
    assert store.query(query("a", 4, filters=where("id", "==", "42"))).ids == ["1"]
    assert store.query(query("a", 4, filters=where("id", "contains", "3"))).ids == ["2"]
    assert store.query(query("a", 4, filters=where("headings", "contains", "X"))).ids == ["1"]


def test_an_index_with_pointers_finds_plain_nodes_too():
    pointer = IndexNode(text="ccc", index_id="inner", embedding=LetterEmbedder().embed_query("ccc").tolist())
    context = StorageContext.from_defaults(vector_store=FaissVectorStore(embed_model=LetterEmbedding()))
    nodes = [node("aaa", "1"), node("bbb", "2"), pointer]
    index = VectorStoreIndex(nodes, storage_context=context, embed_model=LetterEmbedding())
    found = index.as_retriever(similarity_top_k=3).retrieve("aaa")
    assert sorted(one.text for one in found) == ["aaa", "bbb", "ccc"]


def test_every_mode_of_search(store):
    store.add([node("alpha beta", "1"), node("alpha gamma", "2"), node("delta", "3")])
    assert store.query(query("gamma", 1, mode=VectorStoreQueryMode.TEXT_SEARCH)).ids == ["2"]
    hybrid = store.query(query("alpha gamma", 2, mode=VectorStoreQueryMode.HYBRID))
    assert hybrid.ids[0] == "2"
    assert hybrid.similarities == sorted(hybrid.similarities, reverse=True)
    diverse = store.query(query("alpha", 2, mode=VectorStoreQueryMode.MMR, mmr_threshold=0.1))
    assert len(diverse.ids) == 2
    options = {"mode": VectorStoreQueryMode.MMR}
    nearest = store.query(query("alpha", 2, **options), mmr_threshold=1.0, mmr_prefetch_factor=2)
    assert nearest.ids == store.query(query("alpha", 2)).ids
    with pytest.raises(TypeError, match="nonsense"):
        store.query(query("alpha", 2, **options), nonsense=1)
    with pytest.raises(ValueError, match="the query mode must be one of default, hybrid"):
        store.query(query("x", mode=VectorStoreQueryMode.SVM))
    with pytest.raises(ValueError, match="alpha have no effect here"):
        store.query(query("x", mode=VectorStoreQueryMode.HYBRID, alpha=0.5))
    with pytest.raises(ValueError, match="must have a query_embedding"):
        store.query(VectorStoreQuery(query_str="x"))
    with pytest.raises(ValueError, match="must have a query_str"):
        store.query(VectorStoreQuery(mode=VectorStoreQueryMode.TEXT_SEARCH))


def test_the_nearest_are_those_of_llamaindexs_own_store(store):
    generator = random.Random(5)
    nodes = [node("".join(generator.choices("abcdefgh", k=12)), str(number)) for number in range(60)]
    own = SimpleVectorStore()
    own.add(nodes)
    store.add(nodes)
    for text in ("aabbcc", "fgh", "abcdefgh"):
        found, expected = store.query(query(text, 5)), own.query(query(text, 5))
        assert found.similarities == pytest.approx(expected.similarities, abs=1e-5)
        assert np.unique(found.ids).size == 5


def test_an_index_is_made_kept_and_loaded(tmp_path):
    documents = [Document(text="aaa bbb", id_="x"), Document(text="ccc ddd", id_="y")]
    context = StorageContext.from_defaults(vector_store=FaissVectorStore(embed_model=LetterEmbedding()))
    index = VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=LetterEmbedding())
    index.delete_ref_doc("x", delete_from_docstore=True)
    index.insert(Document(text="eee fff", id_="z"))
    index.storage_context.persist(tmp_path / "storage")
    with FaissVectorStore.from_persist_dir(
        str(tmp_path / "storage"), embed_model=LetterEmbedding()
    ) as loaded:
        context = StorageContext.from_defaults(vector_store=loaded, persist_dir=str(tmp_path / "storage"))
        again = load_index_from_storage(context, embed_model=LetterEmbedding())
        for asked in ("ccc", "eee"):
            (found,) = again.as_retriever(similarity_top_k=1).retrieve(asked)
            assert asked in found.text
        assert len(loaded.get_nodes()) == 2
        again.insert(Document(text="ggg hhh", id_="v"))
        again.storage_context.persist(tmp_path / "storage")
    with FaissVectorStore.from_persist_dir(str(tmp_path / "storage")) as loaded:
        assert len(loaded.get_nodes()) == 3
    with pytest.raises(ValueError, match="local file system only"):
        FaissVectorStore().persist(str(tmp_path / "m"), fs=fsspec.filesystem("memory"))
    (tmp_path / "file.json").touch()
    with pytest.raises(StoreError, match="is a file, perhaps of another vector store"):
        FaissVectorStore().persist(str(tmp_path / "file.json"))
    with pytest.raises(StoreError, match="no FaissVectorStore of llma_rag was persisted in"):
        FaissVectorStore.from_persist_dir(str(tmp_path / "nowhere"))
    local = fsspec.filesystem("file")
    FaissVectorStore().persist(str(tmp_path / "local"), fs=local)
    assert FaissVectorStore.from_persist_path(str(tmp_path / "local")).get_nodes() == []


def test_vectors_of_two_models_never_meet(tmp_path):
    with FaissVectorStore(tmp_path / "s", embed_model=LetterEmbedding()) as store:
        store.add(NODES)
    with FaissVectorStore(tmp_path / "s") as remembering:
        assert remembering.query(query("ccc ddd")).ids == ["2"]
    with pytest.raises(StoreError, match="letters"):
        FaissVectorStore(tmp_path / "s", embed_model=SentenceTransformerEmbedding())
    with pytest.raises(ValueError, match="embedding not set"):
        FaissVectorStore().add([TextNode(text="x")])


def test_a_store_of_indexed_files_serves_llamaindex(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# Hours\n\nThe museum opens at nine.\n")
    with DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=True) as made:
        index_documents(made, tmp_path / "docs")
    with FaissVectorStore(tmp_path / "s", embed_model=LetterEmbedding(), read_only=True) as store:
        index = VectorStoreIndex.from_vector_store(store, embed_model=LetterEmbedding())
        (found,) = index.as_retriever(similarity_top_k=1).retrieve("museum")
        assert "opens at nine" in found.text
        assert found.metadata["source"] == str(tmp_path / "docs" / "a.md")


def test_a_store_made_without_naming_the_model_takes_the_name_of_the_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(Settings, "_embed_model", LetterEmbedding())
    with FaissVectorStore(tmp_path / "s") as store:
        store.add(NODES)
    with FaissVectorStore(tmp_path / "s", embed_model=LetterEmbedding(), read_only=True) as store:
        assert store.query(query("ccc ddd")).ids == ["2"]


def test_a_store_that_remembers_no_name_serves_any_model(tmp_path, monkeypatch):
    with FaissVectorStore(tmp_path / "s") as store:
        store.add(NODES)
    monkeypatch.setattr(Settings, "_embed_model", LetterEmbedding())
    with FaissVectorStore(tmp_path / "s") as store:
        assert store.query(query("ccc ddd")).ids == ["2"]
    with pytest.raises(TypeError, match="cannot be pickled or copied; open its folder again"):
        pickle.dumps(store)


def test_documents_that_are_ingested_again_replace_themselves(tmp_path):
    documents = [Document(text="aaa bbb", id_="x"), Document(text="ccc ddd", id_="y")]
    with FaissVectorStore(tmp_path / "s", embed_model=LetterEmbedding()) as store:
        pipeline = IngestionPipeline(
            transformations=[SentenceSplitter(), LetterEmbedding()],
            vector_store=store,
            docstore=SimpleDocumentStore(),
        )
        for text in ("aaa bbb", "aaa bbb", "eee fff"):
            pipeline.run(documents=[Document(text=text, id_="x"), documents[1]])
        assert sorted(one.get_content() for one in store.get_nodes()) == ["ccc ddd", "eee fff"]


async def test_our_embeddings_serve_llamaindex():
    with pytest.raises(ValidationError, match="modelname"):
        SentenceTransformerEmbedding(modelname="x")
    embedding = SentenceTransformerEmbedding(embed_batch_size=4)
    assert embedding.model_name == "all-MiniLM-L6-v2"
    (one, two), asked = (
        embedding.get_text_embedding_batch(["a museum", "a boiler"]),
        embedding.get_query_embedding("an exhibition"),
    )
    assert np.dot(one, asked) > np.dot(two, asked)
    assert await embedding.aget_text_embedding("a museum") == pytest.approx(one, abs=1e-5)
    assert await embedding.aget_query_embedding("an exhibition") == pytest.approx(asked, abs=1e-5)
    assert embedding.embedder.name == "all-MiniLM-L6-v2"


def test_files_of_a_folder_are_indexed_and_found(tmp_path):
    (tmp_path / "a.txt").write_text("The museum opens at nine.")
    (tmp_path / "b.txt").write_text("Groups pay at the desk.")
    documents = SimpleDirectoryReader(tmp_path).load_data()
    context = StorageContext.from_defaults(vector_store=FaissVectorStore())
    index = VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=LetterEmbedding())
    (found,) = index.as_retriever(similarity_top_k=1).retrieve("museum opens")
    assert found.metadata["file_name"] == "a.txt"
    assert LLMA.class_name() == "LLMA"
