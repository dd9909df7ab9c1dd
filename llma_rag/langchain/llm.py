"""`LLMA`: LangChain's text completion over an engine; the prompt is completed as it is, without a chat template."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.outputs import Generation as Completion
from langchain_core.outputs import GenerationChunk, LLMResult
from langchain_core.runnables import RunnableConfig
from pydantic import PrivateAttr

from llma_rag.engine import RequestOptions
from llma_rag.evidence import evidence, spans_as_data, without_evidence
from llma_rag.generation import Generation
from llma_rag.langchain.messages import usage
from llma_rag.langchain.model import LangChainSettings
from llma_rag.provenance import copied_spans
from llma_rag.references import gather
from llma_rag.settings import RULES, STRICT


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
        answers = []
        for prompt in prompts:
            with engine.stream(prompt, **options) as stream:
                if self.streaming and run_manager:
                    for text in stream:
                        run_manager.on_llm_new_token(text)
                answers.append(stream.result)
        return self._result(answers, engine.name)

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
            if self.streaming and run_manager:
                for stream in streams:
                    async for text in stream:
                        await run_manager.on_llm_new_token(text)
            return self._result([await stream.result() for stream in streams], engine.name)
        finally:
            for stream in streams:
                stream.close()

    def _completion_options(self, stop: list[str] | None, kwargs: dict[str, Any]) -> RequestOptions:
        kwargs = dict(kwargs)
        references = gather(kwargs.pop("references", None), self.references)
        return self._options(stop, kwargs, references)

    def _result(self, answers: list[Generation], model: str) -> LLMResult:
        total = {
            "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
            "completion_tokens": sum(answer.completion_tokens for answer in answers),
        }
        total["total_tokens"] = sum(total.values())
        self._decoded = [
            Completion(text=answer.text, generation_info=_info(answer, model)) for answer in answers
        ]
        output = {"token_usage": total, "model_name": model}
        return LLMResult(generations=[[one] for one in self._decoded], llm_output=output)


def _info(answer: Generation, model: str) -> dict[str, Any]:
    return {
        **evidence(answer, answer.copied_spans, model=model, finish_reason=answer.finish_reason),
        "usage_metadata": dict(usage(answer)),
    }
