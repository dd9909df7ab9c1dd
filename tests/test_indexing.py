"""Indexing again: only what changed is read and embedded, what vanished goes, nothing is lost on the way."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from llma_rag.errors import DocumentError
from llma_rag.retrieval import DocumentStore, index_documents, indexing
from llma_rag.retrieval.watching import changes
from tests.letters import LetterEmbedder
from tests.test_documents import write_collection, write_pdf


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in ("one", "two", "three"):
        (folder / f"{name}.txt").write_text(f"This is document {name}.\n")
    return folder


@pytest.fixture
def store(tmp_path):
    with DocumentStore.open(tmp_path / "store", LetterEmbedder(), write=True) as opened:
        yield opened


def counts(report):
    return report.new, report.changed, report.unchanged, report.removed, report.embedded_chunks


def test_a_second_run_reads_nothing(store, docs):
    assert counts(index_documents(store, [docs])) == (3, 0, 0, 0, 3)
    os.utime(docs / "one.txt", (1, 1))  # the content decides
    assert counts(index_documents(store, [docs])) == (0, 0, 3, 0, 0)
    assert store.embedder.embedded == 3


def test_edited_deleted_and_added_files_are_followed(store, docs):
    index_documents(store, [docs])
    (docs / "one.txt").write_text("Now about zebras.\n")
    (docs / "two.txt").unlink()
    (docs / "four.txt").write_text("Quince quince.\n")
    assert counts(index_documents(store, [docs])) == (1, 1, 1, 1, 2)
    assert store.search("zebras", 1)[0].text == "Now about zebras."
    assert store.search("quince", 1)[0].chunk.source == str(docs / "four.txt")
    assert not store.search("two", 10, mode="words")
    assert [Path(one.source).name for one in store.documents()] == ["four.txt", "one.txt", "three.txt"]


def test_documents_from_elsewhere_stay(store, docs, tmp_path):
    index_documents(store, [docs])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.txt").write_text("Elsewhere.")
    assert counts(index_documents(store, [tmp_path / "other"])) == (1, 0, 0, 0, 1)
    assert len(store.documents()) == 4
    (docs / "one.txt").unlink()
    assert index_documents(store, [tmp_path / "other"]).removed == 0
    assert index_documents(store, [docs]).removed == 1


def test_passages_that_stay_the_same_are_not_embedded_again(store, docs):
    paragraphs = [f"Paragraph {n} " + "word " * 150 for n in range(8)]
    (docs / "one.txt").write_text("\n\n".join(paragraphs))
    assert index_documents(store, [docs]).embedded_chunks == 10
    paragraphs[3] = "Another paragraph " + "word " * 150
    (docs / "one.txt").write_text("\n\n".join(paragraphs))
    report = index_documents(store, [docs])
    assert (report.changed, report.chunks, report.embedded_chunks) == (1, 8, 1)
    assert len(store) == 10
    assert store.search_vector(store.embedder.embed_query(paragraphs[5]), 1)


def test_broken_files_are_reported_and_their_last_version_stays(store, docs):
    write_pdf(docs / "rules.pdf", ["No dogs."])
    index_documents(store, [docs])
    (docs / "rules.pdf").write_bytes(b"%PDF broken")
    (docs / "empty.txt").write_bytes(b"")
    (docs / "loop").symlink_to(docs)
    report = index_documents(store, [docs])
    assert [(Path(one.path).name, one.broken) for one in report.skipped] == [
        ("empty.txt", False),
        ("loop", True),
        ("rules.pdf", True),
    ]
    assert len(report.broken) == 2
    assert store.search("dogs", 1, mode="words")[0].chunk.page == 1


def test_a_file_that_was_emptied_goes(store, docs):
    index_documents(store, [docs])
    (docs / "one.txt").write_text("")
    report = index_documents(store, [docs])
    assert (report.removed, report.skipped[0].reason, len(store)) == (1, "is empty", 2)


def test_nothing_to_index_is_an_error_unless_something_vanished(store, docs, tmp_path):
    (tmp_path / "bare").mkdir()
    with pytest.raises(DocumentError, match="holds no document"):
        index_documents(store, [tmp_path / "bare"])
    index_documents(store, [docs])
    for path in docs.iterdir():
        path.unlink()
    assert index_documents(store, [docs]).removed == 3
    assert len(store) == 0


class Interrupted(LetterEmbedder):
    """Stops after so many texts, as a user does."""

    left = 10**9

    def embed(self, texts):
        if self.left < len(texts):
            raise KeyboardInterrupt
        self.left -= len(texts)
        return super().embed(texts)


def interrupted_runs(tmp_path, docs, left):
    """Index with an interruption; return the texts embedded in the second run, and the store's size."""
    with DocumentStore.open(tmp_path / "s", Interrupted(), write=True) as store:
        store.embedder.left = left
        with pytest.raises(KeyboardInterrupt):
            index_documents(store, [docs])
    with DocumentStore.open(tmp_path / "s", Interrupted(), write=True) as store:
        report = index_documents(store, [docs])
        assert store._database.kept_embedded([indexing._key(one) for one in store.find({}).values()]) == {}
        return report.embedded_chunks, len(store)


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, docs):
    for n in range(200):
        (docs / f"{n:03}.txt").write_text(f"Document {n}.")
    embedded, size = interrupted_runs(tmp_path, docs, left=130)
    assert (embedded, size) == (203 - 128, 203)


def test_an_interrupted_long_document_goes_on_inside(tmp_path, docs):
    (docs / "long.txt").write_text("\n\n".join(f"Paragraph {n} " + "word " * 150 for n in range(300)))
    embedded, size = interrupted_runs(tmp_path, docs, left=200)
    assert size == 303
    assert embedded == 303 - 3 * 64


def test_progress_is_told_to_the_end(store, docs):
    told = []
    index_documents(store, [docs], progress=told.append)
    assert (told[-1].files, told[-1].files_done, told[-1].embedded_chunks) == (3, 3, 3)


def test_every_kind_of_file_is_found_again(store, tmp_path):
    kinds = write_collection(tmp_path / "all")
    report = index_documents(store, [tmp_path / "all"])
    assert (report.new, report.skipped) == (len(kinds), [])
    for words, name, page in (
        ("swimming beach", "rules.pdf", 2),
        ("mayor", "plans.pptx", 2),
        ("euro adults", "ferry.docx", None),
        ("child small", "fares.csv", None),
        ("ring bell", "tool.py", None),
        ("Brücke", "alt.txt", None),
    ):
        chunk = store.search(words, 1, mode="words")[0].chunk
        assert (Path(chunk.source).name, chunk.page) == (name, page)
        page_text = next(one.text for one in store.pages(chunk.source) if one.page == page)
        assert page_text[chunk.start : chunk.end] == chunk.text


def test_watching_tells_of_documents_only_and_misses_none_while_the_caller_is_busy(docs):
    watching = changes([docs])
    next(watching)  # it has begun
    (docs / "new.txt").write_text("x")
    time.sleep(2)  # the caller is busy
    next(watching)

    def change():
        (docs / "picture.png").write_bytes(b"x")
        time.sleep(2)
        (docs / "late.txt").write_text("x")

    thread = threading.Thread(target=change)
    thread.start()
    next(watching)
    assert (docs / "late.txt").exists()
    thread.join()
    watching.close()


def test_a_linked_document_goes_with_its_link(store, docs, tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("Quince quince.")
    (docs / "link.txt").symlink_to(outside)
    index_documents(store, docs)
    assert str(docs / "link.txt") in store.sources
    outside.unlink()
    assert index_documents(store, docs).removed == 1
    assert not store.search("quince", mode="words")


def test_a_folder_that_vanished_is_removed_with_its_documents(store, docs, tmp_path):
    index_documents(store, docs)
    docs.rename(tmp_path / "elsewhere")
    assert index_documents(store, docs).removed == 3
    with pytest.raises(DocumentError, match="there is no file or folder"):
        index_documents(store, docs)


def test_passages_that_were_deleted_come_back_with_the_next_run(store, docs):
    index_documents(store, docs)
    assert store.delete_where({"source": str(docs / "one.txt")}) == 1
    report = index_documents(store, docs)
    assert (report.changed, report.unchanged, len(store)) == (1, 2, 3)


def test_files_that_cannot_be_read_are_tried_once(store, docs, monkeypatch):
    (docs / "scan.pdf").write_bytes(b"%PDF broken")
    (docs / "blank.txt").write_text(" ")
    first = index_documents(store, docs)
    monkeypatch.setattr(indexing, "extract", None)  # nothing is extracted again
    assert index_documents(store, docs).skipped == first.skipped
    monkeypatch.undo()
    (docs / "blank.txt").write_text("Now quince.")
    (docs / "scan.pdf").unlink()
    assert counts(index_documents(store, docs)) == (1, 0, 3, 0, 1)
    assert store.unread() == {}


def test_a_missing_library_is_not_remembered(store, docs, monkeypatch):
    write_pdf(docs / "rules.pdf", ["No dogs."])
    monkeypatch.setitem(sys.modules, "pypdf", None)
    assert len(index_documents(store, docs).broken) == 1
    monkeypatch.undo()
    assert index_documents(store, docs).new == 1
