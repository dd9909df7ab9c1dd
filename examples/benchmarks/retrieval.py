"""Measure retrieval: quality of the search modes, indexing again, latency and recall at size, memory and disk.

    python examples/benchmarks/retrieval.py WORK_FOLDER [--passages 5000] [--json results.json]

The corpus is made of the text and source files of installed packages, so it differs a little from machine to
machine. It must hold the 40 source files of `retrieval_questions.json`; those that are not installed are named.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import resource
import shutil
import statistics
import sysconfig
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from llma_rag.retrieval import Chunk, DocumentStore, default_embedder, index_documents, split_documents
from llma_rag.retrieval.reading import extract
from llma_rag.retrieval.vectors import VectorIndex

QUESTIONS = json.loads(Path(__file__).with_name("retrieval_questions.json").read_text(encoding="utf-8"))
PACKAGES = """httpx httpcore typer rich jinja2 requests urllib3 networkx huggingface_hub langchain_core llama_index
langsmith sentence_transformers sklearn numpy filelock platformdirs tenacity tqdm psutil PIL nltk joblib fsspec gguf
accelerate""".split()
SUFFIXES = {".md", ".rst", ".py", ".html"}
MAX_BYTES = 60_000
MODES = ("vectors", "words", "hybrid")


def build_corpus(folder: Path, passages: int, count_tokens: Any) -> None:
    """Copy the questions' sources and then other files, in an order of no meaning, up to so many passages."""
    packages = Path(sysconfig.get_paths()["purelib"])
    asked = {question["source"] for question in QUESTIONS}
    candidates = {
        str(path.relative_to(packages))
        for package in PACKAGES
        for path in (packages / package).rglob("*")
        if path.suffix in SUFFIXES and 200 < path.stat().st_size <= MAX_BYTES and "test" not in str(path)
    }
    missing = sorted(source for source in asked if not (packages / source).is_file())
    if missing:
        print("not installed, so their questions cannot be answered:", *missing)
    others = sorted(candidates - asked, key=lambda source: hashlib.sha256(source.encode()).digest())
    count = 0
    for source in [*sorted(asked - set(missing)), *others]:
        if count >= passages:
            break
        content = (packages / source).read_bytes()
        count += len(split_documents(extract(content, Path(source)), count_tokens))
        target = folder / source
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def timed(action: Any) -> tuple[Any, float]:
    """Return what a function returns, and the seconds it took."""
    begin = time.perf_counter()
    return action(), time.perf_counter() - begin


def measure_quality(store: DocumentStore, corpus: Path) -> dict[str, Any]:
    """Return recall@5 of the questions' source files, and the ranks, for every mode and kind of question."""
    ranks: dict[str, dict[str, list[int]]] = {mode: {"keyword": [], "paraphrased": []} for mode in MODES}
    for question in QUESTIONS:
        for mode in MODES:
            sources = [hit.chunk.source for hit in store.search(question["question"], 20, mode=mode)]
            wanted = str((corpus / question["source"]).resolve())
            rank = sources.index(wanted) + 1 if wanted in sources else 0
            ranks[mode][question["kind"]].append(rank)
    return {
        mode: {
            kind: {
                "recall_at_5": sum(0 < rank <= 5 for rank in found) / len(found),
                "mean_reciprocal_rank": sum(1 / rank for rank in found if rank) / len(found),
                "ranks": found,
            }
            for kind, found in kinds.items()
        }
        for mode, kinds in ranks.items()
    }


def measure_again(folder: Path, corpus: Path) -> dict[str, Any]:
    """Index again without a change, then with one file edited, one deleted and one added; the corpus stays."""
    results: dict[str, Any] = {}

    def run(name: str) -> None:
        def index() -> Any:
            with DocumentStore.open(folder, default_embedder(), write=True) as store:
                return index_documents(store, [corpus])

        report, seconds = timed(index)
        results[name] = {**asdict(report), "skipped": len(report.skipped), "seconds": seconds}

    run("unchanged")
    edited, deleted = sorted(path for path in corpus.rglob("*.py") if path.is_file())[:2]
    added = corpus / "added.md"
    kept = {path: path.read_bytes() for path in (edited, deleted)}
    try:
        edited.write_bytes(kept[edited] + b"\n# One more line.\n")
        deleted.unlink()
        added.write_text("# Quiet hours\n\nThe quiet hours are from ten to six.\n")
        run("three_changes")
    finally:
        added.unlink(missing_ok=True)
        for path, content in kept.items():
            path.write_bytes(content)
    run("changed_back")
    return results


def perturbed(vectors: Any, count: int, noise: float, seed: int) -> Any:
    """Return as many unit vectors as wanted, each a given one with noise of a length relative to its own."""
    random = np.random.default_rng(seed)
    made = vectors[random.integers(0, len(vectors), count)]
    shift = random.standard_normal(made.shape, dtype=np.float32)
    made = made + noise * shift / np.linalg.norm(shift, axis=1, keepdims=True)
    return np.ascontiguousarray(made / np.linalg.norm(made, axis=1, keepdims=True), dtype=np.float32)


def milliseconds(searches: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile."""
    return {"p50_ms": 1000 * statistics.median(searches), "p95_ms": 1000 * float(np.quantile(searches, 0.95))}


def measure_crossover(vectors: Any, queries: Any, sizes: list[int]) -> list[dict[str, Any]]:
    """Return latency, recall@10 and training time of exact search and inverted lists, size by size."""
    rows = []
    for size in sizes:
        data, numbers = perturbed(vectors, size, 0.5, seed=size), np.arange(size, dtype=np.int64)
        exact = VectorIndex(data.shape[1], exact_up_to=size)
        exact.add(numbers, data)
        lists = VectorIndex(data.shape[1], exact_up_to=1)
        lists.add(numbers, data)
        _, training_s = timed(lists.reorganize)
        times: dict[str, list[float]] = {"exact": [], "lists": []}
        recalls = []
        for query in queries:
            (truth, _), seconds = timed(lambda query=query: exact.search(query, 10))
            times["exact"].append(seconds)
            (found, _), seconds = timed(lambda query=query: lists.search(query, 10))
            times["lists"].append(seconds)
            recalls.append(len(set(truth) & set(found)) / 10)
        rows.append(
            {
                "vectors": size,
                "exact": milliseconds(times["exact"]),
                "inverted_lists": {
                    **milliseconds(times["lists"]),
                    "recall_at_10": float(np.mean(recalls)),
                    "recall_when_trained": lists.shape.recall,
                    "lists": lists.shape.lists,
                    "probes": lists.shape.probes,
                    "training_s": training_s,
                },
            }
        )
    return rows


def measure_latency(small: DocumentStore, folder: Path, size: int, queries: dict[str, Any]) -> dict[str, Any]:
    """Return search latency beside the embedding's own time, opening time, memory and disk of a store of a size."""
    stored = list(small.find({}).values())
    vectors = perturbed(small._require_index().vectors_of(small._database.all_numbers()), size, 0.5, seed=1)

    class Given:
        name = small.embedder.name
        count_tokens = staticmethod(small.embedder.count_tokens)
        embed = staticmethod(small.embedder.embed)

        def embed_query(self, text: str) -> Any:
            return queries[text]

    with DocumentStore.open(folder, Given(), write=True) as store:
        for begin in range(0, size, 5000):
            part = range(begin, min(begin + 5000, size))
            chunks = [stored[number % len(stored)] for number in part]
            unlike = [
                Chunk(c.text, f"{c.source}-{n // len(stored)}", c.start, c.end, c.page, c.headings)
                for n, c in zip(part, chunks, strict=True)
            ]
            store.add(unlike, vectors[begin : part.stop])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    opened, open_s = timed(lambda: DocumentStore.open(folder, Given()))
    _, trusting_s = timed(lambda: DocumentStore.open(folder, Given(), verify=False).close())
    with opened as store:
        result: dict[str, Any] = {"open_s": open_s, "open_unverified_s": trusting_s}
        for mode in MODES:
            store.search(next(iter(queries)), 10, mode=mode)
            searches = [timed(lambda q=q, m=mode: store.search(q, 10, mode=m))[1] for q in list(queries) * 3]
            result[mode] = milliseconds(searches)
        disk = store.info().bytes_on_disk
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    result["disk_bytes_per_10000"] = round(disk / size * 10_000)
    result["vector_bytes_per_10000"] = 10_000 * (vectors.shape[1] * 4 + 8)
    result["peak_memory_growth_on_opening_bytes"] = grown
    return {"passages": size, **result}


def main() -> None:
    """Run all and print one JSON object at the end."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument(
        "folder", type=Path, help="where corpus and stores go; used again if they are there"
    )
    arguments.add_argument("--passages", type=int, default=5000)
    arguments.add_argument("--size", type=int, default=50_000, help="passages for latency")
    arguments.add_argument("--sizes", type=int, nargs="*", default=[10_000, 25_000, 50_000, 100_000, 200_000])
    arguments.add_argument("--json", type=Path)
    chosen = arguments.parse_args()
    corpus, folder, large = (chosen.folder / name for name in ("corpus", "store", "large"))
    embedder = default_embedder()
    results: dict[str, Any] = {
        "machine": {"cpu": platform.processor() or platform.machine(), "python": platform.python_version()},
        "faiss": faiss.__version__,
        "embedding_model": embedder.name,
    }
    if not corpus.exists():
        build_corpus(corpus, chosen.passages, embedder.count_tokens)
    with DocumentStore.open(folder, embedder, write=True) as store:
        report, seconds = timed(lambda: index_documents(store, [corpus]))
    results["first_run"] = {**asdict(report), "skipped": len(report.skipped), "seconds": seconds}
    print("first run", results["first_run"], flush=True)
    results["indexing_again"] = measure_again(folder, corpus)
    print("again", results["indexing_again"], flush=True)
    with DocumentStore.open(folder, embedder) as store:
        results["quality"] = measure_quality(store, corpus)
        for mode, kinds in results["quality"].items():
            print(mode, {kind: found["recall_at_5"] for kind, found in kinds.items()}, flush=True)
        texts = [question["question"] for question in QUESTIONS]
        embedded = [timed(lambda text=text: embedder.embed_query(text)) for text in texts]
        results["embedding_a_question"] = milliseconds([seconds for _, seconds in embedded])
        queries = {text: vector for text, (vector, _) in zip(texts, embedded, strict=True)}
        shutil.rmtree(large, ignore_errors=True)
        if chosen.size:
            results["latency"] = measure_latency(store, large, chosen.size, queries)
            print("latency", results["latency"], flush=True)
        vectors = store._require_index().vectors_of(store._database.all_numbers())
        results["crossover"] = measure_crossover(vectors, list(queries.values()), chosen.sizes)
    print(json.dumps(results, indent=1))
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
