"""`LLMA`: LangChain's text completion over an engine; the prompt is completed as it is, without a chat template."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.outputs import Generation as Completion
from langchain_core.outputs import GenerationChunk, LLMResult
from langchain_core.runnables import RunnableConfig

from llma_rag.engine import RequestOptions
from llma_rag.evidence import evidence
from llma_rag.generation import Generation
from llma_rag.langchain.messages import usage
from llma_rag.langchain.model import LangChainSettings
from llma_rag.references import gather
from llma_rag.settings import STRICT


class LLMA(LangChainSettings, BaseLLM):
    """A local completion model that drafts from references, with the same text as without them.

    >>> LLMA(model="smollm2-135m").max_tokens
    512
    """

    model_config = STRICT  # LangChain's classes would ignore what they do not know

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
        model, kwargs = self._without_traced_references(kwargs)
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
        model, kwargs = self._without_traced_references(kwargs)
        async for piece in super(LLMA, model).astream(input, config, stop=stop, **kwargs):
            yield piece

    def _without_traced_references(self, kwargs: dict[str, Any]) -> tuple[LLMA, dict[str, Any]]:
        """Return the model with a call's references inside: LangChain writes a stream's arguments into traces."""
        references = kwargs.pop("references", None)
        if references is None:
            return self, kwargs
        return self.model_copy(update={"references": gather(references, self.references)}), kwargs

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        engine = self._engine(kwargs)
        with engine.stream(prompt, **self._completion_options(stop, kwargs)) as stream:
            for text in stream:
                if run_manager:
                    run_manager.on_llm_new_token(text)
                yield GenerationChunk(text=text)
            yield GenerationChunk(text="", generation_info=_info(stream.result, engine.name))

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        engine = await self._aengine(kwargs)
        async with engine.astream(prompt, **self._completion_options(stop, kwargs)) as stream:
            async for text in stream:
                if run_manager:
                    await run_manager.on_llm_new_token(text)
                yield GenerationChunk(text=text)
            yield GenerationChunk(text="", generation_info=_info(await stream.result(), engine.name))

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        engine = self._engine(kwargs)
        options = self._completion_options(stop, kwargs)
        answers = [engine.generate(prompt, **options) for prompt in prompts]
        return _result(answers, engine.name)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        engine = await self._aengine(kwargs)
        options = self._completion_options(stop, kwargs)
        streams = [engine.astream(prompt, **options) for prompt in prompts]
        try:
            return _result(await asyncio.gather(*(stream.result() for stream in streams)), engine.name)
        finally:
            for stream in streams:
                stream.close()

    def _completion_options(self, stop: list[str] | None, kwargs: dict[str, Any]) -> RequestOptions:
        kwargs = dict(kwargs)
        references = gather(kwargs.pop("references", None), self.references)
        return self._options(stop, kwargs, references)


def _info(answer: Generation, model: str) -> dict[str, Any]:
    return {
        **evidence(answer, answer.copied_spans, model=model, called=False),
        "usage_metadata": dict(usage(answer)),
    }


def _result(answers: list[Generation], model: str) -> LLMResult:
    total = {
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "completion_tokens": sum(answer.completion_tokens for answer in answers),
    }
    total["total_tokens"] = sum(total.values())
    completions = [[Completion(text=answer.text, generation_info=_info(answer, model))] for answer in answers]
    return LLMResult(generations=completions, llm_output={"token_usage": total, "model_name": model})
