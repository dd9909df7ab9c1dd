"""`llma-rag demo`: questions over the packaged documents, with and without references."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import typer

from llma_rag.cli.printing import (
    console,
    figures,
    highlighted,
    json_output,
    load_engine,
    source_line,
    status_console,
    table,
)
from llma_rag.engine import Engine
from llma_rag.generation import Generation
from llma_rag.prompts import quoting_prompt
from llma_rag.retrieval import (
    DocumentStore,
    Hit,
    StoredDocument,
    default_embedder,
    read_documents,
    split_documents,
)

_PASSAGES = 2


@dataclass(frozen=True, slots=True)
class _Answered:
    question: str
    expected: str
    hits: list[Hit]
    drafted: Generation
    plain: Generation

    @property
    def identical(self) -> bool:
        return self.drafted.token_ids == self.plain.token_ids

    @property
    def as_expected(self) -> bool:
        return self.expected in self.drafted.text


def run_demo(model: str, dtype: str, width: int | None, max_tokens: int, json_file: Path | None) -> None:
    """Index, ask, show; exit with code 1 if references changed an answer."""
    with json_output(json_file) as output:
        store = packaged_store()
        engine = load_engine(model, dtype, width)
        engine.generate("Warming up.", max_tokens=2)
        answered = []
        for number, question in enumerate(_questions(), start=1):
            one = _answer(engine, store, question["question"], question["expected"], max_tokens)
            _print_answer(number, one)
            answered.append(one)
        _print_table(answered)
        output.update(
            model=engine.name,
            dtype=str(engine.runner.dtype).removeprefix("torch."),
            width=engine.runner.width,
            questions=[_as_data(one) for one in answered],
        )
    if not all(one.identical for one in answered):
        raise typer.Exit(1)


def _questions() -> list[dict[str, str]]:
    questions: list[dict[str, str]] = json.loads(
        files("llma_rag").joinpath("demo/questions.json").read_text(encoding="utf-8")
    )
    return questions


def packaged_store() -> DocumentStore:
    """Return the packaged documents, in memory."""
    with as_file(files("llma_rag").joinpath("demo/documents")) as folder:
        documents = [replace(one, source=Path(one.source).name) for one in read_documents([folder])]
    embedder = default_embedder()
    store = DocumentStore(embedder)
    with status_console.status("Embedding the packaged documents"):
        for document in documents:
            chunks = split_documents([document], embedder.count_tokens)
            stored = StoredDocument(document.source, "packaged", len(chunks))
            store.put_document(
                stored, [document], chunks, embedder.embed([one.embedded_text for one in chunks])
            )
    console.print(f"{len(documents)} documents, {len(store)} passages indexed")
    return store


def _answer(engine: Engine, store: DocumentStore, question: str, expected: str, max_tokens: int) -> _Answered:
    hits = store.search(question, _PASSAGES)
    prompt = quoting_prompt(question, [hit.text for hit in hits])
    drafted, plain = (
        engine.generate(prompt, references=hits, max_tokens=max_tokens, draft=draft, reuse_prefix=False)
        for draft in (True, False)
    )
    return _Answered(question, expected, hits, drafted, plain)


def _print_answer(number: int, one: _Answered) -> None:
    console.rule()
    console.print(f"{number}. {one.question}", style="bold")
    console.print(highlighted(one.drafted.text, one.drafted.copied_spans))
    for rank, hit in enumerate(one.hits, start=1):
        console.print(source_line(rank, hit))
    console.print(figures(one.drafted), style="dim")


def _print_table(answered: list[_Answered]) -> None:
    made = table("", "tokens", "passes", "copied", "s", "plain s", "faster", "same", "expected")
    for number, one in enumerate(answered, start=1):
        seconds, plain_seconds = one.drafted.timings.decode_s, one.plain.timings.decode_s
        made.add_row(
            str(number),
            str(one.drafted.completion_tokens),
            str(one.drafted.forward_passes),
            f"{one.drafted.copied_coverage:.0%}",
            f"{seconds:.2f}",
            f"{plain_seconds:.2f}",
            f"{plain_seconds / seconds:.1f}×",
            "yes" if one.identical else "NO",
            "yes" if one.as_expected else "no",
        )
    console.rule()
    console.print(made)
    drafted = sum(one.drafted.timings.decode_s for one in answered)
    plain = sum(one.plain.timings.decode_s for one in answered)
    console.print(
        f"{sum(one.identical for one in answered)} of {len(answered)} answers identical with and without "
        f"references, {sum(one.as_expected for one in answered)} as expected; decoding {plain / drafted:.1f}× "
        f"faster ({plain:.1f} s, one pass per token, to {drafted:.1f} s)"
    )


def _as_data(one: _Answered) -> dict[str, Any]:
    return {
        "question": one.question,
        "expected": one.expected,
        "as_expected": one.as_expected,
        "identical": one.identical,
        "passages": [{"text": hit.text, "score": hit.score, **hit.metadata} for hit in one.hits],
        "references": one.drafted.as_data(),
        "greedy": one.plain.as_data(),
    }
