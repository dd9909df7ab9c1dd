"""`ReferenceSynthesizer`: retrieved nodes as references in query engines, and answers into a memory."""

from __future__ import annotations

import asyncio
import copy
import types
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    StreamingResponse,
)
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.llms import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts.mixin import PromptDictType, PromptMixinType
from llama_index.core.response_synthesizers import BaseSynthesizer, get_response_synthesizer
from llama_index.core.schema import NodeWithScore, QueryType
from llama_index.core.types import RESPONSE_TEXT_TYPE

from llma_rag.llamaindex.llm import LLMA
from llma_rag.provenance import Reference
from llma_rag.references import AnswerMemory, gather


class ReferenceSynthesizer(BaseSynthesizer):
    """A synthesizer whose answers may copy from the nodes that they are made from.

    Args:
        synthesizer: does the work; one of LlamaIndex's default where not given. Its LLM must be an `LLMA`.
        memory: earlier answers to similar questions serve drafts as well, and new answers are kept there.
        k: most earlier answers.
        **kwargs: for `get_response_synthesizer`, where no synthesizer is given.

    Raises:
        TypeError: the synthesizer's LLM is another, the memory is none, or there are arguments beside a synthesizer.
    """

    def __init__(
        self,
        synthesizer: BaseSynthesizer | None = None,
        *,
        memory: AnswerMemory | None = None,
        k: int = 2,
        **kwargs: Any,
    ) -> None:
        if synthesizer is not None and kwargs:
            raise TypeError(
                f"a synthesizer is given, so {', '.join(kwargs)} would have no effect; set it there"
            )
        self._inner = synthesizer or get_response_synthesizer(**kwargs)
        _with_references(self._inner._llm, [])
        if memory is not None and not isinstance(memory, AnswerMemory):
            raise TypeError(f"memory must be an AnswerMemory, got {type(memory).__name__}")
        self._memory = memory
        self._k = k
        super().__init__(
            llm=self._inner._llm,
            callback_manager=self._inner.callback_manager,
            prompt_helper=self._inner._prompt_helper,
            chat_prompt_helper=self._inner._chat_prompt_helper,
            streaming=self._inner._streaming,
        )

    @property
    def callback_manager(self) -> CallbackManager:
        """Told of what goes on."""
        return self._inner.callback_manager

    @callback_manager.setter
    def callback_manager(self, callback_manager: CallbackManager) -> None:
        self._inner.callback_manager = callback_manager

    def synthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """Return the answer to a query, made from nodes."""
        question = _question(query)
        bound = self._bound(nodes, self._earlier(question))
        response = bound.synthesize(query, nodes, additional_source_nodes, **response_kwargs)
        if nodes and isinstance(response, StreamingResponse):
            response.response_gen = self._remembering(question, response.response_gen)
        elif nodes:
            self._remember(question, str(response))
        return response

    async def asynthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """Return the answer to a query, made from nodes."""
        question = _question(query)
        bound = self._bound(nodes, await asyncio.to_thread(self._earlier, question))
        response = await bound.asynthesize(query, nodes, additional_source_nodes, **response_kwargs)
        if nodes and isinstance(response, AsyncStreamingResponse):
            response.response_gen = self._aremembering(question, response.response_gen)
        elif nodes:
            await asyncio.to_thread(self._remember, question, str(response))
        return response

    def get_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """Return the text of an answer, made from texts."""
        bound = self._bound(text_chunks, self._earlier(query_str))
        return bound.get_response(query_str, text_chunks, **response_kwargs)

    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """Return the text of an answer, made from texts."""
        bound = self._bound(text_chunks, await asyncio.to_thread(self._earlier, query_str))
        return await bound.aget_response(query_str, text_chunks, **response_kwargs)

    def _earlier(self, question: str) -> list[Reference]:
        return [] if self._memory is None else self._memory.nearest(question, self._k)

    def _bound(self, sources: Sequence[Any], earlier: Sequence[Reference]) -> BaseSynthesizer:
        """Return the synthesizer with a model that has the sources as references."""
        bound = copy.copy(self._inner)
        bound._streaming = self._streaming  # chat engines switch it from outside
        bound._llm = _with_references(self._inner._llm, gather(sources, earlier))
        factory = getattr(bound, "_program_factory", None)
        if isinstance(factory, types.MethodType) and factory.__self__ is self._inner:
            bound._program_factory = types.MethodType(factory.__func__, bound)  # type: ignore[attr-defined]
        return bound

    def _remember(self, question: str, answer: str) -> None:
        if self._memory is not None:
            self._memory.add(question, answer)

    def _remembering(self, question: str, pieces: Generator[str]) -> Generator[str]:
        said = []
        for piece in pieces:
            said.append(piece)
            yield piece
        self._remember(question, "".join(said))

    async def _aremembering(self, question: str, pieces: AsyncGenerator[str]) -> AsyncGenerator[str]:
        said = []
        async for piece in pieces:
            said.append(piece)
            yield piece
        await asyncio.to_thread(self._remember, question, "".join(said))

    def _get_prompts(self) -> PromptDictType:
        return self._inner._get_prompts()

    def _update_prompts(self, prompts_dict: PromptDictType) -> None:
        self._inner._update_prompts(prompts_dict)

    def _get_prompt_modules(self) -> PromptMixinType:
        return self._inner._get_prompt_modules()


def _with_references(llm: LLM, references: Sequence[Any]) -> LLM:
    if isinstance(llm, LLMA):
        return llm.with_references(references)
    if isinstance(llm, StructuredLLM) and isinstance(llm.llm, LLMA):
        return llm.model_copy(update={"llm": llm.llm.with_references(references)})
    raise TypeError(f"the synthesizer's LLM must be an LLMA of llma_rag.llamaindex, got {type(llm).__name__}")


def _question(query: QueryType) -> str:
    return query if isinstance(query, str) else query.query_str
