"""LangChain's messages as chat messages of a template, and parts of a reply as LangChain's chunks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.utils.json import parse_partial_json

from llma_rag.generation import Generation
from llma_rag.replies import ReplyPiece, as_template_call

if TYPE_CHECKING:
    from llma_rag.remote import RemoteAnswer

_ROLES: dict[type[BaseMessage], str] = {SystemMessage: "system", HumanMessage: "user", AIMessage: "assistant"}


def as_chat_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Return messages in the form that chat templates take.

    Raises:
        ValueError: a message holds something other than text, or is of an unknown kind.
    """
    return [_as_chat_message(message) for message in messages]


def _as_chat_message(message: BaseMessage) -> dict[str, Any]:
    content = _text(message)
    if isinstance(message, AIMessage):
        made: dict[str, Any] = {"role": "assistant", "content": content}
        if message.tool_calls:
            made["tool_calls"] = [
                as_template_call(call["name"], call["args"], call["id"]) for call in message.tool_calls
            ]
        reasoning = message.additional_kwargs.get("reasoning_content")
        if reasoning:
            made["reasoning_content"] = reasoning
        return made
    if isinstance(message, ToolMessage):
        made = {"role": "tool", "content": content, "tool_call_id": message.tool_call_id}
        return {**made, "name": message.name} if message.name else made
    if isinstance(message, ChatMessage):
        return {"role": message.role, "content": content}
    for kind, role in _ROLES.items():
        if isinstance(message, kind):
            return {"role": role, "content": content}
    raise ValueError(
        f"a message must be from a system, a human, an AI or a tool, got {type(message).__name__}"
    )


def _text(message: BaseMessage) -> str:
    """Return a message's text; tool calls in its content are known otherwise, reasoning goes separately."""
    if isinstance(message.content, str):
        return message.content
    parts = []
    for block in message.content:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") == "text":
            parts.append(str(block["text"]))
        elif block.get("type") not in ("tool_use", "tool_call", "reasoning", "thinking", "json"):
            raise ValueError(f"the model reads text only, got a block of type {block.get('type')!r}")
        elif block["type"] == "json":
            parts.append(json.dumps(block.get("json"), ensure_ascii=False))
    return "\n".join(parts)


def artifacts(messages: Iterable[BaseMessage]) -> list[Any]:
    """Return the documents that retriever tools have left beside their messages, latest first."""
    found: list[Any] = []
    for message in reversed(list(messages)):
        if isinstance(message, ToolMessage) and isinstance(message.artifact, list | tuple):
            found += [item for item in message.artifact if _is_document(item)]
    return found


def _is_document(item: Any) -> bool:
    return (
        isinstance(item, str)
        or hasattr(item, "page_content")
        or (isinstance(item, dict) and "page_content" in item)
    )


def as_chunk(piece: ReplyPiece, first_call: int) -> AIMessageChunk:
    """Return a piece of a reply as a chunk whose tool calls are counted from a number on.

    LangChain itself tells valid calls from invalid ones by their arguments.
    """
    return AIMessageChunk(
        content=piece.content,
        additional_kwargs={"reasoning_content": piece.reasoning} if piece.reasoning else {},
        tool_call_chunks=[
            tool_call_chunk(
                name=call.name,
                args=_unparsable(call.raw) if call.arguments is None else json.dumps(call.arguments),
                id=call.id,
                index=first_call + number,
            )
            for number, call in enumerate(piece.tool_calls)
        ],
    )


def _unparsable(raw: str) -> str:
    """Return what the model wrote, quoted where LangChain would complete it to a call of its own."""
    try:
        return json.dumps(raw) if isinstance(parse_partial_json(raw), dict) else raw
    except ValueError:
        return raw


def usage(answer: Generation | RemoteAnswer) -> UsageMetadata:
    """Return the numbers of tokens."""
    return UsageMetadata(
        input_tokens=answer.prompt_tokens,
        output_tokens=answer.completion_tokens,
        total_tokens=answer.prompt_tokens + answer.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=answer.cached_tokens),
    )
