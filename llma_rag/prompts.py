"""The prompt that puts retrieved documents before a question."""

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
