"""What vLLM asks for drafts. Whatever goes wrong in here drafts nothing and is counted: a server goes on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from llma_rag.decoding import NgramIndex, ReferenceDrafter
from llma_rag.vllm.answers import RecentAnswers, remembered_ids
from llma_rag.vllm.supported import observe_running_class, require_supported_version
from llma_rag.vllm.xargs import MOST_IDS as MOST_IDS_OF_ONE
from llma_rag.vllm.xargs import (
    REFERENCES,
    UnusableReferencesError,
    drafts_wanted,
    reference_ids_of,
)

MOST_IDS = 2_000_000  # of all references that are searched at a time; each takes about 210 bytes
INDEXED_PER_STEP = 4096  # ids of prompts, references and answers: 6 ms; long ones must not hold up everybody
DRAFTING_S = 0.01  # of a step; rows beyond get their drafts in the next one

_log = logging.getLogger("vllm.llma_rag")  # vLLM shows what is below its own name


class ReferenceProposer:
    """vLLM's `custom_class` proposer: drafts from each request's references, its prompt and its output.

    Where LLMA_RAG_REMEMBERED_IDS is not 0, recent answers of all requests serve too.

    Args:
        vllm_config: vLLM's configuration of the server.

    Raises:
        RuntimeError: this version of vLLM is not supported.
        ValueError: LLMA_RAG_REMEMBERED_IDS is no number in range.

    Attributes:
        counts: what happened so far: `drafts`, `drafted_ids`, `references_cut`, `rows_put_off`, and faults by their
            kind.
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
        self._answers = RecentAnswers(remembered_ids())
        self._first_row = 0  # whose turn it is
        self.counts: Counter[str] = Counter()

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load nothing; vLLM calls this."""

    def update(self, requests: Mapping[str, Any], batch: Any) -> None:
        """Take the requests that there are, before a step; what is known of others is let go, but for their answers."""
        self._requests, self._batch = requests, batch
        gone = [one for one, known in self._drafting.items() if requests.get(one) is not known.state]
        for request_id in gone:
            request = self._drafting.pop(request_id)
            if request.wants_drafts:
                with self._counting_faults():
                    self._answers.add(request.state.output_token_ids)
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
        asking: list[tuple[int, _Request]] = []
        for row, sampled in enumerate(sampled_token_ids):
            with self._counting_faults():
                if sampled and (request := self._request(self._batch.req_ids[row])).wants_drafts:
                    request.read(token_ids_cpu[row], int(num_tokens_no_spec[row]))
                    asking.append((row, request))
        with self._counting_faults():
            self._index([request for _, request in asking])
        return self._drafts(asking, len(sampled_token_ids))

    def _index(self, requests: Sequence[_Request]) -> None:
        """Index some of what waits for it; who has least left comes first, so nobody waits for a long one."""
        room = INDEXED_PER_STEP
        for request in sorted(requests, key=lambda request: request.unindexed):
            room -= request.index(room)
        self._answers.index(room)

    def _drafts(self, asking: Sequence[tuple[int, _Request]], rows: int) -> list[list[int]]:
        """Return the drafts of all rows, of as many as there is time for."""
        drafts: list[list[int]] = [[] for _ in range(rows)]
        in_turn = sorted(asking, key=lambda one: one[0] < self._first_row)
        self._first_row, begun = 0, perf_counter()
        for done, (row, request) in enumerate(in_turn):
            if done and perf_counter() - begun > DRAFTING_S:
                self._first_row = row
                self.counts["rows_put_off"] += len(in_turn) - done
                break
            with self._counting_faults():
                room = self._most_positions - request.length - 1
                drafts[row] = self._usable(request.propose(min(self._most_drafted, room)))
        return drafts

    def _request(self, request_id: str) -> _Request:
        request = self._drafting.get(request_id)
        if request is None:
            request = _Request(self._requests[request_id], self._answers.indexes)
            self._drafting[request_id] = request  # also if its references are unusable: it is told once
            if request.wants_drafts:
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
                raise TooManyReferencesError(f"over {MOST_IDS} ids of references at a time")
            return reference_ids_of(xargs, self._vocabulary_size)
        except (UnusableReferencesError, TooManyReferencesError) as error:
            self._count_fault(error)
            return []

    def _usable(self, draft: list[int]) -> list[int]:
        """Return a draft as far as all its ids are the model's, and count it."""
        ends = (place for place, token_id in enumerate(draft) if not 0 <= token_id < self._vocabulary_size)
        draft = draft[: next(ends, None)]  # where a reference ends, or what vLLM marks as no text begins
        self.counts["drafts"] += bool(draft)
        self.counts["drafted_ids"] += len(draft)
        return draft

    @contextmanager
    def _counting_faults(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._count_fault(error)

    def _count_fault(self, error: Exception) -> None:
        """Count what went wrong; the log tells of the first of a kind, the second, the fourth and so on."""
        kind = type(error).__name__
        self.counts[kind] += 1
        if self.counts[kind].bit_count() == 1:
            known = isinstance(error, UnusableReferencesError | TooManyReferencesError)
            _log.warning(
                "%s %d: %s; nothing was drafted",
                kind,
                self.counts[kind],
                error,
                exc_info=None if known else error,
            )


class TooManyReferencesError(Exception):
    """The requests of the moment have more references than are searched at a time."""


class _Request:
    """What is known of one request.

    Args:
        state: vLLM's own, with `num_prompt_tokens`, `output_token_ids` and `sampling_params`.
        shared: what it may copy from beside its own.
    """

    def __init__(self, state: Any, shared: Sequence[NgramIndex]) -> None:
        self.state = state
        self.xargs: Mapping[str, Any] = getattr(state.sampling_params, "extra_args", None) or {}
        self.wants_drafts = drafts_wanted(self.xargs)
        self.references: list[int] = []  # of all of them, separators between
        self.length = 0  # ids of the prompt and the output that were read
        self._prompt: list[int] = []
        self._prompt_index, self._reference_index = NgramIndex(), NgramIndex()
        self._indexes = [self._prompt_index, self._reference_index, *shared]
        self._drafter = ReferenceDrafter(self._indexes, ())
        self._last: int | None = None  # of the ids that were read

    def read(self, ids: Any, length: int) -> None:
        """Take note of what is new in the request's row."""
        begins = not self._prompt
        if begins or length < self.length or ids[self.length - 1] != self._last:  # else output was taken back
            prompt_length = min(int(self.state.num_prompt_tokens), length)
            if begins:
                self._prompt = ids[:prompt_length].tolist()
            self._drafter = ReferenceDrafter(self._indexes, ())
            self.length = prompt_length
        self._drafter.extend(ids[self.length : length].tolist())
        self.length, self._last = length, int(ids[length - 1])

    @property
    def unindexed(self) -> int:
        """How many ids of the prompt and the references are not indexed yet."""
        return len(self._prompt) - len(self._prompt_index) + len(self.references) - len(self._reference_index)

    def index(self, room: int) -> int:
        """Index up to `room` ids, of the prompt before the references; return how many it were."""
        indexed = 0
        for ids, index in ((self._prompt, self._prompt_index), (self.references, self._reference_index)):
            new = ids[len(index) : len(index) + room - indexed]
            for token_id in new:
                index.append(token_id)
            indexed += len(new)
        return indexed

    def propose(self, room: int) -> list[int]:
        """Return a draft of up to `room` ids."""
        return next(iter(self._drafter.propose(room)), [])
