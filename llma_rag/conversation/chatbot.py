"""The chatbot: looks a question up, decides whether the documents answer it, and prepares what the engine is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llma_rag.calls import Call
from llma_rag.conversation.condensing import rewritten_question, standalone_question
from llma_rag.conversation.layout import Messages, chat_messages
from llma_rag.conversation.turns import Basis, Conversation, Source, Turn
from llma_rag.engine import Engine, RequestOptions
from llma_rag.errors import ContextLengthError, PromptError
from llma_rag.evidence import numbered_spans
from llma_rag.provenance import Reference
from llma_rag.retrieval import DocumentStore, Hit, SearchMode

Mode = Literal["query", "chat"]
Condensing = Literal["rule", "model", "off"]

REFUSAL = "The documents do not answer this question."
_WITHOUT_DOCUMENTS = "(Not from the documents.) "


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How a chatbot answers.

    Attributes:
        mode: `query` refuses where no passage is relevant, `chat` lets the model answer freely, with a mark.
        passages: most passages per question.
        min_similarity: of a passage to the question, -1 to 1, for it to be shown; without one the documents do not answer.
        condensing: how a follow-up question is made to stand alone.
        search: how passages are found.
        max_tokens: most tokens of an answer.
    """

    mode: Mode = "query"
    passages: int = 3
    min_similarity: float = (
        0.3  # answerable questions on the packaged documents reach 0.4 to 0.8, others 0.1 to 0.3
    )
    condensing: Condensing = "rule"
    search: SearchMode = "hybrid"
    max_tokens: int = 256

    def __post_init__(self) -> None:
        for name, allowed in (("mode", ("query", "chat")), ("condensing", ("rule", "model", "off"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("passages", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Answering:
    """A question that was looked up.

    Attributes:
        question: as asked.
        query: as looked up.
        basis: what the answer rests on.
        sources: passages for it, best first.
        messages: the prompt; empty where it is refused.
        options: for the engine, references among them.
        left_out: turns at the beginning of the conversation that the prompt has no room for.
    """

    question: str
    query: str
    basis: Basis
    sources: tuple[Source, ...]
    messages: Messages
    options: RequestOptions
    left_out: int

    @property
    def opening(self) -> str:
        """What stands before the model's words, or is the whole answer where it is refused."""
        return {"documents": "", "model": _WITHOUT_DOCUMENTS, "refusal": REFUSAL}[self.basis]


class Chatbot:
    """Answers questions about the documents of a store, turn after turn.

    Args:
        engine: the model.
        store: the documents.
        settings: how to answer.
    """

    def __init__(self, engine: Engine, store: DocumentStore, settings: ChatSettings | None = None) -> None:
        self.engine = engine
        self.store = store
        self.settings = settings or ChatSettings()

    def prepare(self, conversation: Conversation, question: str, instructions: str = "") -> Answering:
        """Look a question up; `call` then asks the model, unless it is refused.

        Args:
            conversation: what was said before.
            question: as the user asks it.
            instructions: to the model, beside the chatbot's own.

        Raises:
            ContextLengthError: the question alone does not fit the model's context.
            PromptError: the question is empty.
        """
        if not question.strip():
            raise PromptError("the question is empty; ask something")
        budget = self._budget()
        self._require_room(self.engine.count_tokens([{"role": "user", "content": question}]), budget)
        query = self._standalone(question, conversation)
        hits = self._relevant(query)
        sources = _numbered(hits, conversation.numbers)
        if not hits and self.settings.mode == "query":
            options = RequestOptions()
            return Answering(question, query, "refusal", (), [], options, conversation.first_shown)
        while True:
            messages, left_out = chat_messages(
                conversation, question, sources, budget, self.engine.count_tokens, instructions
            )
            tokens = self.engine.count_tokens(messages)
            if tokens <= budget:
                break
            if not sources:
                self._require_room(tokens, budget)
            sources = sources[:-1]
        return Answering(
            question,
            query,
            "documents" if hits else "model",
            tuple(sources),
            messages,
            RequestOptions(
                references=_references(sources, conversation), max_tokens=self.settings.max_tokens
            ),
            left_out,
        )

    def call(self, answering: Answering) -> Call:
        """Return the request to the model, whose reply comes in pieces."""
        return Call(self.engine, answering.messages, answering.options)

    def finish(self, conversation: Conversation, answering: Answering, call: Call | None) -> Turn:
        """Return the turn that a question and the complete reply make, and add it to the conversation."""
        turn = Turn(
            answering.question,
            answering.query,
            answering.opening + (call.content if call else ""),
            answering.basis,
            answering.sources,
            _spans(answering, call) if call else (),
            _figures(call) if call else {},
        )
        conversation.turns.append(turn)
        conversation.first_shown = answering.left_out
        return turn

    def ask(self, conversation: Conversation, question: str) -> Turn:
        """Answer a question at once."""
        answering = self.prepare(conversation, question)
        call = None if answering.basis == "refusal" else self.call(answering)
        for _ in call.pieces() if call else ():
            pass
        return self.finish(conversation, answering, call)

    def _budget(self) -> int:
        """Return the most tokens of a prompt: an answer's are left free, of the context half at most."""
        context = self.engine.runner.context_length
        return max(context - self.settings.max_tokens, context // 2)

    def _require_room(self, tokens: int, budget: int) -> None:
        if tokens > budget:
            raise ContextLengthError(
                f"the question makes a prompt of {tokens} tokens, of the context's {self.engine.runner.context_length} a "
                f"prompt may take {budget}; shorten it, or lower max_tokens"
            )

    def _standalone(self, question: str, conversation: Conversation) -> str:
        if self.settings.condensing == "off":
            return question
        if self.settings.condensing == "model":
            return rewritten_question(self.engine, question, conversation.turns)
        return standalone_question(question, conversation.turns)

    def _relevant(self, query: str) -> list[Hit]:
        """Return the passages for a query that are similar enough; where words are searched, all."""
        hits = self.store.search(query, self.settings.passages, mode=self.settings.search)
        floor = self.settings.min_similarity
        return [hit for hit in hits if hit.similarity is None or hit.similarity >= floor]


def _numbered(hits: list[Hit], numbers: Mapping[str, int]) -> list[Source]:
    """Return passages under the numbers that the conversation knows them by, new ones under the next."""
    following = max(numbers.values(), default=0) + 1
    known = dict(numbers)
    for hit in hits:
        if hit.id not in known:
            known[hit.id] = following
            following += 1
    return [Source.of(known[hit.id], hit) for hit in hits]


def _references(sources: list[Source], conversation: Conversation) -> list[Reference]:
    """Return the passages, then what earlier turns had and said, which serves drafts only."""
    earlier = [
        Reference(text, draft_only=True)
        for turn in reversed(conversation.turns)
        for text in (turn.answer, *(source.text for source in turn.sources))
    ]
    return [*(Reference(source.text, source.metadata) for source in sources), *earlier]


def _spans(answering: Answering, call: Call) -> tuple[Mapping[str, Any], ...]:
    numbers = [source.number for source in answering.sources]
    return tuple(numbered_spans(call.copied_spans, numbers, len(answering.opening)))


def _figures(call: Call) -> dict[str, Any]:
    return {
        "prompt_tokens": call.answer.prompt_tokens,
        "completion_tokens": call.answer.completion_tokens,
        **call.figures,
        "finish_reason": call.finish_reason,
    }
