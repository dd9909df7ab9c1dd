"""An OpenAI-compatible server as the engine: vLLM with our plug-in, `llma-rag serve`, or any other.

References go along in the way that the server takes them; one that takes none answers all the same.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

import httpx
import openai

from llma_rag.engine import RequestOptions
from llma_rag.errors import ContextLengthError, RequestTimeoutError, ServerError
from llma_rag.evidence import spans_as_data
from llma_rag.provenance import CopiedSpan, as_references, copied_spans, coverage
from llma_rag.replies import ReplyPiece, ToolCall
from llma_rag.text import Message
from llma_rag.vllm import as_xargs
from llma_rag.vllm.xargs import MOST_IDS

Kind = Literal["llma_rag", "vllm", "other"]

_CHECK_S = 10.0  # for questions about the server, which need no model
_SILENCE_S = 600.0  # from a server that is to answer; a timeout may be shorter
_ASK_AGAIN_S = 60.0  # after a server has not told what it was asked
_TELLS_NONE = (403, 404, 405, 501)  # statuses of a server, or what stands before it, that lists no models
_MOST_TOKENISED = 1024  # texts whose ids are kept,
_MOST_KEPT_IDS = 2_000_000  # and of how many ids all are: 16 MB
_MOST_ENGINES = 64
_log = logging.getLogger(__name__)
_HINTS = {401: "; check api_key", 404: "; check model, and base_url, which usually ends in /v1"}
_NO_KEY = "none"  # what servers without a key are sent: the client insists on one
_RULES: dict[str, tuple[Any, tuple[Kind, ...]]] = {  # what changes nothing, and who knows the parameter
    "repetition_penalty": (1.0, ("llma_rag", "vllm")),
    "min_tokens": (0, ("llma_rag", "vllm")),
    "bad_words": ([], ("llma_rag", "vllm")),
    "no_repeat_ngram_size": (0, ("llma_rag",)),
}


@dataclass(frozen=True, slots=True)
class RemoteAnswer:
    """What a server told of an answer.

    Attributes:
        text: what the user sees of it.
        prompt_tokens: ids of the prompt, 0 where the server does not say.
        cached_tokens: those of them that the server knew already.
        completion_tokens: ids produced.
        copied_spans: which characters of the text stand in which reference.
        figures: what an `llma-rag` server tells of its work.
    """

    text: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    copied_spans: list[CopiedSpan] = field(default_factory=list)
    figures: Mapping[str, Any] = field(default_factory=dict)


class RemoteEngine:
    """A model behind an OpenAI-compatible server.

    Args:
        base_url: of the API, such as `http://127.0.0.1:8000/v1`.
        model: its name there.
        api_key: that the server asks for.
        max_retries: of requests that the server refused because it was busy, or that did not reach it.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        max_retries: int = 2,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.name = model
        self._settings: dict[str, Any] = {
            "base_url": self.base_url,
            "api_key": api_key or _NO_KEY,
            "max_retries": max_retries,
            "timeout": openai.Timeout(_SILENCE_S, connect=_CHECK_S),
        }
        self._certificates = httpx.create_ssl_context()  # takes a while to read
        self._known: Mapping[str, Any] = {}
        self._list_again_at = self._tokenise_again_at = -inf  # when to ask the server again
        self._has_told_of_ids = False
        self.client = openai.OpenAI(**self._settings)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(headers=headers, timeout=_CHECK_S)
        self._ids: OrderedDict[str, array[int]] = OrderedDict()
        self._kept_ids = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        self.client.close()
        self._http.close()

    def async_client(self) -> openai.AsyncOpenAI:
        """Return a client for the running event loop, to be closed: its connections belong to the loop."""
        http = openai.DefaultAsyncHttpxClient(verify=self._certificates)
        return openai.AsyncOpenAI(**self._settings, http_client=http)

    def call(
        self,
        prompt: str | Sequence[Message],
        options: RequestOptions,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: Any = None,
    ) -> RemoteCall:
        """Return a request to the server; arguments as for `calls.Call`."""
        return RemoteCall(self, prompt, options, tools=tools, tool_choice=tool_choice)

    @property
    def _about(self) -> Mapping[str, Any]:
        """What the server tells of the model, empty where it lists none of this name.

        Raises:
            ServerError: it does not answer.
        """
        if not self._known and time.monotonic() >= self._list_again_at:
            try:
                with told_errors(self.base_url):
                    listed = self.client.models.list(timeout=_CHECK_S).data
            except ServerError as error:
                if getattr(error.__cause__, "status_code", None) not in _TELLS_NONE:
                    raise
                listed = []
            self._known = next((model.model_dump() for model in listed if model.id == self.name), {})
            self._list_again_at = time.monotonic() + _ASK_AGAIN_S
        return self._known

    @property
    def kind(self) -> Kind:
        """How the server takes references."""
        owner = self._about.get("owned_by")
        return owner if owner in ("llma_rag", "vllm") else "other"

    @property
    def context_length(self) -> int | None:
        """Most positions, prompt and answer together, where the server tells."""
        length = self._about.get("max_model_len")
        return int(length) if length else None

    def text_ids(self, text: str) -> list[int]:
        """Return the ids that the server's tokenizer makes of a text, without special ones.

        Raises:
            ServerError: it does not answer, or has no `/tokenize`.
        """
        with self._lock:
            if text in self._ids:
                self._ids.move_to_end(text)
                return self._ids[text].tolist()
        ids = self._tokenised({"prompt": text, "add_special_tokens": False})
        with self._lock:
            self._kept_ids += len(ids) - len(self._ids.get(text, ()))
            self._ids[text] = array("q", ids)
            while len(self._ids) > _MOST_TOKENISED or self._kept_ids > _MOST_KEPT_IDS:
                _, oldest = self._ids.popitem(last=False)
                self._kept_ids -= len(oldest)
        return ids

    takes_messages = True

    def count_tokens(
        self, prompt: str | Sequence[Message], chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> int:
        """Return how many ids the server makes of a prompt.

        Raises:
            ServerError: it does not answer, or has no `/tokenize`.
        """
        if isinstance(prompt, str):
            return len(self._tokenised({"prompt": prompt}))
        template_kwargs = dict(chat_template_kwargs or {})
        tools = template_kwargs.pop("tools", None)
        body: dict[str, Any] = {"messages": [_as_sent(message) for message in prompt]}
        if tools:
            body["tools"] = tools
        if template_kwargs:
            body["chat_template_kwargs"] = template_kwargs
        return len(self._tokenised(body))

    def _tokenised(self, body: Mapping[str, Any]) -> list[int]:
        if self.kind == "other":
            raise ServerError(f"the server at {self.base_url} has no /tokenize; vLLM has, and llma-rag serve")
        address = self.base_url.removesuffix("/v1") + "/tokenize"
        try:
            response = self._http.post(address, json={"model": self.name, **body})
            response.raise_for_status()
            return list(response.json()["tokens"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise ServerError(f"{address} did not tell ids: {error!r}") from error

    def _reference_ids(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of references, best first, as many as are searched; none where the server does not tell."""
        found: list[list[int]] = []
        room = MOST_IDS
        if time.monotonic() < self._tokenise_again_at:
            return found
        try:
            for text in dict.fromkeys(texts):
                if room <= 0:
                    break
                found.append(self.text_ids(text))
                room -= len(found[-1]) + 1
        except ServerError as error:  # the answer is the same without
            if not self._has_told_of_ids:
                _log.warning("references are not sent: %s; this is said once", error)
            self._has_told_of_ids = True
            self._tokenise_again_at = time.monotonic() + _ASK_AGAIN_S
        return found

    def extra_body(self, options: RequestOptions) -> dict[str, Any]:
        """Return what a request says beyond OpenAI's parameters: references, and rules of decoding.

        Raises:
            ValueError: an option has no effect on this server.
        """
        if not options.get("reuse_prefix", True):
            raise ValueError("reuse_prefix has no effect on a server; leave it out")
        body: dict[str, Any] = {}
        for name, (neutral, known_to) in _RULES.items():
            value = options.get(name, neutral)
            if value == neutral or not value:
                continue
            if self.kind not in known_to:
                raise ValueError(f"{name} has no effect on the server at {self.base_url}; leave it out")
            body[name] = value
        template_kwargs = dict(options.get("chat_template_kwargs") or {})
        if template_kwargs:
            body["chat_template_kwargs"] = template_kwargs
        references = as_references(options.get("references") or ())
        draft = options.get("draft", True)
        if self.kind == "llma_rag":
            body["references"] = [reference.text for reference in references]
            body["draft"] = draft
        elif self.kind == "vllm":
            ids = self._reference_ids(one.text for one in references) if draft else []
            body["vllm_xargs"] = as_xargs(ids, draft=draft)
        return body


class RemoteCall:
    """One request to a server; the same as `calls.Call` for those who wait for its pieces.

    Attributes:
        content: the part that the user sees, as far as it has come.
        answer: what the server told of all of it, after the last piece.
        copied_spans: which characters of `content` stand in which reference.
        finish_reason: `stop`, `length` or `tool_calls`.
    """

    answer: RemoteAnswer
    copied_spans: list[CopiedSpan]

    def __init__(
        self,
        engine: RemoteEngine,
        prompt: str | Sequence[Message],
        options: RequestOptions,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: Any = None,
    ) -> None:
        self.engine = engine
        self.content = ""
        self.finish_reason = ""
        self._references = as_references(options.get("references") or ())
        self._prompt = prompt
        self._options = options
        self._tools = list(tools)
        self._tool_choice = tool_choice
        self._calls: dict[int, dict[str, str]] = {}
        self._usage: Any = None
        self._told: Mapping[str, Any] = {}
        self._deadline = inf

    def pieces(self) -> Generator[ReplyPiece]:
        """Yield the parts of the reply as they come; closing the iterator ends the request."""
        with told_errors(self.engine.base_url):
            with self._create(self.engine.client)(**self._request()) as chunks:
                for chunk in chunks:
                    if piece := self._taken(chunk):
                        yield piece
            if piece := self._finished():
                yield piece

    async def apieces(self) -> AsyncGenerator[ReplyPiece]:
        """Yield the same for the running event loop."""
        with told_errors(self.engine.base_url):
            request = await asyncio.to_thread(self._request)  # it may ask the server for ids
            async with self.engine.async_client() as client, await self._create(client)(**request) as chunks:
                async for chunk in chunks:
                    if piece := self._taken(chunk):
                        yield piece
            if piece := await asyncio.to_thread(self._finished):
                yield piece

    @property
    def figures(self) -> dict[str, Any]:
        """What an `llma-rag` server tells of its work, and how much of what the user sees was copied."""
        copied = coverage(self.copied_spans, len(self.content))
        return {**self.answer.figures, "copied_coverage": round(copied, 3)}

    @property
    def evidence(self) -> dict[str, Any]:
        """How the answer came about as far as the server tells, and which of its characters were copied from where.

        A chatbot over the server's own documents tells its `sources`, and in `spans` what it copied from them.
        """
        has_documents = not self._references and self._told.get("sources")
        of_documents = {name: self._told.get(name) for name in ("sources", "spans")} if has_documents else {}
        return {
            "finish_reason": self.finish_reason,
            "model_name": self.engine.name,
            "model_provider": "llma_rag",
            **self.answer.figures,
            "copied_spans": spans_as_data(self.copied_spans),
            **of_documents,
        }

    def _most_tokens(self) -> int | None:
        """Return the limit of the answer: what is asked for, or the room that the context has, where we must say it."""
        fills_it = self.engine.kind == "vllm" and not isinstance(self._prompt, str)  # where nothing is said
        if self._options.get("max_tokens") is not None or fills_it or self.engine.kind == "other":
            return self._options.get("max_tokens")
        context = self.engine.context_length
        if context is None:
            return None
        kwargs = {
            **(self._options.get("chat_template_kwargs") or {}),
            **({"tools": self._tools} if self._tools else {}),
        }
        return max(1, context - self.engine.count_tokens(self._prompt, kwargs))

    def _create(self, client: openai.OpenAI | openai.AsyncOpenAI) -> Callable[..., Any]:
        return client.completions.create if isinstance(self._prompt, str) else client.chat.completions.create

    def _request(self) -> dict[str, Any]:
        options = self._options
        timeout = options.get("timeout")
        self._deadline = inf if timeout is None else time.monotonic() + timeout
        request: dict[str, Any] = {
            "model": self.engine.name,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": self.engine.extra_body(options),
        }
        if (most := self._most_tokens()) is not None:
            request["max_tokens"] = most
        if options.get("stop"):
            request["stop"] = list(options["stop"])
        if timeout is not None:  # what is left of it between two events; the deadline holds for all of them
            request["timeout"] = max(0.0, self._deadline - time.monotonic())
            self._check_deadline()
        if isinstance(self._prompt, str):
            return {**request, "prompt": self._prompt}
        request["messages"] = [_as_sent(message) for message in self._prompt]
        if self._tools:
            request["tools"] = self._tools
            if self._tool_choice not in (None, False):
                request["tool_choice"] = _as_tool_choice(self._tool_choice)
        return request

    def _check_deadline(self) -> None:
        if time.monotonic() > self._deadline:
            raise RequestTimeoutError(
                f"the server at {self.engine.base_url} did not complete the answer in {self._options.get('timeout')} s"
            )

    def _taken(self, chunk: Any) -> ReplyPiece | None:
        """Take note of an event; return what of it is final."""
        self._check_deadline()
        self._usage = chunk.usage or self._usage
        told = (chunk.model_extra or {}).get("llma_rag")
        if told and "figures" in told:
            self._told = told
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        self.finish_reason = choice.finish_reason or self.finish_reason
        if isinstance(self._prompt, str):
            piece = ReplyPiece(choice.text or "")
        else:
            delta = choice.delta
            for call in delta.tool_calls or ():
                self._take_call(call)
            extra = delta.model_extra or {}
            piece = ReplyPiece(
                delta.content or "", extra.get("reasoning_content") or extra.get("reasoning") or ""
            )
        self.content += piece.content
        return piece or None

    def _take_call(self, delta: Any) -> None:
        call = self._calls.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
        call["id"] = delta.id or call["id"]
        if delta.function is not None:
            call["name"] += delta.function.name or ""
            call["arguments"] += delta.function.arguments or ""

    def _finished(self) -> ReplyPiece | None:
        """Return the calls of tools, which are final at the end only.

        Raises:
            ServerError: the stream ended before the answer did.
        """
        if not self.finish_reason:
            raise ServerError(f"the server at {self.engine.base_url} broke the answer off")
        self.copied_spans = copied_spans(self.content, self._references)
        usage = self._usage
        details = getattr(usage, "prompt_tokens_details", None)
        self.answer = RemoteAnswer(
            text=self.content,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            cached_tokens=(details.cached_tokens or 0) if details else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            copied_spans=self.copied_spans,
            figures=self._told.get("figures") or {},
        )
        calls = [self._calls[index] for index in sorted(self._calls)]
        return ReplyPiece(tool_calls=tuple(map(_as_call, calls))) or None


@functools.lru_cache(maxsize=_MOST_ENGINES)
def remote_engine(base_url: str, model: str, api_key: str | None, max_retries: int | None) -> RemoteEngine:
    """Return the engine of a server, one for all who ask for the same."""
    retries = {} if max_retries is None else {"max_retries": max_retries}
    return RemoteEngine(base_url, model, api_key=api_key, **retries)


@contextmanager
def told_errors(address: str) -> Iterator[None]:
    """Raise the client's errors as ours.

    Raises:
        ServerError: the server does not answer, is busy, or refuses the key or the request.
        ContextLengthError: the prompt leaves no room in the context.
        RequestTimeoutError: the answer was not complete in time.
    """
    try:
        yield
    except openai.APITimeoutError as error:
        raise RequestTimeoutError(f"the server at {address} did not answer in time") from error
    except openai.APIConnectionError as error:
        raise ServerError(f"the connection to {address} failed: {error.__cause__ or error}") from error
    except openai.APIStatusError as error:
        told = _told(error)
        is_too_long = "context" in told and ("length" in told or "holds" in told)
        if error.code == "context_length_exceeded" or (error.status_code in (400, 413) and is_too_long):
            raise ContextLengthError(told) from error
        raise ServerError(
            f"the server at {address} answered with status {error.status_code}: {told}"
        ) from error
    except (openai.APIError, httpx.HTTPError) as error:  # in the middle of a stream
        raise ServerError(f"the server at {address} broke the answer off: {error}") from error


def _told(error: openai.APIStatusError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    told = next((body[name] for name in ("message", "error", "detail") if body.get(name)), error.message)
    return f"{told}{_HINTS.get(error.status_code, '')}"


def _as_call(call: Mapping[str, str]) -> ToolCall:
    try:
        arguments = json.loads(call["arguments"] or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        arguments = None
    made = ToolCall(call["name"], arguments, call["arguments"])
    return ToolCall(made.name, made.arguments, made.raw, call["id"] or made.id)


def _as_tool_choice(choice: Any) -> Any:
    """Return OpenAI's form of a choice: `auto`, `none`, `required`, or a function."""
    if choice in ("any", True):
        return "required"
    if choice in ("auto", "none", "required") or isinstance(choice, Mapping):
        return choice
    return {"type": "function", "function": {"name": choice}}


def _as_sent(message: Message) -> dict[str, Any]:
    """Return a template's message as the API takes it: arguments of calls as JSON."""
    sent = dict(message)
    if sent.get("tool_calls"):
        sent["tool_calls"] = [_call_as_sent(call) for call in sent["tool_calls"]]
    return sent


def _call_as_sent(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if not isinstance(function["arguments"], str):
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "type": "function", "function": function}
