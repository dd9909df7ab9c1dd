"""What vLLM asks for drafts. Whatever goes wrong in here drafts nothing and is counted: a server goes on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llma_rag.decoding import NgramIndex, ReferenceDrafter
from llma_rag.vllm.supported import observe_running_class, require_supported_version
from llma_rag.vllm.xargs import MOST_IDS as MOST_IDS_OF_ONE
from llma_rag.vllm.xargs import (
    REFERENCES,
    SEPARATOR,
    UnusableReferencesError,
    drafts_wanted,
    reference_ids_of,
)

MOST_IDS = 2_000_000  # of all references that are searched at a time; each takes about 210 bytes
REMEMBERED = (
    50_000  # ids of answers lately given, which later ones resemble; vLLM's own suffix method keeps such too
)
INDEXED_PER_STEP = 4096  # ids of references: long ones must not hold up everybody's next token

_log = logging.getLogger("vllm.llma_rag")  # vLLM shows what is below its own name


class ReferenceProposer:
    """vLLM's `custom_class` proposer: drafts from each request's references, its prompt and its output.

    Args:
        vllm_config: vLLM's configuration of the server.

    Raises:
        RuntimeError: this version of vLLM is not supported.

    Attributes:
        counts: what happened so far: `drafts`, `drafted_ids`, `references_cut`, and faults by their kind.
    """

    def __init__(self, vllm_config: Any) -> None:
        require_supported_version()
        observe_running_class()
        self._most_drafted: int = vllm_config.speculative_config.num_speculative_tokens
        self._most_positions: int = vllm_config.model_config.max_model_len
        self._vocabulary_size: int = vllm_config.model_config.get_vocab_size()
        self._requests: Mapping[str, Any] = {}
        self._batch: Any = None
        self._drafting: dict[str, _Request] = {}
        self._remembered = NgramIndex()
        self.counts: Counter[str] = Counter()

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load nothing; vLLM calls this."""

    def update(self, requests: Mapping[str, Any], batch: Any) -> None:
        """Take the requests that there are, before a step; what is known of others is let go."""
        self._requests, self._batch = requests, batch
        gone = [one for one, known in self._drafting.items() if requests.get(one) is not known.state]
        for request_id in gone:
            self._remember(self._drafting.pop(request_id))
        if gone:
            _log.debug("llma_rag keeps something of %d requests; %s", len(self._drafting), dict(self.counts))

    @property
    def known_requests(self) -> int:
        """How many requests something is kept of."""
        return len(self._drafting)

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: Sequence[int],
        token_ids_cpu: Sequence[Any],
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Return a draft for each row of the batch, an empty one where there is nothing to copy.

        Args:
            sampled_token_ids: of each row the ids of this step; none while its prompt is being read.
            num_tokens_no_spec: ids of each row, prompt and output.
            token_ids_cpu: the rows' ids, numpy of shape (rows, positions).
            slot_mappings: not needed.
        """
        room = INDEXED_PER_STEP
        drafts: list[list[int]] = []
        for row, sampled in enumerate(sampled_token_ids):
            draft: list[int] = []
            try:
                if sampled:
                    request = self._request(self._batch.req_ids[row])
                    if not drafts_wanted(request.xargs):
                        drafts.append([])
                        continue
                    length = int(num_tokens_no_spec[row])
                    room -= request.read(token_ids_cpu[row], length, room)
                    draft = self._usable(
                        request.propose(min(self._most_drafted, self._most_positions - length - 1))
                    )
            except Exception as error:
                self._count_fault(error)
            drafts.append(draft)
        return drafts

    def _remember(self, request: _Request) -> None:
        """Let later answers copy from one that has ended."""
        output = request.state.output_token_ids[:INDEXED_PER_STEP] if drafts_wanted(request.xargs) else []
        if len(self._remembered) + len(output) > REMEMBERED:
            self._remembered = NgramIndex()
        for token_id in [SEPARATOR, *output] if output else []:
            self._remembered.append(token_id)

    def _request(self, request_id: str) -> _Request:
        request = self._drafting.get(request_id)
        if request is None:
            request = _Request(self._requests[request_id], self._remembered)
            self._drafting[request_id] = request  # also if its references are unusable: it is told once
            request.references = self._references(request.xargs)
        return request

    def _references(self, xargs: Mapping[str, Any]) -> list[int]:
        """Return a request's references, none where they are unusable or too many are searched already."""
        sent = xargs.get(REFERENCES, [])
        length = len(sent) if isinstance(sent, list) else 0
        if length > MOST_IDS_OF_ONE:
            self.counts["references_cut"] += 1
        searched = sum(len(request.references) for request in self._drafting.values())
        try:
            if searched + min(length, MOST_IDS_OF_ONE) > MOST_IDS:
                raise MemoryError(f"over {MOST_IDS} ids of references at a time")
            return reference_ids_of(xargs, self._vocabulary_size)
        except (UnusableReferencesError, MemoryError) as error:
            self._count_fault(error)
            return []

    def _usable(self, draft: list[int]) -> list[int]:
        """Return a draft as far as all its ids are the model's, and count it."""
        for place, token_id in enumerate(draft):
            if (
                not 0 <= token_id < self._vocabulary_size
            ):  # the end of a reference, or what vLLM marks as no text
                draft = draft[:place]
                break
        self.counts["drafts"] += bool(draft)
        self.counts["drafted_ids"] += len(draft)
        return draft

    def _count_fault(self, error: Exception) -> None:
        """Count what went wrong; the log tells of the first of a kind, the second, the fourth and so on."""
        kind = type(error).__name__
        self.counts[kind] += 1
        if self.counts[kind].bit_count() == 1:
            known = isinstance(error, UnusableReferencesError | MemoryError)
            _log.warning(
                "%s %d: %s; nothing was drafted",
                kind,
                self.counts[kind],
                error,
                exc_info=None if known else error,
            )


class _Request:
    """What is known of one request.

    Args:
        state: vLLM's own, with `num_prompt_tokens`, `output_token_ids` and `sampling_params`.
        remembered: what it may copy from beside its own.
    """

    def __init__(self, state: Any, remembered: NgramIndex) -> None:
        self.state = state
        self._remembered = remembered
        self.xargs: Mapping[str, Any] = getattr(state.sampling_params, "extra_args", None) or {}
        self.references: list[int] = []  # of all of them, separators between
        self._drafter: ReferenceDrafter | None = None
        self._read = 0  # ids of the prompt and the output
        self._index = NgramIndex()  # of the references, as far as they are indexed

    def read(self, ids: Any, length: int, room: int) -> int:
        """Take note of what is new in the row, and of up to `room` ids of the references; return how many it were."""
        if self._drafter is None or length < self._read:  # the first step, or some output was taken back
            prompt_length = min(int(self.state.num_prompt_tokens), length)
            self._drafter = ReferenceDrafter([self._index, self._remembered], ids[:prompt_length].tolist())
            self._read = prompt_length
        self._drafter.extend(ids[self._read : length].tolist())
        self._read = length
        new = self.references[len(self._index) : len(self._index) + max(0, room)]
        for token_id in new:
            self._index.append(token_id)
        return len(new)

    def propose(self, room: int) -> list[int]:
        """Return a draft of up to `room` ids."""
        return next(iter(self._drafter.propose(room)), []) if self._drafter else []
