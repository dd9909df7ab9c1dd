"""Longest-suffix matching: where the last ids of the output occurred before.

A suffix automaton holds every substring of a sequence of ids. Feeding it the output id by id keeps
the longest suffix of the output that occurs in the sequence, in amortised constant time per id: no
rescan, no limit on the length of a match. Each state also knows where its substrings ended last,
because on real outputs the most recent occurrence continues the right way most often.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

_ROOT = 0


@dataclass(frozen=True, slots=True)
class Match:
    """A place to copy from: `length` ids of context agree, and `ids[end:]` is what followed them."""

    length: int
    ids: Sequence[int]
    end: int

    def continuation(self, count: int) -> list[int]:
        """Return up to `count` ids that followed the match."""
        return list(self.ids[self.end : self.end + count])


class Cursor(Protocol):
    """Follows the output and knows where its longest suffix occurs in one source."""

    def extend(self, token_id: int) -> None:
        """Follow the output by one id."""

    @property
    def match(self) -> Match:
        """The longest match, at its most recent occurrence; of length 0 where nothing matches."""


class _SuffixAutomaton:
    """Every substring of a growing sequence of ids; state 0 is the empty string.

    Per state: the transitions, the suffix link, the length of its longest substring, and the end of an
    occurrence (the number of ids up to and including it).
    """

    def __init__(self) -> None:
        self.transitions: list[dict[int, int]] = [{}]
        self.link = [-1]
        self.length = [0]
        self.last_end = [0]
        self.whole = _ROOT  # the state of the sequence itself

    def append(self, token_id: int) -> int:
        """Append an id; return the state of the longest suffix that also occurs earlier."""
        added = self._add_state(self.length[self.whole] + 1, {}, self.length[self.whole] + 1)
        state = self.whole
        while state >= 0 and token_id not in self.transitions[state]:
            self.transitions[state][token_id] = added
            state = self.link[state]
        self.link[added] = _ROOT if state < 0 else self._suffix_state(state, token_id)
        self.whole = added
        return self.link[added]

    def step(self, state: int, length: int, token_id: int) -> tuple[int, int]:
        """Move a match of `length` ids at `state` on by one id; return the new state and length."""
        while state != _ROOT and token_id not in self.transitions[state]:
            state = self.link[state]
            length = self.length[state]
        following = self.transitions[state].get(token_id)
        return (_ROOT, 0) if following is None else (following, length + 1)

    def _suffix_state(self, state: int, token_id: int) -> int:
        following = self.transitions[state][token_id]
        if self.length[following] == self.length[state] + 1:
            return following
        clone = self._add_state(
            self.length[state] + 1, dict(self.transitions[following]), self.last_end[following]
        )
        self.link[clone] = self.link[following]
        self.link[following] = clone
        while state >= 0 and self.transitions[state].get(token_id) == following:
            self.transitions[state][token_id] = clone
            state = self.link[state]
        return clone

    def _add_state(self, length: int, transitions: dict[int, int], last_end: int) -> int:
        self.transitions.append(transitions)
        self.link.append(_ROOT)
        self.length.append(length)
        self.last_end.append(last_end)
        return len(self.link) - 1


class ReferenceIndex:
    """An immutable index over the ids of one reference; build it once, share it between requests."""

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids = tuple(ids)
        self._automaton = _SuffixAutomaton()
        for token_id in self.ids[:-1]:  # a match that ends with the last id would have nothing to copy
            self._automaton.append(token_id)
        self._propagate_last_ends()

    def __len__(self) -> int:
        return len(self.ids)

    def cursor(self) -> ReferenceCursor:
        """Return a cursor that follows one output through this reference."""
        return ReferenceCursor(self.ids, self._automaton)

    def _propagate_last_ends(self) -> None:
        automaton = self._automaton
        by_length = sorted(range(1, len(automaton.link)), key=automaton.length.__getitem__, reverse=True)
        for state in by_length:
            link = automaton.link[state]
            if link != _ROOT:
                automaton.last_end[link] = max(automaton.last_end[link], automaton.last_end[state])


class ReferenceCursor:
    """The longest suffix of the output that occurs in one reference."""

    def __init__(self, ids: Sequence[int], automaton: _SuffixAutomaton) -> None:
        self._ids = ids
        self._automaton = automaton
        self._state = _ROOT
        self._length = 0

    def extend(self, token_id: int) -> None:
        """Follow the output by one id."""
        self._state, self._length = self._automaton.step(self._state, self._length, token_id)

    @property
    def match(self) -> Match:
        """The longest match, at its most recent occurrence; of length 0 where nothing matches."""
        return Match(self._length, self._ids, self._automaton.last_end[self._state])


class OutputCursor:
    """The longest suffix of the output that occurs earlier in the output itself.

    Keeping the ends of occurrences recent takes time in the number of suffixes that repeat: few in a text,
    up to the length of the output where it is one id over and over.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._automaton = _SuffixAutomaton()
        self._match = Match(0, self._ids, 0)

    def extend(self, token_id: int) -> None:
        """Append one id to the output."""
        self._ids.append(token_id)
        automaton = self._automaton
        state = automaton.append(token_id)
        self._match = Match(automaton.length[state], self._ids, automaton.last_end[state])
        while state != _ROOT:
            automaton.last_end[state] = len(self._ids)
            state = automaton.link[state]

    @property
    def match(self) -> Match:
        """The longest match, at its most recent earlier occurrence."""
        return self._match


class IndexCache:
    """Indexes of references, kept for the next request that has the same; those not used for longest go first.

    Args:
        most_ids: ids of all indexes together; each takes about 450 bytes.
    """

    def __init__(self, most_ids: int) -> None:
        self._most_ids = most_ids
        self._indexes: OrderedDict[Hashable, ReferenceIndex] = OrderedDict()
        self.ids = 0

    def get(self, key: Hashable, ids: Callable[[], Iterable[int]]) -> ReferenceIndex:
        """Return the index that has this key, made from `ids()` where there is none."""
        index = self._indexes.pop(key, None)
        if index is None:
            index = ReferenceIndex(ids())
            self.ids += len(index)
        self._indexes[key] = index
        while self.ids > self._most_ids and len(self._indexes) > 1:
            _, oldest = self._indexes.popitem(last=False)
            self.ids -= len(oldest)
        return index
