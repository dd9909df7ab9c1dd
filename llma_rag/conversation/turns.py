"""What is remembered of a conversation: questions, answers, and the passages that the answers were given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from llma_rag.retrieval import Hit

Basis = Literal["documents", "model", "refusal"]


@dataclass(frozen=True, slots=True)
class Source:
    """A passage that an answer was given.

    Attributes:
        number: what the conversation calls it, from 1.
        id: the passage's in the store.
        source: the document it stands in, `page` and `headings` where there.
        start: its first character there, `end` the one after its last.
        text: the passage.
        similarity: to the question, -1 to 1.
    """

    number: int
    id: str
    text: str
    source: str
    start: int
    end: int
    page: int | None = None
    headings: tuple[str, ...] = ()
    similarity: float | None = None

    @classmethod
    def of(cls, number: int, hit: Hit) -> Source:
        """Return a retrieved passage under a number."""
        chunk = hit.chunk
        return cls(
            number,
            hit.id,
            chunk.text,
            chunk.source,
            chunk.start,
            chunk.end,
            chunk.page,
            chunk.headings,
            hit.similarity,
        )

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What identifies the passage to a reader."""
        return {name: value for name, value in asdict(self).items() if name != "text" and value is not None}


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: as it was asked.
        query: as it was looked up, standing alone.
        answer: the text.
        basis: `documents`, `model` where none was relevant and the model answered freely, or `refusal`.
        sources: what the answer was given, best first; some may have been shown in an earlier turn.
        spans: copied ranges of the answer as data, with the number of their source.
        figures: tokens, forward passes, seconds.
    """

    question: str
    query: str
    answer: str
    basis: Basis = "documents"
    sources: tuple[Source, ...] = ()
    spans: tuple[Mapping[str, Any], ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the turn as data."""
        return {**asdict(self), "sources": [asdict(source) for source in self.sources]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Turn:
        """Return the turn that `to_json` made data of."""
        sources = tuple(
            Source(**{**source, "headings": tuple(source["headings"])}) for source in data["sources"]
        )
        return cls(**{**data, "sources": sources, "spans": tuple(data["spans"])})


@dataclass(slots=True)
class Conversation:
    """Turns, oldest first.

    Attributes:
        id: the name under which it is kept.
        turns: all of them.
        first_shown: the first turn that prompts still show; the ones before did not fit.
    """

    id: str
    turns: list[Turn] = field(default_factory=list)
    first_shown: int = 0

    @property
    def numbers(self) -> dict[str, int]:
        """What passages are called, by id."""
        return {source.id: source.number for turn in self.turns for source in turn.sources}
