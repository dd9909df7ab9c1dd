"""Splitting documents into passages that an embedding model reads whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from llma_rag.retrieval.documents import Chunk, Document

CHUNK_TOKENS = 180
OVERLAP_TOKENS = 20


def split_documents(
    documents: Iterable[Document],
    count_tokens: Callable[[str], int],
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    overlap_tokens: int = OVERLAP_TOKENS,
) -> list[Chunk]:
    """Return the documents' passages with their character ranges, in the documents' order.

    Passages follow the structure (Markdown's headings, else paragraphs and sentences) and have at most
    `chunk_tokens` tokens, of which up to `overlap_tokens` are the end of the passage before.
    """
    markdown = MarkdownSplitter.from_callback(count_tokens, chunk_tokens, overlap_tokens)
    plain = TextSplitter.from_callback(count_tokens, chunk_tokens, overlap_tokens)
    chunks = []
    for document in documents:
        splitter = markdown if Path(document.source).suffix.lower() == ".md" else plain
        for start, text in splitter.chunk_indices(document.text):
            chunks.append(Chunk(text, document.source, start, start + len(text)))
    return chunks
