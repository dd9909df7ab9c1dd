"""The parts of a reply: reasoning, tool calls and the answer proper, told apart by the marks of the model's template.

Qwen and Hermes write `<tool_call>{"name": …, "arguments": …}</tool_call>`, Llama 3 a bare JSON object with `name` and
`parameters`, Mistral a list of such objects.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from llma_rag.errors import PromptError

_THINK, _END_THINK = "<think>", "</think>"
_CALL, _END_CALL = "<tool_call>", "</tool_call>"

_ID_LENGTH = 9  # Mistral's templates want it so

CallStyle = Literal["tagged", "json"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool.

    Attributes:
        arguments: by name; None where the model wrote no valid call.
        raw: what the model wrote.
    """

    name: str
    arguments: dict[str, Any] | None
    raw: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:_ID_LENGTH])

    @property
    def arguments_text(self) -> str:
        """The arguments as JSON; what the model wrote for them where they are not valid."""
        if self.arguments is not None:
            return json.dumps(self.arguments, ensure_ascii=False)
        begin = re.search(r'"(?:arguments|parameters)"\s*:\s*', self.raw)
        if begin is None:
            return self.raw
        written = self.raw[begin.end() :]
        try:
            return json.dumps(json.JSONDecoder().raw_decode(written)[0], ensure_ascii=False)
        except ValueError:
            return written


@dataclass(frozen=True, slots=True)
class ReplyPiece:
    """A piece of a reply that is final."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.tool_calls)


def takes_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the model's chat template shows tools to the model."""
    return re.search(r"\btools\b", _template(tokenizer)) is not None


def thinks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the model may write its reasoning before the answer."""
    return _END_THINK in _template(tokenizer)


def call_style(tokenizer: PreTrainedTokenizerBase, name: str) -> CallStyle:
    """Return how the model writes calls of tools.

    Raises:
        PromptError: its chat template takes no tools, or its calls have a form that is not known here.
    """
    template = _template(tokenizer)
    if not takes_tools(tokenizer):
        raise PromptError(
            f"the chat template of {name} takes no tools; use a model whose template does, such as Qwen 3 or Llama 3"
        )
    if _CALL in template and "<function=" not in template and "<arg_key>" not in template:
        return "tagged"
    if ("[TOOL_CALLS]" in template and "[ARGS]" not in template) or (
        '"parameters": ' in template and "ipython" in template
    ):
        return "json"
    raise PromptError(f"the form in which {name} writes calls of tools is not known here")


def forced_call(style: CallStyle, name: str | None) -> str:
    """Return how an answer begins that calls the tool of this name, or some tool."""
    opened = f'{_CALL}\n{{"name": "' if style == "tagged" else '{"name": "'
    arguments = "arguments" if style == "tagged" else "parameters"
    return opened if name is None else f'{opened}{name}", "{arguments}": '


class ReplyParser:
    """Splits a streamed text into reasoning, content and tool calls, holding back what may be a mark.

    Args:
        thinks: whether the text may begin with reasoning.
        opened: the template has opened the reasoning itself.
        calls: how calls are written; None leaves them in the content.
        tools: the names of the tools there are; a bare JSON object that names none of them is content. None: any name.
    """

    def __init__(
        self,
        *,
        thinks: bool = False,
        opened: bool = False,
        calls: CallStyle | None = None,
        tools: Collection[str] | None = None,
    ) -> None:
        self._calls = calls
        self._tools = tools
        self._held = ""
        self._state: Literal["begin", "reasoning", "content", "call"] = "content"
        if opened:
            self._state = "reasoning"
        elif thinks or calls == "json":
            self._state = "begin"
        self._thinks = thinks
        self._strips = True  # white space at the beginning of a part after a mark

    def feed(self, text: str) -> ReplyPiece:
        """Take text; return what is final."""
        self._held += text
        return self._parts(final=False)

    def finish(self) -> ReplyPiece:
        """Return the rest."""
        return self._parts(final=True)

    def _parts(self, *, final: bool) -> ReplyPiece:
        content, reasoning = "", ""
        calls: list[ToolCall] = []
        while True:
            state, held = self._state, self._held
            if state == "begin":
                self._begin(final=final)
            elif state == "reasoning":
                reasoning += self._until(_END_THINK, "content", final=final)
            elif state == "content":
                mark = _CALL if self._calls == "tagged" else ""
                content += self._until(mark, "call", final=final)
            elif self._calls == "json":
                if final:
                    found, rest = _json_calls(self._held, self._tools)
                    calls += found
                    content += rest
                    self._held = ""
            else:
                calls += self._tagged_calls(final=final)
            if (self._state, self._held) == (state, held):
                return ReplyPiece(content, reasoning, tuple(calls))

    def _begin(self, *, final: bool) -> None:
        start = self._held.lstrip()
        if self._thinks and start.startswith(_THINK):
            self._state, self._held = "reasoning", start[len(_THINK) :]
        elif self._thinks and not final and _THINK.startswith(start):
            return
        elif self._calls == "json" and start[:1] in ("{", "["):
            self._state = "call"
        elif start or final:
            self._state, self._strips = "content", False

    def _until(self, mark: str, after: Literal["content", "call"], *, final: bool) -> str:
        """Return the final text before a mark; change the state where the mark is."""
        if self._strips:
            self._held = self._held.lstrip("\n")
            if self._held:
                self._strips = False
        if not mark:
            text, self._held = self._held, ""
            return text
        before, found, rest = self._held.partition(mark)
        if found:
            self._held, self._strips = rest, True
            self._state = "begin" if after == "content" and self._calls == "json" else after
            self._thinks = False
            return before.rstrip("\n") if after == "call" else before.rstrip()
        keep = 0 if final else _possible_mark(self._held, mark)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text

    def _tagged_calls(self, *, final: bool) -> list[ToolCall]:
        before, found, rest = self._held.partition(_END_CALL)
        if not found and not final:
            return []
        self._held, self._state, self._strips = rest, "content", True
        return [_call(before.strip())] if before.strip() else []


def _possible_mark(text: str, mark: str) -> int:
    """Return how many characters at the end may be white space before the mark, or its beginning."""
    blank = len(text) - len(text.rstrip())
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            stripped = text[:-length]
            return length + len(stripped) - len(stripped.rstrip())
    return blank


def _json_calls(text: str, tools: Collection[str] | None) -> tuple[list[ToolCall], str]:
    """Return the calls in JSON objects one after another, or in a list, and the text from what is no call on."""
    decoder, rest = json.JSONDecoder(), text.strip()
    calls: list[ToolCall] = []
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except ValueError:
            if re.match(r'\[?\s*\{\s*"name"\s*:', rest):  # a call that was cut off, or has a mistake
                return [*calls, _call(rest)], ""
            break
        found = value if isinstance(value, list) else [value]
        if not found or not all(_is_call(one, tools) for one in found):
            break
        calls += [_call(json.dumps(one, ensure_ascii=False)) for one in found]
        rest = rest[end:].lstrip(" \t\n;,")
    return calls, rest if calls else text


def _is_call(value: Any, tools: Collection[str] | None) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and (tools is None or value["name"] in tools)
        and ("arguments" in value or "parameters" in value)
    )


def _call(raw: str) -> ToolCall:
    try:
        value = json.loads(raw)
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if isinstance(value["name"], str) and isinstance(arguments, dict):
            return ToolCall(value["name"], arguments, raw)
    except (ValueError, KeyError, AttributeError):
        pass
    named = re.search(r'"name"\s*:\s*"([^"]*)"', raw)
    return ToolCall(named[1] if named else "", None, raw)


def as_template_call(name: str, arguments: Mapping[str, Any], identity: str | None) -> dict[str, Any]:
    """Return a call as chat templates want it."""
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def with_fitting_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return messages whose ids of calls are as short as Mistral's templates want them; others take any."""
    if "[TOOL_CALLS]" not in _template(tokenizer):
        return [dict(message) for message in messages]
    made = []
    for message in messages:
        message = dict(message)
        if message.get("tool_call_id"):
            message["tool_call_id"] = _fitting_id(message["tool_call_id"])
        if message.get("tool_calls"):
            message["tool_calls"] = [
                {**call, "id": _fitting_id(call["id"])} for call in message["tool_calls"]
            ]
        made.append(message)
    return made


def _fitting_id(identity: str | None) -> str:
    identity = identity or ""
    if len(identity) == _ID_LENGTH and identity.isalnum():
        return identity
    return hashlib.sha256(identity.encode()).hexdigest()[:_ID_LENGTH]


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    template: str | Sequence[Any] | None = tokenizer.chat_template
    return template if isinstance(template, str) else json.dumps(template)
