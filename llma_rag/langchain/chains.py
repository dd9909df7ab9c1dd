"""Runnables that hand references to the model: what a chain formats, earlier answers, the conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import BasePromptTemplate, PromptTemplate, format_document
from langchain_core.runnables import (
    Runnable,
    RunnableGenerator,
    RunnableLambda,
    RunnablePassthrough,
)

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

    def formatted(values: dict[str, Any]) -> str:
        return document_separator.join(
            format_document(document, layout) for document in values[document_variable_name]
        )

    def answering(values: dict[str, Any]) -> Runnable[dict[str, Any], Any]:
        documents: list[Document] = list(values[document_variable_name])
        references = gather(documents, more_references(values) if more_references else None)
        return (
            RunnablePassthrough.assign(**{document_variable_name: formatted})
            | prompt
            | llm.bind(references=references)
            | (output_parser or StrOutputParser())
        )

    return RunnableLambda(answering, name="reference_documents_chain")


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
        return [message.text for message in reversed(messages) if isinstance(message, AIMessage)]

    return found


def with_references(
    llm: Runnable[Any, Any], prompt: Runnable[Any, Any], *sources: References
) -> Runnable[Any, Any]:
    """Return `prompt | llm` with the references that the sources find for each input."""

    def answering(values: dict[str, Any]) -> Runnable[Any, Any]:
        return prompt | llm.bind(references=gather(*(source(values) for source in sources)))

    return RunnableLambda(answering, name="with_references")


def remember_answers(
    chain: Runnable[Any, Any],
    memory: AnswerMemory,
    *,
    question_key: str = "input",
    answer_key: str = "answer",
) -> Runnable[Any, Any]:
    """Return the chain; whatever it answers completely, invoked or streamed, goes into the memory.

    Args:
        chain: from a question, or a mapping with one, to a text, a message, or a mapping with an answer.
        memory: keeps the answers.
        question_key: the question's key, where the input is a mapping.
        answer_key: the answer's key, where the output is a mapping.
    """

    def answered(inputs: Iterator[Any]) -> Iterator[Any]:
        for values in inputs:
            pieces = []
            for piece in chain.stream(values):
                pieces.append(_answer(piece, answer_key))
                yield piece
            memory.add(_question(values, question_key), "".join(pieces))

    async def aanswered(inputs: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for values in inputs:
            pieces = []
            async for piece in chain.astream(values):
                pieces.append(_answer(piece, answer_key))
                yield piece
            memory.add(_question(values, question_key), "".join(pieces))

    return RunnableGenerator(answered, aanswered, name="remember_answers")


def _question(values: Any, key: str) -> str:
    return str(values[key]) if isinstance(values, Mapping) else str(values)


def _answer(piece: Any, key: str) -> str:
    if isinstance(piece, Mapping):
        piece = piece.get(key, "")
    return piece.text if isinstance(piece, BaseMessage) else str(piece)
