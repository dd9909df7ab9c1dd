"""The routes: what is answered under which path."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from llma_rag import __version__
from llma_rag.calls import Call
from llma_rag.conversation import Chatbot, ChatSettings, Conversation, ConversationStore
from llma_rag.conversation.keeping import Kept
from llma_rag.engine import DEFAULT_MAX_TOKENS, Engine
from llma_rag.errors import ContextLengthError, DocumentError, LlmaRagError, PromptError
from llma_rag.retrieval import DocumentStore
from llma_rag.retrieval.reading import MAX_FILE_BYTES
from llma_rag.serving.answers import DocumentsAnswer, ModelAnswer, history, looked_up, model_call
from llma_rag.serving.errors import ApiError, error_body
from llma_rag.serving.gate import Admission, Gate, too_big
from llma_rag.serving.metrics import CountResponses, Metrics
from llma_rag.serving.openai_api import (
    Answer,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    UnicodeText,
    Wire,
    event,
)
from llma_rag.serving.uploads import Uploads

Result = TypeVar("Result")

DOCUMENTS_SUFFIX = "+documents"
_DOCUMENTS_PATH = "/v1/documents"
_MOST_UPLOAD_BYTES = MAX_FILE_BYTES + 2**16  # the form around the file included
_PREPARING_THREADS = 4
_CLIENT_GONE = 499
_MOST_NAMES_LOGGED = 100

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
        max_tokens: of an answer, where the request does not say.
        body_bytes: most bytes of a request that is no upload.
    """

    api_key: str | None = None
    origins: tuple[str, ...] = ()
    loopback_only: bool = True
    strict: bool = False
    queue: int = 64
    max_tokens: int = DEFAULT_MAX_TOKENS
    body_bytes: int = 4 * 2**20

    def __post_init__(self) -> None:
        for name in ("queue", "max_tokens", "body_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.api_key == "":
            raise ValueError("the API key is empty; give one, or none at all")


def create_app(
    engine: Engine,
    store: DocumentStore,
    uploads: Uploads,
    conversations: ConversationStore,
    *,
    about: str = "",
    chat_settings: ChatSettings | None = None,
    settings: ServerSettings | None = None,
) -> FastAPI:
    """Return the ASGI application; what it is given stays the caller's to close, once it has shut down.

    Its `state.stop_answers` ends the answers that are on their way, for a server that cannot wait for them.

    Args:
        engine: the model.
        store: the documents.
        uploads: the same documents as clients see and change them.
        conversations: where conversations are kept.
        about: which of them are this server's.
        chat_settings: of the chatbot over the documents.
        settings: of the server.
    """
    settings = settings or ServerSettings()
    service = _Service(
        engine, store, uploads, conversations, about, chat_settings or ChatSettings(), settings
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service:
            yield

    app = FastAPI(
        title="llma_rag",
        summary="Answers of a local model, accelerated by references, and a chatbot over documents.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.stop_answers = service.stop_answers
    app.include_router(_routes(service), max_body_size=settings.body_bytes)

    def body_limit(path: str) -> int:
        return _MOST_UPLOAD_BYTES if path == _DOCUMENTS_PATH else settings.body_bytes

    app.add_middleware(
        Gate,
        api_key=settings.api_key,
        origins=settings.origins,
        loopback_only=settings.loopback_only,
        body_limit=body_limit,
    )
    if settings.origins:  # outside the gate: browsers ask first, without a key
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(CountResponses, metrics=service.metrics)
    _handle_errors(app, body_limit)
    return app


class NewConversation(BaseModel):
    """The body that begins a conversation."""

    model_config = ConfigDict(extra="forbid")
    title: UnicodeText = Field(default="", max_length=1000)


def _routes(service: _Service) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz")
    async def health() -> dict[str, str]:
        """Say that the server answers."""
        return {"status": "ok"}

    @router.get("/metrics")
    def metrics() -> Response:
        """Return the counters for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List what can be asked: the model, and the chatbot over the documents."""
        return {"object": "list", "data": service.models}

    @router.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        """Return one of them."""
        return service.model(model)

    @router.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer messages."""
        return await service.respond(request, body, partial(service.chat_answers, body), body.conversation)

    @router.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Complete prompts."""
        return await service.respond(request, body, partial(service.completion_answers, body))

    @router.get(_DOCUMENTS_PATH)
    def documents() -> dict[str, Any]:
        """List the documents, and what is being indexed."""
        listed = [document.to_json() for document in service.uploads.documents()]
        return {"object": "list", "data": listed, "indexing": service.uploads.progress}

    @router.post(_DOCUMENTS_PATH, status_code=202, max_body_size=_MOST_UPLOAD_BYTES)
    def upload(file: UploadFile) -> dict[str, Any]:
        """Take a document; it is indexed in the background."""
        return service.uploads.put(file.filename or "", file.file).to_json()

    @router.get(_DOCUMENTS_PATH + "/{document}")
    def document(document: str) -> dict[str, Any]:
        """Return a document's state."""
        found = service.uploads.get(document)
        if found is None:
            raise _not_found("document", document)
        return found.to_json()

    @router.delete(_DOCUMENTS_PATH + "/{document}")
    def delete_document(document: str) -> dict[str, Any]:
        """Take a document out of the store; one that was uploaded is deleted."""
        if not service.uploads.delete(document):
            raise _not_found("document", document)
        return {"id": document, "object": "document", "deleted": True}

    @router.get("/v1/conversations")
    def conversations() -> dict[str, Any]:
        """List the conversations about these documents, the last changed first."""
        kept = service.conversations.list(service.about)
        return {"object": "list", "data": [_listed(one) for one in kept]}

    @router.post("/v1/conversations", status_code=201)
    def begin_conversation(body: NewConversation) -> dict[str, Any]:
        """Begin a conversation."""
        begun = service.conversations.begin(body.title, service.about)
        return {"id": begun.id, "object": "conversation", "title": body.title}

    @router.get("/v1/conversations/{conversation}")
    def conversation(conversation: str) -> dict[str, Any]:
        """Return a conversation with its turns."""
        found = service.conversation(conversation)
        turns = [turn.to_json() for turn in found.turns]
        return {"id": found.id, "object": "conversation", "turns": turns}

    @router.delete("/v1/conversations/{conversation}")
    def delete_conversation(conversation: str) -> dict[str, Any]:
        """Forget a conversation."""
        if not service.conversations.delete(conversation, service.about):
            raise _not_found("conversation", conversation)
        return {"id": conversation, "object": "conversation", "deleted": True}

    return router


class _Service:
    """What the routes share: the model, the chatbot, and the requests in work."""

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
        self._settings = settings
        self._admission = Admission(settings.queue, lambda: engine.unfinished_requests)
        self._preparing = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="preparing")
        self._talking: set[str] = set()  # conversations whose answer is on its way
        self._started = int(time.time())
        self._told: set[str] = set()  # parameters that were logged

    async def __aenter__(self) -> _Service:
        self._stopping: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._preparing.shutdown(cancel_futures=True)

    def stop_answers(self) -> None:
        """End the answers that are on their way with an error; called in the event loop."""
        if not self._stopping.done():
            self._stopping.set_result(ApiError(503, "the server shuts down; ask again later"))

    # -- models ---------------------------------------------------------------------------------------

    @property
    def models(self) -> list[dict[str, Any]]:
        """What can be asked, in OpenAI's form."""
        context = self._engine.runner.context_length
        return [
            {
                "id": name,
                "object": "model",
                "created": self._started,
                "owned_by": "llma_rag",
                "max_model_len": context,
            }
            for name in (self._documents_model, self._engine.name)
        ]

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

    # -- answers --------------------------------------------------------------------------------------

    async def respond(
        self,
        request: Request,
        body: GenerationRequest,
        prepare: Callable[[], Sequence[Answer]],
        conversation: str | None = None,
    ) -> Response:
        """Answer, whole or as a stream; the model stops where the client goes."""
        self.model(body.model)
        ignored = self._ignored(body)
        async with AsyncExitStack() as work:
            work.enter_context(self._admission.place())
            work.enter_context(self._turn(conversation))
            gone = asyncio.ensure_future(_gone(request))
            try:
                answers = await _unless(
                    self._in_thread(partial(_asked_rightly, prepare)), gone, self._stopping
                )
                wire = Wire(body, answers, ignored)
                if not body.stream:
                    return JSONResponse(await _unless(wire.whole(), gone, self._stopping))
                events = await work.enter_async_context(aclosing(_told_errors(wire.events(), self._stopping)))
                first = await _unless(anext(events), gone)  # an error still has its status
                return _EventStream(_chained(first, events), work.pop_all())
            except _ClientGoneError:
                return Response(status_code=_CLIENT_GONE)
            finally:
                gone.cancel()

    def chat_answers(self, body: ChatRequest) -> list[Answer]:
        """Return the answer to a chat request, not begun yet; it takes a moment."""
        self._require_limit(body)
        ids = body.return_token_ids is True
        if body.model == self._documents_model:
            return [self._documents_answer(body, ids)]
        if body.conversation is not None or body.mode is not None:
            raise ValueError(f"conversation and mode go with the model {self._documents_model}")
        call = model_call(self._engine, body, self._settings.max_tokens)
        return [self._model_answer(call, body, ids)]

    def completion_answers(self, body: CompletionRequest) -> list[Answer]:
        """Return the answers to a completion request, not begun yet."""
        self._require_limit(body)
        if body.model == self._documents_model:
            raise ValueError(
                f"{body.model} answers chat completions; to complete text, ask {self._engine.name}"
            )
        options = body.options(self._settings.max_tokens)
        ids = body.return_token_ids is True
        return [self._model_answer(Call(self._engine, prompt, options), body, ids) for prompt in body.prompts]

    def conversation(self, conversation_id: str) -> Conversation:
        """Return a conversation that is kept, or raise ApiError."""
        found = self.conversations.get(conversation_id, self.about)
        if found is None:
            raise _not_found("conversation", conversation_id)
        return found

    def _model_answer(self, call: Call, body: GenerationRequest, ids: bool) -> Answer:
        call.require_room()
        return ModelAnswer(call, body.reference_texts, self.metrics, with_ids=ids)

    def _documents_answer(self, body: ChatRequest, ids: bool) -> Answer:
        if body.references:
            raise ValueError(f"the references of {body.model} are the documents; leave `references` out")
        turns, question, instructions = history(body.messages)
        kept = None
        conversation = Conversation("", turns)
        if body.conversation is not None:
            kept, conversation = self.conversations, self.conversation(body.conversation)
            if turns:
                raise ValueError("the server keeps the conversation; send the new question only")
        bot, answering = looked_up(self._bot, body, conversation, question, instructions)
        return DocumentsAnswer(bot, conversation, answering, kept, self.metrics, with_ids=ids)

    def _require_limit(self, body: GenerationRequest) -> None:
        context = self._engine.runner.context_length
        if (body.asked_tokens or 0) > context:
            raise ContextLengthError(
                f"max_tokens is {body.asked_tokens}, but the context holds {context}, the prompt included"
            )

    @contextmanager
    def _turn(self, conversation: str | None) -> Iterator[None]:
        """Keep a conversation for one answer at a time."""
        if conversation is None:
            yield
            return
        if conversation in self._talking:
            raise ApiError(
                409,
                "an answer in this conversation is on its way; wait for it, or stop it",
                param="conversation",
            )
        self._talking.add(conversation)
        try:
            yield
        finally:
            self._talking.discard(conversation)

    def _ignored(self, body: GenerationRequest) -> list[str]:
        """Return the parameters without effect, log new ones; an error where the server is strict."""
        ignored = body.ignored()
        if isinstance(body, ChatRequest) and body.model == self._documents_model:
            only_model = ("tools", "tool_choice", "chat_template_kwargs")
            ignored += [name for name in only_model if getattr(body, name) not in (None, [], {})]
        if ignored and self._settings.strict:
            raise ApiError(
                400,
                f"decoding is greedy and {', '.join(ignored)} would have no effect; leave it out, or start the server "
                "without --strict",
                code="unsupported_parameter",
                param=ignored[0],
            )
        for name in ignored:
            if name not in self._told and len(self._told) < _MOST_NAMES_LOGGED:
                self._told.add(name)
                _log.warning("a request has %a, which has no effect; this is said once", name)
        return ignored

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._preparing, function)


def _asked_rightly(prepare: Callable[[], Result]) -> Result:
    """Return what is prepared; what is wrong with the arguments is the client's to mend."""
    try:
        return prepare()
    except LlmaRagError:
        raise  # it says itself whose fault it is
    except (TypeError, ValueError) as error:
        raise ApiError(400, str(error)) from error


class _EventStream(StreamingResponse):
    """Server-sent events; what they hold is let go once they end or the client goes."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str], work: AsyncExitStack) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._work:
            await super().__call__(scope, receive, send)


async def _chained(first: str, rest: AsyncGenerator[str]) -> AsyncGenerator[str]:
    yield first
    async for one in rest:
        yield one


async def _told_errors(events: AsyncGenerator[str], *ends: asyncio.Future[Exception]) -> AsyncGenerator[str]:
    """Yield events; an error after the first one is an event too, since the status has been sent."""
    begun = False
    async with aclosing(events):
        try:
            while True:
                yield await _unless(anext(events), *ends)
                begun = True
        except StopAsyncIteration:
            return
        except Exception as error:
            if not begun:
                raise
            told = _as_api_error(error)
            if told.status == 500:
                _log.exception("an answer failed")
            yield event(told.body)


class _ClientGoneError(Exception):
    """Nobody waits for the response any more."""


async def _unless(work: Awaitable[Result], *ends: asyncio.Future[Exception]) -> Result:
    """Return what comes of some work; where one of the ends comes first, cancel it and raise that."""
    working = asyncio.ensure_future(work)
    try:
        waited: set[asyncio.Future[Any]] = {working, *ends}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise next(end.result() for end in ends if end.done())
        return await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def _gone(request: Request) -> Exception:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return _ClientGoneError()


# -- errors -------------------------------------------------------------------------------------------


def _handle_errors(app: FastAPI, body_limit: Callable[[str], int]) -> None:
    async def told(_: Request, error: Exception) -> Response:
        return _as_api_error(error).response

    async def unexpected(_: Request, error: Exception) -> Response:
        return JSONResponse(error_body(500, "the server has failed; its log says why"), 500)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 413:
            return too_big(body_limit(request.url.path)).response
        return JSONResponse(
            error_body(error.status_code, str(error.detail)), error.status_code, headers=error.headers
        )

    for kind in (ApiError, LlmaRagError, RequestValidationError):
        app.add_exception_handler(kind, told)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, unexpected)


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return ApiError(400, f"{place}: {first['msg']}", code=str(first["type"]), param=place)
    if isinstance(error, ContextLengthError):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, DocumentError | PromptError):
        return ApiError(400, str(error))
    if isinstance(error, LlmaRagError):
        _log.error("%s", error)
        return ApiError(500, str(error))
    return ApiError(500, "the server has failed; its log says why")


def _not_found(what: str, name: str) -> ApiError:
    return ApiError(404, f"there is no {what} {name!r}", code=f"{what}_not_found")


def _listed(kept: Kept) -> dict[str, Any]:
    data = asdict(kept)
    del data["about"]
    return {"object": "conversation", **data}
