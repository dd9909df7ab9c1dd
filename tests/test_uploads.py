"""Uploaded documents: kept whole, indexed in the background, listed with their state, gone when deleted."""

from __future__ import annotations

import io
import threading

import pytest

from llma_rag.errors import DocumentError
from llma_rag.retrieval import DocumentStore
from llma_rag.retrieval import indexing as indexing_module
from llma_rag.serving import uploads as uploads_module
from llma_rag.serving.uploads import Uploads, document_id
from tests.letters import LetterEmbedder, chunk
from tests.scripted_engine import scripted_engine
from tests.serving import PIER, serving, until


class GatedEmbedder(LetterEmbedder):
    """Waits before it embeds until it may."""

    def __init__(self):
        self.may = threading.Event()
        self.began = threading.Event()

    def embed(self, texts):
        self.began.set()
        assert self.may.wait(30)
        return super().embed(texts)


@pytest.fixture
def store():
    with DocumentStore(LetterEmbedder()) as made:
        yield made


def put(uploads, name, text):
    return uploads.put(name, io.BytesIO(text.encode() if isinstance(text, str) else text))


def settled(uploads):
    return until(
        lambda: (
            uploads.progress is None
            and all(one.state in ("indexed", "failed") for one in uploads.documents())
            and uploads.documents()
        )
    )


def test_an_uploaded_document_is_found_after_a_while(store, tmp_path):
    with Uploads(store, tmp_path / "up") as uploads:
        sent = put(uploads, "pier.txt", PIER)
        assert (sent.name, sent.uploaded, sent.bytes) == ("pier.txt", True, len(PIER))
        assert sent.state in ("waiting", "indexing", "indexed")
        (document,) = settled(uploads)
        assert (document.state, document.passages, document.error) == ("indexed", 1, None)
        assert document.id == sent.id == document_id(document.source)
        assert store.search("northern pier")[0].text == PIER


def test_a_document_of_the_same_name_takes_the_place_of_the_earlier_one(store, tmp_path):
    with Uploads(store, tmp_path) as uploads:
        put(uploads, "pier.txt", PIER)
        settled(uploads)
        put(uploads, "pier.txt", "The pier is open.")
        settled(uploads)
        assert [hit.text for hit in store.search("pier", 5)] == ["The pier is open."]


def test_a_document_that_cannot_be_read_says_why_and_the_next_one_is_read(store, tmp_path):
    with Uploads(store, tmp_path) as uploads:
        put(uploads, "broken.pdf", "no PDF at all")
        put(uploads, "empty.txt", "")
        put(uploads, "pier.txt", PIER)
        states = {one.name: (one.state, one.error) for one in settled(uploads)}
    assert states["pier.txt"] == ("indexed", None)
    assert states["broken.pdf"][0] == "failed"
    assert "is damaged or not a .pdf file" in states["broken.pdf"][1]
    assert states["empty.txt"] == ("failed", "is empty")


def test_a_failure_of_the_server_is_told_without_its_secrets(store, tmp_path, monkeypatch, caplog):
    def failing(*_, **__):
        raise RuntimeError("a secret")

    with Uploads(store, tmp_path) as uploads:
        monkeypatch.setattr(uploads_module, "index_documents", failing)
        put(uploads, "pier.txt", PIER)
        (document,) = settled(uploads)
        assert (document.state, document.error) == (
            "failed",
            "the server could not index it; its log says why",
        )
        assert "a secret" in caplog.text
        monkeypatch.undo()
        put(uploads, "pier.txt", PIER)
        assert settled(uploads)[0].state == "indexed"


def test_deleting_takes_file_and_passages_away_even_while_it_is_indexed(tmp_path):
    embedder = GatedEmbedder()
    with DocumentStore(embedder) as store, Uploads(store, tmp_path) as uploads:
        sent = put(uploads, "pier.txt", PIER)
        assert embedder.began.wait(10)
        put(uploads, "later.txt", "Later.")
        assert uploads.get(sent.id).state == "indexing"
        assert uploads.progress == {"name": "pier.txt", "embedded_passages": 0, "waiting": 1}
        assert uploads.delete(sent.id)
        assert not (tmp_path / "pier.txt").exists()
        assert uploads.get(sent.id) is None
        embedder.may.set()
        assert [one.name for one in settled(uploads)] == ["later.txt"]
        until(lambda: store.sources == [str(tmp_path / "later.txt")])
        assert not uploads.delete(sent.id)


def test_documents_from_elsewhere_are_listed_and_their_files_stay(store, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text(PIER)
    indexing_module.index_documents(store, own)
    store.add([chunk("no file", "somewhere")])
    with Uploads(store, tmp_path / "up") as uploads:
        listed = {one.name: one for one in settled(uploads)}
        assert {name: (one.uploaded, one.passages) for name, one in listed.items()} == {
            "own.txt": (False, 1),
            "somewhere": (False, 1),
        }
        for one in listed.values():
            assert uploads.delete(one.id)
        assert own.exists()
        assert len(store) == 0


def test_what_a_killed_server_left_is_indexed_or_cleaned_away(store, tmp_path):
    with Uploads(store, tmp_path) as uploads:
        put(uploads, "gone.txt", "Gone.")
        settled(uploads)
    (tmp_path / "gone.txt").unlink()  # as if it was killed in the middle of deleting
    (tmp_path / "new.txt").write_text(PIER)
    (tmp_path / ".half.txt.x1y2.part").write_text("half")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("*")
    (tmp_path / "folder").mkdir()
    (tmp_path / "program.exe").write_text("x")
    with Uploads(store, tmp_path) as uploads:
        assert [one.name for one in until(lambda: len(store.sources) == 1 and settled(uploads))] == [
            "new.txt"
        ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".git",
        ".gitignore",
        "folder",
        "new.txt",
        "program.exe",
    ]


LONG = "\n\n".join(f"Paragraph {number} of the long document. " * 20 for number in range(300))


def test_a_document_that_is_deleted_is_not_embedded_to_its_end(tmp_path):
    embedder = GatedEmbedder()
    with DocumentStore(embedder) as store, Uploads(store, tmp_path) as uploads:
        sent = put(uploads, "long.txt", LONG)
        assert embedder.began.wait(10)
        uploads.delete(sent.id)
        put(uploads, "later.txt", "Later.")
        embedder.may.set()
        assert [one.name for one in settled(uploads)] == ["later.txt"]
        assert embedder.embedded < 200  # one part of the long one, and the other
        assert store.sources == [str(tmp_path / "later.txt")]


def test_closing_does_not_wait_for_a_long_document(tmp_path):
    embedder = GatedEmbedder()
    with DocumentStore(embedder) as store:
        with Uploads(store, tmp_path) as uploads:
            put(uploads, "long.txt", LONG)
            assert embedder.began.wait(10)
            threading.Timer(0.2, embedder.may.set).start()
        assert store.sources == []
        embedder.may.set()
        with Uploads(store, tmp_path) as uploads:
            assert settled(uploads)[0].state == "indexed"


def test_a_document_that_is_too_big_leaves_nothing(store, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads_module, "MAX_FILE_BYTES", 10)
    with Uploads(store, tmp_path) as uploads:
        with pytest.raises(DocumentError, match="over 10 bytes"):
            put(uploads, "big.txt", "x" * 11)
        assert uploads.documents() == []
    assert list(tmp_path.iterdir()) == []


def test_clients_upload_list_and_delete_over_http(tmp_path):
    with serving(scripted_engine("Yes."), tmp_path) as served:
        sent = served.http.post("/v1/documents", files={"file": ("ferry.txt", b"The ferry leaves at nine.")})
        assert sent.status_code == 202
        path = f"/v1/documents/{sent.json()['id']}"
        found = until(
            lambda: served.http.get(path).json()["state"] == "indexed" and served.http.get(path).json()
        )
        assert found["passages"] == 1
        listed = served.http.get("/v1/documents").json()
        assert [one["name"] for one in listed["data"] if one["uploaded"]] == ["ferry.txt"]
        assert listed["indexing"] is None
        answer = served.chat("When does the ferry leave?", "scripted+documents").json()
        assert "The ferry leaves at nine." in [one["text"] for one in answer["llma_rag"]["sources"]]
        assert served.metric("llma_rag_passages") == 3
        text = served.http.get(f"{path}/text").json()
        assert text["pages"] == [{"page": None, "text": "The ferry leaves at nine."}]
        source = next(one for one in answer["llma_rag"]["sources"] if one["document"] == found["id"])
        assert text["pages"][0]["text"][source["start"] : source["end"]] == source["text"]
        assert (
            served.http.get(f"/v1/documents/{document_id('pier.txt')}/text").json()["pages"][0]["text"]
            == PIER
        )
        assert served.http.get("/v1/documents/none/text").status_code == 404
        assert served.http.delete(path).json() == {"id": found["id"], "object": "document", "deleted": True}
        assert served.http.get(path).status_code == 404
        assert served.metric("llma_rag_passages") == 2
        assert served.http.post("/v1/documents").status_code == 400
