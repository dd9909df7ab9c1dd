"""Text in and out of ids: chat templates, incremental detokenisation, stop strings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from llma_rag.errors import PromptError

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}
_INCOMPLETE = "\ufffd"  # what a tokenizer shows for bytes that are no character yet
_RESERVED = {  # arguments of `apply_chat_template` that are no template's
    "add_generation_prompt",
    "continue_final_message",
    "conversation",
    "max_length",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
}
_SPACE_MARKS = "Ġ▁ "  # what tokenizers write for the space before a word


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    answer_prefix: str = "",
) -> list[int]:
    """Return the ids of a plain prompt or of chat messages through the chat template, once.

    A plain string is completed as it is; messages end with the template's opening of the answer. The
    template is rendered to ids and never tokenised again: it decides itself about special tokens.

    Args:
        tokenizer: the model's.
        prompt: a string, or chat messages.
        chat_template_kwargs: what the template gets beside the messages.
        answer_prefix: how the answer begins.

    Raises:
        PromptError: the prompt is empty, or the model's chat template is missing or does not take it.
    """
    if not prompt:
        raise PromptError("the prompt is empty; pass a string or messages with some text")
    if isinstance(prompt, str):
        if chat_template_kwargs:
            raise PromptError(
                f"a string goes through no chat template; pass messages to use {', '.join(chat_template_kwargs)}"
            )
        ids = list(tokenizer(prompt).input_ids)
    else:
        ids = list(_rendered(tokenizer, prompt, chat_template_kwargs or {}, tokenize=True))
    if not ids:
        raise PromptError("the prompt is empty; pass a string or messages with some text")
    return ids + (reference_ids(tokenizer, answer_prefix) if answer_prefix else [])


def answer_opening(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], chat_template_kwargs: Mapping[str, Any]
) -> str:
    """Return what the chat template itself writes into the answer, such as `<think>`; without white space."""
    rendered = [
        str(
            _rendered(tokenizer, messages, chat_template_kwargs, tokenize=False, add_generation_prompt=opened)
        )
        for opened in (False, True)
    ]
    return rendered[1].removeprefix(rendered[0]).strip()


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], kwargs: Mapping[str, Any], **how: bool
) -> Any:
    """Render messages as they are, or as plain as the template wants them."""
    if tokenizer.chat_template is None:
        raise PromptError("the model's tokenizer has no chat template; pass the prompt as one string")
    reserved = sorted(_RESERVED & kwargs.keys())
    if reserved:
        raise PromptError(f"chat_template_kwargs may not set {', '.join(reserved)}")
    how = {"add_generation_prompt": True, **how}
    first: TemplateError | None = None
    for variant in _plainer_and_plainer([dict(message) for message in messages], tokenizer.chat_template):
        try:
            return tokenizer.apply_chat_template(variant, return_dict=False, **how, **kwargs)
        except TemplateError as error:
            first = first or error
    raise PromptError(f"the model's chat template does not take these messages: {first}") from first


def _plainer_and_plainer(messages: list[dict[str, Any]], template: Any) -> Iterator[list[dict[str, Any]]]:
    """Yield the messages, then variants for templates that know fewer roles, or want them to alternate."""
    yield messages
    if "tool_calls" in str(template) and any(message.get("tool_calls") for message in messages):
        return  # the plainer ones would hide the calls from a model that knows them
    merged = _with_system_in_user(messages)  # Gemma 2, for example, knows no system role
    if merged != messages:
        yield merged
    alternating = _alternating(merged)
    if alternating != merged:
        yield alternating


def _alternating(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with results of tools as the user's, and those of one role in a row as one."""
    made: list[dict[str, Any]] = []
    for message in messages:
        role = "user" if message.get("role") == "tool" else message.get("role")
        if made and made[-1]["role"] == role:
            made[-1]["content"] = f"{made[-1]['content']}\n\n{message['content']}"
        else:
            made.append({"role": role, "content": message["content"]})
    return made


def _with_system_in_user(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with a leading system message put before the first user message's text."""
    roles = [message.get("role") for message in messages[:2]]
    if roles != ["system", "user"]:
        return messages
    system, user, *rest = messages
    return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]


def reference_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a reference, without special tokens."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def alike_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return for each id the lowest one whose token differs at most in the case of its ASCII letters and a space before."""
    tokens = sorted((token_id, token) for token, token_id in tokenizer.get_vocab().items())
    special = set(tokenizer.all_special_ids)
    alike = list(range(tokens[-1][0] + 1))
    first_ids: dict[str, int] = {}
    for token_id, token in tokens:
        plain = token.lstrip(_SPACE_MARKS)
        plain = plain.lower() if plain.isascii() else plain
        if plain and token_id not in special:
            alike[token_id] = first_ids.setdefault(plain, token_id)
    return alike


class Detokenizer:
    """Turns ids into text as they come, holding back what a later id may still change.

    The pieces joined are the text of all ids. A piece is decoded together with the ids before it, since
    some tokenizers write a token differently at the beginning of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # first id that is decoded again
        self._emitted = 0  # ids whose text is out

    def feed(self, token_id: int) -> str:
        """Take one id; return the text that is final now."""
        self._ids.append(token_id)
        return self._advance(final=False)

    def finish(self) -> str:
        """Return the rest, incomplete characters included."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        before = self._decode(self._ids[self._context : self._emitted])
        after = self._decode(self._ids[self._context :])
        if len(after) <= len(before) or (after.endswith(_INCOMPLETE) and not final):
            return ""
        self._context, self._emitted = self._emitted, len(self._ids)
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str | list[str] = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text


class StopStrings:
    """Finds stop strings in streamed text and holds back what may become one."""

    def __init__(self, stop: Sequence[str]) -> None:
        if any(not string for string in stop):
            raise ValueError("a stop string must not be empty")
        self._stop = tuple(stop)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """Take text; return what is final. After a stop string is found, everything else is dropped."""
        if self.found is not None:
            return ""
        self._held += text
        hits = [(self._held.find(string), string) for string in self._stop if string in self._held]
        if hits:
            begin, self.found = min(hits)
            final, self._held = self._held[:begin], ""
            return final
        keep = self._possible_beginning()
        final, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return final

    def finish(self) -> str:
        """Return what was held back: the output ended before it became a stop string."""
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self) -> int:
        """Return the length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max((len(string) - 1 for string in self._stop), default=0))
        for length in range(longest, 0, -1):
            if any(string.startswith(self._held[-length:]) for string in self._stop):
                return length
        return 0
