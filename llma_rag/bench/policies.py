"""Other people's ways to draft, re-implemented to be measured beside ours; none of them is used by the product.

All of them look at the same ids: the references one after another, then the prompt and the output so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from llma_rag.decoding import Drafter


class _Search:
    """Occurrences of ids in growing ids, found as substrings of a text with one character per id."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._text = ""

    def extend(self, ids: Iterable[int]) -> None:
        ids = list(ids)
        self.ids += ids
        self._text += "".join(map(_character, ids))

    def first(self, wanted: Sequence[int], before: int) -> int:
        """Return the end of the first occurrence that ends before a place; -1 where there is none."""
        start = self._text.find("".join(map(_character, wanted)), 0, before)
        return -1 if start < 0 else start + len(wanted)


def _character(token_id: int) -> str:
    return chr(token_id if token_id < 0xD800 else token_id + 0x800)  # surrogates are no characters


class LlmaReleased:
    """The policy of LLMA's released code: the last 5 to 1 output ids, first match in the references, 19 copied.

    Source: microsoft/LMOps, `llma/src/decoding.py` (MIT).
    """

    def __init__(self, references: Sequence[Sequence[int]], prompt_ids: Sequence[int]) -> None:
        self._references = []
        for ids in references:
            search = _Search()
            search.extend(ids)
            self._references.append(search)
        self._output: list[int] = []

    def extend(self, ids: Iterable[int]) -> None:
        """Take note of the output."""
        self._output += ids

    def propose(self, room: int, count: int = 1) -> list[list[int]]:
        """Return what followed the first match of the longest of the last 5 to 1 ids."""
        for length in range(min(5, len(self._output)), 0, -1):
            for search in self._references:
                end = search.first(self._output[-length:], len(search.ids))
                if 0 <= end < len(search.ids):
                    return [search.ids[end : end + min(19, room)]]
        return []


class PromptLookup:
    """Prompt lookup as in transformers: the last 2, then 1 ids of all, leftmost match before them, 10 copied.

    Source: `PromptLookupCandidateGenerator` of transformers 5.24 (Apache-2.0).
    """

    def __init__(self, references: Sequence[Sequence[int]], prompt_ids: Sequence[int]) -> None:
        self._all = _Search()
        for ids in references:
            self._all.extend(ids)
        self._all.extend(prompt_ids)
        self._produced = 0

    def extend(self, ids: Iterable[int]) -> None:
        """Take note of the output."""
        ids = list(ids)
        self._produced += len(ids)
        self._all.extend(ids)

    def propose(self, room: int, count: int = 1) -> list[list[int]]:
        """Return what followed the leftmost match."""
        known = self._all.ids
        for length in (2, 1):
            if len(known) <= length:
                continue
            end = self._all.first(known[-length:], len(known) - 1)
            if end > 0:
                return [known[end : end + min(10, room)]]
        return []


class LongestMatch:
    """The longest match in references, prompt and output; on equal lengths the earliest."""

    def __init__(self, references: Sequence[Sequence[int]], prompt_ids: Sequence[int]) -> None:
        self._sources = []
        for ids in (*references, prompt_ids):
            search = _Search()
            search.extend(ids)
            self._sources.append(search)
        self._own = _Search()
        self._sources.append(self._own)
        self._length = 0  # of the last match; one id longer is the most that the next can be

    def extend(self, ids: Iterable[int]) -> None:
        """Take note of the output."""
        ids = list(ids)
        self._own.extend(ids)
        self._length += len(ids)

    def propose(self, room: int, count: int = 1) -> list[list[int]]:
        """Return what followed the longest match."""
        output = self._own.ids
        for length in range(min(len(output), self._length), 0, -1):
            for search in self._sources:
                end = search.first(output[-length:], len(search.ids) - (search is self._own))
                if 0 <= end < len(search.ids):
                    self._length = length
                    return [search.ids[end : end + room]]
        self._length = 0
        return []


MakeDrafter = Callable[[Sequence[Sequence[int]], Sequence[int]], Drafter]  # from references and prompt

POLICIES: dict[str, MakeDrafter] = {
    "llma_released": LlmaReleased,
    "prompt_lookup": PromptLookup,
    "longest_match": LongestMatch,
}
