"""Do a hit's neighbours, or its whole document, make better references than the passages in the prompt alone?

    python examples/benchmarks/wider_references.py WORK_FOLDER [--json results.json]

WORK_FOLDER is that of `retrieval.py`, whose store is asked. References change no answer, so the demo model answers each
question once; then the drafts of every kind of reference are replayed against that answer, which counts the forward
passes exactly.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llma_rag import DocumentStore, Engine, Hit, default_embedder, quoting_prompt
from llma_rag.decoding import ReferenceDrafter, greedy_decode
from llma_rag.text import prompt_ids, reference_ids

QUESTIONS = json.loads(Path(__file__).with_name("retrieval_questions.json").read_text(encoding="utf-8"))
PASSAGES = 3


class KnownAnswer:
    """A verifier that predicts an answer known beforehand, with the room that the engine's steps have."""

    def __init__(self, engine: Engine, prompt_length: int, answer: Sequence[int]) -> None:
        self.vocab_size = engine.runner.vocab_size
        self.candidates = engine.runner.candidates
        self.draft_room = engine.runner.draft_room
        self._prompt_length = prompt_length
        self._answer = answer

    def prefill(self, prompt_ids: Sequence[int]) -> int:
        """Return the answer's first id."""
        return self._answer[0]

    def verify(self, position: int, candidates: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the answer's ids after each given one, -1 beyond its end."""
        begin = position - self._prompt_length + 1
        return [
            [self._answer[n] if n < len(self._answer) else -1 for n in range(begin, begin + len(ids))]
            for ids in candidates
        ]

    def keep(self, candidate: int) -> None:
        """Do nothing: an answer that is known needs no context."""


def passes(
    engine: Engine, prompt: list[int], answer: list[int], references: Sequence[str]
) -> tuple[int, float]:
    """Return the forward passes that decoding an answer takes with these references, and the indexing seconds."""
    ids = [reference_ids(engine.tokenizer, text) for text in references]
    begin = time.perf_counter()
    drafter = ReferenceDrafter(ids, prompt)
    index_s = time.perf_counter() - begin
    model = KnownAnswer(engine, len(prompt), answer)
    steps = greedy_decode(model, prompt, drafter, max_tokens=len(answer), eos_ids=engine.eos_ids)
    return sum(1 for _ in steps), index_s


def neighbours(store: DocumentStore, hits: Sequence[Hit]) -> list[str]:
    """Return the passages before and after each hit."""
    return [chunk.text for hit in hits for chunk in store.neighbours(hit)]


def parents(store: DocumentStore, hits: Sequence[Hit]) -> list[str]:
    """Return the whole documents of the hits."""
    sources = dict.fromkeys(hit.chunk.source for hit in hits)
    return ["\n".join(page.text for page in store.pages(source)) for source in sources]


def main() -> None:
    """Print a line per question and one JSON object at the end."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path, help="the work folder of retrieval.py")
    arguments.add_argument("--max-tokens", type=int, default=128)
    arguments.add_argument("--json", type=Path)
    chosen = arguments.parse_args()
    engine = Engine.load("smollm2-135m")
    rows: list[dict[str, Any]] = []
    with DocumentStore.open(chosen.folder / "store", default_embedder()) as store:
        for question in QUESTIONS:
            hits = store.search(question["question"], PASSAGES)
            texts = [hit.text for hit in hits]
            messages = quoting_prompt(question["question"], texts)
            answer = engine.generate(messages, references=texts, max_tokens=chosen.max_tokens)
            prompt = prompt_ids(engine.tokenizer, messages)
            kinds = {
                "prompt only": [],
                "passages": texts,
                "passages and neighbours": texts + neighbours(store, hits),
                "passages and documents": texts + parents(store, hits),
            }
            row: dict[str, Any] = {"question": question["question"], "tokens": len(answer.token_ids)}
            for kind, references in kinds.items():
                count, index_s = passes(engine, prompt, answer.token_ids, references)
                row[kind] = {"passes": count, "index_ms": 1000 * index_s}
            assert row["passages"]["passes"] == answer.forward_passes, "the replay counts other passes"
            rows.append(row)
            print(row["tokens"], {kind: row[kind]["passes"] for kind in kinds}, flush=True)
    tokens = sum(row["tokens"] for row in rows)
    results: dict[str, Any] = {"answers": len(rows), "tokens": tokens}
    for kind in kinds:
        count = sum(row[kind]["passes"] for row in rows)
        slowest = max(row[kind]["index_ms"] for row in rows)
        results[kind] = {"passes": count, "tokens_per_pass": tokens / count, "slowest_index_ms": slowest}
    print(json.dumps(results, indent=1))
    if chosen.json:
        chosen.json.write_text(json.dumps({**results, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
