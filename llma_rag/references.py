"""What counts as a reference, whichever framework it comes from, and earlier answers as references.

Nothing here imports a framework: its classes are known by what they have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llma_rag.closing import Closing
from llma_rag.provenance import Reference, ReferenceText
from llma_rag.retrieval import Chunk, DocumentStore, Embedder, as_embedder

DEFAULT_MIN_SIMILARITY = 0.6  # of questions; a reworded one has about 0.7 to 0.9 with all-MiniLM-L6-v2


def as_reference(item: Any) -> Reference:
    """Return a reference for a text, a document or node of a framework, or such a document as a mapping.

    >>> as_reference({"page_content": "At nine.", "metadata": {"source": "a.txt"}}).metadata
    {'source': 'a.txt'}

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(item, str):
        return Reference(item)
    if isinstance(item, Reference):
        return item
    if isinstance(item, Mapping) and isinstance(item.get("page_content"), str):
        return Reference(item["page_content"], dict(item.get("metadata") or {}))
    text = getattr(item, "page_content", None)  # a Document of LangChain
    if isinstance(text, str):
        return Reference(text, dict(item.metadata))
    if hasattr(item, "get_content") and hasattr(
        item, "metadata"
    ):  # a node of LlamaIndex, with a score or without
        return Reference(item.get_content(), dict(item.metadata))
    if isinstance(item, ReferenceText):
        return Reference(item.text, dict(item.metadata))
    raise TypeError(
        "a reference must be a string, a document with `page_content`, a node with `get_content()`, or have `text` "
        f"and `metadata`, got {type(item).__name__}"
    )


def gather(*groups: Iterable[Any] | None) -> list[Reference]:
    """Return the references of all groups, the first group ranking first.

    The first group is kept whole, so that its positions are the ones copied spans speak of; of the others comes what
    is not there yet.

    Raises:
        TypeError: something is no reference.
    """
    found: list[Reference] = []
    known: set[tuple[str, bool]] = set()
    for rank, group in enumerate(groups):
        if isinstance(group, str | Mapping):
            raise TypeError("references must be a list, got a single one; wrap it in a list")
        for item in group or ():
            reference = as_reference(item)
            serves = {(reference.text, False), (reference.text, reference.draft_only)}  # a source drafts, too
            if rank == 0 or (reference.text and not serves & known):
                found.append(reference)
                known.add((reference.text, reference.draft_only))
    return found


class AnswerMemory(Closing):
    """Earlier answers, found again by question, in memory or in one folder on disk.

    An answer to the same or a similar question is a reference for the next one: the cache-assisted case of
    arXiv:2304.04487. It changes no answer; where it fits, the answer comes in fewer passes. It serves drafts only:
    the copied spans of an answer name documents.

    Args:
        embedder: makes the vectors of questions; an `Embedder`, or LangChain's or LlamaIndex's embeddings.
        folder: where to keep the answers; None keeps them in memory. No other process may write there meanwhile.
        min_similarity: of the questions (-1 to 1), below which an answer is not used.
    """

    def __init__(
        self,
        embedder: Embedder | Any,
        folder: str | Path | None = None,
        *,
        min_similarity: float = DEFAULT_MIN_SIMILARITY,
    ) -> None:
        self._min_similarity = min_similarity
        embedder = as_embedder(embedder)
        self._store = (
            DocumentStore(embedder) if folder is None else DocumentStore.open(folder, embedder, write=True)
        )

    def __len__(self) -> int:
        return len(self._store)

    def add(self, question: str, answer: str) -> None:
        """Keep an answer, in place of an earlier one to the same question; empty ones are not kept."""
        if question.strip() and answer.strip():
            name = hashlib.sha256(question.encode()).hexdigest()
            self._store.add([Chunk(question, metadata={"answer": answer})], ids=[name])

    def nearest(self, question: str, k: int = 2) -> list[Reference]:
        """Return the answers to the `k` most similar questions, most similar first."""
        if not question.strip():
            return []
        return [
            Reference(
                hit.metadata["answer"],
                {"earlier_question": hit.text, "similarity": round(hit.similarity, 3)},
                draft_only=True,
            )
            for hit in self._store.search(question, k, mode="vectors")
            if hit.similarity is not None and hit.similarity >= self._min_similarity
        ]

    def close(self) -> None:
        """Close the folder."""
        self._store.close()
