"""What retrieval deals in: documents, their passages (chunks), and files that could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

TextFormat = Literal["text", "markdown"]


@dataclass(frozen=True, slots=True)
class Document:
    """An extracted text with the file it came from; a file with pages gives one document per page.

    Attributes:
        text: the extracted text, into which the ranges of chunks count.
        source: the file.
        page: the page or slide, from 1, where the file has such.
        format: whether the text has Markdown's headings.
    """

    text: str
    source: str
    page: int | None = None
    format: TextFormat = "text"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage: `text` is characters `start` to `end` of a document, or of one page of it.

    Attributes:
        headings: the headings above the passage, outermost first.
        metadata: whatever else is known; anything that JSON can hold.
    """

    text: str
    source: str = ""
    start: int = 0
    end: int = 0
    page: int | None = None
    headings: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Where the passage stands, in words: the file's folder and name, and the headings."""
        return " > ".join(("/".join(Path(self.source).parts[-2:]), *self.headings)).removeprefix(" > ")

    @property
    def embedded_text(self) -> str:
        """What an embedding model reads: the passage below its title."""
        return f"{self.title}\n{self.text}" if self.title else self.text

    @property
    def place(self) -> dict[str, Any]:
        """Where the passage stands, as data, with the metadata beside it."""
        known: dict[str, Any] = {"source": self.source} if self.source else {}
        if self.end > self.start:
            known |= {"start": self.start, "end": self.end}
        if self.page is not None:
            known["page"] = self.page
        if self.headings:
            known["headings"] = list(self.headings)
        return {**self.metadata, **known}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was not read, and why.

    Attributes:
        broken: it should have been readable; otherwise it merely holds nothing to read.
    """

    path: str
    reason: str
    broken: bool = True
