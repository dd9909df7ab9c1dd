"""What is answered: a prompt by the model alone, or a question from the documents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llma_rag.calls import Call, tool_choice_of
from llma_rag.conversation import Answering, Chatbot, Conversation, ConversationStore, Source, Turn
from llma_rag.engine import Engine, RequestOptions
from llma_rag.evidence import numbered_spans
from llma_rag.provenance import GrowingSpans, Reference
from llma_rag.replies import ReplyPiece
from llma_rag.serving.errors import ApiError
from llma_rag.serving.metrics import Metrics
from llma_rag.serving.openai_api import ChatMessage, ChatRequest, NamedTool, Usage
from llma_rag.serving.uploads import document_id


class ModelAnswer:
    """The model's own answer to a prompt.

    Args:
        call: the request to the model.
        references: what it may copy from.
        metrics: told of the answer.
        with_ids: whether the evidence holds the ids of the answer.
    """

    def __init__(
        self, call: Call, references: Sequence[Reference], metrics: Metrics, *, with_ids: bool
    ) -> None:
        self._call = call
        self._references = references
        self._metrics = metrics
        self._with_ids = with_ids

    async def pieces(self) -> AsyncGenerator[ReplyPiece]:
        """Yield the parts of the answer; closing the iterator stops the model."""
        async with aclosing(self._call.apieces()) as pieces:
            async for piece in pieces:
                yield piece
        self._metrics.count(self._call.answer)

    @property
    def opening(self) -> dict[str, Any]:
        """What is known before the first piece: nothing."""
        return {}

    def new_spans(self) -> list[dict[str, int]]:
        """Return none: references may be long."""
        return []

    @property
    def finish_reason(self) -> str:
        """Why the answer ended."""
        return self._call.finish_reason

    @property
    def usage(self) -> Usage:
        """How many tokens there were."""
        return _usage(self._call)

    @property
    def evidence(self) -> dict[str, Any]:
        """Figures, the references by number, and the copied spans."""
        made: dict[str, Any] = {"figures": self._call.figures}
        if self._with_ids:
            made["token_ids"] = self._call.answer.token_ids
        made["sources"] = [
            {"number": number, "metadata": dict(reference.metadata)}
            for number, reference in enumerate(self._references, start=1)
        ]
        numbers = list(range(1, len(self._references) + 1))
        made["spans"] = numbered_spans(self._call.copied_spans, numbers)
        return made


class DocumentsAnswer:
    """A chatbot's answer; a conversation that is kept gets the turn once it is complete.

    Args:
        bot: the chatbot.
        conversation: what was said before.
        answering: the question, looked up.
        kept: where the conversation is kept; None where it is not.
        metrics: told of the answer.
        with_ids: whether the evidence holds the ids of the answer.
    """

    def __init__(
        self,
        bot: Chatbot,
        conversation: Conversation,
        answering: Answering,
        kept: ConversationStore | None,
        metrics: Metrics,
        *,
        with_ids: bool,
    ) -> None:
        self._bot = bot
        self._conversation = conversation
        self._answering = answering
        self._kept = kept
        self._metrics = metrics
        self._with_ids = with_ids
        self._call = None if answering.basis == "refusal" else bot.call(answering)
        self._turn: Turn | None = None
        self._growing = GrowingSpans([Reference(source.text) for source in answering.sources])
        self._searched = 0  # characters of the reply

    async def pieces(self) -> AsyncGenerator[ReplyPiece]:
        """Yield the parts of the answer, then keep the turn; closing the iterator stops the model."""
        if self._answering.opening:
            yield ReplyPiece(self._answering.opening)
        if self._call is not None:
            async with aclosing(self._call.apieces()) as pieces:
                async for piece in pieces:
                    yield piece
            self._metrics.count(self._call.answer)
        self._turn = self._bot.finish(self._conversation, self._answering, self._call)
        if self._kept is not None:
            await asyncio.to_thread(self._kept.add_turn, self._conversation)

    @property
    def opening(self) -> dict[str, Any]:
        """What the answer rests on."""
        answering = self._answering
        return {
            "basis": answering.basis,
            "query": answering.query,
            "sources": [source_json(source) for source in answering.sources],
            "left_out_turns": answering.left_out,
            "conversation": self._conversation.id or None,
        }

    def new_spans(self) -> list[dict[str, int]]:
        """Return the copied spans that the last piece has made or lengthened."""
        if self._call is None:
            return []
        found = self._growing.extend(self._call.content[self._searched :])
        self._searched = len(self._call.content)
        numbers = [source.number for source in self._answering.sources]
        return numbered_spans(found, numbers, len(self._answering.opening))

    @property
    def finish_reason(self) -> str:
        """Why the answer ended."""
        return "stop" if self._call is None else self._call.finish_reason

    @property
    def usage(self) -> Usage:
        """How many tokens there were; none where the answer is a refusal."""
        return Usage() if self._call is None else _usage(self._call)

    @property
    def evidence(self) -> dict[str, Any]:
        """Figures, the sources, and the copied spans with the numbers of their sources: what is kept of the turn."""
        assert self._turn is not None, "the answer is complete"
        ids = {"token_ids": self._call.answer.token_ids} if self._call and self._with_ids else {}
        spans = [dict(span) for span in self._turn.spans]
        return {"figures": dict(self._turn.figures), **ids, **self.opening, "spans": spans}


def source_json(source: Source) -> dict[str, Any]:
    """Return a passage as clients see it: with the name and the id of its document, not with a path of the server."""
    data = {**asdict(source), "source": Path(source.source).name, "document": document_id(source.source)}
    if source.similarity is not None:
        data["similarity"] = round(source.similarity, 3)
    return data


def _usage(call: Call) -> Usage:
    answer = call.answer
    return Usage(answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens)


def model_call(engine: Engine, request: ChatRequest, max_tokens: int) -> Call:
    """Return the call that a chat request makes.

    Raises:
        ApiError: the request asks for what there is not.
    """
    options = request.options(max_tokens)
    options["chat_template_kwargs"] = template_kwargs_of(request.chat_template_kwargs)
    tools = request.tool_descriptions
    choice = request.tool_choice
    wanted = choice.function.name if isinstance(choice, NamedTool) else choice
    try:
        chosen = tool_choice_of(wanted, [tool["function"]["name"] for tool in tools])
    except ValueError as error:
        raise ApiError(400, str(error), param="tool_choice") from error
    messages = [message.as_template_message() for message in request.messages]
    return Call(engine, messages, options, tools=tools, tool_choice=chosen)


def template_kwargs_of(sent: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a client may hand to the chat template.

    Raises:
        ApiError: it is a template.
    """
    if sent and "chat_template" in sent:  # a program, which may run for ever
        raise ApiError(400, "chat_template_kwargs may not set chat_template; the model's own is taken")
    return dict(sent or {})


def prepared(
    bot: Chatbot, request: ChatRequest, conversation: Conversation, question: str, instructions: str
) -> tuple[Chatbot, Answering]:
    """Return a chatbot that answers as the request wants it, and the question looked up."""
    given = request.options(bot.settings.max_tokens)
    settings = replace(
        bot.settings,
        max_tokens=request.asked_tokens or bot.settings.max_tokens,
        mode=request.mode or bot.settings.mode,
    )
    asked = Chatbot(bot.engine, bot.store, settings)
    answering = asked.prepare(conversation, question, instructions)
    options = RequestOptions(**{**given, **answering.options})
    return asked, replace(answering, options=options)


def history(messages: Sequence[ChatMessage]) -> tuple[list[Turn], str, str]:
    """Return the turns of messages, the question that they end with, and the instructions among them.

    What an assistant says before the first question is left out.

    Raises:
        ApiError: the last message is not the user's, or there are results of tools.
    """
    if any(message.role == "tool" for message in messages):
        raise ApiError(400, "the chatbot over the documents calls no tools; ask the model without documents")
    instructions = "\n\n".join(
        message.text for message in messages if message.role in ("system", "developer")
    )
    spoken = [message for message in messages if message.role in ("user", "assistant")]
    if not spoken or spoken[-1].role != "user":
        raise ApiError(400, "the last message must be the user's question", param="messages")
    turns: list[Turn] = []
    asked: list[str] = []
    for message in spoken:
        if message.role == "user":
            asked.append(message.text)
        elif asked:
            question = "\n\n".join(asked)
            turns.append(Turn(question, question, message.text))
            asked = []
    return turns, "\n\n".join(asked), instructions
