"""`LLMA`: LangChain's text completion over an engine; the prompt is completed as it is, without a chat template."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.outputs import Generation as Completion
from langchain_core.outputs import GenerationChunk, LLMResult
from langchain_core.runnables import RunnableConfig
from pydantic import PrivateAttr

from llma_rag.calls import Call, call_to
from llma_rag.engine import Engine
from llma_rag.evidence import spans_as_data, without_evidence
from llma_rag.langchain.messages import usage
from llma_rag.langchain.model import LangChainSettings
from llma_rag.provenance import copied_spans
from llma_rag.references import gather
from llma_rag.settings import RULES, STRICT

if TYPE_CHECKING:
    from llma_rag.remote import RemoteCall, RemoteEngine


class LLMA(LangChainSettings, BaseLLM):
    """A local completion model that drafts from references, with the same text as without them.

    >>> LLMA(model="smollm2-135m").max_tokens
    512
    """

    model_config = STRICT  # LangChain's classes would ignore what they do not know

    _decoded: list[Completion] = PrivateAttr(default_factory=list)  # by this call, not out of a cache

    @property
    def _llm_type(self) -> str:
        return "llma"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._with_ls_provider(super()._get_ls_params(stop=stop or self.stop, **kwargs))

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        """Yield pieces of the completion."""
        model, kwargs = self._for_call(kwargs)
        yield from super(LLMA, model).stream(input, config, stop=stop, **kwargs)

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[str]:
        """Yield pieces of the completion."""
        model, kwargs = self._for_call(kwargs)
        async for piece in super(LLMA, model).astream(input, config, stop=stop, **kwargs):
            yield piece

    def generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Return the completions of prompts, with usage and evidence."""
        model, kwargs = self._for_call(kwargs)
        return model._with_own_spans(super(LLMA, model).generate(prompts, stop, callbacks, **kwargs))

    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Return the completions of prompts, with usage and evidence."""
        model, kwargs = self._for_call(kwargs)
        return model._with_own_spans(await super(LLMA, model).agenerate(prompts, stop, callbacks, **kwargs))

    def _for_call(self, kwargs: dict[str, Any]) -> tuple[LLMA, dict[str, Any]]:
        """Return the model with a call's arguments inside.

        LangChain writes a stream's arguments into traces, where references must not be, and makes the cache's keys
        from the model alone.
        """
        kwargs = dict(kwargs)
        update: dict[str, Any] = {
            name: kwargs.pop(name) for name in ("model", "max_tokens", *RULES) if name in kwargs
        }
        if update.get("model", self.model) != self.model:
            update["engine"] = None
        if kwargs.get("references") is not None:
            update["references"] = gather(kwargs["references"], self.references)
        kwargs.pop("references", None)
        model = self.model_copy(update=update)
        model._decoded = []
        return model, kwargs

    def _with_own_spans(self, result: LLMResult) -> LLMResult:
        """Return a result whose completions out of a cache say what of them stands in this call's references."""
        for completions in result.generations:
            for number, one in enumerate(completions):
                if not any(one is decoded for decoded in self._decoded):
                    spans = spans_as_data(copied_spans(one.text, gather(self.references)))
                    info = {**without_evidence(one.generation_info or {}), "copied_spans": spans}
                    completions[number] = one.model_copy(update={"generation_info": info})
        return result

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        call = self._call(self._engine(kwargs), prompt, stop, kwargs)
        with closing(call.pieces()) as pieces:
            for piece in pieces:
                if run_manager:
                    run_manager.on_llm_new_token(piece.content)
                yield GenerationChunk(text=piece.content)
        yield GenerationChunk(text="", generation_info=_info(call))

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        call = self._call(await self._aengine(kwargs), prompt, stop, kwargs)
        async with aclosing(call.apieces()) as pieces:
            async for piece in pieces:
                if run_manager:
                    await run_manager.on_llm_new_token(piece.content)
                yield GenerationChunk(text=piece.content)
        yield GenerationChunk(text="", generation_info=_info(call))

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        engine = self._engine(kwargs)
        calls = [self._call(engine, prompt, stop, kwargs) for prompt in prompts]
        for call in calls:
            with closing(call.pieces()) as pieces:
                for piece in pieces:
                    if self.streaming and run_manager:
                        run_manager.on_llm_new_token(piece.content)
        return self._result(calls)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        engine = await self._aengine(kwargs)
        calls = [self._call(engine, prompt, stop, kwargs) for prompt in prompts]

        async def complete(call: Call | RemoteCall) -> None:
            async with aclosing(call.apieces()) as pieces:
                async for piece in pieces:
                    if self.streaming and run_manager:
                        await run_manager.on_llm_new_token(piece.content)

        completing = [asyncio.ensure_future(complete(call)) for call in calls]
        try:
            await asyncio.gather(*completing)
        finally:
            for one in completing:
                one.cancel()
            await asyncio.gather(*completing, return_exceptions=True)
        return self._result(calls)

    def _call(
        self, engine: Engine | RemoteEngine, prompt: str, stop: list[str] | None, kwargs: dict[str, Any]
    ) -> Call | RemoteCall:
        kwargs = dict(kwargs)
        references = gather(kwargs.pop("references", None), self.references)
        return call_to(engine, prompt, self._options(stop, kwargs, references))

    def _result(self, calls: Sequence[Call | RemoteCall]) -> LLMResult:
        answers = [call.answer for call in calls]
        total = {
            "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
            "completion_tokens": sum(answer.completion_tokens for answer in answers),
        }
        total["total_tokens"] = sum(total.values())
        self._decoded = [Completion(text=call.content, generation_info=_info(call)) for call in calls]
        output = {"token_usage": total, "model_name": calls[0].engine.name if calls else self.model}
        return LLMResult(generations=[[one] for one in self._decoded], llm_output=output)


def _info(call: Call | RemoteCall) -> dict[str, Any]:
    return {**call.evidence, "usage_metadata": dict(usage(call.answer))}
