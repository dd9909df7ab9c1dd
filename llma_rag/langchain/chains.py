"""Runnables that hand references to the model: what a chain formats, earlier answers, the conversation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import BasePromptTemplate, PromptTemplate, format_document
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnablePassthrough

from llma_rag.provenance import Reference
from llma_rag.references import AnswerMemory, gather

References = Callable[[dict[str, Any]], Iterable[Any]]  # from a chain's input


def create_reference_documents_chain(
    llm: Runnable[Any, Any],
    prompt: BasePromptTemplate[Any],
    *,
    output_parser: Runnable[Any, Any] | None = None,
    document_prompt: BasePromptTemplate[str] | None = None,
    document_separator: str = "\n\n",
    document_variable_name: str = "context",
    more_references: References | None = None,
) -> Runnable[dict[str, Any], Any]:
    """Return a chain that puts documents into the prompt and hands them to the model as references.

    It takes the place of `create_stuff_documents_chain`, also in `create_retrieval_chain`; each item of a batch has
    its own documents.

    Args:
        llm: `ChatLLMA` or `LLMA`, or a runnable that passes `references` on to one.
        prompt: with a variable for the documents.
        output_parser: what to make of the answer; its text by default. `RunnablePassthrough()` keeps the message with
            its usage, figures and copied spans.
        document_prompt: how to format a document; its text by default.
        document_separator: what stands between documents.
        document_variable_name: the documents' key in the input and in the prompt.
        more_references: returns further references for an input, such as `earlier_answers(memory)`.

    Raises:
        ValueError: the prompt has no such variable.
    """
    if document_variable_name not in prompt.input_variables:
        raise ValueError(
            f"the prompt must have the variable {document_variable_name!r}, it has {prompt.input_variables}"
        )
    layout = document_prompt or PromptTemplate.from_template("{page_content}")

    def answering(values: dict[str, Any]) -> Runnable[dict[str, Any], Any]:
        documents = _documents(values, document_variable_name)
        references = gather(documents, more_references(values) if more_references else None)
        text = document_separator.join(format_document(document, layout) for document in documents)
        return (
            RunnablePassthrough.assign(**{document_variable_name: lambda _: text})
            | prompt
            | _with(llm, references)
            | (output_parser or StrOutputParser())
        )

    return RunnableLambda(answering, name="reference_documents_chain")


def _documents(values: dict[str, Any], key: str) -> list[Document]:
    if key not in values:
        raise ValueError(
            f"the input must have documents under {key!r}, it has {', '.join(values) or 'nothing'}"
        )
    given = values[key]
    documents = (
        list(given) if isinstance(given, Iterable) and not isinstance(given, str | Mapping) else [given]
    )
    if not all(isinstance(one, Document) for one in documents):
        raise TypeError(
            f"{key!r} must be a list of LangChain documents; make one with Document(page_content=text)"
        )
    return documents


def earlier_answers(memory: AnswerMemory, *, question_key: str = "input", k: int = 2) -> References:
    """Return a function from a chain's input to the answers that similar questions had."""

    def found(values: dict[str, Any]) -> list[Any]:
        return list(memory.nearest(_question(values, question_key), k))

    return found


def conversation_references(messages_key: str = "chat_history") -> References:
    """Return a function from a chain's input to the answers earlier in its conversation, latest first.

    What stands in the prompt is a reference anyway; this is for a history that the prompt shortens or condenses.
    """

    def found(values: dict[str, Any]) -> list[Any]:
        messages: list[BaseMessage] = list(values.get(messages_key) or [])
        said = [message.text for message in reversed(messages) if isinstance(message, AIMessage)]
        return [Reference(text, {"earlier_answer": True}, draft_only=True) for text in said]

    return found


def with_references(
    llm: Runnable[Any, Any], prompt: Runnable[Any, Any], *sources: References
) -> Runnable[Any, Any]:
    """Return `prompt | llm` with the references that the sources find for each input."""

    def answering(values: dict[str, Any]) -> Runnable[Any, Any]:
        return prompt | _with(llm, gather(*(source(values) for source in sources)))

    return RunnableLambda(answering, name="with_references")


def _with(llm: Runnable[Any, Any], references: list[Reference]) -> Runnable[Any, Any]:
    """Return the model with references beside those that are bound to it."""
    return llm.bind(references=gather(references, getattr(llm, "kwargs", {}).get("references")))


def remember_answers(
    chain: Runnable[Any, Any],
    memory: AnswerMemory,
    *,
    question_key: str = "input",
    answer_key: str = "answer",
) -> Runnable[Any, Any]:
    """Return the chain; what it answers, invoked or streamed to the end, goes into the memory.

    Args:
        chain: from a question, or a mapping with one, to a text, a message, or a mapping with an answer.
        memory: keeps the answers.
        question_key: the question's key, where the input is a mapping.
        answer_key: the answer's key, where the output is a mapping.
    """
    return _RememberingChain(chain, memory, question_key, answer_key)


class _RememberingChain(Runnable[Any, Any]):
    """A chain whose answers go into a memory.

    Raises:
        ValueError: when called, where the input has no such question or the output no such answer.
    """

    def __init__(
        self, chain: Runnable[Any, Any], memory: AnswerMemory, question_key: str, answer_key: str
    ) -> None:
        self.name = "remember_answers"
        self._chain = chain
        self._memory = memory
        self._question_key = question_key
        self._answer_key = answer_key

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        question = _question(input, self._question_key)
        output = self._chain.invoke(input, config, **kwargs)
        self._memory.add(question, self._joined([output]))
        return output

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        question = _question(input, self._question_key)
        output = await self._chain.ainvoke(input, config, **kwargs)
        await asyncio.to_thread(self._memory.add, question, self._joined([output]))
        return output

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        question, pieces = _question(input, self._question_key), []
        for piece in self._chain.stream(input, config, **kwargs):
            pieces.append(piece)
            yield piece
        self._memory.add(question, self._joined(pieces))

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        question, pieces = _question(input, self._question_key), []
        async for piece in self._chain.astream(input, config, **kwargs):
            pieces.append(piece)
            yield piece
        await asyncio.to_thread(self._memory.add, question, self._joined(pieces))

    def _joined(self, pieces: list[Any]) -> str:
        """Return the answer of an output's pieces, which may be mappings that have it in parts."""
        if pieces and all(isinstance(piece, Mapping) for piece in pieces):
            keys = dict.fromkeys(key for piece in pieces for key in piece)
            if self._answer_key not in keys:
                raise ValueError(
                    f"the chain's output must have an answer under {self._answer_key!r}, it has {', '.join(keys)}; "
                    "say answer_key"
                )
            pieces = [piece[self._answer_key] for piece in pieces if self._answer_key in piece]
        return "".join(_said(piece) for piece in pieces)


def _said(piece: Any) -> str:
    if isinstance(piece, list) and piece and isinstance(piece[-1], BaseMessage):
        piece = piece[-1]
    return piece.text if isinstance(piece, BaseMessage) else str(piece)


def _question(values: Any, key: str) -> str:
    """Return the question of a chain's input.

    Raises:
        ValueError: it is a mapping without one.
    """
    if isinstance(values, PromptValue):
        values = values.to_messages()
    if isinstance(values, list) and values and all(isinstance(one, BaseMessage) for one in values):
        values = next((one for one in reversed(values) if isinstance(one, HumanMessage)), values[-1])
    if isinstance(values, BaseMessage):
        return values.text
    if not isinstance(values, Mapping):
        return str(values)
    if key not in values:
        raise ValueError(
            f"the input must have a question under {key!r}, it has {', '.join(values) or 'nothing'}; say question_key"
        )
    return _question(values[key], key)
