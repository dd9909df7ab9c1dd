"""`llma-rag ask`: an answer from the documents in a store."""

from __future__ import annotations

from pathlib import Path

from llma_rag.cli.printing import (
    console,
    figures,
    json_output,
    load_engine,
    print_copied_words,
    printable,
    source_line,
)
from llma_rag.errors import StoreError
from llma_rag.prompts import quoting_prompt
from llma_rag.retrieval import DocumentStore, SearchMode, embedder_named


def run_ask(
    question: str,
    store_folder: Path,
    model: str,
    dtype: str,
    width: int | None,
    max_tokens: int,
    passages: int,
    search: SearchMode,
    references: bool,
    json_file: Path | None,
) -> None:
    """Retrieve, answer as a stream, then show where the words came from."""
    with json_output(json_file) as output:
        embedder = embedder_named(DocumentStore.embedding_model(store_folder))
        with DocumentStore.open(store_folder, embedder) as store:
            hits = store.search(question, passages, mode=search)
        if not hits:
            raise StoreError(
                f"the store {store_folder} holds nothing with these words; index documents, or search by meaning"
                if search == "words"
                else f"the store {store_folder} is empty; index some documents first"
            )
        engine = load_engine(model, dtype, width)
        prompt = quoting_prompt(question, [hit.text for hit in hits])
        with engine.stream(prompt, references=hits, max_tokens=max_tokens, draft=references) as stream:
            for piece in stream:
                console.print(printable(piece), end="", soft_wrap=True)
            answer = stream.result
        console.print()
        print_copied_words(answer)
        for number, hit in enumerate(hits, start=1):
            console.print(source_line(number, hit), soft_wrap=True)
        console.print(figures(answer))
        output.update(
            question=question,
            passages=[
                {"text": hit.text, "score": hit.score, "similarity": hit.similarity, **hit.metadata}
                for hit in hits
            ],
            answer=answer.as_data(),
        )
