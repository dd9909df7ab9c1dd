"""Joining and reordering ranked results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from llma_rag.retrieval.embedding import Vectors

RANK_OFFSET = 60  # k in Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion", SIGIR 2009


def reciprocal_rank_fusion(rankings: Iterable[Sequence[int]]) -> dict[int, float]:
    """Return each item's sum of 1 / (60 + rank) over the rankings, best first; ties keep their order.

    >>> list(reciprocal_rank_fusion([[7, 8, 9], [8, 7], [8]]))
    [8, 7, 9]
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1 / (RANK_OFFSET + rank)
    return dict(sorted(scores.items(), key=lambda scored: -scored[1]))


def maximal_marginal_relevance(
    query: Vectors, candidates: Vectors, k: int, relevance_share: float
) -> list[int]:
    """Return the rows of up to `k` candidates, each chosen for relevance and for difference from those before.

    Args:
        query: a unit vector, (dimension,).
        candidates: unit vectors, (candidates, dimension).
        k: most rows.
        relevance_share: λ in Carbonell and Goldstein, SIGIR 1998: 1 is relevance alone, 0 difference alone.
    """
    relevance = candidates @ query  # (candidates,)
    closest_chosen = np.zeros(len(candidates), np.float32)
    chosen: list[int] = []
    while len(chosen) < min(k, len(candidates)):
        value = relevance_share * relevance - (1 - relevance_share) * closest_chosen
        value[chosen] = -np.inf
        best = int(np.argmax(value))
        similarity = candidates @ candidates[best]
        closest_chosen = similarity if not chosen else np.maximum(closest_chosen, similarity)
        chosen.append(best)
    return chosen
