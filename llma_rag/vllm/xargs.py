"""References on their way through a request's `vllm_xargs`, which hold numbers, strings and lists of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

REFERENCES = "llma_rag_references"  # ids of all references one after another
SEPARATOR = -1  # between two of them
DRAFT = "llma_rag_draft"  # 0: the answer is decoded without drafts
MOST_IDS = 100_000  # of one request's references; what is beyond is not searched


def as_xargs(references: Iterable[Sequence[int]], *, draft: bool = True) -> dict[str, Any]:
    """Return the `vllm_xargs` of a request with these references, best first."""
    xargs: dict[str, Any] = {} if draft else {DRAFT: 0}
    ids = list(chain.from_iterable([SEPARATOR, *reference] for reference in references if reference))[1:]
    return {**xargs, REFERENCES: ids[:MOST_IDS]} if ids else xargs


class UnusableReferencesError(ValueError):
    """A client has sent what are no references."""


def reference_ids_of(xargs: Mapping[str, Any], vocabulary_size: int) -> list[int]:
    """Return the ids of a request's references with separators between them, as many as are searched.

    Raises:
        UnusableReferencesError: they are no list of ids of the vocabulary.
    """
    sent = xargs.get(REFERENCES, [])
    if not isinstance(sent, list):
        raise UnusableReferencesError(f"{REFERENCES} must be a list of ids, got {type(sent).__name__}")
    ids = sent[:MOST_IDS]
    for token_id in ids:
        if type(token_id) is not int:
            raise UnusableReferencesError(f"{REFERENCES} must hold ids, got {type(token_id).__name__}")
        if not SEPARATOR <= token_id < vocabulary_size:
            raise UnusableReferencesError(f"{REFERENCES} hold an id outside the model's vocabulary")
    return ids


def drafts_wanted(xargs: Mapping[str, Any]) -> bool:
    """Return whether a request is to be decoded with drafts."""
    return xargs.get(DRAFT, 1) not in (0, "0", "false")
