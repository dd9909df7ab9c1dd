"""Where the last ids of the output occurred before: hash chains over n-grams, as in LZ77.

For n-grams of a few sizes an index knows where each occurred last, and for each occurrence where the one before
was. Following a chain gives the most recent places first, and following that of the longest n-gram first gives
the longest matches among many. Appending an id is a few dictionary entries, so an index grows with the output.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

MOST_LENGTH = 8  # ids of context that are compared; a longer match tells no more about what follows
_SIZES = (4, 2, 1)  # n-grams that have chains, longest first
_ALIKE = 0  # in place of a size: one id, up to its likeness to others
_MOST_VISITED = 256  # places of one chain that are looked at
_MOST_COMPARED = 16  # places where a whole reference is looked for


class Match(NamedTuple):
    """A place to copy from: `length` ids before `end` agree with the output, and `ids[end:]` followed them."""

    length: int
    ids: Sequence[int]
    end: int

    def continuation(self, count: int) -> list[int]:
        """Return up to `count` ids that followed."""
        return list(self.ids[self.end : self.end + count])


class NgramIndex:
    """A growing sequence of ids in which n-grams are found; one that no longer grows may be shared.

    Args:
        ids: to begin with.
        alike: for each id the one that stands for all ids like it; None where no two ids are alike.
    """

    def __init__(self, ids: Iterable[int] = (), alike: Sequence[int] | None = None) -> None:
        self.ids: list[int] = []
        self._alike = alike
        self._sizes = _SIZES if alike is None else (*_SIZES, _ALIKE)
        self.latest: dict[int, int] = {}  # by n-gram: the end of its most recent occurrence
        self._earlier = {
            size: array("q") for size in self._sizes
        }  # by end - 1: the end of the one before, or 0
        for token_id in ids:
            self.append(token_id)

    def __len__(self) -> int:
        return len(self.ids)

    def append(self, token_id: int) -> None:
        """Append an id."""
        self.ids.append(token_id)
        end = len(self.ids)
        for size in self._sizes:
            key = self._key(self.ids, size) if size <= end else None
            self._earlier[size].append(0 if key is None else self.latest.get(key, 0))
            if key is not None:
                self.latest[key] = end

    def clear(self) -> None:
        """Forget all ids."""
        self.ids.clear()
        self.latest.clear()
        for earlier in self._earlier.values():
            del earlier[:]

    def matches(self, output: Sequence[int], size: int, most_visited: int = _MOST_VISITED) -> Iterator[Match]:
        """Yield where the output's last `size` ids occurred, most recent first; their lengths count further ids."""
        end = self.latest.get(self._key(output, size), 0)
        for _ in range(most_visited):
            if not end:
                return
            if end < len(self.ids):
                length = self._agreement(output, end)
                if length >= size:  # else another n-gram has the same hash
                    yield Match(length, self.ids, end)
            end = self._earlier[size][end - 1]

    def matches_alike(self, output: Sequence[int]) -> Iterator[Match]:
        """Yield where an id like the output's last occurred, most recent first; their lengths are 0."""
        if self._alike is not None:
            for match in self.matches(output, _ALIKE):
                yield match._replace(length=0)

    def holds(self, ids: Sequence[int]) -> bool:
        """Return whether ids occur here one after another; only the most recent places are looked at."""
        size = next((size for size in _SIZES if size <= len(ids)), None)
        if size is None or len(ids) > len(self.ids):
            return False
        wanted = list(ids)
        begins = (match.end - size for match in self.matches(ids[:size], size, _MOST_COMPARED))
        return any(self.ids[begin : begin + len(wanted)] == wanted for begin in begins)

    def _agreement(self, output: Sequence[int], end: int) -> int:
        """Return how many ids before `end` are the output's last, at most MOST_LENGTH."""
        ids, most = self.ids, min(MOST_LENGTH, end, len(output))
        length = 0
        while length < most and ids[end - 1 - length] == output[-1 - length]:
            length += 1
        return length

    def _key(self, ids: Sequence[int], size: int) -> int:
        if size != _ALIKE:
            return _ngram(ids, size)
        alike, last = self._alike, ids[-1]
        assert alike is not None
        return hash((alike[last] if 0 <= last < len(alike) else last, "alike"))


def matches(
    indexes: Sequence[NgramIndex], output: Sequence[int], most: int, least_length: int = 1
) -> list[Match]:
    """Return up to `most` places where at least `least_length` of the output's last ids occurred.

    Those where four agree come first, then two, then one; among them the first index's, most recent first.
    """
    found: dict[tuple[int, int], Match] = {}
    for size in _SIZES:
        if size <= len(output):
            ngram = _ngram(output, size)
            having = [(number, index) for number, index in enumerate(indexes) if ngram in index.latest]
            for number, index in having:
                for match in index.matches(output, size):
                    if match.length >= least_length:
                        found.setdefault((number, match.end), match)
                    if len(found) == most:
                        return list(found.values())
        if size <= least_length:  # the shorter n-grams' places have been visited, or are too short
            break
    return list(found.values())


def _ngram(ids: Sequence[int], size: int) -> int:
    return hash(ids[-1]) if size == 1 else hash(tuple(ids[-size:]))


class IndexCache:
    """Indexes of references, kept for the next request that has the same; those not used for longest go first.

    Args:
        most_ids: ids of all indexes together; each takes about 210 bytes.
        alike: see `NgramIndex`.
    """

    def __init__(self, most_ids: int, alike: Sequence[int] | None = None) -> None:
        self._most_ids = most_ids
        self._alike = alike
        self._indexes: OrderedDict[Hashable, NgramIndex] = OrderedDict()
        self.ids = 0

    def get(self, key: Hashable, ids: Callable[[], Iterable[int]]) -> NgramIndex:
        """Return the index that has this key, made from `ids()` where there is none."""
        index = self._indexes.pop(key, None)
        if index is None:
            index = NgramIndex(ids(), self._alike)
            self.ids += len(index)
        self._indexes[key] = index
        while self.ids > self._most_ids and len(self._indexes) > 1:
            _, oldest = self._indexes.popitem(last=False)
            self.ids -= len(oldest)
        return index
