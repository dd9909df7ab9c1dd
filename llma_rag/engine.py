"""The engine: a prompt and references in, text and evidence out; one worker thread per model.

The engine renders the prompt, lets `models` prefill it, lets `decoding` draft from the references, turns
ids into text that is final, and reports what it took and which words were copied from where. It knows no
framework; adapters translate to it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypedDict, Unpack

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llma_rag.decoding import (
    DraftConfig,
    Drafter,
    IndexCache,
    NgramIndex,
    NoDrafter,
    ReferenceDrafter,
    Step,
    greedy_decode,
)
from llma_rag.errors import ModelError, RequestCancelledError, RequestTimeoutError
from llma_rag.generation import Generation, Timings
from llma_rag.models import ModelRunner, RuleOptions, Rules, exact_runner, load_model
from llma_rag.provenance import Reference, ReferenceText, as_references, copied_spans
from llma_rag.streams import AsyncTextStream, Event, TextStream
from llma_rag.text import Detokenizer, Message, StopStrings, alike_ids, prompt_ids, reference_ids
from llma_rag.workers import worker_for

DEFAULT_MAX_TOKENS = 512
DEFAULT_PREFIX_CACHE_MB = 256
MOST_REFERENCE_IDS = 200_000  # in which a request's drafts are searched
_MOST_CHARACTERS_PER_ID = 8  # of a reference that are encoded at all; words have about five
_MOST_INDEXED_IDS = 2 * MOST_REFERENCE_IDS


class RequestOptions(TypedDict, total=False):
    """What a request may say beside its prompt.

    Attributes:
        references: texts that the answer may copy from, best first; drafts are searched in the first 200,000 ids.
            The prompt always is one.
        max_tokens: most ids to produce, 512 by default; None takes what room the context has.
        stop: strings that end the answer and are not part of it.
        draft: False decodes plainly, in the same shapes: the same ids, one per pass.
        timeout: seconds, waiting included, after which the model stops with an error; None for no limit.
        chat_template_kwargs: handed to the model's chat template, such as `tools` or `enable_thinking`.
        answer_prefix: how the answer begins: the model goes on from there. It is not part of the text.
        repetition_penalty: more than 1 makes ids less likely that were there already, prompt included, as in
            transformers.
        no_repeat_ngram_size: no run of that many ids comes twice, prompt included.
        min_tokens: ids before the answer may end.
        bad_words: words that may not be written as the tokenizer writes them, with a space before them or without.
        reuse_prefix: False computes the whole prompt afresh, for measuring.
    """

    references: Iterable[str | ReferenceText]
    max_tokens: int | None
    stop: Sequence[str]
    draft: bool
    timeout: float | None
    chat_template_kwargs: Mapping[str, Any]
    answer_prefix: str
    repetition_penalty: float
    no_repeat_ngram_size: int
    min_tokens: int
    bad_words: Sequence[str]
    reuse_prefix: bool


class Engine:
    """Greedy answers of one model, accelerated by references, identical with and without them.

    Args:
        model: a causal language model of transformers; it is put into evaluation mode, its weights and
            modules are not changed.
        tokenizer: its tokenizer.
        name: how results call the model.
        width: positions per verify step; None measures a few and takes the best one that is exact here.
        candidates: drafts that a verify step checks side by side, each over a KV memory of its own; None measures,
            and takes 1 where rows are not cheap.
        max_context: most positions, prompt and answer together; the KV memory is allocated for them.
        prefix_cache_mb: MiB for the beginnings of earlier prompts, which need not be computed again; 0 keeps the
            last prompt only.
        draft_config: when to copy and how much.

    Raises:
        UnsupportedModelError: the architecture cannot be decoded exactly.
        ModelError: a width that was asked for is not exact here, or the KV memory does not fit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        width: int | None = None,
        candidates: int | None = None,
        max_context: int | None = None,
        prefix_cache_mb: int = DEFAULT_PREFIX_CACHE_MB,
        draft_config: DraftConfig | None = None,
    ) -> None:
        if prefix_cache_mb < 0:
            raise ValueError(f"prefix_cache_mb must be 0 or more, got {prefix_cache_mb}")
        self.name = name or model.config.name_or_path or type(model).__name__
        self.model = model
        self.tokenizer = tokenizer
        self.eos_ids = _eos_ids(model, tokenizer)
        self._draft_config = draft_config or DraftConfig()
        self._alike = alike_ids(tokenizer)
        self._indexes = IndexCache(_MOST_INDEXED_IDS, self._alike)  # used by the worker thread only
        self._process = os.getpid()
        self._unfinished = 0
        self._counting = threading.Lock()
        self._worker = worker_for(model, model.device.type)
        self.runner, self.verdict, self.calibration = self._worker.submit(
            exact_runner,
            model,
            width,
            max_context,
            torch.get_num_threads(),
            prefix_cache_mb * 2**20,
            candidates,
        ).result()

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        width: int | None = None,
        candidates: int | None = None,
        max_context: int | None = None,
        prefix_cache_mb: int = DEFAULT_PREFIX_CACHE_MB,
        draft_config: DraftConfig | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> Engine:
        """Load a model and prepare it for this machine.

        Args:
            name: a hub name, a local folder, a GGUF file, or `smollm2-135m`.
            device: `auto` (CUDA where there is one, else the CPU) or a torch device.
            dtype: `auto` (bfloat16 where the device computes in it, else float32) or a dtype's name.
            width: see the class.
            candidates: see the class.
            max_context: see the class.
            prefix_cache_mb: see the class.
            draft_config: see the class.
            model_kwargs: handed to `from_pretrained`, for example `quantization_config` or `device_map`.
            progress: told what is going on when it takes long.

        Raises:
            ModelError: the model cannot be found, fetched or loaded; also as for the class.
        """
        loaded = load_model(
            name,
            device=device,
            dtype=dtype,
            model_kwargs=model_kwargs,
            prepare_for_cpu=True,
            progress=progress,
        )
        progress("Checking that decoding is exact here")
        return cls(
            loaded.model,
            loaded.tokenizer,
            name=name,
            width=width,
            candidates=candidates,
            max_context=max_context,
            prefix_cache_mb=prefix_cache_mb,
            draft_config=draft_config,
        )

    def generate(self, prompt: str | Sequence[Message], **options: Unpack[RequestOptions]) -> Generation:
        """Return the greedy answer; it is the joined `stream` with its evidence.

        Args:
            prompt: a string to complete, or chat messages for the model's chat template.
            **options: see `RequestOptions`.

        Raises:
            ContextLengthError: the prompt leaves no room in the context.
            PromptError: the prompt is empty, or the model's chat template does not take it.
            RequestTimeoutError: the answer was not complete in time.
            TypeError: there is no such option.
            ValueError: a `max_tokens` below 1, or an empty stop string.
        """
        with self.stream(prompt, **options) as stream:
            return stream.result

    def stream(self, prompt: str | Sequence[Message], **options: Unpack[RequestOptions]) -> TextStream:
        """Return an iterator over pieces of final text; arguments and errors as for `generate`.

        Closing the stream, or dropping it, stops the model before its next step.
        """
        request = self._request(prompt, options)
        stream = TextStream()
        self._submit(request, stream)
        return stream

    def astream(self, prompt: str | Sequence[Message], **options: Unpack[RequestOptions]) -> AsyncTextStream:
        """Return the same for the running event loop, which goes on meanwhile."""
        request = self._request(prompt, options)
        stream = AsyncTextStream()
        self._submit(request, stream)
        return stream

    def count_tokens(
        self, prompt: str | Sequence[Message], chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> int:
        """Return how many ids a prompt has."""
        return len(prompt_ids(self.tokenizer, prompt, chat_template_kwargs=chat_template_kwargs))

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a text, without special ones."""
        return reference_ids(self.tokenizer, text)

    @property
    def context_length(self) -> int:
        """Most positions, prompt and answer together."""
        return self.runner.context_length

    @property
    def takes_messages(self) -> bool:
        """Whether the model has a chat template."""
        return self.tokenizer.chat_template is not None

    @property
    def unfinished_requests(self) -> int:
        """How many requests wait for the model or are being answered; a cancelled one counts until the model is free."""
        return self._unfinished

    def _request(self, prompt: str | Sequence[Message], options: RequestOptions) -> _Request:
        if os.getpid() != self._process:
            raise ModelError("an engine does not work in a forked process; make it after the fork")
        return _Request(prompt, **options)

    def _submit(self, request: _Request, stream: TextStream | AsyncTextStream) -> None:
        self._count(1)
        try:
            self._worker.submit(self._serve, request, stream.put, stream.cancelled)
        except BaseException:
            self._count(-1)
            raise

    def _count(self, difference: int) -> None:
        with self._counting:
            self._unfinished += difference

    def _serve(self, request: _Request, put: Callable[[Event], None], cancelled: threading.Event) -> None:
        """Run a request in the worker thread; every outcome reaches the caller through `put`."""
        try:
            answer = self._answer(request, put, cancelled)
        except BaseException as error:  # kept in no variable: its traceback holds this frame
            self._count(-1)
            put(error)
        else:
            self._count(-1)
            put(answer)

    def _answer(
        self, request: _Request, emit: Callable[[str], None], cancelled: threading.Event
    ) -> Generation:
        queued_s = time.perf_counter() - request.submitted
        self.runner.use_its_threads()
        model = _CancellableRunner(self.runner, cancelled, request)
        model.require_caller()
        ids = prompt_ids(
            self.tokenizer,
            request.prompt,
            chat_template_kwargs=request.chat_template_kwargs,
            answer_prefix=request.answer_prefix,
        )
        self.runner.require_room(len(ids))
        model.rules = Rules(request.rule_options(self.tokenizer), len(ids), self.eos_ids, self.runner.device)
        started = time.perf_counter()
        references = self._indexed(request, model.require_caller)
        drafter = self._drafter(ids, references, request)
        index_s = time.perf_counter() - started
        room = self.runner.context_length - len(ids)
        steps = greedy_decode(
            model, ids, drafter, max_tokens=min(request.max_tokens or room, room), eos_ids=self.eos_ids
        )
        output = _Output(Detokenizer(self.tokenizer), StopStrings(request.stop), emit)
        for step in steps:
            if not output.take(step):
                break
        ended = output.finish()
        model.require_caller()  # copied spans of long references take a moment
        timings = output.timings(queued_s, index_s)
        return Generation(
            text=output.text,
            token_ids=output.token_ids,
            finish_reason="stop" if ended or output.token_ids[-1] in self.eos_ids else "length",
            prompt_tokens=len(ids),
            cached_tokens=model.reused,
            forward_passes=output.passes,
            drafted=output.drafted,
            accepted=sum(output.accepted_lengths),
            accepted_lengths=output.accepted_lengths,
            reference_tokens=sum(map(len, references)),
            copied_spans=copied_spans(output.text, request.texts),
            timings=timings,
            verdict=self.verdict,
        )

    def _indexed(self, request: _Request, before_each: Callable[[], None]) -> list[NgramIndex]:
        """Return the indexes of the references, best first, as far as they are searched."""
        if not self._drafts(request):
            return []
        indexes = []
        room = MOST_REFERENCE_IDS
        for text in dict.fromkeys(reference.text for reference in request.texts if reference.text):
            if not room:
                break
            before_each()
            encoded = text[: room * _MOST_CHARACTERS_PER_ID]
            index = self._indexes.get(encoded, partial(reference_ids, self.tokenizer, encoded))
            if len(index) > room:
                index = NgramIndex(index.ids[:room], self._alike)
            indexes.append(index)
            room -= len(index)
        return indexes

    def _drafter(self, ids: list[int], references: list[NgramIndex], request: _Request) -> Drafter:
        if not self._drafts(request):
            return NoDrafter()
        return ReferenceDrafter(
            references, ids, self._draft_config, scorer=self.runner.states, alike=self._alike
        )

    def _drafts(self, request: _Request) -> bool:
        return request.draft and self.verdict.exact


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A prompt with its options; the fields are those of `RequestOptions`."""

    prompt: str | Sequence[Message] = field(kw_only=False)
    references: Iterable[str | ReferenceText] = ()
    max_tokens: int | None = DEFAULT_MAX_TOKENS
    stop: Sequence[str] = ()
    draft: bool = True
    timeout: float | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    answer_prefix: str = ""
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_tokens: int = 0
    bad_words: Sequence[str] = ()
    reuse_prefix: bool = True
    submitted: float = field(default_factory=time.perf_counter, init=False)
    texts: list[Reference] = field(init=False)

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, or None for no limit, got {self.max_tokens}")
        if isinstance(self.stop, str):
            raise ValueError(f"stop must be a list of strings, got one string; use [{self.stop!r}]")
        if self.timeout is not None and self.timeout <= 0:
            raise ValueError(f"timeout must be more than 0 seconds, or None for no limit, got {self.timeout}")
        if isinstance(self.bad_words, str) or not all(self.bad_words):
            raise ValueError(f"bad_words must be a list of words, none empty, got {self.bad_words!r}")
        StopStrings(self.stop)  # raises where one is empty
        self._rules()  # raises where one is out of range
        object.__setattr__(self, "texts", as_references(self.references))

    def rule_options(self, tokenizer: PreTrainedTokenizerBase) -> RuleOptions:
        """Return the rules; a bad word is banned with and without a space before it."""
        spelled = [prefix + word for word in self.bad_words for prefix in ("", " ")]
        ids = {tuple(reference_ids(tokenizer, word)) for word in spelled}
        return self._rules(tuple(sorted(ids)))

    def _rules(self, bad_words: tuple[tuple[int, ...], ...] = ()) -> RuleOptions:
        return RuleOptions(
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            min_tokens=self.min_tokens,
            bad_words=bad_words,
        )


class _CancellableRunner:
    """The model of one request: stops before the next pass once its caller has gone or its time is up."""

    rules: Rules

    def __init__(self, runner: ModelRunner, cancelled: threading.Event, request: _Request) -> None:
        self._runner = runner
        self._cancelled = cancelled
        self._request = request
        self.vocab_size = runner.vocab_size
        self.candidates = runner.candidates
        self.draft_room = runner.draft_room
        self.reused = 0
        self._ids: list[int] = []
        self._before: list[int] = []
        self._candidates: Sequence[Sequence[int]] = ()

    def prefill(self, ids: Sequence[int]) -> int:
        self._ids = list(ids)
        self.reused = self._runner.recall(ids) if self._request.reuse_prefix else 0
        return self._runner.prefill(ids, self.require_caller, known=self.reused, rules=self.rules)

    def verify(self, position: int, candidates: Sequence[Sequence[int]]) -> list[list[int]]:
        self.require_caller()
        if not self.rules:
            return self._runner.verify(position, candidates)
        self._before, self._candidates = self._ids[:position], candidates
        return self._runner.verify(position, candidates, rules=self.rules, before=self._before)

    def keep(self, candidate: int) -> None:
        self._runner.keep(candidate)
        if self.rules:  # what is accepted of the ids stays, the next step overwrites the rest
            self._ids = [*self._before, *self._candidates[candidate]]

    def require_caller(self) -> None:
        if self._cancelled.is_set():
            raise RequestCancelledError("the request was cancelled")
        timeout = self._request.timeout
        if timeout is not None and time.perf_counter() - self._request.submitted > timeout:
            raise RequestTimeoutError(
                f"the answer was not complete after {timeout} seconds; raise timeout, lower max_tokens"
            )


class _Output:
    """What a request has produced so far."""

    def __init__(self, detokenizer: Detokenizer, stop: StopStrings, emit: Callable[[str], None]) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self.passes = self.drafted = 0
        self.accepted_lengths: list[int] = []
        self._prefill_s = self._draft_s = self._verify_s = 0.0
        self._first_token_at = 0.0
        self._detokenizer = detokenizer
        self._stop = stop
        self._emit = emit

    def take(self, step: Step) -> bool:
        """Take a step id by id; return False where a stop string ends the answer."""
        self._count(step)
        for token_id in step.ids:
            self.token_ids.append(token_id)
            self._publish(self._stop.feed(self._detokenizer.feed(token_id)))
            if self._stop.found is not None:
                return False
        return True

    def finish(self) -> bool:
        """Publish what was held back; return whether a stop string ended the answer."""
        self._publish(self._stop.feed(self._detokenizer.finish()))
        self._publish(self._stop.finish())
        return self._stop.found is not None

    def timings(self, queued_s: float, index_s: float) -> Timings:
        decode_s = time.perf_counter() - self._first_token_at
        return Timings(queued_s, index_s + self._prefill_s, decode_s, self._draft_s, self._verify_s)

    def _count(self, step: Step) -> None:
        self.passes += 1
        self.drafted += step.drafted
        if self.passes == 1:
            self._prefill_s = step.verify_s
            self._first_token_at = time.perf_counter()
        else:
            self.accepted_lengths.append(step.accepted)
            self._draft_s += step.draft_s
            self._verify_s += step.verify_s

    def _publish(self, text: str) -> None:
        if text:
            self.text += text
            self._emit(text)


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end an answer: the generation config's, else the model's or tokenizer's."""
    generation_config = getattr(model, "generation_config", None)
    for owner in (generation_config, model.config, tokenizer):
        eos = getattr(owner, "eos_token_id", None)
        if eos is not None:
            return frozenset([eos] if isinstance(eos, int) else eos)
    return frozenset()
