"""Documents, passages and the store: real FAISS, real splitter, the packaged embedding model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llma_rag.errors import DocumentError, ModelError, StoreError
from llma_rag.retrieval import (
    Chunk,
    Document,
    DocumentStore,
    default_embedder,
    read_documents,
    split_documents,
)
from llma_rag.retrieval.embedding import SentenceTransformerEmbedder


class LetterEmbedder:
    """Embeds a text as its letter counts: enough to tell texts apart, and instant."""

    name = "letters"
    dimension = 26

    def count_tokens(self, text):
        return len(text.split())

    def embed(self, texts):
        counts = np.array(
            [[text.lower().count(chr(97 + n)) + 0.01 for n in range(26)] for text in texts], np.float32
        )
        return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).reshape(len(texts), 26)


def chunk(text, source="a.txt"):
    return Chunk(text, source, 0, len(text))


@pytest.fixture
def store():
    made = DocumentStore(LetterEmbedder())
    made.add([chunk("aaa bb"), chunk("zzz yy", "b.txt"), chunk("mmm nn", "b.txt")])
    return made


def test_files_and_folders_are_read_once_each(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.md").write_text("# Title\nText", encoding="utf-8")
    (tmp_path / "sub" / "b.TXT").write_text("\ufeffWith a mark é", encoding="utf-8")
    (tmp_path / "c.png").write_bytes(b"\x89")
    documents = read_documents([tmp_path, tmp_path / "a.md"])
    assert [(Path(one.source).name, one.text) for one in documents] == [
        ("a.md", "# Title\nText"),
        ("b.TXT", "With a mark é"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "there is no file or folder"),
        ("image.png", b"x", "is not a document"),
        ("latin.txt", "é".encode("latin-1"), r"is not UTF-8 text \(byte 0\)"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DocumentError, match=message):
        read_documents([tmp_path / name])


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DocumentError, match="holds no document"):
        read_documents([tmp_path])


def test_a_huge_file_is_refused(tmp_path):
    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(DocumentError, match="at most 67108864 are read"):
        read_documents([path])


@pytest.mark.parametrize("source", ["a.md", "a.txt"])
@given(text=st.text("abc .é\n#", max_size=400))
def test_passages_are_where_they_say_and_short_enough(source, text):
    embedder = LetterEmbedder()
    chunks = split_documents(
        [Document(text, source)], embedder.count_tokens, chunk_tokens=20, overlap_tokens=3
    )
    for one in chunks:
        assert text[one.start : one.end] == one.text
        assert embedder.count_tokens(one.text) <= 20
    covered = {place for one in chunks for place in range(one.start, one.end)}
    assert all(place in covered or text[place].isspace() for place in range(len(text)))


def test_the_most_similar_passages_come_first(store):
    hits = store.search("zzz", 2)
    assert hits[0].text == "zzz yy"
    assert hits[0].score >= hits[1].score
    assert hits[0].metadata == {"source": "b.txt", "start": 0, "end": 6}


def test_more_passages_than_there_are_is_all_of_them(store):
    assert len(store.search("a", 50)) == 3
    assert DocumentStore(LetterEmbedder()).search("a") == []
    with pytest.raises(ValueError, match="k must be at least 1"):
        store.search("a", 0)


def test_removing_a_source_leaves_the_others(store):
    assert store.remove_sources(["b.txt", "nowhere.txt"]) == 2
    assert store.sources == ["a.txt"]
    assert [hit.text for hit in store.search("zzz", 5)] == ["aaa bb"]


def test_vectors_of_another_shape_are_an_error(store):
    with pytest.raises(ValueError, match=r"shape \(1, 26\), got \(2, 26\)"):
        store.add([chunk("x")], np.zeros((2, 26), np.float32))


def test_a_saved_store_opens_with_the_same_answers(store, tmp_path):
    store.save(tmp_path)
    again = DocumentStore.open(tmp_path, LetterEmbedder())
    assert again.search("mmm", 3) == store.search("mmm", 3)
    store.remove_sources(["b.txt"])
    store.save(tmp_path)
    assert len(DocumentStore.open(tmp_path, LetterEmbedder())) == 1
    assert len(list(tmp_path.glob("[!.]*"))) == 3


def test_nothing_in_the_folder_is_a_pickle(store, tmp_path):
    store.save(tmp_path)
    assert {path.suffix for path in tmp_path.glob("[!.]*")} == {".json", ".jsonl", ".faiss"}


def test_a_folder_without_a_store_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="there is no store in"):
        DocumentStore.open(tmp_path, LetterEmbedder())


def test_a_folder_with_other_files_is_not_written_to(store, tmp_path):
    (tmp_path / "thesis.docx").write_bytes(b"precious")
    with pytest.raises(StoreError, match="holds other files and no store"):
        store.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


def test_another_embedding_model_is_an_error(store, tmp_path):
    store.save(tmp_path)
    other = LetterEmbedder()
    other.name = "numbers"
    with pytest.raises(
        StoreError, match=r"made with the embedding model 'letters' of dimension 26, not 'numbers'"
    ):
        DocumentStore.open(tmp_path, other)


@given(data=st.data())
def test_a_damaged_file_is_a_clear_error_or_harmless(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("store")
    made = DocumentStore(LetterEmbedder())
    made.add([chunk("aaa bb"), chunk("zzz yy")])
    made.save(folder)
    path = data.draw(st.sampled_from(sorted(folder.glob("[!.]*"))))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        opened = DocumentStore.open(folder, LetterEmbedder())
    except StoreError as error:
        assert "\n" not in str(error)
    else:
        assert opened.search("zzz", 2) == made.search("zzz", 2)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"format": None},
        {"dimension": "26"},
        {"files": {}},
        {
            "files": {
                "vectors": {"name": "../../etc/passwd", "sha256": "0"},
                "passages": {"name": "x", "sha256": "0"},
            }
        },
        {"passages": 7},
    ],
)
def test_a_hostile_manifest_is_a_clear_error(store, tmp_path, change):
    store.save(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(StoreError, match="index"):
        DocumentStore.open(tmp_path, LetterEmbedder())


WRITER = """
import sys
from llma_rag.retrieval import DocumentStore
with DocumentStore.locked(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_a_second_writer_is_told_to_wait(store, tmp_path):
    store.save(tmp_path)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout.readline() == "locked\n"
    with pytest.raises(StoreError, match="another process is writing"):
        store.save(tmp_path)
    assert len(DocumentStore.open(tmp_path, LetterEmbedder())) == 3  # readers are not kept out
    writer.communicate("\n")
    store.save(tmp_path)


def test_others_may_read_what_is_written(store, tmp_path):
    store.save(tmp_path)
    mask = os.umask(0)
    os.umask(mask)
    assert all(path.stat().st_mode & 0o777 == 0o666 & ~mask for path in tmp_path.glob("[!.]*"))


def test_line_ends_are_kept_so_that_ranges_fit_the_file(tmp_path):
    path = tmp_path / "windows.txt"
    path.write_bytes(b"one\r\ntwo\r\n")
    assert read_documents([path])[0].text == "one\r\ntwo\r\n"


KILLED = """
import sys
from tests.test_retrieval import LetterEmbedder, chunk
from llma_rag.retrieval import DocumentStore
store = DocumentStore(LetterEmbedder())
print("ready", flush=True)
for round in range(10_000):
    store = DocumentStore(LetterEmbedder())
    store.add([chunk(f"round {round} passage {n}") for n in range(200)])
    store.save(sys.argv[1])
    print(round, flush=True)
"""


def test_a_killed_writer_leaves_the_old_state_or_the_new(tmp_path):
    for rounds_before in (0, 1, 3, 5):
        writer = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        for _ in range(1 + rounds_before):
            writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        if rounds_before or DocumentStore.exists(tmp_path):
            opened = DocumentStore.open(tmp_path, LetterEmbedder())
            assert len(opened) == 200
            assert len({hit.text.split()[1] for hit in opened.search("round", 200)}) == 1
    made = DocumentStore(LetterEmbedder())
    made.add([chunk("after")])
    made.save(tmp_path)
    assert len(list(tmp_path.glob("[!.]*"))) == 3


def test_the_packaged_embedding_model_finds_a_paraphrase():
    embedder = default_embedder()
    assert embedder.dimension == 384
    made = DocumentStore(embedder)
    made.add([chunk("The cat sleeps on the sofa."), chunk("Interest rates rose by half a percent.")])
    assert made.search("Where is the kitten napping?", 1)[0].text.startswith("The cat")
    assert np.allclose(np.linalg.norm(embedder.embed(["one", "two"]), axis=1), 1)
    assert embedder.embed([]).shape == (0, 384)


def test_an_embedding_model_that_cannot_be_loaded_is_one_line():
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        _ = SentenceTransformerEmbedder("/no/such/model").dimension
    assert "\n" not in str(caught.value)
