"""A model without weights: the next id is a fixed function of the whole context, kept in slots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice


class ScriptedModel:
    """A `Verifier` with a KV memory of its own: what was written at a slot is what later rows see.

    Its texts are repetitive, so that matches happen, and a changed or misplaced id changes what follows.
    """

    def __init__(
        self,
        vocab_size: int = 7,
        width: int = 4,
        context_length: int = 10_000,
        seed: int = 0,
        candidates: int = 1,
    ) -> None:
        self.vocab_size = vocab_size
        self.width = width
        self.context_length = context_length
        self.seed = seed
        self.candidates = candidates
        self.written: list[list[int]] = []  # the slots of each candidate of the last step
        self.slots: list[int] = []
        self.passes = 0

    def next_id(self, context: Sequence[int]) -> int:
        """Return the id that follows a context: mostly copied from earlier, sometimes mixed anew."""
        mixed = (
            sum((place % 5 + 1) * token_id for place, token_id in enumerate(context)) + self.seed
        ) * 2654435761
        if len(context) > 6 and mixed % 3:
            return context[len(context) - 5]
        return (mixed >> 7) % self.vocab_size

    def prefill(self, prompt_ids: Sequence[int]) -> int:
        self.slots = list(prompt_ids)
        self.passes += 1
        return self.next_id(self.slots)

    def draft_room(self, position: int) -> int:
        return min(self.width, self.context_length - position) - 1

    def verify(self, position: int, candidates: Sequence[Sequence[int]]) -> list[list[int]]:
        assert 1 <= len(candidates) <= self.candidates
        assert len({ids[0] for ids in candidates}) == 1
        self.passes += 1
        self.written = [self.written_by(position, ids) for ids in candidates]
        return [
            [self.next_id(slots[: position + row + 1]) for row in range(len(ids))]
            for slots, ids in zip(self.written, candidates, strict=True)
        ]

    def written_by(self, position: int, ids: Sequence[int]) -> list[int]:
        assert 1 <= len(ids) <= self.width
        assert all(0 <= token_id < self.vocab_size for token_id in ids)
        slots = list(self.slots)
        slots[position : position + len(ids)] = ids
        return slots

    def keep(self, candidate: int) -> None:
        self.slots = self.written[candidate]


class ScriptedDrafter:
    """Proposes given drafts, so many a step, whatever the room."""

    def __init__(self, drafts: Iterable[Sequence[int]]) -> None:
        self._drafts = iter(drafts)

    def extend(self, ids: Iterable[int]) -> None:
        pass

    def propose(self, room: int, count: int = 1) -> list[list[int]]:
        return [list(draft) for draft in islice(self._drafts, count)]


class OracleDrafter:
    """Proposes the true continuation, spoilt from some place on where `spoil` says so."""

    def __init__(self, output: Sequence[int], spoil: Iterable[int | None], vocab_size: int) -> None:
        self._output = output
        self._spoil = iter(spoil)
        self._vocab_size = vocab_size
        self._done = 0

    def extend(self, ids: Iterable[int]) -> None:
        self._done += len(list(ids))

    def propose(self, room: int, count: int = 1) -> list[list[int]]:
        draft = list(self._output[self._done : self._done + room])
        spoilt_at = next(self._spoil, None)
        if spoilt_at is not None and spoilt_at < len(draft):
            draft[spoilt_at:] = [(token_id + 1) % self._vocab_size for token_id in draft[spoilt_at:]]
        return [*[[7] * room] * (self._done % count), draft]  # at any place among the candidates
