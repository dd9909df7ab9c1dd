"""What to copy: the drafter proposes the ids that followed the best match."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llma_rag.decoding.matching import Cursor, OutputCursor, ReferenceIndex


@dataclass(frozen=True, slots=True)
class DraftConfig:
    """When to copy and how much.

    Attributes:
        match_length: ids that must agree before anything is copied; n in arXiv:2304.04487.
        copy_length: most ids to copy at once; k in arXiv:2304.04487. None fills the verify step.
    """

    match_length: int = 1
    copy_length: int | None = None

    def __post_init__(self) -> None:
        if self.match_length < 1:
            raise ValueError(f"match_length must be at least 1, got {self.match_length}")
        if self.copy_length is not None and self.copy_length < 1:
            raise ValueError(
                f"copy_length must be at least 1, got {self.copy_length}; use draft=False for plain greedy"
            )


class Drafter(Protocol):
    """Proposes the ids that may come next; a wrong proposal costs time, never a token."""

    def extend(self, ids: Iterable[int]) -> None:
        """Take note of ids that were accepted into the output."""

    def propose(self, room: int) -> list[int]:
        """Return at most `room` ids that may follow the output; an empty list is a plain step."""


class NoDrafter:
    """Proposes nothing: plain greedy decoding."""

    def extend(self, ids: Iterable[int]) -> None:
        """Ignore the output."""

    def propose(self, room: int) -> list[int]:
        """Return no draft."""
        return []


class ReferenceDrafter:
    """Copies what followed the longest match of the output in the output, the prompt or a reference.

    On equal lengths the output wins over the prompt and the prompt over the references, which come in
    the order of their rank. Retrieved documents, earlier answers and the conversation so far, the three
    cases of arXiv:2304.04487, are all references.

    Args:
        references: the references' ids, best first; a `ReferenceIndex` is used as it is.
        prompt_ids: ids of the prompt, itself always a reference.
        config: when to copy and how much.
    """

    def __init__(
        self,
        references: Iterable[ReferenceIndex | Sequence[int]],
        prompt_ids: Sequence[int],
        config: DraftConfig | None = None,
    ) -> None:
        self._config = config or DraftConfig()
        sources = [prompt_ids, *references]
        indexes = (ids if isinstance(ids, ReferenceIndex) else ReferenceIndex(ids) for ids in sources)
        self._cursors: list[Cursor] = [OutputCursor(), *(index.cursor() for index in indexes)]

    def extend(self, ids: Iterable[int]) -> None:
        """Follow the output through every source."""
        for token_id in ids:
            for cursor in self._cursors:
                cursor.extend(token_id)

    def propose(self, room: int) -> list[int]:
        """Return what followed the longest match, or nothing where it is too short."""
        best = max((cursor.match for cursor in self._cursors), key=lambda match: match.length)
        if best.length < self._config.match_length:
            return []
        return best.continuation(min(room, self._config.copy_length or room))
