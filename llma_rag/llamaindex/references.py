"""References on their way from a retriever to the model, where LlamaIndex has no argument for them."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from pydantic import ConfigDict, Field

from llma_rag.provenance import Reference
from llma_rag.references import AnswerMemory, gather

_PROBE = 60  # characters of a reference that show it is in a prompt

_of_this_turn: ContextVar[tuple[Reference, ...]] = ContextVar("llma_rag_references", default=())


def references_for(prompt: str) -> list[Reference]:
    """Return the references that a postprocessor has set, if the prompt shows one of them.

    The calls of a turn that come before its retrieval, and calls of other turns, show none: what was retrieved for
    another question is neither a reference nor a source of theirs.
    """
    references = _of_this_turn.get()
    if any(_is_shown(reference.text, prompt) for reference in references if not reference.draft_only):
        return list(references)
    return []


def _is_shown(text: str, prompt: str) -> bool:
    """Return whether a part of a text is in a prompt; synthesizers may have cut it and put it in with others."""
    text = text.strip()
    pieces = [text[begin : begin + _PROBE] for begin in range(0, max(1, len(text) - _PROBE + 1), _PROBE)]
    return any(piece in prompt for piece in pieces if piece)


class ReferencePostprocessor(BaseNodePostprocessor):
    """Makes the nodes that pass through it references of the answer to come, in query and chat engines.

    Put it last among the postprocessors. The references are those of the running context (thread or task) until the
    next nodes pass, and serve calls whose prompt shows one of them.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    memory: AnswerMemory | None = Field(default=None, exclude=True)
    """Earlier answers to similar questions serve drafts as well."""
    k: int = Field(default=2, ge=1)
    """Most earlier answers."""

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex knows the class by."""
        return "ReferencePostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        _of_this_turn.set(tuple(gather(nodes, self._earlier(query_bundle))))
        return nodes

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        earlier = await asyncio.to_thread(self._earlier, query_bundle)
        _of_this_turn.set(
            tuple(gather(nodes, earlier))
        )  # in this task: another thread's context would be lost
        return nodes

    def _earlier(self, query_bundle: QueryBundle | None) -> list[Reference]:
        if self.memory is None or query_bundle is None:
            return []
        return self.memory.nearest(query_bundle.query_str, self.k)
