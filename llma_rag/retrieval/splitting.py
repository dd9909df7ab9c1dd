"""Splitting documents into passages that an embedding model reads whole."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markdown_it import MarkdownIt
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
    """Return the documents' passages with page, headings and character range, in the documents' order.

    Passages follow the structure (Markdown's headings, else paragraphs and sentences) and have at most
    `chunk_tokens` tokens, of which up to `overlap_tokens` are the end of the passage before.
    """
    markdown = MarkdownSplitter.from_callback(count_tokens, chunk_tokens, overlap_tokens)
    plain = TextSplitter.from_callback(count_tokens, chunk_tokens, overlap_tokens)
    chunks = []
    for document in documents:
        splitter = markdown if document.format == "markdown" else plain
        outline = _outline(document.text) if document.format == "markdown" else ()
        starts = [heading.start for heading in outline]
        for start, text in splitter.chunk_indices(document.text):
            headings = _headings_above(outline[: bisect_right(starts, start)])
            chunks.append(Chunk(text, document.source, start, start + len(text), document.page, headings))
    return chunks


@dataclass(frozen=True, slots=True)
class _Heading:
    start: int  # character
    level: int
    text: str


_LINE_START = re.compile(r"\r\n|\n|\r")


def _outline(text: str) -> Sequence[_Heading]:
    """Return the headings of a Markdown text in their order."""
    tokens = MarkdownIt("commonmark").parse(text)
    line_starts = [0, *(end.end() for end in _LINE_START.finditer(text))]
    return [
        _Heading(line_starts[token.map[0]], int(token.tag[1:]), tokens[position + 1].content)
        for position, token in enumerate(tokens)
        if token.type == "heading_open" and token.map and token.level == 0
    ]


def _headings_above(before: Sequence[_Heading]) -> tuple[str, ...]:
    path: list[_Heading] = []
    for heading in reversed(before):
        if not path or heading.level < path[-1].level:
            path.append(heading)
    return tuple(heading.text for heading in reversed(path) if heading.text)
