"""Follow-up questions that stand alone, so that a search finds what they are about."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llma_rag.conversation.turns import Turn
from llma_rag.engine import Engine

_POINTING_BACK = re.compile(
    r"\b(it|its|they|them|their|theirs|he|him|his|she|her|hers|this|that|these|those|there|then|one|ones|"
    r"same|other|others|else|more|former|latter)\b|^\s*(and|but|or|so|also|what about|how about|why|how so)\b",
    re.IGNORECASE,
)
_FEW_WORDS = 3  # a shorter question hardly ever stands alone
_MODEL_TOKENS = 64


def standalone_question(question: str, turns: Sequence[Turn]) -> str:
    """Return a follow-up question behind the last one that stands alone; others as they are.

    >>> turn = Turn("When does the ferry leave?", "When does the ferry leave?", "At nine.")
    >>> standalone_question("And on Sundays?", [turn])
    'When does the ferry leave? And on Sundays?'
    >>> standalone_question("Who wrote the guide to the harbour?", [turn])
    'Who wrote the guide to the harbour?'
    """
    if not turns or not _points_back(question):
        return question
    followed = next((turn for turn in reversed(turns) if not _points_back(turn.question)), turns[-1])
    return f"{followed.question} {question}"


def rewritten_question(engine: Engine, question: str, turns: Sequence[Turn]) -> str:
    """Return the question as the model rewrites it to stand alone; as it is where there is nothing before it."""
    if not turns:
        return question
    before = "\n".join(f"User: {turn.question}\nAssistant: {turn.answer}" for turn in turns[-2:])
    messages = [
        {
            "role": "user",
            "content": f"{before}\n\nFollow-up question: {question}\n\nRewrite the follow-up question so that it can "
            "be understood without the conversation. Write the question only.",
        }
    ]
    rewritten = engine.generate(messages, max_tokens=_MODEL_TOKENS, stop=["\n"]).text.strip()
    return rewritten or question


def _points_back(question: str) -> bool:
    return len(question.split()) <= _FEW_WORDS or _POINTING_BACK.search(question) is not None
