"""Which characters of an output were copied from which characters of which reference.

Found from the texts alone, so the answer does not depend on how the output was decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

MIN_COPIED = 20  # characters


@runtime_checkable
class ReferenceText(Protocol):
    """Anything with a text and metadata can be a reference; so can a plain string."""

    @property
    def text(self) -> str:
        """The text that may be copied."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What identifies the text to a reader: its file, page, title."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A text to copy from, with what identifies it.

    Attributes:
        text: may be copied.
        metadata: what identifies the text to a reader.
        draft_only: it is no source of what the answer says, such as an earlier answer: no copied span names it.
    """

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    draft_only: bool = False


@dataclass(frozen=True, slots=True)
class CopiedSpan:
    """`output[start:end]` equals `references[reference_index].text[reference_start:reference_end]`.

    All ranges count characters. `metadata` is the reference's.
    """

    start: int
    end: int
    reference_index: int
    reference_start: int
    reference_end: int
    metadata: Mapping[str, Any] = field(default_factory=dict)


def as_references(references: Iterable[str | ReferenceText]) -> list[Reference]:
    """Return references as texts with metadata, in their order, which is their rank.

    Raises:
        TypeError: one is neither a string nor has `text` and `metadata`.
    """
    if isinstance(references, str):
        raise TypeError("references must be a list of texts, got one string; wrap it in a list")
    return [_as_reference(reference) for reference in references]


def _as_reference(reference: str | ReferenceText) -> Reference:
    if isinstance(reference, str):
        return Reference(reference)
    if isinstance(reference, Reference):
        return reference
    if isinstance(reference, ReferenceText):
        return Reference(reference.text, dict(reference.metadata))
    raise TypeError(
        f"a reference must be a string or have `text` and `metadata`, got {type(reference).__name__}"
    )


def copied_spans(output: str, references: Sequence[Reference], minimum: int = MIN_COPIED) -> list[CopiedSpan]:
    """Return the maximal ranges of `output`, at least `minimum` characters long, that occur in a reference.

    Maximal: no longer range around it occurs in any reference. Where several references hold the same
    range, the first one in rank is named, at its first occurrence. Ranges are in order and may overlap
    where one copy runs into the next. References that are `draft_only` do not count.
    """
    candidates = sorted(
        (start, -end, rank, position)
        for rank, reference in enumerate(references)
        if not reference.draft_only
        for start, end, position in _maximal_ranges(output, reference.text, minimum)
    )
    spans: list[CopiedSpan] = []
    for start, negative_end, rank, position in candidates:
        end = -negative_end
        if not spans or end > spans[-1].end:
            metadata = references[rank].metadata
            spans.append(CopiedSpan(start, end, rank, position, position + end - start, metadata))
    return spans


class GrowingSpans:
    """The copied spans of an output that grows: after every piece the same as `copied_spans` of all of it.

    Only the last span can still grow, and new ones begin behind its beginning; so that is how far the search goes back.
    """

    def __init__(self, references: Sequence[Reference], minimum: int = MIN_COPIED) -> None:
        self._references = references
        self._minimum = minimum
        self._tail = ""  # of the output, from where spans may still grow or begin
        self._tail_start = 0
        self._reached = 0  # the end of the last span that is final
        self._growing: CopiedSpan | None = None

    def extend(self, text: str) -> list[CopiedSpan]:
        """Append text to the output; return the spans that are new, or longer than before, with the same `start`."""
        self._tail += text
        found = [
            replace(span, start=span.start + self._tail_start, end=span.end + self._tail_start)
            for span in copied_spans(self._tail, self._references, self._minimum)
            if span.end + self._tail_start > self._reached
        ]
        changed = [span for span in found if span != self._growing]
        length = self._tail_start + len(self._tail)
        self._growing = found.pop() if found and found[-1].end == length else None
        if found:
            self._reached = found[-1].end
        begin = self._growing.start if self._growing else max(self._tail_start, length - self._minimum + 1)
        self._tail = self._tail[begin - self._tail_start :]
        self._tail_start = begin
        return changed


def coverage(spans: Iterable[CopiedSpan], length: int) -> float:
    """Return the share (0 to 1) of an output of `length` characters that lies in a span."""
    covered, reached = 0, 0
    for span in sorted(spans, key=lambda span: span.start):
        covered += max(0, span.end - max(reached, span.start))
        reached = max(reached, span.end)
    return covered / length if length else 0.0


def _maximal_ranges(output: str, text: str, minimum: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, position) of the ranges of `output` that occur in `text` and cannot grow.

    A window slides over the output: where it occurs it grows to the right as far as some occurrence
    allows, then the search goes on one character later with a window that ends one character later.
    Blocks of half a window that occur nowhere let it jump.
    """
    start, end = 0, minimum
    half = (minimum + 1) // 2
    while end <= len(output):
        block = -(-start // half) * half  # every window holds the first block at a multiple of `half`
        if output[block : block + half] not in text:
            start = block + 1
            end = max(end, start + minimum)
            continue
        position = text.find(output[start:end])
        if position < 0:
            start += 1
            end = max(end, start + minimum)
            continue
        while True:
            while (
                end < len(output)
                and position + end - start < len(text)
                and output[end] == text[position + end - start]
            ):
                end += 1
            longer = text.find(output[start : end + 1]) if end < len(output) else -1
            if longer < 0:
                break
            position = longer
            end += 1
        yield start, end, position
        start += 1
        end += 1
