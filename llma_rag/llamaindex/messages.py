"""LlamaIndex's messages as chat messages of a template, and a reply as LlamaIndex's responses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CitableBlock,
    CitationBlock,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from llma_rag.calls import Call
from llma_rag.replies import ReplyPiece, ToolCall, as_template_call

if TYPE_CHECKING:
    from llma_rag.remote import RemoteCall

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}


def as_chat_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages in the form that chat templates take.

    Raises:
        ValueError: a message holds something other than text.
    """
    return [_as_chat_message(message) for message in messages]


def _as_chat_message(message: ChatMessage) -> dict[str, Any]:
    made: dict[str, Any] = {"role": _ROLES[message.role], "content": _text(message.blocks)}
    calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if calls:
        made["tool_calls"] = [
            as_template_call(call.tool_name, _arguments_as_written(call), call.tool_call_id) for call in calls
        ]
    thoughts = [block.content for block in message.blocks if isinstance(block, ThinkingBlock)]
    if any(thoughts):
        made["reasoning_content"] = "\n".join(thought for thought in thoughts if thought)
    if made["role"] == "tool":
        made["tool_call_id"] = message.additional_kwargs.get("tool_call_id")
        if message.additional_kwargs.get("name"):
            made["name"] = message.additional_kwargs["name"]
    return made


def _text(blocks: Sequence[ContentBlock]) -> str:
    parts = []
    for block in blocks:
        if isinstance(block, TextBlock):
            parts.append(block.text)
        elif isinstance(block, CitableBlock):
            parts.append(_text(block.content))
        elif isinstance(block, CitationBlock):
            parts.append(_text([block.cited_content]))
        elif not isinstance(block, ToolCallBlock | ThinkingBlock | CachePoint):
            raise ValueError(f"the model reads text only, got a block of type {block.block_type!r}")
    return "\n".join(parts)


def arguments_of(call: ToolCallBlock) -> dict[str, Any]:
    """Return a call's arguments.

    Raises:
        ValueError: they are not valid: the model has made a mistake, or was cut off.
    """
    if isinstance(call.tool_kwargs, dict):
        return call.tool_kwargs
    try:
        arguments = json.loads(call.tool_kwargs)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError(f"the model's call of {call.tool_name!r} is not valid: {call.tool_kwargs}")
    return arguments


def _arguments_as_written(call: ToolCallBlock) -> dict[str, Any]:
    return call.tool_kwargs if isinstance(call.tool_kwargs, dict) else {"invalid": call.tool_kwargs}


class Reply:
    """A reply that grows piece by piece, as LlamaIndex's responses; each holds all there is so far."""

    def __init__(self, call: Call | RemoteCall) -> None:
        self._call = call
        self._reasoning = ""
        self._calls: list[ToolCall] = []

    def chats(self) -> ChatResponseGen:
        """Yield the reply of a chat as it grows; the last one has usage and evidence."""
        with closing(self._call.pieces()) as pieces:
            for piece in pieces:
                self._take(piece)
                yield self._chat(piece)
        yield self.chat()

    async def achats(self) -> ChatResponseAsyncGen:
        """Yield the same for the running event loop."""
        async with aclosing(self._call.apieces()) as pieces:
            async for piece in pieces:
                self._take(piece)
                yield self._chat(piece)
        yield self.chat()

    def completions(self) -> CompletionResponseGen:
        """Yield a completion as it grows; the last one has usage and evidence."""
        with closing(self._call.pieces()) as pieces:
            for piece in pieces:
                self._take(piece)
                yield CompletionResponse(text=self._call.content, delta=piece.content)
        yield self.completion()

    async def acompletions(self) -> CompletionResponseAsyncGen:
        """Yield the same for the running event loop."""
        async with aclosing(self._call.apieces()) as pieces:
            async for piece in pieces:
                self._take(piece)
                yield CompletionResponse(text=self._call.content, delta=piece.content)
        yield self.completion()

    def whole(self) -> Reply:
        """Return the whole reply."""
        for piece in self._call.pieces():
            self._take(piece)
        return self

    async def awhole(self) -> Reply:
        """Return the same; the event loop goes on."""
        async with aclosing(self._call.apieces()) as pieces:
            async for piece in pieces:
                self._take(piece)
        return self

    def chat(self) -> ChatResponse:
        """Return the whole reply of a chat, with usage and evidence."""
        return ChatResponse(message=self._message(), delta="", raw=self._raw())

    def completion(self) -> CompletionResponse:
        """Return the whole completion, with usage and evidence."""
        kwargs = {"reasoning_content": self._reasoning} if self._reasoning else {}
        return CompletionResponse(
            text=self._call.content, delta="", raw=self._raw(), additional_kwargs=kwargs
        )

    def _take(self, piece: ReplyPiece) -> None:
        self._reasoning += piece.reasoning
        self._calls += piece.tool_calls

    def _chat(self, piece: ReplyPiece) -> ChatResponse:
        kwargs = {"thinking_delta": piece.reasoning} if piece.reasoning else {}
        return ChatResponse(message=self._message(), delta=piece.content, additional_kwargs=kwargs)

    def _message(self) -> ChatMessage:
        blocks: list[ContentBlock] = []
        if self._reasoning:
            blocks.append(ThinkingBlock(content=self._reasoning))
        if self._call.content or not self._calls:
            blocks.append(TextBlock(text=self._call.content))
        blocks += [
            ToolCallBlock(
                tool_call_id=call.id,
                tool_name=call.name,
                tool_kwargs=call.raw if call.arguments is None else call.arguments,
            )
            for call in self._calls
        ]
        return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)

    def _raw(self) -> dict[str, Any]:
        """Return usage where `TokenCountingHandler` looks for it, and the evidence."""
        prompt, completion = self._call.answer.prompt_tokens, self._call.answer.completion_tokens
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        return {"usage": usage, **self._call.evidence}
