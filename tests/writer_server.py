"""Forks writers that a test kills: reads `FOLDER SEED FIRST` lines, prints `pid N`, acknowledged changes, `end`.

A process that has everything imported forks each writer, so that a kill costs milliseconds. The changes follow
from the seed alone, so that the test knows what the store must hold after each.
"""

from __future__ import annotations

import os
import random
import sys

import numpy as np

from llma_rag.retrieval import DocumentStore
from llma_rag.retrieval import store as store_module
from tests.letters import LetterEmbedder, chunk

EXACT_UP_TO = 60  # small, so that inverted lists come and go


def change(store, seed, number):
    """Make a change to a store, or to a dictionary that stands for one."""
    chosen = random.Random(f"{seed} {number}")
    ids = [f"id{chosen.randrange(150)}" for _ in range(chosen.randrange(1, 40))]
    ids = list(dict.fromkeys(ids))
    text = f"{chosen.choice('abcdefgh') * 3} change {number} of {seed}"
    if chosen.random() < 0.4:
        if isinstance(store, dict):
            for one in ids:
                store.pop(one, None)
        else:
            store.delete(ids)
    elif isinstance(store, dict):
        store.update(dict.fromkeys(ids, text))
    else:
        vectors = np.random.default_rng(number).standard_normal((len(ids), 26)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        store.add([chunk(text)] * len(ids), vectors, ids=ids)


def write(folder, seed, first):
    """Change the store until killed; close and open it now and then."""
    store_module._LOG_MOST = 100
    number = first
    while True:
        with DocumentStore.open(folder, LetterEmbedder(), write=True, exact_up_to=EXACT_UP_TO) as store:
            for _ in range(15):
                change(store, seed, number)
                os.write(1, f"done {number}\n".encode())
                number += 1


def main():
    for line in sys.stdin:
        folder, seed, first = line.split()
        pid = os.fork()
        if pid == 0:
            write(folder, seed, int(first))
        os.write(1, f"pid {pid}\n".encode())
        os.waitpid(pid, 0)
        os.write(1, b"end\n")


if __name__ == "__main__":
    main()
