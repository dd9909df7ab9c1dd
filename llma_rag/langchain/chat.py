"""`ChatLLMA`: LangChain's chat model over an engine. It translates; the engine decides and decodes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import agenerate_from_stream, generate_from_stream
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.outputs import Generation as Completion
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field

from llma_rag.calls import Call, call_to, tool_choice_of
from llma_rag.engine import Engine
from llma_rag.evidence import spans_as_data, without_evidence
from llma_rag.langchain.messages import artifacts, as_chat_messages, as_chunk, usage
from llma_rag.langchain.model import LangChainSettings
from llma_rag.provenance import Reference, copied_spans
from llma_rag.references import gather
from llma_rag.replies import takes_tools, thinks
from llma_rag.settings import STRICT

if TYPE_CHECKING:
    from llma_rag.remote import RemoteCall, RemoteEngine


class ChatLLMA(LangChainSettings, BaseChatModel):
    """A local chat model that drafts from references, with the same text as without them.

    The prompt always is a reference. More of them come by call (`llm.bind(references=documents)`), by constructor, and
    from the artifacts of tool messages; each may be a text, a LangChain document, or such a document as a mapping.

    >>> llm = ChatLLMA(model="smollm2-135m", max_tokens=64)
    >>> llm.max_tokens
    64
    """

    model_config = STRICT  # LangChain's classes would ignore what they do not know

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Handed to the model's chat template, such as `{"enable_thinking": False}`."""

    @property
    def _llm_type(self) -> str:
        return "chat-llma"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**super()._identifying_params, "chat_template_kwargs": self.chat_template_kwargs}

    def _resolve_model_profile(self) -> ModelProfile | None:
        engine = self._loaded_engine() if self.base_url is None else None
        if engine is None:  # weights are loaded on first use, not for this
            return None
        return ModelProfile(
            max_input_tokens=engine.runner.context_length,
            max_output_tokens=self.max_tokens or engine.runner.context_length,
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            tool_calling=takes_tools(engine.tokenizer),
            reasoning_output=thinks(engine.tokenizer),
        )

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._with_ls_provider(super()._get_ls_params(stop=stop or self.stop, **kwargs))

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        kwargs.pop("references", None)  # they change no text: neither a cache nor a trace depends on them
        return super()._get_invocation_params(stop=stop, **kwargs)

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        kwargs.pop("references", None)
        return super()._get_llm_string(stop=stop, **kwargs)

    # -- caches -------------------------------------------------------------------------------------

    def _convert_cached_generations(self, cache_val: list[Completion]) -> list[ChatGeneration]:
        """Return an answer out of a cache without the evidence of the call that decoded it."""
        answers = super()._convert_cached_generations([one.model_copy() for one in cache_val])
        for answer in answers:
            answer.generation_info = without_evidence(answer.generation_info or {})
            metadata = without_evidence(answer.message.response_metadata)
            answer.message = answer.message.model_copy(update={"response_metadata": metadata})
        return answers

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        result = super()._generate_with_cache(messages, stop, run_manager, **kwargs)
        return self._with_own_spans(result, messages, kwargs)

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        result = await super()._agenerate_with_cache(messages, stop, run_manager, **kwargs)
        return self._with_own_spans(result, messages, kwargs)

    def _with_own_spans(
        self, result: ChatResult, messages: Sequence[BaseMessage], kwargs: Mapping[str, Any]
    ) -> ChatResult:
        """Return a result whose answers out of a cache say what of them stands in this call's references."""
        for made in result.generations:
            if "copied_spans" not in made.message.response_metadata:
                spans = copied_spans(made.message.text, self._references(messages, kwargs))
                made.message.response_metadata["copied_spans"] = spans_as_data(spans)
        return result

    # -- answering ----------------------------------------------------------------------------------

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = self._call(self._engine(kwargs), messages, stop, kwargs)
        calls = 0
        with closing(call.pieces()) as pieces:
            for piece in pieces:
                yield ChatGenerationChunk(message=as_chunk(piece, calls))
                calls += len(piece.tool_calls)
        yield _last_chunk(call)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = self._call(await self._aengine(kwargs), messages, stop, kwargs)
        calls = 0
        async with aclosing(call.apieces()) as pieces:
            async for piece in pieces:
                yield ChatGenerationChunk(message=as_chunk(piece, calls))
                calls += len(piece.tool_calls)
        yield _last_chunk(call)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop=stop, **kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages, stop=stop, **kwargs))

    def _call(
        self,
        engine: Engine | RemoteEngine,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        kwargs: dict[str, Any],
    ) -> Call | RemoteCall:
        """Return a request for the engine; unknown arguments are an error."""
        references = self._references(messages, kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name != "references"}
        tools, tool_choice = kwargs.pop("tools", None) or [], kwargs.pop("tool_choice", None)
        template_kwargs = {**self.chat_template_kwargs, **(kwargs.pop("chat_template_kwargs", None) or {})}
        options = self._options(stop, kwargs, references)
        options["chat_template_kwargs"] = template_kwargs
        return call_to(engine, as_chat_messages(messages), options, tools=tools, tool_choice=tool_choice)

    def _references(self, messages: Sequence[BaseMessage], kwargs: Mapping[str, Any]) -> list[Reference]:
        return gather(kwargs.get("references"), self.references, artifacts(messages))

    # -- tools --------------------------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the model with tools, which its chat template shows to it.

        Args:
            tools: functions, classes, tools, or their descriptions in OpenAI's form.
            tool_choice: `auto` (default), `none`, `any` or `required` (some tool), or the name of one. A call that is
                asked for begins the answer, so the model goes on from there.
            **kwargs: bound as well.

        Raises:
            PromptError: when called, where the model's chat template takes no tools.
        """
        described = [convert_to_openai_tool(tool) for tool in tools]
        choice = tool_choice_of(tool_choice, [tool["function"]["name"] for tool in described])
        return self.bind(tools=described, **({"tool_choice": choice} if choice else {}), **kwargs)

    # -- counting -----------------------------------------------------------------------------------

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Return how many ids the model's chat template makes of messages, and of tools."""
        kwargs = dict(self.chat_template_kwargs)
        if tools:
            kwargs["tools"] = [convert_to_openai_tool(tool) for tool in tools]
        return self._engine({}).count_tokens(as_chat_messages(messages), kwargs)


def _last_chunk(call: Call | RemoteCall) -> ChatGenerationChunk:
    """Return usage and evidence of a reply."""
    message = AIMessageChunk(content="", usage_metadata=usage(call.answer), chunk_position="last")
    return ChatGenerationChunk(message=message, generation_info=call.evidence)
