"""The loop: draft, verify in one forward pass, keep the longest agreeing prefix, take one more id for free."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from llma_rag.decoding.drafting import Drafter


class Verifier(Protocol):
    """A language model seen as a greedy predictor over positions."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; a drafted id outside `range(vocab_size)` is never shown to the model."""

    def prefill(self, prompt_ids: Sequence[int]) -> int:
        """Read the prompt and return the id that follows it."""

    @property
    def candidates(self) -> int:
        """Number of drafts that one step checks side by side."""

    def draft_room(self, position: int) -> int:
        """Return how many drafted ids a candidate at `position` may hold."""

    def verify(self, position: int, candidates: Sequence[Sequence[int]]) -> list[list[int]]:
        """Read candidates side by side, each at `position` and after, all with the same first id.

        Return for each candidate the ids that follow each of its ids, or each of its first few.
        """

    def keep(self, candidate: int) -> None:
        """Let the context be what the last step read of this candidate."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward pass added to the output.

    Attributes:
        ids: the accepted ids, at least one; an end-of-sequence id comes last.
        drafted: ids that the model checked, of all drafts together.
        accepted: drafted ids that are in the output.
        draft_s: seconds spent on the proposal.
        verify_s: seconds spent in the model.
    """

    ids: list[int]
    drafted: int
    accepted: int
    draft_s: float
    verify_s: float


def greedy_decode(
    model: Verifier,
    prompt_ids: Sequence[int],
    drafter: Drafter,
    *,
    max_tokens: int,
    eos_ids: Collection[int] = (),
) -> Iterator[Step]:
    """Yield the greedy output step by step; whatever the drafter proposes, the ids are the same.

    Args:
        model: predicts the next id at each position.
        prompt_ids: ids of the prompt, at least one.
        drafter: proposes ids; it is told of every accepted one.
        max_tokens: most ids to produce, at least 1.
        eos_ids: ids that end the output; the first one is its last id.

    Raises:
        ValueError: for an empty prompt or `max_tokens` below 1.
    """
    if not prompt_ids:
        raise ValueError("the prompt must have at least one id, got none")
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    started = time.perf_counter()
    last = model.prefill(prompt_ids)
    drafter.extend([last])
    yield Step([last], 0, 0, draft_s=0.0, verify_s=time.perf_counter() - started)
    produced = 1
    while produced < max_tokens and last not in eos_ids:
        position = len(prompt_ids) + produced - 1  # where `last` stands
        room = min(model.draft_room(position), max_tokens - produced - 1)
        started = time.perf_counter()
        proposals = drafter.propose(room, model.candidates)[: model.candidates]
        drafts = [usable_draft(draft, room, model.vocab_size) for draft in proposals] or [[]]
        proposed = time.perf_counter()
        predicted = model.verify(position, [[last, *draft] for draft in drafts])
        agreed = [agreed_length(*pair) for pair in zip(drafts, predicted, strict=True)]
        best = max(range(len(drafts)), key=agreed.__getitem__)
        model.keep(best)
        verified = time.perf_counter()
        ids = cut_after_eos(predicted[best][: agreed[best] + 1], eos_ids)
        drafter.extend(ids)
        produced += len(ids)
        last = ids[-1]
        yield Step(
            ids, sum(map(len, drafts)), min(agreed[best], len(ids)), proposed - started, verified - proposed
        )


def usable_draft(draft: Sequence[int], room: int, vocab_size: int) -> list[int]:
    """Return the longest prefix of `draft` that fits the step and holds only ids that the model has.

    >>> usable_draft([5, 6, 7, 900, 8], room=4, vocab_size=100)
    [5, 6, 7]
    """
    usable = []
    for token_id in draft[:room]:
        if not 0 <= token_id < vocab_size:
            break
        usable.append(token_id)
    return usable


def agreed_length(draft: Sequence[int], predicted: Sequence[int]) -> int:
    """Return how many drafted ids the model predicted itself, and what follows them.

    >>> agreed_length([4, 5, 6], predicted=[4, 5, 9, 7])
    2
    """
    agreed = 0
    while agreed < min(len(draft), len(predicted) - 1) and draft[agreed] == predicted[agreed]:
        agreed += 1
    return agreed


def cut_after_eos(ids: Sequence[int], eos_ids: Collection[int]) -> list[int]:
    """Return `ids` up to and including the first end-of-sequence id.

    >>> cut_after_eos([7, 2, 8], eos_ids={2})
    [7, 2]
    """
    for index, token_id in enumerate(ids):
        if token_id in eos_ids:
            return list(ids[: index + 1])
    return list(ids)
