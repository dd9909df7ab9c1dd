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


def naive_matches(output: Sequence[int], source: Sequence[int], most_length: int) -> dict[int, int]:
    """Return where the output's last id occurs in `source`: how many ids before each end agree, by end.

    The last id of `source` is no end of a match, for nothing follows it.
    """
    found = {}
    for end in range(1, len(source)):
        length = 0
        while length < min(most_length, end, len(output)) and source[end - 1 - length] == output[-1 - length]:
            length += 1
        if length:
            found[end] = length
    return found
