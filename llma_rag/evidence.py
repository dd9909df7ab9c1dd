"""What adapters report of an answer, as data that JSON can hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llma_rag.generation import Generation
from llma_rag.provenance import CopiedSpan

_OF_ONE_CALL = (
    "forward_passes",
    "tokens_per_pass",
    "drafted_tokens",
    "accepted_tokens",
    "prefill_s",
    "decode_s",
    "queued_s",
    "cached_tokens",
    "reference_tokens",
    "copied_spans",
)


def evidence(
    answer: Generation, spans: Sequence[CopiedSpan], *, model: str, finish_reason: str
) -> dict[str, Any]:
    """Return how an answer came about and what of it was copied.

    Args:
        answer: what the engine has made.
        spans: of the part that the user sees.
        model: its name.
        finish_reason: why the answer ended.
    """
    return {
        "finish_reason": finish_reason,
        "model_name": model,
        "model_provider": "llma_rag",
        **figures(answer),
        "copied_spans": spans_as_data(spans),
    }


def figures(answer: Generation) -> dict[str, Any]:
    """Return what an answer took."""
    timings = answer.timings
    return {
        "forward_passes": answer.forward_passes,
        "tokens_per_pass": round(answer.tokens_per_pass, 3),
        "drafted_tokens": answer.drafted,
        "accepted_tokens": answer.accepted,
        "prefill_s": round(timings.prefill_s, 4),
        "decode_s": round(timings.decode_s, 4),
        "queued_s": round(timings.queued_s, 4),
        "cached_tokens": answer.cached_tokens,
        "reference_tokens": answer.reference_tokens,
        "width": answer.verdict.width,
        "candidates": answer.verdict.candidates,
        "exact": answer.verdict.exact,
    }


def numbered_spans(
    spans: Iterable[CopiedSpan], numbers: Sequence[int], offset: int = 0
) -> list[dict[str, int]]:
    """Return copied spans as data, with the number by which the reader knows each source.

    Args:
        spans: in the text.
        numbers: by place of the reference.
        offset: of the text in what the reader sees.
    """
    return [
        {
            "start": span.start + offset,
            "end": span.end + offset,
            "number": numbers[span.reference_index],
            "source_start": span.reference_start,
            "source_end": span.reference_end,
        }
        for span in spans
    ]


def spans_as_data(spans: Sequence[CopiedSpan]) -> list[dict[str, Any]]:
    """Return copied spans as plain data; metadata that JSON does not know become text."""
    data = [
        {name: getattr(span, name) for name in CopiedSpan.__slots__} | {"metadata": dict(span.metadata)}
        for span in spans
    ]
    plain: list[dict[str, Any]] = json.loads(json.dumps(data, default=str))
    return plain


def without_evidence(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return `evidence` without what only holds for the call that decoded the answer."""
    return {name: value for name, value in metadata.items() if name not in _OF_ONE_CALL}
