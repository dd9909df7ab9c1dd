"""Prompts that put retrieved documents before a question."""

from __future__ import annotations

from collections.abc import Sequence


def documents_prompt(question: str, documents: Sequence[str]) -> list[dict[str, str]]:
    """Return chat messages: numbered documents, then the question, in one user message.

    >>> documents_prompt("Why?", ["Because."])[0]["content"].splitlines()[:2]
    ['Documents:', '[1] Because.']
    """
    numbered = "\n\n".join(f"[{number}] {text}" for number, text in enumerate(documents, start=1))
    content = (
        f"Documents:\n{numbered}\n\nQuestion: {question}\n\n"
        "Answer with the relevant passages from the documents."
    )
    return [{"role": "user", "content": content}]


def quoting_prompt(question: str, passages: Sequence[str]) -> list[dict[str, str]]:
    """Return chat messages that ask for an answer in the passages' own words; it suits small models.

    >>> [message["role"] for message in quoting_prompt("Why?", ["Because."])]
    ['system', 'user']
    """
    text = "\n\n".join(passages)
    return [
        {"role": "system", "content": "You answer questions by quoting the given text."},
        {"role": "user", "content": f"Text:\n{text}\n\nQuestion: {question}"},
    ]
