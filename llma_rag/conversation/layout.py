"""Prompts to which each turn only adds, so that what was computed for the last one need not be computed again.

A passage is shown once, in the turn that found it first; later turns name it by its number. Where the prompt would
outgrow its budget, the oldest turns go, several at once: each time this happens the prompt begins anew.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from llma_rag.conversation.turns import Conversation, Source, Turn

Messages = list[dict[str, str]]
Count = Callable[[Messages], int]

INSTRUCTIONS = (
    "You answer questions about the user's documents, in their own words where you can. "
    "Say so if the passages do not answer the question."
)
_MOST_CHARACTERS_PER_TOKEN = 8  # of a history; more of it is not even counted
_SHARE_AFTER_CUT = 0.5  # of the room beside the question that earlier turns may take once some had to go


def chat_messages(
    conversation: Conversation,
    question: str,
    sources: Sequence[Source],
    budget: int,
    count: Count,
    instructions: str = "",
) -> tuple[Messages, int]:
    """Return a prompt, and how many turns at the beginning it leaves out.

    Args:
        conversation: what was said before.
        question: as the user asks it.
        sources: passages for it, best first.
        budget: most tokens of the prompt; more only where passages and question alone take more.
        count: counts tokens.
        instructions: behind the chatbot's own.
    """
    system = f"{INSTRUCTIONS}\n\n{instructions}" if instructions else INSTRUCTIONS
    turns = conversation.turns

    def size(left_out: int) -> int:
        return count(_messages(system, turns[left_out:], question, sources))

    left_out = max(conversation.first_shown, _first_within(turns, budget * _MOST_CHARACTERS_PER_TOKEN))
    if size(left_out) > budget:
        alone = size(len(turns))
        room = alone + int(max(0, budget - alone) * _SHARE_AFTER_CUT)
        left_out = bisect_left(range(len(turns)), True, lo=left_out, key=lambda first: size(first) <= room)
    return _messages(system, turns[left_out:], question, sources), left_out


def _first_within(turns: Sequence[Turn], characters: int) -> int:
    """Return the first of the last turns that have so many characters together, without counting any tokens."""
    first = len(turns)
    while first and (characters := characters - len(turns[first - 1].question + turns[first - 1].answer)) > 0:
        first -= 1
    return first


def _messages(system: str, turns: Sequence[Turn], question: str, sources: Sequence[Source]) -> Messages:
    messages = [{"role": "system", "content": system}]
    shown: set[str] = set()
    for turn in turns:
        messages.append({"role": "user", "content": _asked(turn.question, turn.sources, shown)})
        messages.append({"role": "assistant", "content": turn.answer})
    messages.append({"role": "user", "content": _asked(question, sources, shown)})
    return messages


def _asked(question: str, sources: Sequence[Source], shown: set[str]) -> str:
    """Return a question behind its passages, the new ones in full; those are shown from now on."""
    new = [source for source in sources if source.id not in shown]
    known = [source for source in sources if source.id in shown]
    shown.update(source.id for source in new)
    parts = [f"[{source.number}] {source.text}" for source in new]
    if known:
        parts.append("See also " + ", ".join(f"[{source.number}]" for source in known) + " above.")
    return "\n\n".join([*parts, f"Question: {question}"])
