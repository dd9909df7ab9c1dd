"""The document store: real SQLite and FAISS against a brute-force twin, filters, searching, readers and writers."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llma_rag.errors import StoreError
from llma_rag.retrieval import Chunk, Document, DocumentStore, StoredDocument, default_embedder
from llma_rag.retrieval import folder as folder_module
from llma_rag.retrieval import store as store_module
from llma_rag.retrieval.database import Database
from llma_rag.retrieval.ranking import maximal_marginal_relevance
from llma_rag.retrieval.vectors import IndexShape, VectorIndex
from tests.conftest import EXAMPLES
from tests.letters import LetterEmbedder, chunk


@pytest.fixture
def store():
    made = DocumentStore(LetterEmbedder())
    made.add([chunk("aaa bb"), chunk("zzz yy", "b.txt"), chunk("mmm nn", "b.txt")], ids=["a", "z", "m"])
    return made


# -- searching ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["hybrid", "vectors", "words"])
def test_the_best_passage_comes_first(store, mode):
    hits = store.search("zzz", 2, mode=mode)
    assert (hits[0].text, hits[0].id) == ("zzz yy", "z")
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert hits[0].metadata == {"source": "b.txt", "start": 0, "end": 6}
    assert (hits[0].similarity is None) == (mode == "words")


def test_hybrid_search_joins_both_rankings_by_reciprocal_rank():
    made = DocumentStore(LetterEmbedder())
    made.add([chunk("kiwi"), chunk("iwik"), chunk("plum")], ids=["word", "anagram", "other"])
    assert {hit.id for hit in made.search("kiwi", 2, mode="vectors")} == {"word", "anagram"}  # equally near
    hits = made.search("kiwi", 3)
    assert hits[0].id == "word"
    assert hits[0].score > hits[1].score


def test_words_that_most_passages_have_do_not_decide():
    made = DocumentStore(LetterEmbedder())
    made.add([chunk(f"the passage {n} {'rare' if n == 77 else ''}") for n in range(300)])
    assert made._database._telling_words("the rare passage, unheard", 300) == {"rare": 1}
    assert made._database._telling_words("the passage", 300) == {"the": 300, "passage": 300}
    assert [hit.text for hit in made.search("the rare", 5, mode="words")] == ["the passage 77 rare"]
    assert made.search("unheard", 5, mode="words") == []


@pytest.mark.parametrize(
    "query", ["", '"', "a AND b", "NEAR(", "*", "x:y", "naïve_case", "ﬃ", "\0", "日本語", "-"]
)
@pytest.mark.parametrize("mode", ["hybrid", "words"])
def test_any_text_is_a_query(store, query, mode):
    store.search(query, mode=mode)


def test_words_are_found_without_accents_and_endings():
    made = DocumentStore(LetterEmbedder())
    made.add([chunk("Les cafés ferment."), chunk("The boats are leaving.")], ids=["fr", "en"])
    assert [hit.id for hit in made.search("cafe", mode="words")] == ["fr"]
    assert [hit.id for hit in made.search("boat leaves", mode="words")] == ["en"]
    assert [hit.id for hit in made.search("cafe\u0301s", mode="words")] == ["fr"]


def test_headings_and_file_names_are_words_too():
    made = DocumentStore(LetterEmbedder())
    made.add([Chunk("It opens at nine.", "/x/museum.md", 0, 17, headings=("Prado", "Hours")), chunk("nine")])
    assert [hit.text for hit in made.search("prado museum", mode="words")] == ["It opens at nine."]


def test_more_passages_than_there_are_is_all_of_them(store):
    assert len(store.search("a", 50)) == 3
    assert DocumentStore(LetterEmbedder()).search("a") == []
    with pytest.raises(ValueError, match="k must be at least 1"):
        store.search("a", 0)
    with pytest.raises(ValueError, match="mode must be one of hybrid, vectors, words, got 'magic'"):
        store.search("a", mode="magic")


def test_mmr_prefers_what_is_not_there_yet():
    made = DocumentStore(LetterEmbedder())
    made.add([chunk("aaab"), chunk("aaab."), chunk("aacc")], ids=["one", "same", "other"])
    assert {hit.id for hit in made.search_mmr("aaaab", 2, relevance_share=1.0)} == {"one", "same"}
    assert "other" in {hit.id for hit in made.search_mmr("aaaab", 2, relevance_share=0.3)}
    assert made.search_mmr(made.embedder.embed_query("cc"), 1)[0].id == "other"
    assert DocumentStore(LetterEmbedder()).search_mmr("a") == []
    with pytest.raises(ValueError, match="relevance_share must be from 0 to 1, got 2"):
        made.search_mmr("a", relevance_share=2)


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.integers(0, 999))
def test_mmr_is_its_definition(candidates, k, share, seed):
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((candidates + 1, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query, rows = vectors[0], vectors[1:]
    chosen = []
    while len(chosen) < min(k, candidates):
        chosen.append(
            max(
                (row for row in range(candidates) if row not in chosen),
                key=lambda row: (
                    share * (rows[row] @ query)
                    - (1 - share) * max((rows[row] @ rows[c] for c in chosen), default=0.0)
                ),
            )
        )
    assert maximal_marginal_relevance(query, rows, k, share) == chosen


def test_neighbours_and_pages_of_a_hit():
    made = DocumentStore(LetterEmbedder())
    chunks = [chunk(text, "doc") for text in ("aa", "bb", "cc", "dd")]
    pages = [Document("aa bb", "doc", 1), Document("cc dd", "doc", 2)]
    made.put_document(StoredDocument("doc", "f", 4), pages, chunks, made.embedder.embed(["a", "b", "c", "d"]))
    hit = made.search("c", 1, mode="vectors")[0]
    assert [one.text for one in made.neighbours(hit)] == ["bb", "dd"]
    assert [one.text for one in made.neighbours(hit, before=5, after=0)] == ["aa", "bb"]
    assert made.pages("doc") == pages
    assert made.pages("nowhere") == []


# -- filters --------------------------------------------------------------------------------------------

VECTOR = np.eye(1, 26, dtype=np.float32)
VALUES = [None, 1, 2, 3.5, "x", "xy", True]


def holds(metadata, key, operator, wanted):
    """Return whether a condition holds, in plain Python."""
    value = metadata.get(key)
    if operator in ("$ne", "$nin"):
        return not holds(metadata, key, {"$ne": "$eq", "$nin": "$in"}[operator], wanted)
    if operator == "$exists":
        return (value is not None) == wanted
    if operator == "$eq":
        return value == wanted
    if operator == "$in":
        return value is not None and value in wanted
    if value is None or isinstance(value, str) != isinstance(wanted, str):
        return False
    return {
        "$gt": value.__gt__, "$gte": value.__ge__, "$lt": value.__lt__, "$lte": value.__le__
    }[operator](wanted) is True or (  # int and float compare as NotImplemented through their methods
        not isinstance(value, str) and eval(f"{value!r} {SIGNS[operator]} {wanted!r}")
    )  # fmt: skip


SIGNS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
conditions = st.one_of(
    st.tuples(st.sampled_from(["$eq", "$ne"]), st.sampled_from(VALUES)),
    st.tuples(st.sampled_from(list(SIGNS)), st.sampled_from(VALUES[1:])),
    st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(st.sampled_from(VALUES[1:]), max_size=3)),
    st.tuples(st.just("$exists"), st.booleans()),
)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["k", "quo\"te'", "a.b"]), st.sampled_from(VALUES)),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["k", "quo\"te'", "a.b"]),
    conditions,
    conditions,
    st.sampled_from(["$and", "$or", "$not", "both"]),
)
def test_a_filter_means_what_it_says(rows, key, first, second, join):
    made = DocumentStore(LetterEmbedder())
    ids = made.add([chunk("x", metadata=row) for row in rows])
    one, two = {key: dict([first])}, {key: dict([second])}
    where = {"$not": one} if join == "$not" else {key: {**dict([first]), **dict([second])}}
    if join in ("$and", "$or"):
        where = {join: [one, two]}

    def wanted(row):
        left, right = holds(row, key, *first), holds(row, key, *second)
        if join == "both" and first[0] == second[0]:
            return right  # the same operator twice: a mapping keeps the last
        return {"$not": not left, "$or": left or right}.get(join, left and right)

    expected = [identity for identity, row in zip(ids, rows, strict=True) if wanted(row)]
    assert list(made.find(where)) == expected
    assert {hit.id for hit in made.search("x", 50, where=where)} == set(expected)


def test_filters_reach_columns_lists_and_parts_of_texts(store):
    store.add(
        [
            chunk(
                "p",
                "c.pdf",
                page=3,
                headings=("Top", "Low"),
                metadata={"tags": ["red", "blue"], "by": "Ann Lee"},
            )
        ],
        ids=["p"],
    )
    for where in (
        {"id": "p"},
        {"source": "c.pdf", "page": {"$gte": 3, "$lt": 4}},
        {"tags": {"$contains": "red"}},
        {"by": {"$contains": "Lee"}},
        {"headings": {"$contains": "Low"}},
        {"page": {"$exists": True}},
        {"start": 0, "end": {"$lte": 1}},
    ):
        assert list(store.find(where)) == ["p"], where
    assert list(store.find({"tags": {"$contains": "re"}})) == []
    assert list(store.find({"source": "b.txt"}, limit=1)) == ["z"]
    assert store.search("p", where={"source": "nowhere"}) == []
    assert [hit.id for hit in store.search_mmr("p", where={"page": 3})] == ["p"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"k": {"$near": 1}}, r"unknown filter operator '\$near'"),
        ({"$nor": []}, r"unknown filter operator '\$nor'; there are \$and, \$not, \$or"),
        ({"k": {"$in": "abc"}}, "take a list of values"),
        ({"k": {"$gt": [1]}}, "compares texts and finite numbers"),
        ({"$or": []}, r"\$or takes a list of filters"),
        ({"k": {"$in": [float("nan")]}}, "finite numbers"),
        ({"page": 2**70}, "64 bits"),
        ({"k": "\ud800"}, "compares texts"),
        ("k = 1", "must be a mapping"),
    ],
)
def test_a_filter_that_means_nothing_is_an_error(store, where, message):
    with pytest.raises(ValueError, match=message):
        store.search("a", where=where)


# -- changing -------------------------------------------------------------------------------------------


def test_an_id_that_is_there_is_replaced(store):
    assert store.add([chunk("qqq")], ids=["z"]) == ["z"]
    assert len(store) == 3
    assert store.get(["z", "nobody"]) == {"z": chunk("qqq")}
    assert "z" not in [hit.id for hit in store.search("zzz", 1, mode="words")]


def test_removing_counts_and_leaves_the_others(store):
    assert store.delete(["a", "nobody"]) == 1
    assert store.remove_sources(["b.txt", "nowhere.txt"]) == 2
    assert (store.sources, len(store), store.search("zzz", 5)) == ([], 0, [])
    store.add([chunk("aaa")])
    assert store.delete_where({"source": "a.txt"}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([chunk("x")], np.zeros((2, 26))), r"shape \(1, 26\), got \(2, 26\)"),
        (([chunk("x")], np.zeros((1, 25))), r"shape \(1, 26\), got \(1, 25\)"),
        (([chunk("x")], np.full((1, 26), np.nan)), "finite"),
        (([chunk("\ud800")], VECTOR), "text must be valid Unicode"),
        (([chunk("x", metadata={"a": object()})],), "what JSON can hold"),
        (([chunk("x", metadata={"a": float("nan")})],), "what JSON can hold"),
        (([chunk("x", page="3")],), "page must be a whole number from 0 .* got '3'"),
        (([chunk("x", page=2.0)],), "page must be a whole number"),
        (([chunk("x", page=2**63)],), "page must be a whole number"),
        (([Chunk("x", start=-1)],), "start must be a whole number"),
        (([Chunk(None)], VECTOR), "text must be a string, got None"),
    ],
)
def test_what_cannot_be_stored_is_an_error_and_changes_nothing(store, arguments, message):
    with pytest.raises(ValueError, match=message):
        store.add(*arguments)
    assert len(store) == 3


def test_values_of_kindred_types_come_back_plain(store):
    class Text(str):
        __slots__ = ()

    store.add([Chunk(Text("abc"), Text("s"), np.int64(1), np.int64(4), np.int64(2))], ids=[Text("t")])
    held = store.get(["t"])["t"]
    assert held == Chunk("abc", "s", 1, 4, 2)
    assert {type(held.text), type(held.source)} == {str}
    store._database.verify()
    for ids in ([7], ["\ud800"]):
        with pytest.raises(ValueError, match="id must be"):
            store.add([chunk("x")], ids=ids)


def test_ids_must_be_as_many_as_the_passages_and_different(store):
    for ids in (["x"], ["x", "x"]):
        with pytest.raises(ValueError, match="one id of its own per chunk"):
            store.add([chunk("x"), chunk("y")], ids=ids)


def test_a_batch_happens_whole_or_not_at_all(store):
    with pytest.raises(RuntimeError, match="on purpose"), store.batch():
        store.add([chunk("new")])
        store.delete(["a"])
        raise RuntimeError("on purpose")
    assert sorted(store.get(["a", "z", "m"])) == ["a", "m", "z"]
    with store.batch():
        store.add([chunk("new")], ids=["n"])
        assert store.get(["n"])
        with pytest.raises(StoreError, match="a batch is under way"):
            store.search("new")
        store.delete(["a"])
    assert len(store) == 3
    assert store.search("new", 1)[0].id == "n"


def test_a_batch_cannot_mix_dimensions():
    made = DocumentStore(LetterEmbedder())
    with pytest.raises(ValueError, match=r"shape \(1, 2\), got \(1, 3\)"), made.batch():
        made.add([chunk("x")], np.ones((1, 2), np.float32))
        made.add([chunk("y")], np.ones((1, 3), np.float32))
    made.add([chunk("y")], np.ones((1, 3), np.float32))
    assert made.info().dimension == 3


@given(
    text=st.text(min_size=1),
    source=st.text(),
    headings=st.lists(st.text(), max_size=2),
    metadata=st.dictionaries(st.text(), st.text() | st.integers(-(2**60), 2**60) | st.none()),
)
def test_any_text_comes_back_as_it_was(text, source, headings, metadata):
    made = DocumentStore(LetterEmbedder())
    stored = Chunk(text, source, 1, 2, 3, tuple(headings), metadata)
    made.add([stored], ids=["x"])
    assert made.get(["x"]) == {"x": stored}
    made._database.verify()


class Twin(RuleBasedStateMachine):
    """Any sequence of changes leaves the store with what a dictionary would hold."""

    ids = st.sampled_from([f"id{n}" for n in range(12)])
    texts = st.text("abcdexyz ", min_size=1, max_size=8)
    sources = st.sampled_from(["one", "two", "three"])

    @initialize(on_disk=st.booleans())
    def begin(self, on_disk):
        self.embedder = LetterEmbedder()
        self.folder = Path(tempfile.mkdtemp()) / "store" if on_disk else None
        self.store = self.opened()
        self.expected = {}
        self.order = 0

    def opened(self):
        if self.folder is None:
            return DocumentStore(self.embedder, exact_up_to=6)
        return DocumentStore.open(self.folder, self.embedder, write=True, exact_up_to=6)

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            if self.folder is not None:
                shutil.rmtree(self.folder.parent)

    @rule(ids=st.lists(ids, unique=True, min_size=1, max_size=8), data=st.data())
    def add(self, ids, data):
        chunks = [chunk(data.draw(self.texts), data.draw(self.sources)) for _ in ids]
        self.store.add(chunks, ids=ids)
        self.expected.update(zip(ids, chunks, strict=True))

    @rule(ids=st.lists(ids, max_size=5))
    def delete(self, ids):
        assert self.store.delete(ids) == sum(self.expected.pop(one, None) is not None for one in set(ids))

    @rule(source=sources)
    def remove_source(self, source):
        gone = [one for one, held in self.expected.items() if held.source == source]
        assert self.store.remove_sources([source]) == len(gone)
        for one in gone:
            del self.expected[one]

    @rule(ids=st.lists(ids, unique=True, min_size=1, max_size=3), text=texts)
    def fail_in_a_batch(self, ids, text):
        with pytest.raises(KeyError), self.store.batch():
            self.store.add([chunk(text) for _ in ids], ids=ids)
            self.store.delete(["id0", "id1"])
            raise KeyError

    @precondition(lambda self: self.folder is not None)
    @rule()
    def reopen(self):
        self.store.close()
        self.store = self.opened()

    @precondition(lambda self: self.folder is not None)
    @rule()
    def look_from_outside(self):
        with DocumentStore.open(self.folder, self.embedder) as reader:
            assert reader.find({}) == self.expected

    @rule(query=texts, k=st.integers(1, 15), source=st.none() | sources)
    def search(self, query, k, source):
        vector = self.embedder.embed_query(query)
        where = {} if source is None else {"source": source}  # a filter makes the search exact
        similar = {
            one: float(self.embedder.embed_query(held.embedded_text) @ vector)
            for one, held in self.expected.items()
            if source in (None, held.source)
        }
        hits = self.store.search_vector(vector, k, where=where)
        assert np.allclose([hit.score for hit in hits], sorted(similar.values(), reverse=True)[:k], atol=1e-5)
        for hit in hits:
            assert abs(similar[hit.id] - hit.score) < 1e-5
            assert hit.chunk == self.expected[hit.id]

    @invariant()
    def holds_what_it_should(self):
        if hasattr(self, "store"):
            assert len(self.store) == len(self.expected)
            assert self.store.find({}) == self.expected


TestTwin = Twin.TestCase
TestTwin.settings = settings(max_examples=max(10, EXAMPLES // 4), stateful_step_count=25, deadline=None)


# -- inverted lists -------------------------------------------------------------------------------------


def many(count, seed=0):
    random = np.random.default_rng(seed)
    centres = random.standard_normal((40, 32))
    made = centres[random.integers(0, 40, count)] + random.standard_normal((count, 32))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def test_beyond_a_size_lists_are_searched_and_their_recall_is_known():
    vectors = many(3000)
    index = VectorIndex(32, exact_up_to=1000)
    index.add(np.arange(1000), vectors[:1000])
    index.reorganize()
    assert index.shape == IndexShape()
    index.add(np.arange(1000, 3000), vectors[1000:])
    index.reorganize()
    assert index.shape.kind == "inverted lists"
    assert 0.95 <= index.shape.recall <= 1
    assert index.shape.probes < index.shape.lists
    truth = np.argsort(-(many(50, 1) @ vectors.T), axis=1)[:, :10]
    found = [index.search(query, 10)[0] for query in many(50, 1)]
    assert np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]) >= 0.9
    index.remove(np.arange(400, 3000))
    index.reorganize()
    assert index.shape == IndexShape()
    assert sorted(index.numbers.tolist()) == list(range(400))


def test_lists_survive_on_disk(tmp_path):
    vectors = many(1500)
    with DocumentStore.open(tmp_path, LetterEmbedder(), write=True, exact_up_to=1000) as store:
        store.add([chunk(str(n)) for n in range(1500)], vectors, ids=[str(n) for n in range(1500)])
    with DocumentStore.open(tmp_path, LetterEmbedder(), write=True, exact_up_to=1000) as store:
        assert store.info().index == "inverted lists"
        assert [store.search_vector(vectors[n], 1)[0].id for n in range(0, 1500, 100)] == [
            str(n) for n in range(0, 1500, 100)
        ]
        store.delete(["7"])
        store.add([chunk("new")], vectors[7:8], ids=["new"])
        assert store.search_vector(vectors[7], 1)[0].id == "new"


# -- on disk --------------------------------------------------------------------------------------------


def test_a_saved_store_opens_with_the_same_answers(store, tmp_path):
    store.put_document(
        StoredDocument("d", "f", 1), [Document("ddd", "d")], [chunk("ddd", "d")], store.embedder.embed(["d"])
    )
    store.save(tmp_path / "s")
    with DocumentStore.open(tmp_path / "s", LetterEmbedder()) as again:
        assert again.search("mmm", 3) == store.search("mmm", 3)
        assert again.documents() == store.documents()
        assert again.pages("d") == store.pages("d")
    store.delete(["m"])
    store.save(tmp_path / "s")
    with DocumentStore.open(tmp_path / "s", LetterEmbedder()) as again:
        assert again.find({}) == store.find({})


def test_nothing_in_the_folder_is_a_pickle(store, tmp_path):
    store.save(tmp_path / "s")
    assert sorted(path.suffix for path in (tmp_path / "s").glob("[!.]*")) == [".faiss", ".sqlite"]


def test_others_may_read_what_is_written(store, tmp_path):
    store.save(tmp_path / "s")
    mask = os.umask(0)
    os.umask(mask)
    for path in (tmp_path / "s").glob("[!.]*"):
        assert path.stat().st_mode & 0o444 == 0o444 & ~mask


def test_a_folder_without_a_store_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="there is no store in"):
        DocumentStore.open(tmp_path, LetterEmbedder())
    (tmp_path / "manifest.json").write_text("{}")
    for write in (False, True):
        with pytest.raises(StoreError, match=r"holds other files|a format that this version does not read"):
            DocumentStore.open(tmp_path, LetterEmbedder(), write=write)


def test_a_folder_with_other_files_is_not_written_to(store, tmp_path):
    (tmp_path / "thesis.docx").write_bytes(b"precious")
    with pytest.raises(StoreError, match="holds other files and no store"):
        store.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


def test_another_embedding_model_is_an_error(store, tmp_path):
    store.save(tmp_path / "s")
    other = LetterEmbedder()
    other.name = "numbers"
    for write in (False, True):
        with pytest.raises(StoreError, match=r"made with the embedding model 'letters', not 'numbers'"):
            DocumentStore.open(tmp_path / "s", other, write=write)
    assert DocumentStore.embedding_model(tmp_path / "s") == "letters"


def test_another_format_is_an_error(store, tmp_path):
    store.save(tmp_path / "s")
    with closing(Database(tmp_path / "s" / "store.sqlite", write=True)) as database, database.transaction():
        database.write_manifest({"format": 99})
    with pytest.raises(StoreError, match="has format 99, this version reads 3"):
        DocumentStore.open(tmp_path / "s", LetterEmbedder())


def test_a_reader_cannot_change_anything_and_a_closed_store_does_nothing(store, tmp_path):
    store.save(tmp_path / "s")
    with DocumentStore.open(tmp_path / "s", LetterEmbedder()) as reader:
        with pytest.raises(StoreError, match="opened for reading; open it for writing"):
            reader.add([chunk("x")])
    reader.close()
    for action in (lambda: reader.search("a"), lambda: len(reader)):
        with pytest.raises(StoreError, match="the store is closed"):
            action()


def test_a_reader_sees_each_change_when_it_is_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_LOG_MOST", 5)
    with DocumentStore.open(tmp_path, LetterEmbedder(), write=True) as writer:
        with DocumentStore.open(tmp_path, LetterEmbedder()) as reader:
            for count in range(1, 30):
                writer.add([chunk("abcxyz"[: count % 6 + 1])], ids=[str(count)])
                assert len(reader) == count
                if count % 7 == 0:
                    assert reader.find({}) == writer.find({})
            writer.delete_where({})
            assert reader.search("a") == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_may_only_be_read_is_read(store, tmp_path):
    store.save(tmp_path / "s")
    (tmp_path / "s").chmod(0o555)
    try:
        with DocumentStore.open(tmp_path / "s", LetterEmbedder()) as reader:
            assert len(reader) == 3
        with pytest.raises(StoreError):
            DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=True)
    finally:
        (tmp_path / "s").chmod(0o755)


def test_a_store_may_be_closed_by_another_thread(tmp_path):
    opened = DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=True)
    thread = threading.Thread(target=opened.close)
    thread.start()
    thread.join()
    DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=True).close()


def test_a_reader_follows_changes_that_lead_back_to_the_same_vectors(tmp_path):
    with DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=True) as writer:
        writer.add([chunk("abc")], ids=["a"])
    with DocumentStore.open(tmp_path / "s", LetterEmbedder()) as reader:
        with DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=True) as writer:
            writer.add([chunk("xyz")], ids=["x"])
            assert len(reader) == 2
            writer.delete(["x"])
        assert len(reader) == 1


def test_a_store_that_was_only_begun_is_none(tmp_path):
    (tmp_path / "s").mkdir()
    sqlite3.connect(tmp_path / "s" / "store.sqlite").execute("PRAGMA journal_mode = WAL")
    assert not DocumentStore.exists(tmp_path / "s")
    for look in (DocumentStore.embedding_model, lambda folder: DocumentStore.open(folder, LetterEmbedder())):
        with pytest.raises(StoreError, match="there is no store in"):
            look(tmp_path / "s")
    with DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=True) as store:
        store.add([chunk("x")])
    assert DocumentStore.exists(tmp_path / "s")


def test_an_empty_store_takes_another_embedding_model(tmp_path):
    mistyped = LetterEmbedder()
    mistyped.name = "leters"
    DocumentStore.open(tmp_path / "s", mistyped, write=True).close()
    DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=True).close()
    assert DocumentStore.embedding_model(tmp_path / "s") == "letters"


def test_a_change_whose_compaction_fails_is_made_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_LOG_MOST", 0)
    with pytest.raises(StoreError, match="No space left"):  # told on closing
        with DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=True) as store:
            monkeypatch.setattr(folder_module, "write_atomically", full)
            store.add([chunk("abc")])
            assert store.search("abc", 1)
    monkeypatch.undo()
    with DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=True) as store:
        assert store.search("abc", 1)


def full(path, content):
    raise OSError(errno.ENOSPC, "No space left on device")


WRITER = """
import sys
from llma_rag.retrieval import DocumentStore
from tests.letters import LetterEmbedder
with DocumentStore.open(sys.argv[1], LetterEmbedder(), write=True):
    print("open", flush=True)
    sys.stdin.readline()
"""


def test_a_second_writer_is_told_to_wait(store, tmp_path):
    store.save(tmp_path / "s")
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "s")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert writer.stdout.readline() == "open\n"
    with pytest.raises(StoreError, match=r"another process has the store .* open for writing"):
        store.save(tmp_path / "s")
    with DocumentStore.open(tmp_path / "s", LetterEmbedder()) as reader:
        assert len(reader) == 3  # readers are not kept out
    writer.communicate("\n")
    store.save(tmp_path / "s")
    with DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=True):
        with pytest.raises(StoreError, match=r"this process has the store .* open for writing already"):
            DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=True)
    DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=True).close()


def test_the_store_needs_no_torch(tmp_path):
    program = (
        "import sys; from tests.letters import *; from llma_rag.retrieval import DocumentStore\n"
        "with DocumentStore.open(sys.argv[1], LetterEmbedder(), write=True) as s: s.add([chunk('a')])\n"
        "assert 'torch' not in sys.modules and 'sentence_transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=Path(__file__).parents[1])


def test_the_packaged_embedding_model_finds_a_paraphrase():
    embedder = default_embedder()
    assert embedder.dimension == 384
    made = DocumentStore(embedder)
    made.add([chunk("The cat sleeps on the sofa."), chunk("Interest rates rose by half a percent.")])
    assert made.search("Where is the kitten napping?", 1)[0].text.startswith("The cat")
    assert np.allclose(np.linalg.norm(embedder.embed(["one", "two"]), axis=1), 1)
    assert embedder.embed([]).shape == (0, 384)


def test_a_text_longer_than_the_model_reads_is_not_cut_off():
    embedder = default_embedder()
    assert embedder.max_tokens == 254
    begin, end = "The cat sleeps on the sofa. " * 60, "Interest rates rose by half a percent. " * 60
    assert embedder.count_tokens(begin) > embedder.max_tokens
    both, only_begin, only_end = embedder.embed([begin + end, begin, end])
    assert both @ only_end > 0.5
    assert both @ only_begin > 0.5
    assert np.isclose(np.linalg.norm(both), 1)
    assert "".join(embedder._pieces(begin + end)) == begin + end


def test_a_text_is_found_in_any_case(store):
    store.add(
        [chunk("a", metadata={"word": "STRASSE"}), chunk("b", metadata={"word": "Weg"})], ids=["x", "y"]
    )
    assert list(store.find({"word": {"$icontains": "straße"}})) == ["x"]
    assert list(store.find({"word": {"$icontains": "WE"}})) == ["y"]
    with pytest.raises(ValueError, match=r"\$icontains takes a text, got 7"):
        store.find({"word": {"$icontains": 7}})


def test_a_search_takes_the_querys_vector(store):
    embedder = LetterEmbedder()
    for mode in ("hybrid", "vectors"):
        expected = store.search("aaa", 2, mode=mode)
        assert store.search("aaa", 2, mode=mode, vector=embedder.embed_query("aaa")) == expected
    with pytest.raises(ValueError, match="vectors must have the shape"):
        store.search("aaa", vector=[1.0, 0.0])
