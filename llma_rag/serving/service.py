"""What the routes share: the model, the chatbot over the documents, and the requests in work."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from llma_rag.calls import Call
from llma_rag.conversation import Chatbot, ChatSettings, Conversation, ConversationStore
from llma_rag.engine import Engine
from llma_rag.errors import ContextLengthError
from llma_rag.retrieval import DocumentStore
from llma_rag.serving.answers import (
    DocumentsAnswer,
    ModelAnswer,
    history,
    model_call,
    prepared,
    template_kwargs_of,
)
from llma_rag.serving.errors import ApiError, not_found
from llma_rag.serving.gate import Admission
from llma_rag.serving.metrics import Metrics
from llma_rag.serving.openai_api import (
    Answer,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    ResponseWriter,
    TokenizeRequest,
)
from llma_rag.serving.streaming import (
    ClientGoneError,
    End,
    EventStream,
    client_gone,
    robust,
    until_end,
)
from llma_rag.serving.uploads import Uploads
from llma_rag.text import prompt_ids

DOCUMENTS_SUFFIX = "+documents"
_PREPARING_THREADS = 4  # of each kind
_CLIENT_GONE = 499  # nobody reads it, but counters do
_MOST_NAMES_LOGGED = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a server behaves.

    Attributes:
        api_key: that every request but those for its health must carry; None asks for none.
        origins: sites whose pages may ask; pages of other sites may not.
        loopback_only: it listens on this machine only.
        strict: parameters that would be ignored are an error.
        queue: most requests in work, those that wait for the model included.
        body_bytes: most bytes of a request that is no upload.
    """

    api_key: str | None = None
    origins: tuple[str, ...] = ()
    loopback_only: bool = True
    strict: bool = False
    queue: int = 64
    body_bytes: int = 4 * 2**20

    def __post_init__(self) -> None:
        for name in ("queue", "body_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for origin in self.origins:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise ValueError(f"an origin begins with http:// or https://, got {origin!r}")
        if self.api_key is not None and (not self.api_key or self.api_key != self.api_key.strip()):
            raise ValueError(
                "the API key must not be empty, nor begin or end with white space; give another, or none"
            )


class Service:
    """Answers requests; made by `create_app`."""

    def __init__(
        self,
        engine: Engine,
        store: DocumentStore,
        uploads: Uploads,
        conversations: ConversationStore,
        about: str,
        chat_settings: ChatSettings,
        settings: ServerSettings,
    ) -> None:
        self.uploads = uploads
        self.conversations = conversations
        self.about = about
        self.metrics = Metrics(lambda: engine.unfinished_requests, lambda: len(store))
        self._engine = engine
        self._bot = Chatbot(engine, store, chat_settings)
        self._is_strict = settings.strict
        self._admission = Admission(settings.queue, lambda: self._preparing + engine.unfinished_requests)
        self._preparing = 0  # requests that are in a thread or wait for one
        # searching waits for the thread that embeds; what needs no search should not wait with it
        self._threads = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="preparing")
        self._searching_threads = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="searching")
        self._stopping: End | None = None
        self._busy_conversations: set[str] = set()
        self._logged: set[str] = set()  # parameters without effect
        self._started = int(time.time())

    # -- models ---------------------------------------------------------------------------------------

    @property
    def models(self) -> list[dict[str, Any]]:
        """What can be asked, in OpenAI's form: the chatbot over the documents, with its mode and its model, and the model itself."""
        listed: list[dict[str, Any]] = [
            {
                "id": name,
                "object": "model",
                "created": self._started,
                "owned_by": "llma_rag",
                "max_model_len": self._engine.context_length,
            }
            for name in (self._documents_model, self._engine.name)
        ]
        listed[0].update(root=self._engine.name, mode=self._bot.settings.mode)
        return listed

    def model(self, name: str) -> dict[str, Any]:
        """Return one of them, or raise ApiError."""
        for model in self.models:
            if model["id"] == name:
                return model
        known = " and ".join(model["id"] for model in self.models)
        raise ApiError(
            404, f"there is no model {name!r}; there are {known}", code="model_not_found", param="model"
        )

    @property
    def _documents_model(self) -> str:
        return self._engine.name + DOCUMENTS_SUFFIX

    def tokenize(self, body: TokenizeRequest) -> dict[str, Any]:
        """Return the ids of a text or of messages."""
        self.model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either prompt or messages")
        tokenizer = self._engine.tokenizer
        if body.messages is not None:
            template_kwargs = template_kwargs_of(body.chat_template_kwargs)
            if body.tools:
                template_kwargs["tools"] = [tool.model_dump() for tool in body.tools]
            messages = [message.as_template_message() for message in body.messages]
            ids = prompt_ids(tokenizer, messages, chat_template_kwargs=template_kwargs)
        elif body.add_special_tokens:
            ids = prompt_ids(tokenizer, body.prompt or "")
        else:
            ids = self._engine.text_ids(body.prompt or "")
        return {"count": len(ids), "max_model_len": self._engine.context_length, "tokens": ids}

    # -- conversations --------------------------------------------------------------------------------

    def conversation(self, conversation_id: str) -> Conversation:
        """Return a conversation that is kept, or raise ApiError."""
        found = self.conversations.get(conversation_id, self.about)
        if found is None:
            raise not_found("conversation", conversation_id)
        return found

    def require_quiet(self, conversation_id: str) -> None:
        """Raise ApiError, status 409, while an answer in a conversation is on its way."""
        if conversation_id in self._busy_conversations:
            raise ApiError(
                409,
                "an answer in this conversation is on its way; wait for it, or stop it",
                param="conversation",
            )

    @contextmanager
    def _one_at_a_time(self, conversation_id: str | None) -> Iterator[None]:
        """Keep a conversation for one answer at a time."""
        if conversation_id is None:
            yield
            return
        self.require_quiet(conversation_id)
        self._busy_conversations.add(conversation_id)
        try:
            yield
        finally:
            self._busy_conversations.discard(conversation_id)

    # -- answers --------------------------------------------------------------------------------------

    async def chat(self, request: Request, body: ChatRequest) -> Response:
        """Answer messages: from the documents, or by the model alone."""
        if body.model == self._documents_model:
            prepare, threads = self._chatbot_answer, self._searching_threads
        else:
            prepare, threads = self._model_answer, self._threads
        return await self._respond(
            request, body, partial(prepare, body), threads, conversation=body.conversation
        )

    async def complete(self, request: Request, body: CompletionRequest) -> Response:
        """Complete prompts."""
        prepare = partial(self._completions, body)
        return await self._respond(request, body, prepare, self._threads, places=len(body.prompts))

    def stop_answers(self) -> None:
        """End the answers that are on their way with an error; called in the event loop."""
        stopping = self._stop_signal()
        if not stopping.done():
            stopping.set_result(lambda: ApiError(503, "the server shuts down; ask again later"))

    async def _respond(
        self,
        request: Request,
        body: GenerationRequest,
        prepare: Callable[[], Sequence[Answer]],
        threads: ThreadPoolExecutor,
        *,
        places: int = 1,
        conversation: str | None = None,
    ) -> Response:
        """Answer, whole or as a stream; the model stops where the client goes."""
        self.model(body.model)
        ignored = self._ignored(body)
        stopping = self._stop_signal()
        async with AsyncExitStack() as held:
            held.enter_context(self._admission.places(places))
            held.enter_context(self._one_at_a_time(conversation))
            gone: End = asyncio.ensure_future(client_gone(request))
            try:
                answers = await until_end(self._in_thread(threads, prepare), gone, stopping)
                writer = ResponseWriter(body, answers, ignored)
                if not body.stream:
                    return JSONResponse(await until_end(writer.whole(), gone, stopping))
                events = await held.enter_async_context(aclosing(robust(writer.events(), stopping)))
                first = await until_end(anext(events), gone)
                return EventStream(first, events, held.pop_all())
            except ClientGoneError:
                return Response(status_code=_CLIENT_GONE)
            finally:
                gone.cancel()

    async def _in_thread(
        self, threads: ThreadPoolExecutor, prepare: Callable[[], Sequence[Answer]]
    ) -> Sequence[Answer]:
        """Return what is prepared in a thread; it is in work until the thread has it behind, whoever waits."""
        loop = asyncio.get_running_loop()
        abandoned = threading.Event()

        def done(_: object) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._count_prepared)

        self._preparing += 1
        future = threads.submit(lambda: [] if abandoned.is_set() else prepare())
        future.add_done_callback(done)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        finally:
            abandoned.set()

    def _count_prepared(self) -> None:
        self._preparing -= 1

    def _stop_signal(self) -> End:
        loop = asyncio.get_running_loop()
        if self._stopping is None or self._stopping.get_loop() is not loop:
            self._stopping = loop.create_future()
        return self._stopping

    def _model_answer(self, body: ChatRequest) -> list[Answer]:
        self._require_limit(body)
        for name in ("conversation", "mode"):
            if getattr(body, name) is not None:
                raise ApiError(400, f"{name} goes with the model {self._documents_model}", param=name)
        return [self._answer_of(model_call(self._engine, body, self._bot.settings.max_tokens), body)]

    def _completions(self, body: CompletionRequest) -> list[Answer]:
        self._require_limit(body)
        if body.model == self._documents_model:
            raise ApiError(
                400, f"{body.model} answers chat completions; to complete text, ask {self._engine.name}"
            )
        options = body.options(self._bot.settings.max_tokens)
        return [self._answer_of(Call(self._engine, prompt, options), body) for prompt in body.prompts]

    def _answer_of(self, call: Call, body: GenerationRequest) -> Answer:
        call.require_room()
        return ModelAnswer(call, body.reference_texts, self.metrics, with_ids=body.return_token_ids is True)

    def _chatbot_answer(self, body: ChatRequest) -> list[Answer]:
        self._require_limit(body)
        if body.references:
            raise ApiError(
                400,
                f"the references of {body.model} are the documents; leave references out",
                param="references",
            )
        turns, question, instructions = history(body.messages)
        kept = None
        conversation = Conversation("", turns)
        if body.conversation is not None:
            kept, conversation = self.conversations, self.conversation(body.conversation)
            if turns:
                raise ApiError(400, "the server keeps the conversation; send the new question only")
        bot, answering = prepared(self._bot, body, conversation, question, instructions)
        with_ids = body.return_token_ids is True
        return [DocumentsAnswer(bot, conversation, answering, kept, self.metrics, with_ids=with_ids)]

    def _require_limit(self, body: GenerationRequest) -> None:
        context = self._engine.context_length
        if (body.asked_tokens or 0) > context:
            raise ContextLengthError(
                f"max_tokens is {body.asked_tokens}, but the context holds {context}, the prompt included"
            )

    def _ignored(self, body: GenerationRequest) -> list[str]:
        """Return the parameters without effect, log new ones; an error where the server is strict."""
        ignored = body.ignored()
        if isinstance(body, ChatRequest) and body.model == self._documents_model:
            only_model = ("tools", "tool_choice", "chat_template_kwargs")
            ignored += [
                name for name in only_model if getattr(body, name) not in (None, [], {}, "none", "auto")
            ]
        if ignored and self._is_strict:
            raise ApiError(
                400,
                f"{', '.join(ignored)} would have no effect: decoding is greedy, and what is not in the description of the "
                "API is not known; leave it out, or start the server without --strict",
                code="unsupported_parameter",
                param=ignored[0],
            )
        for name in ignored:
            if name not in self._logged and len(self._logged) < _MOST_NAMES_LOGGED:
                self._logged.add(name)
                _log.warning("a request has %a, which has no effect; this is said once", name)
        return ignored
