"""The form of requests and responses: OpenAI's, with `references` and a few others beside, and `llma_rag` in answers."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from llma_rag.engine import RequestOptions
from llma_rag.provenance import Reference
from llma_rag.replies import ReplyPiece, ToolCall, as_template_call
from llma_rag.serving.streaming import event

_MOST_REFERENCES = 1000
_MOST_MESSAGES = 10_000
_MOST_STOP_STRINGS = 16
_MOST_TOKENS = 2**31
_MOST_DEPTH = 64  # of a body
_MOST_NAME = 100  # characters of an unknown parameter that are told

# What asks for nothing but what greedy decoding gives.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "top_p": (1,),
    "temperature": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "echo": (False,),
    "suffix": ("",),
    "store": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},),
}
_WITHOUT_EFFECT = {  # on the text, whatever the value
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "seed",
    "service_tier",
    "user",
}


ShortText = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


def _depth(data: Any) -> int:
    """Return how deep lists and objects are nested, as far as it matters."""
    level, depth = [data], 0
    while level and depth <= _MOST_DEPTH:
        depth += 1
        nested = [one for one in level if isinstance(one, dict | list)]
        level = [child for one in nested for child in (one.values() if isinstance(one, dict) else one)]
    return depth


class TextPart(BaseModel):
    """A part of a message's content; here as in all of a message, fields that clients add are not read."""

    type: Literal["text"]
    text: str


class FunctionCall(BaseModel):
    """What an earlier answer called: a tool, with its arguments as JSON."""

    name: str
    arguments: str


class MessageToolCall(BaseModel):
    """A call of a tool in an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall

    def as_template_call(self) -> dict[str, Any]:
        """Return it as chat templates want it; arguments that the model had not written well stay a string."""
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            function = {"name": self.function.name, "arguments": self.function.arguments}
            return {"id": self.id, "type": "function", "function": function}
        return as_template_call(self.function.name, arguments, self.id)


class ChatMessage(BaseModel):
    """A message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""

    def as_template_message(self) -> dict[str, Any]:
        """Return it as chat templates want it."""
        made: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.text,
        }
        for name in ("name", "tool_call_id", "reasoning_content"):
            if getattr(self, name) is not None:
                made[name] = getattr(self, name)
        if self.tool_calls:
            made["tool_calls"] = [call.as_template_call() for call in self.tool_calls]
        return made


class ReferenceField(BaseModel):
    """A text that the answer may copy from, with what identifies it."""

    model_config = ConfigDict(extra="forbid")
    text: str
    metadata: dict[str, Any] = Field(default_factory=dict)


class ToolFunction(BaseModel):
    """What a tool is; more than this is handed on to the chat template."""

    model_config = ConfigDict(extra="allow")
    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Tool(BaseModel):
    """A tool that the model may call."""

    type: Literal["function"]
    function: ToolFunction


class ToolName(BaseModel):
    """The tool that must be called."""

    name: str


class NamedTool(BaseModel):
    """The choice of one tool."""

    type: Literal["function"]
    function: ToolName


class StreamOptions(BaseModel):
    """How to stream; options beside these change nothing that is sent.

    Attributes:
        include_usage: the last event has the tokens.
        include_spans: events of the chatbot's answer have the copied spans that are new, or longer than before.
    """

    include_usage: bool | None = None
    include_spans: bool | None = None


class Body(BaseModel):
    """A request's body: JSON that can be written again."""

    @model_validator(mode="before")
    @classmethod
    def _require_json(cls, data: Any) -> Any:
        """Refuse what Python reads as JSON but cannot write: half characters, numbers that are none, endless nesting."""
        if isinstance(data, bytes):
            raise ValueError("send the body as JSON, with the header `Content-Type: application/json`")
        if _depth(data) > _MOST_DEPTH:
            raise ValueError(f"the body may be nested {_MOST_DEPTH} levels deep at most")
        try:
            json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise ValueError(f"the body is no JSON in UTF-8: {error}") from None
        return data


class GenerationRequest(Body):
    """What requests for answers have in common; a parameter that is not here is named in the response.

    Attributes:
        model: one of those that `/v1/models` lists.
        references: texts that the answer may copy from.
        draft: false decodes without drafts, for comparing.
        return_token_ids: asks for the ids of the answer.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=_MOST_TOKENS)
    stop: ShortText | Annotated[list[ShortText], Field(max_length=_MOST_STOP_STRINGS)] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    references: Annotated[list[str | ReferenceField], Field(max_length=_MOST_REFERENCES)] | None = None
    draft: bool | None = None
    return_token_ids: bool | None = None
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    no_repeat_ngram_size: int | None = Field(default=None, ge=0, le=1000)
    min_tokens: int | None = Field(default=None, ge=0, le=_MOST_TOKENS)
    bad_words: Annotated[list[ShortText], Field(max_length=1000)] | None = None

    def ignored(self) -> list[str]:
        """Return the parameters that ask for something other than greedy decoding, or for something unknown."""
        asked = {**(self.model_extra or {}), "temperature": self.temperature}
        return sorted(
            name[:_MOST_NAME]
            for name, value in asked.items()
            if value is not None and name not in _WITHOUT_EFFECT and value not in _NEUTRAL.get(name, ())
        )

    @property
    def asked_tokens(self) -> int | None:
        """Most tokens of the answer, as the request says."""
        return self.max_tokens

    def options(self, max_tokens: int) -> RequestOptions:
        """Return the engine's options, with `max_tokens` where the request says nothing."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        options = RequestOptions(
            references=self.reference_texts,
            max_tokens=self.asked_tokens or max_tokens,
            stop=stop,
            draft=self.draft is not False,
        )
        rules = ("repetition_penalty", "no_repeat_ngram_size", "min_tokens", "bad_words")
        given = {name: getattr(self, name) for name in rules if getattr(self, name) is not None}
        options.update(RequestOptions(**given))  # type: ignore[typeddict-item]
        return options

    @property
    def reference_texts(self) -> list[Reference]:
        """The references."""
        return [
            Reference(one) if isinstance(one, str) else Reference(one.text, one.metadata)
            for one in self.references or ()
        ]


class ChatRequest(GenerationRequest):
    """The body of `/v1/chat/completions`.

    Attributes:
        conversation: one that the server keeps: the messages then hold the new question only.
        mode: `query` refuses where the documents do not answer, `chat` answers freely, with a mark.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=_MOST_MESSAGES)]
    max_completion_tokens: int | None = Field(default=None, ge=1, le=_MOST_TOKENS)
    tools: Annotated[list[Tool], Field(max_length=1000)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    conversation: str | None = None
    mode: Literal["query", "chat"] | None = None

    @property
    def asked_tokens(self) -> int | None:
        """Most tokens of the answer, as the request says."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def tool_descriptions(self) -> list[dict[str, Any]]:
        """The tools in OpenAI's form."""
        return [tool.model_dump() for tool in self.tools or ()]


class TokenizeRequest(Body):
    """The body of `/tokenize`, as vLLM has it: a text, or messages for the chat template.

    Attributes:
        model: one of those that `/v1/models` lists.
        add_special_tokens: whether a text gets those of a prompt.
    """

    model_config = ConfigDict(extra="forbid")
    model: str
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(max_length=_MOST_MESSAGES)] | None = None
    add_special_tokens: bool = True
    tools: Annotated[list[Tool], Field(max_length=1000)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(GenerationRequest):
    """The body of `/v1/completions`: a prompt to complete as it is, or several."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=64)]

    @property
    def prompts(self) -> list[str]:
        """The prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class Usage(NamedTuple):
    """Tokens of a prompt, those of them that were known from earlier prompts, and tokens of the answer."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


class Answer(Protocol):
    """An answer that is on its way; `finish_reason`, `usage` and `evidence` are there after the last piece."""

    def pieces(self) -> AsyncGenerator[ReplyPiece]:
        """Yield its parts as they become final."""
        ...

    @property
    def opening(self) -> dict[str, Any]:
        """What is known before the first piece."""
        ...

    def new_spans(self) -> list[dict[str, int]]:
        """Return the copied spans that the last piece has made or lengthened, where they are cheap to find."""
        ...

    @property
    def finish_reason(self) -> str:
        """Why it ended."""
        ...

    @property
    def usage(self) -> Usage:
        """How many tokens there were."""
        ...

    @property
    def evidence(self) -> dict[str, Any]:
        """How it came about."""
        ...


class ResponseWriter:
    """Responses to one request, whole or as events.

    Args:
        request: what was asked.
        answers: one per prompt.
        ignored: parameters that had no effect.
    """

    def __init__(self, request: GenerationRequest, answers: Sequence[Answer], ignored: Sequence[str]) -> None:
        self._request = request
        self._answers = answers
        self._ignored = list(ignored)
        self._is_chat = isinstance(request, ChatRequest)
        self._id = f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def whole(self) -> dict[str, Any]:
        """Return the response once it is complete."""
        choices = [await self._choice(index, answer) for index, answer in enumerate(self._answers)]
        response = {
            **self._envelope("chat.completion" if self._is_chat else "text_completion"),
            "choices": choices,
            "usage": self._usage(),
        }
        evidence = [self._evidence(answer) for answer in self._answers]
        if len(choices) == 1:
            return {**response, "llma_rag": evidence[0]}
        for choice, own in zip(choices, evidence, strict=True):
            choice["llma_rag"] = own
        return response

    async def events(self) -> AsyncGenerator[str]:
        """Yield the response as server-sent events."""
        options = self._request.stream_options or StreamOptions()
        includes_usage = options.include_usage
        unknown = {"usage": None} if includes_usage else {}
        for index, answer in enumerate(self._answers):
            first = True
            calls = 0
            async with aclosing(answer.pieces()) as pieces:
                async for piece in pieces:
                    told = {**answer.opening} if first else {}
                    if options.include_spans and piece.content and (spans := answer.new_spans()):
                        told["spans"] = spans
                    more = {**unknown, "llma_rag": told} if told else unknown
                    yield self._event([self._delta(index, piece, calls, first=first)], **more)
                    first, calls = False, calls + len(piece.tool_calls)
            if first:
                yield self._event([self._delta(index, ReplyPiece(), 0, first=True)], **unknown)
            end = self._delta(index, None, 0, first=False, finish_reason=answer.finish_reason)
            yield self._event([end], **unknown, llma_rag=self._evidence(answer))
        if includes_usage:
            yield self._event([], usage=self._usage())
        yield "data: [DONE]\n\n"

    async def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        content, reasoning = "", ""
        calls: list[ToolCall] = []
        async with aclosing(answer.pieces()) as pieces:
            async for piece in pieces:
                content += piece.content
                reasoning += piece.reasoning
                calls += piece.tool_calls
        choice: dict[str, Any] = {"index": index, "finish_reason": answer.finish_reason, "logprobs": None}
        if not self._is_chat:
            return {**choice, "text": content}
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["content"] = content or None
            message["tool_calls"] = [_call(call) for call in calls]
        return {**choice, "message": message}

    def _delta(
        self,
        index: int,
        piece: ReplyPiece | None,
        calls: int,
        *,
        first: bool,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": finish_reason, "logprobs": None}
        if not self._is_chat:
            return {**choice, "text": piece.content if piece else ""}
        delta: dict[str, Any] = {"role": "assistant", "content": ""} if first else {}
        if piece is not None and piece.content:
            delta["content"] = piece.content
        if piece is not None and piece.reasoning:
            delta["reasoning_content"] = piece.reasoning
        if piece is not None and piece.tool_calls:
            delta["tool_calls"] = [
                {"index": calls + number, **_call(call)} for number, call in enumerate(piece.tool_calls)
            ]
        return {**choice, "delta": delta}

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return event({**self._envelope(kind), "choices": choices, **more})

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._request.model}

    def _evidence(self, answer: Answer) -> dict[str, Any]:
        return {**answer.evidence, "ignored": self._ignored}

    def _usage(self) -> dict[str, Any]:
        prompt, cached, completion = (
            sum(numbers) for numbers in zip(*(answer.usage for answer in self._answers), strict=True)
        )
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments_text}
    return {"id": call.id, "type": "function", "function": function}
