"""The naive twin of this package: obvious, slow, and what the fast one is tested against."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence


def naive_greedy(
    predict_next: Callable[[Sequence[int]], int],
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    eos_ids: Collection[int] = (),
) -> list[int]:
    """Return the greedy output, one prediction from the whole context per id."""
    output: list[int] = []
    while len(output) < max_tokens:
        output.append(predict_next([*prompt_ids, *output]))
        if output[-1] in eos_ids:
            break
    return output


def naive_longest_match(output: Sequence[int], source: Sequence[int]) -> tuple[int, int]:
    """Return length and end of the longest suffix of `output` in `source`, most recent occurrence.

    The last id of `source` is no end of a match, for nothing follows it; (0, 0) where nothing matches.
    """
    for length in range(min(len(output), len(source) - 1), 0, -1):
        suffix = list(output[-length:])
        for end in range(len(source) - 1, length - 1, -1):
            if list(source[end - length : end]) == suffix:
                return length, end
    return 0, 0
