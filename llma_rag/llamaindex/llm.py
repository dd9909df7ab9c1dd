"""`LLMA`: LlamaIndex's LLM over an engine, for chat, completion and function calling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection, default_completion_to_prompt
from llama_index.core.tools.types import BaseTool
from pydantic import Field

from llma_rag.calls import Call, call_to, can_call_tools
from llma_rag.engine import Engine
from llma_rag.llamaindex.messages import Reply, arguments_of, as_chat_messages
from llma_rag.llamaindex.references import references_for
from llma_rag.references import gather
from llma_rag.settings import STRICT, EngineSettings
from llma_rag.text import Message

if TYPE_CHECKING:
    from llma_rag.remote import RemoteCall, RemoteEngine

_CALL_TAKES = ("tools", "tool_choice", "chat_template_kwargs")


class LLMA(EngineSettings, FunctionCallingLLM):
    """A local model that drafts from references, with the same text as without them.

    The prompt always is a reference. Retrieved nodes come by `ReferenceSynthesizer` or `ReferencePostprocessor`, or
    by `with_references(nodes)`.

    Chats go through the model's chat template, and so does a completion that is not `formatted`, as a message of
    the user. `messages_to_prompt` and `completion_to_prompt`, where given, take the template's place.

    >>> LLMA(model="smollm2-135m", max_tokens=64).max_tokens
    64
    """

    model_config = STRICT

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Handed to the model's chat template, such as `{"enable_thinking": False}`."""

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex knows the class by."""
        return "LLMA"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks of a model; the model is loaded for it."""
        engine = self._engine({})
        length = engine.context_length or DEFAULT_CONTEXT_WINDOW  # a server need not tell
        return LLMMetadata(
            context_window=length,
            num_output=min(self.max_tokens or length, length // 2),
            is_chat_model=self._has_own_chat_prompt
            or (engine.takes_messages and not self._has_own_completion_prompt),
            is_function_calling_model=can_call_tools(engine) and not self._has_own_chat_prompt,
            model_name=self.model,
        )

    def to_payload(self) -> dict[str, Any]:
        """Return what events tell of the model; nothing is loaded for it."""
        return {"class_name": self.class_name(), "model_name": self.model, "max_tokens": self.max_tokens}

    @property
    def tokenizer_fn(self) -> Callable[[str], list[int]]:
        """The model's tokenizer as `Settings.tokenizer` wants it, so that budgets are right."""
        return self._engine({}).text_ids

    def with_references(self, references: Sequence[Any]) -> Self:
        """Return the same model, weights shared, whose answers may copy from nodes, documents or texts as well."""
        return self.model_copy(update={"references": gather(references, self.references)})

    # -- chat ---------------------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return the answer to messages."""
        return Reply(self._chat_call(self._engine(kwargs), messages, kwargs)).whole().chat()

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Yield the answer to messages as it grows."""
        return Reply(self._chat_call(self._engine(kwargs), messages, kwargs)).chats()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return the answer to messages."""
        return (await Reply(self._chat_call(await self._aengine(kwargs), messages, kwargs)).awhole()).chat()

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Yield the answer to messages as it grows."""
        return Reply(self._chat_call(await self._aengine(kwargs), messages, kwargs)).achats()

    # -- completion ---------------------------------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Return the answer to a prompt; one that is `formatted` is completed as it is."""
        call = self._completion_call(self._engine(kwargs), prompt, formatted, kwargs)
        return Reply(call).whole().completion()

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Yield the answer to a prompt as it grows."""
        return Reply(self._completion_call(self._engine(kwargs), prompt, formatted, kwargs)).completions()

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Return the answer to a prompt; one that is `formatted` is completed as it is."""
        call = self._completion_call(await self._aengine(kwargs), prompt, formatted, kwargs)
        return (await Reply(call).awhole()).completion()

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Yield the answer to a prompt as it grows."""
        call = self._completion_call(await self._aengine(kwargs), prompt, formatted, kwargs)
        return Reply(call).acompletions()

    # -- requests -----------------------------------------------------------------------------------

    @property
    def _has_own_chat_prompt(self) -> bool:
        return self.messages_to_prompt not in (None, generic_messages_to_prompt)

    @property
    def _has_own_completion_prompt(self) -> bool:
        return self.completion_to_prompt not in (None, default_completion_to_prompt)

    def _chat_call(
        self, engine: Engine | RemoteEngine, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> Call | RemoteCall:
        if self._has_own_chat_prompt or not engine.takes_messages:
            to_prompt = self.messages_to_prompt or generic_messages_to_prompt
            return self._call(engine, to_prompt(messages), kwargs)
        return self._call(engine, as_chat_messages(messages), kwargs)

    def _completion_call(
        self, engine: Engine | RemoteEngine, prompt: str, formatted: bool, kwargs: dict[str, Any]
    ) -> Call | RemoteCall:
        if formatted:
            return self._call(engine, prompt, kwargs)
        if self.completion_to_prompt is not None and self._has_own_completion_prompt:
            return self._call(engine, self.completion_to_prompt(self._extend_prompt(prompt)), kwargs)
        if not engine.takes_messages and not self._has_own_chat_prompt:
            return self._call(engine, self._extend_prompt(prompt), kwargs)
        if self.query_wrapper_prompt is not None:
            prompt = self.query_wrapper_prompt.format(query_str=prompt)
        messages = self._extend_messages([ChatMessage(role=MessageRole.USER, content=prompt)])
        return self._chat_call(engine, messages, kwargs)

    def _call(
        self, engine: Engine | RemoteEngine, prompt: str | Sequence[Message], kwargs: dict[str, Any]
    ) -> Call | RemoteCall:
        """Return a request for the engine; unknown arguments are an error."""
        if "references" in kwargs:
            raise TypeError(
                "references go by with_references(nodes): LlamaIndex writes a call's arguments into its events"
            )
        kwargs = dict(kwargs)
        tools, tool_choice, template_kwargs = (kwargs.pop(name, None) for name in _CALL_TAKES)
        stop = kwargs.pop("stop", None)
        shown = prompt if isinstance(prompt, str) else "\n".join(str(one["content"]) for one in prompt)
        options = self._options(stop, kwargs, gather(self.references, references_for(shown)))
        if not isinstance(prompt, str):
            options["chat_template_kwargs"] = {**self.chat_template_kwargs, **(template_kwargs or {})}
        elif tools or template_kwargs:
            raise ValueError(
                "tools and chat_template_kwargs go through the chat template, which a string does not"
            )
        return call_to(engine, prompt, options, tools=tools or (), tool_choice=tool_choice)

    # -- function calling ---------------------------------------------------------------------------

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if user_msg is not None:
            said = (
                ChatMessage(role=MessageRole.USER, content=user_msg)
                if isinstance(user_msg, str)
                else user_msg
            )
            messages.append(said)
        described = [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]
        choice = tool_choice if tool_choice is not None else "any" if tool_required else None
        return {"messages": messages, "tools": described, "tool_choice": choice, **kwargs}

    def _validate_chat_with_tools_response(
        self,
        response: ChatResponse,
        tools: Sequence[BaseTool],
        allow_parallel_tool_calls: bool = False,
        **kwargs: Any,
    ) -> ChatResponse:
        """Return the response, with one call where several are not wanted."""
        return response if allow_parallel_tool_calls else _with_one_call(response)

    def stream_chat_with_tools(self, *args: Any, **kwargs: Any) -> ChatResponseGen:
        """Yield the answer to a message with tools as it grows."""
        responses = super().stream_chat_with_tools(*args, **kwargs)
        if kwargs.get("allow_parallel_tool_calls"):
            return responses
        return (_with_one_call(response) for response in responses)

    async def astream_chat_with_tools(self, *args: Any, **kwargs: Any) -> ChatResponseAsyncGen:
        """Yield the answer to a message with tools as it grows."""
        responses = await super().astream_chat_with_tools(*args, **kwargs)
        if kwargs.get("allow_parallel_tool_calls"):
            return responses
        return (_with_one_call(response) async for response in responses)

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return the calls of tools in a response.

        Raises:
            ValueError: there is none, and `error_on_no_tool_call`.
        """
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            raise ValueError(f"the answer calls no tool: {response.message.content!r}")
        return [
            ToolSelection(
                tool_id=call.tool_call_id or "", tool_name=call.tool_name, tool_kwargs=arguments_of(call)
            )
            for call in calls
        ]

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle keeps.

        Raises:
            TypeError: the engine was given; a copy would silently load another one by name.
        """
        if self.engine is not None:
            raise TypeError("an LLMA made with engine= cannot be pickled; name the model instead")
        return super().__getstate__()


def _with_one_call(response: ChatResponse) -> ChatResponse:
    blocks = response.message.blocks
    calls = [block for block in blocks if isinstance(block, ToolCallBlock)]
    response.message.blocks = [block for block in blocks if not any(block is more for more in calls[1:])]
    return response
