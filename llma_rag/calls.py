"""A request as adapters make it: tools and reasoning through the chat template, the reply in parts, the evidence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llma_rag.engine import Engine, RequestOptions
from llma_rag.evidence import evidence, figures
from llma_rag.generation import Generation
from llma_rag.provenance import CopiedSpan, as_references, copied_spans, coverage
from llma_rag.replies import (
    CallStyle,
    ReplyParser,
    ReplyPiece,
    call_style,
    forced_call,
    takes_tools,
    thinks,
    with_fitting_ids,
)
from llma_rag.text import Message, answer_opening, prompt_ids

if TYPE_CHECKING:
    from llma_rag.remote import RemoteCall, RemoteEngine


class Call:
    """One request to an engine. Its reply comes in pieces; after the last one there is the rest.

    Attributes:
        content: the part that the user sees, as far as it has come.
        answer: all of what the engine made.
        copied_spans: which characters of `content` stand in which reference.

    Args:
        engine: answers.
        prompt: messages in the form of chat templates, or a string to complete as it is.
        options: of the request.
        tools: their descriptions in OpenAI's form.
        tool_choice: `auto` or None for the model's own choice, `none`, `any` or `required`, or the name of a tool.

    Raises:
        PromptError: the model's chat template takes no tools.
        ValueError: the choice names no tool.
    """

    answer: Generation
    copied_spans: list[CopiedSpan]

    def __init__(
        self,
        engine: Engine,
        prompt: str | Sequence[Message],
        options: RequestOptions,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: Any = None,
    ) -> None:
        template_kwargs = dict(options.get("chat_template_kwargs") or {})
        style: CallStyle | None = None
        prefix = ""
        if tools and tool_choice != "none":
            template_kwargs["tools"] = list(tools)
            style = call_style(engine.tokenizer, engine.name)
            prefix = _forced_prefix(style, tools, tool_choice)
        self.engine = engine
        self._prompt = prompt
        self._options = RequestOptions(
            **{**options, "chat_template_kwargs": template_kwargs, "answer_prefix": prefix}
        )
        self._references = as_references(options.get("references") or ())
        self._prefix = prefix
        thinking = opened = False
        if not isinstance(prompt, str):
            self._prompt = messages = with_fitting_ids(engine.tokenizer, prompt)
            thinking = thinks(engine.tokenizer) and not prefix
            opened = thinking and answer_opening(engine.tokenizer, messages, template_kwargs).endswith(
                "<think>"
            )
        self._parser = ReplyParser(
            thinks=thinking,
            opened=opened,
            calls=style,
            tools=None if prefix else [tool["function"]["name"] for tool in tools],
        )
        self.content = ""
        self._called = False
        self._calls_are_whole = True

    def pieces(self) -> Generator[ReplyPiece]:
        """Yield the parts of the reply as they become final; closing the iterator stops the model."""
        with self.engine.stream(self._prompt, **self._options) as stream:
            yield from self._fed(self._prefix)
            for text in stream:
                yield from self._fed(text)
            self.answer = stream.result
            yield from self._piece(self._parser.finish())
            self.copied_spans = self._found_spans()

    async def apieces(self) -> AsyncGenerator[ReplyPiece]:
        """Yield the same for the running event loop."""
        async with self.engine.astream(self._prompt, **self._options) as stream:
            for piece in self._fed(self._prefix):
                yield piece
            async for text in stream:
                for piece in self._fed(text):
                    yield piece
            self.answer = await stream.result()
            for piece in self._piece(self._parser.finish()):
                yield piece
            self.copied_spans = await asyncio.to_thread(self._found_spans)

    def require_room(self) -> None:
        """Raise what is wrong with the prompt before the model is asked.

        Raises:
            ContextLengthError: it leaves no room in the context.
            PromptError: it is empty, or the model's chat template does not take it.
        """
        ids = prompt_ids(
            self.engine.tokenizer,
            self._prompt,
            chat_template_kwargs=self._options.get("chat_template_kwargs"),
            answer_prefix=self._prefix,
        )
        self.engine.runner.require_room(len(ids))

    @property
    def finish_reason(self) -> str:
        """`stop`, `length`, or `tool_calls` where the model has written calls to their end."""
        cut = self.answer.finish_reason == "length" and not self._calls_are_whole
        return "tool_calls" if self._called and not cut else self.answer.finish_reason

    @property
    def figures(self) -> dict[str, Any]:
        """What the answer took, and how much of what the user sees was copied."""
        copied = coverage(self.copied_spans, len(self.content))
        return {**figures(self.answer), "copied_coverage": round(copied, 3)}

    @property
    def evidence(self) -> dict[str, Any]:
        """How the answer came about, and which of its characters were copied from where."""
        return evidence(
            self.answer, self.copied_spans, model=self.engine.name, finish_reason=self.finish_reason
        )

    def _found_spans(self) -> list[CopiedSpan]:
        if self.content == self.answer.text:
            return self.answer.copied_spans
        return copied_spans(self.content, self._references)

    def _fed(self, text: str) -> Iterator[ReplyPiece]:
        if text:
            yield from self._piece(self._parser.feed(text))

    def _piece(self, piece: ReplyPiece) -> Iterator[ReplyPiece]:
        self.content += piece.content
        self._called = self._called or bool(piece.tool_calls)
        self._calls_are_whole &= all(call.arguments is not None for call in piece.tool_calls)
        if piece:
            yield piece


def call_to(
    engine: Engine | RemoteEngine,
    prompt: str | Sequence[Message],
    options: RequestOptions,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    tool_choice: Any = None,
) -> Call | RemoteCall:
    """Return a request to an engine in this process or behind a server; see `Call`."""
    if isinstance(engine, Engine):
        return Call(engine, prompt, options, tools=tools, tool_choice=tool_choice)
    return engine.call(prompt, options, tools=tools, tool_choice=tool_choice)


def can_call_tools(engine: Engine | RemoteEngine) -> bool:
    """Return whether tools may be offered; a server says so itself when it is asked."""
    return not isinstance(engine, Engine) or takes_tools(engine.tokenizer)


def tool_choice_of(choice: Any, names: Sequence[str]) -> str | None:
    """Return `none`, `any`, the name of a tool, or None for the model's own choice.

    Raises:
        ValueError: it names no tool.
    """
    if isinstance(choice, Mapping):
        choice = str(choice.get("function", choice).get("name"))
    if choice in (None, False, "auto"):
        return None
    if choice in (True, "any", "required"):
        return "any"
    if choice == "none":
        return "none"
    if choice not in names:
        raise ValueError(f"tool_choice must be auto, none, any or one of {', '.join(names)}, got {choice!r}")
    return str(choice)


def _forced_prefix(style: CallStyle, tools: Sequence[Mapping[str, Any]], choice: Any) -> str:
    names = [tool["function"]["name"] for tool in tools]
    wanted = tool_choice_of(choice, names)
    if wanted is None:
        return ""
    if wanted == "any":
        return forced_call(style, names[0] if len(names) == 1 else None)
    return forced_call(style, wanted)
