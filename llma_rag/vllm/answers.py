"""Answers lately given: traffic repeats itself, so what was answered before is worth copying from.

Only where the server is told to remember: how fast one client's text comes would tell of another's.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable

from llma_rag.decoding import NgramIndex
from llma_rag.vllm.xargs import SEPARATOR

SETTING = "LLMA_RAG_REMEMBERED_IDS"
_MOST = 5_000_000  # each takes about 210 bytes


class RecentAnswers:
    """The last ids of answers that have ended: at most `most_ids`, and at least half of that many once there were.

    There are two indexes, filled in turns: the one whose turn it is begins empty. So drafters may hold both for good.

    Args:
        most_ids: 0 remembers nothing.
    """

    def __init__(self, most_ids: int) -> None:
        self._most_each = most_ids // 2
        self._waiting: deque[int] = deque(maxlen=self._most_each)
        self.indexes = (NgramIndex(), NgramIndex())
        self._turn = 0

    def __len__(self) -> int:
        return sum(map(len, self.indexes))

    def add(self, answer: Iterable[int]) -> None:
        """Take note of an answer; it is found once it is indexed."""
        self._waiting.extend((SEPARATOR, *answer))

    def index(self, room: int) -> int:
        """Index up to `room` ids of those that wait; return how many it were."""
        count = min(room, len(self._waiting))
        for _ in range(count):
            if len(self.indexes[self._turn]) == self._most_each:
                self._turn = 1 - self._turn
                self.indexes[self._turn].clear()
            self.indexes[self._turn].append(self._waiting.popleft())
        return count


def remembered_ids() -> int:
    """Return how many ids of answers are to be remembered: the environment's LLMA_RAG_REMEMBERED_IDS, 0 if not set.

    Raises:
        ValueError: it is no number in range.
    """
    told = os.environ.get(SETTING, "0")
    if not told.isdecimal() or int(told) > _MOST:
        raise ValueError(
            f"{SETTING} must be a number from 0 (nothing is remembered) to {_MOST}, got {told!r}"
        )
    return int(told)
