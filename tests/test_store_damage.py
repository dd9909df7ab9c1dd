"""A store whose writer is killed holds what was committed; a store whose files are damaged says so."""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import faiss
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llma_rag.errors import StoreError
from llma_rag.retrieval import Document, DocumentStore, StoredDocument
from llma_rag.retrieval.vectors import IndexShape, VectorIndex, digest
from tests.letters import LetterEmbedder, chunk
from tests.writer_server import EXACT_UP_TO, change

ROOT = Path(__file__).parents[1]


def kill_writers(folder, kills, seed):
    """Kill a writer as often, at random moments; after each, the store must hold every acknowledged change."""
    chosen = random.Random(seed)
    expected, done = {}, 0
    with subprocess.Popen(
        [sys.executable, "-m", "tests.writer_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as server:
        for _ in range(kills):
            server.stdin.write(f"{folder} {seed} {done}\n")
            server.stdin.flush()
            lines = iter(server.stdout.readline, "end\n")
            pid = next(int(line.split()[1]) for line in lines if line.startswith("pid"))
            time.sleep(chosen.uniform(0.0, 0.25))
            os.kill(pid, signal.SIGKILL)
            acknowledged = [int(line.split()[1]) for line in lines if line.startswith("done")]
            for number in range(done, max(acknowledged, default=done - 1) + 1):
                change(expected, seed, number)
            done = max(acknowledged, default=done - 1) + 1
            one_more = dict(expected)
            change(one_more, seed, done)
            if not DocumentStore.exists(folder):
                assert done == 0
                continue
            with DocumentStore.open(folder, LetterEmbedder(), write=True, exact_up_to=EXACT_UP_TO) as store:
                held = {one: found.text for one, found in store.find({}).items()}
                assert held in (expected, one_more)
                if held != expected:
                    expected, done = one_more, done + 1
                assert len(store) == len(held)
                found = store.search_vector(np.eye(26, dtype=np.float32)[0], 500, where={})
                assert {hit.id for hit in found} == set(held)
        server.stdin.close()
    return done


def test_a_killed_writer_loses_nothing_that_was_committed(tmp_path):
    assert kill_writers(tmp_path / "s", kills=20, seed=1) > 20


INTERRUPTED = """
import os, signal, sys, threading, time
from llma_rag.retrieval import DocumentStore
from tests.letters import LetterEmbedder, chunk
done = 0
try:
    with DocumentStore.open(sys.argv[1], LetterEmbedder(), write=True) as store:
        threading.Timer(float(sys.argv[2]), os.kill, (os.getpid(), signal.SIGINT)).start()
        while True:
            store.add([chunk(f"{done} {n}") for n in range(40)])
            done += 1
except KeyboardInterrupt:
    print(done)
"""


@pytest.mark.parametrize("seconds", [0.05, 0.08, 0.12, 0.17, 0.23])
def test_an_interrupted_writer_closes_a_whole_store(tmp_path, seconds):
    program = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "s"), str(seconds)]
    done = int(subprocess.run(program, cwd=ROOT, capture_output=True, check=True, text=True).stdout)
    with DocumentStore.open(tmp_path / "s", LetterEmbedder()) as store:
        assert len(store) in (40 * done, 40 * (done + 1))
        assert len(store.search_vector(np.eye(26, dtype=np.float32)[0], 10**6)) == len(store)


@pytest.mark.parametrize("place", ["before", "between", "after"])
def test_an_interruption_while_the_index_takes_in_a_change_is_made_up_for(monkeypatch, place, tmp_path):
    class Interruption(BaseException):
        pass

    for store in (
        DocumentStore(LetterEmbedder()),
        DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=True),
    ):
        with store:
            store.add([chunk("abc"), chunk("def")], ids=["a", "d"])
            real = VectorIndex.add if place != "between" else VectorIndex.remove
            name = real.__name__

            def interrupted(index, *arguments, real=real):
                if place == "after":
                    real(index, *arguments)
                raise Interruption

            with monkeypatch.context() as patched:
                patched.setattr(VectorIndex, name, interrupted)
                with pytest.raises(Interruption):
                    store.add([chunk("xyz")], ids=["a"])
            assert [hit.id for hit in store.search("xyz", 1, mode="vectors")] == ["a"]
            store.add([chunk("ghi")], ids=["g"])
            assert len(store) == 3
            assert {hit.id for hit in store.search("x", 9, mode="vectors")} == {"a", "d", "g"}


@pytest.mark.soak
def test_a_hundred_kills_lose_nothing(tmp_path):
    assert kill_writers(tmp_path / "s", kills=100, seed=2) > 100


def kill_the_command(tmp_path, seconds):
    command = [
        sys.executable,
        "-m",
        "llma_rag.cli",
        "index",
        str(tmp_path / "docs"),
        "--store",
        str(tmp_path / "s"),
    ]
    started = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        return started.wait(seconds)
    except subprocess.TimeoutExpired:
        started.kill()
        return started.wait()


@pytest.mark.soak
def test_the_whole_command_may_be_killed(tmp_path):
    (tmp_path / "docs").mkdir()
    for number in range(60):
        (tmp_path / "docs" / f"{number}.txt").write_text(f"Fact {number} of many. " * 400)
    held = 0
    for seconds in (4, 9, 11, 14, 17):
        kill_the_command(tmp_path, seconds)
        if DocumentStore.exists(tmp_path / "s"):
            embedder = LetterEmbedder()
            embedder.name = "all-MiniLM-L6-v2"
            with DocumentStore.open(tmp_path / "s", embedder) as store:
                assert len(store.documents()) >= held
                held = len(store.documents())
                for document in store.documents():
                    assert len(store.find({"source": document.source})) == document.chunks
    assert kill_the_command(tmp_path, 300) == 0
    embedder.name = "all-MiniLM-L6-v2"
    with DocumentStore.open(tmp_path / "s", embedder) as store:
        assert len(store.documents()) == 60


# -- damaged files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two stores of the same changes, one closed, one as a kill leaves it, and the states they went through."""
    folder = tmp_path_factory.mktemp("stores")
    states = []
    store = DocumentStore.open(folder / "closed", LetterEmbedder(), write=True)
    states.append(answers(store))
    pages = [Document("zzz " * 50, "b.txt", 1)]
    for number in range(4):
        store.add(
            [chunk(f"aaa {number} {'w' * n}") for n in range(10)], ids=[f"{number}-{n}" for n in range(10)]
        )
        states.append(answers(store))
        if number == 1:
            store._write_vector_file()
    vectors = store.embedder.embed(["zzz", "y"])
    store.put_document(
        StoredDocument("b.txt", "f", 2), pages, [chunk("zzz yy", "b.txt"), chunk("y", "b.txt")], vectors
    )
    states.append(answers(store))
    shutil.copytree(folder / "closed", folder / "killed")
    store.close()
    return folder, states


def answers(store):
    found = {
        hit.id if hit.chunk.source == "a.txt" else "-": hit.text
        for hit in store.search("aaa 3", 50, mode="vectors")
    }
    by_words = [hit.text for hit in store.search("zzz yy 3", 50, mode="words")]
    return (
        found,
        by_words,
        [page.text for page in store.pages("b.txt")],
        [d.source for d in store.documents()],
    )


def damaged(content, data):
    content = bytearray(content)
    kind = data.draw(st.sampled_from(["flip", "cut", "swap", "zero", "grow"]))
    if not content:
        return content, kind
    place = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        content[place] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[place:]
    elif kind == "swap":
        size = data.draw(st.sampled_from([1, 16, 512, 4096]))
        one, two = content[place : place + size], content[other : other + size]
        content[place : place + len(two)], content[other : other + len(one)] = two, one
    elif kind == "zero":
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    else:
        content += data.draw(st.binary(min_size=1, max_size=100))
    return content, kind


@pytest.mark.parametrize("which", ["closed", "killed"])
@given(data=st.data())
def test_a_damaged_file_is_a_clear_error_or_harmless(stores, which, tmp_path_factory, data):
    template, states = stores
    folder = tmp_path_factory.mktemp("damaged") / "s"
    shutil.copytree(template / which, folder)
    path = data.draw(st.sampled_from(sorted(path for path in folder.iterdir() if path.name != ".lock")))
    content, _ = damaged(path.read_bytes(), data)
    path.write_bytes(content)
    write = data.draw(st.booleans())
    try:
        with DocumentStore.open(folder, LetterEmbedder(), write=write) as store:
            now = answers(store)
            if write:
                store.add([chunk("new")])
    except StoreError as error:
        assert "\n" not in str(error)
        assert str(folder) in str(error)
    else:
        # what was in the log of a killed writer may be cut back to an earlier commit, whole; nothing else changes
        assert now == states[-1] or (path.name.endswith(("-wal", "-shm")) and now in states)
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize("missing", ["store.sqlite", "vectors"])
def test_a_missing_file_is_a_clear_error(stores, tmp_path, missing):
    shutil.copytree(stores[0] / "closed", tmp_path / "s")
    next(path for path in (tmp_path / "s").iterdir() if path.name.startswith(missing)).unlink()
    for write in (False, True):
        with pytest.raises(StoreError, match=r"is corrupt|there is no store"):
            DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=write)


def test_an_emptied_database_is_not_taken_for_a_new_one(stores, tmp_path):
    shutil.copytree(stores[0] / "closed", tmp_path / "s")
    (tmp_path / "s" / "store.sqlite").write_bytes(b"")
    for write in (False, True):
        with pytest.raises(StoreError, match="is corrupt"):
            DocumentStore.open(tmp_path / "s", LetterEmbedder(), write=write)


def hostile(folder, content, **changed):
    """Let the manifest of a store name another vector file, with its true digest."""
    with DocumentStore.open(folder, LetterEmbedder(), write=True) as store:
        entry = {**store._vectors_entry(), **store._folder.write_vectors(content), **changed}
        with store._database.transaction():
            store._database.write_manifest({"vectors": entry})
        store._database.close()
        store._folder.unlock()
        store._closed = True


def flat(dimension=26, count=42):
    index = VectorIndex(dimension)
    index.add(np.arange(count), np.ones((count, dimension), np.float32))
    return index


def test_a_length_in_a_hostile_file_asks_for_no_memory(stores, tmp_path):
    content = bytearray(flat().to_bytes())
    before = faiss.get_deserialization_vector_byte_limit()
    size = np.frombuffer((42 * 26 * 4).to_bytes(8, "little"), np.uint8).tobytes()
    refused = 0
    for place in range(len(content) - 8):
        if content[place : place + 8] in (size, (42 * 26).to_bytes(8, "little"), (42).to_bytes(8, "little")):
            huge = content[:place] + (2**40).to_bytes(8, "little") + content[place + 8 :]
            try:
                VectorIndex.from_bytes(bytes(huge), 26, IndexShape())
            except ValueError as error:
                refused += "FAISS cannot read it" in str(error)
    assert refused >= 2  # the lengths of the vectors and of their numbers; nothing else asks for memory
    assert psutil.Process().memory_info().rss < 2**32
    assert faiss.get_deserialization_vector_byte_limit() == before
    shutil.copytree(stores[0] / "closed", tmp_path / "s")
    hostile(tmp_path / "s", bytes(content[:100]))
    with pytest.raises(StoreError, match="is corrupt: the vectors cannot be read: FAISS"):
        DocumentStore.open(tmp_path / "s", LetterEmbedder())


@pytest.mark.parametrize(
    ("make", "changed", "message"),
    [
        (lambda: faiss.serialize_index(faiss.IndexFlatL2(26)).tobytes(), {}, "holds a IndexFlatL2"),
        (
            lambda: faiss.serialize_index(faiss.IndexIDMap2(faiss.IndexFlatL2(26))).tobytes(),
            {},
            "holds a IndexFlatL2 inside",
        ),
        (lambda: flat(25).to_bytes(), {}, "vectors have 25 numbers, not 26"),
        (lambda: flat().to_bytes(), {}, "passages and vectors are not the same"),
        (lambda: flat().to_bytes(), {"shape": asdict(IndexShape(lists=3))}, "not a IndexIVFFlat"),
        (lambda: flat().to_bytes(), {"name": "../../etc/passwd"}, "has the name"),
        (lambda: flat().to_bytes(), {"sha256": digest(b"")}, "is not what was written"),
        (lambda: flat().to_bytes(), {"shape": {"unknown": 1}}, "manifest cannot be read"),
        (lambda: flat().to_bytes(), {"sequence": "x"}, "manifest cannot be read"),
        (lambda: flat().to_bytes(), {"sequence": 2**70}, "manifest cannot be read"),
        (lambda: flat().to_bytes(), {"dimension": "x"}, "manifest cannot be read"),
        (lambda: flat().to_bytes(), {"shape": {"recall": "x"}}, "manifest cannot be read"),
        (lambda: b"\x80\x04pickle", {}, "FAISS cannot read it"),
    ],
)
def test_another_kind_of_index_is_a_clear_error(stores, tmp_path, make, changed, message):
    shutil.copytree(stores[0] / "closed", tmp_path / "s")
    hostile(tmp_path / "s", make(), **changed)
    with pytest.raises(StoreError, match=message):
        DocumentStore.open(tmp_path / "s", LetterEmbedder())


@pytest.mark.parametrize("exact_up_to", [1000, 10])
@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_no_byte_of_a_vector_file_does_worse_than_an_error(exact_up_to, place, value):
    index = many_lists(exact_up_to)
    content = bytearray(index.to_bytes())
    content[place % len(content)] = value
    try:
        read = VectorIndex.from_bytes(bytes(content), 26, index.shape)
        if sorted(read.numbers.tolist()) == list(range(200)):  # the store refuses others
            read.search(np.ones(26, np.float32), 3)
            read.vectors_of([0, 199])
    except ValueError as error:
        assert "\n" not in str(error)


@functools.cache
def many_lists(exact_up_to):
    index = VectorIndex(26, exact_up_to)
    index.add(np.arange(200), np.random.default_rng(0).random((200, 26), np.float32))
    index.reorganize()
    return index


def test_unchecked_opening_still_checks_what_it_reads(stores, tmp_path):
    shutil.copytree(stores[0] / "closed", tmp_path / "s")
    database = tmp_path / "s" / "store.sqlite"
    database.write_bytes(database.read_bytes().replace(b"zzz yy", b"zzz yx"))
    with DocumentStore.open(tmp_path / "s", LetterEmbedder(), verify=False) as store:
        assert store.search("aaa", 1, mode="vectors")
        with pytest.raises(StoreError, match="a row is not what was written"):
            store.search("zzz", 1, mode="vectors")
