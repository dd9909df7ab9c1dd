"""What an answer is: its text and the evidence of how it came about."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from llma_rag.models.probe import Verdict
from llma_rag.provenance import CopiedSpan, coverage

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds by phase.

    Attributes:
        queued_s: waiting for the model's worker.
        prefill_s: reading the prompt up to the first token, indexing the references included.
        decode_s: from the first token to the last.
        draft_s: the part of decode_s that proposed drafts.
        verify_s: the part of decode_s that the model took.
    """

    queued_s: float
    prefill_s: float
    decode_s: float
    draft_s: float
    verify_s: float

    @property
    def total_s(self) -> float:
        """Seconds of work on the request, waiting excluded."""
        return self.prefill_s + self.decode_s


@dataclass(frozen=True, slots=True)
class Generation:
    """An answer and its evidence.

    Attributes:
        text: the answer, without special tokens and without the stop string.
        token_ids: its ids, an end-of-sequence id included.
        finish_reason: `stop` at an end-of-sequence id or stop string, `length` at max_tokens or at the end
            of the context.
        prompt_tokens: ids of the prompt.
        cached_tokens: ids of the prompt that were known from earlier prompts and not computed again.
        forward_passes: passes that produced ids; the prefill counts as one.
        drafted: copied ids that the model checked.
        accepted: copied ids that the model agreed with.
        accepted_lengths: the same by pass, the prefill left out.
        reference_tokens: ids of references in which drafts were searched; at most 200,000, best first.
        copied_spans: which characters of the text stand in which reference.
        timings: seconds by phase.
        verdict: whether drafts are exact here; where they are not, none were used.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    forward_passes: int
    drafted: int
    accepted: int
    accepted_lengths: list[int]
    reference_tokens: int
    copied_spans: list[CopiedSpan]
    timings: Timings
    verdict: Verdict

    @property
    def completion_tokens(self) -> int:
        """Ids produced."""
        return len(self.token_ids)

    @property
    def tokens_per_pass(self) -> float:
        """Ids produced per forward pass."""
        return self.completion_tokens / self.forward_passes

    @property
    def copied_coverage(self) -> float:
        """Share (0 to 1) of the text that stands in a reference."""
        return coverage(self.copied_spans, len(self.text))

    def as_data(self) -> dict[str, Any]:
        """Return all of it as plain data; the spans' metadata are those of the references."""
        return {
            **asdict(self),
            "tokens_per_pass": self.tokens_per_pass,
            "copied_coverage": self.copied_coverage,
        }
