"""The routes: what is answered under which path."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, FastAPI, Request, UploadFile
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ConfigDict, Field

from llma_rag import __version__
from llma_rag.conversation import ChatSettings, ConversationStore
from llma_rag.conversation.keeping import ConversationSummary
from llma_rag.engine import Engine
from llma_rag.retrieval import DocumentStore
from llma_rag.retrieval.reading import MAX_FILE_BYTES, SUFFIXES
from llma_rag.serving.answers import source_json
from llma_rag.serving.errors import handle_errors, not_found
from llma_rag.serving.gate import Gate
from llma_rag.serving.metrics import CountResponses
from llma_rag.serving.openai_api import Body, ChatRequest, CompletionRequest, TokenizeRequest
from llma_rag.serving.service import ServerSettings, Service
from llma_rag.serving.uploads import Uploads
from llma_rag.serving.web_page import WithHeaders, page_routes

_DOCUMENTS_PATH = "/v1/documents"
_MOST_UPLOAD_BYTES = MAX_FILE_BYTES + 2**16  # the form around the file included


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
        chat_settings: of the chatbot over the documents; its `max_tokens` hold for the plain model too.
        settings: of the server.
    """
    settings = settings or ServerSettings()
    service = Service(engine, store, uploads, conversations, about, chat_settings or ChatSettings(), settings)

    def body_limit(path: str) -> int:
        return _MOST_UPLOAD_BYTES if path == _DOCUMENTS_PATH else settings.body_bytes

    app = FastAPI(
        title="llma_rag",
        summary="Answers of a local model, accelerated by references, and a chatbot over documents.",
        version=__version__,
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.stop_answers = service.stop_answers
    app.include_router(_routes(service), max_body_size=settings.body_bytes)
    app.router.routes.extend(page_routes())
    app.add_middleware(
        Gate,
        api_key=settings.api_key,
        origins=settings.origins,
        loopback_only=settings.loopback_only,
        body_limit=body_limit,
    )
    if settings.origins:  # outside the gate: browsers ask first, without a key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    app.add_middleware(WithHeaders)
    app.add_middleware(CountResponses, metrics=service.metrics)
    handle_errors(app, body_limit)
    return app


class NewConversation(Body):
    """The body that begins or renames a conversation."""

    model_config = ConfigDict(extra="forbid")
    title: str = Field(default="", max_length=1000)


def _routes(service: Service) -> APIRouter:
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
        return await service.chat(request, body)

    @router.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Complete prompts."""
        return await service.complete(request, body)

    @router.post("/tokenize")
    def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """Return the model's ids of a text, or of messages."""
        return service.tokenize(body)

    @router.get(_DOCUMENTS_PATH)
    def documents() -> dict[str, Any]:
        """List the documents, what is being indexed, and what may be uploaded."""
        listed = [document.to_json() for document in service.uploads.documents()]
        limits = {"max_bytes": MAX_FILE_BYTES, "suffixes": sorted(SUFFIXES)}
        return {"object": "list", "data": listed, "indexing": service.uploads.progress, "limits": limits}

    @router.post(_DOCUMENTS_PATH, status_code=202, max_body_size=_MOST_UPLOAD_BYTES)
    def upload(file: UploadFile) -> dict[str, Any]:
        """Take a document; it is indexed in the background."""
        return service.uploads.put(file.filename or "", file.file).to_json()

    @router.get(_DOCUMENTS_PATH + "/{document}")
    def document(document: str) -> dict[str, Any]:
        """Return a document's state."""
        found = service.uploads.get(document)
        if found is None:
            raise not_found("document", document)
        return found.to_json()

    @router.get(_DOCUMENTS_PATH + "/{document}/text")
    def document_text(document: str) -> dict[str, Any]:
        """Return a document's text page by page; the places of passages are characters of their page."""
        pages = service.uploads.pages(document)
        if pages is None:
            raise not_found("document", document)
        listed = [{"page": page.page, "text": page.text} for page in pages]
        return {"id": document, "object": "document.text", "pages": listed}

    @router.delete(_DOCUMENTS_PATH + "/{document}")
    def delete_document(document: str) -> dict[str, Any]:
        """Take a document out of the store; one that was uploaded is deleted."""
        if not service.uploads.delete(document):
            raise not_found("document", document)
        return {"id": document, "object": "document", "deleted": True}

    @router.get("/v1/conversations")
    def conversations() -> dict[str, Any]:
        """List the conversations about these documents, the last changed first."""
        kept = service.conversations.list(service.about)
        return {"object": "list", "data": [_listed(one) for one in kept]}

    @router.post("/v1/conversations", status_code=201)
    def begin_conversation(body: NewConversation | None = None) -> dict[str, Any]:
        """Begin a conversation; without a title, its first question will be one."""
        title = body.title if body else ""
        begun = service.conversations.begin(title, service.about)
        return {"id": begun.id, "object": "conversation", "title": title}

    @router.get("/v1/conversations/{conversation}")
    def conversation(conversation: str) -> dict[str, Any]:
        """Return a conversation with its turns."""
        found = service.conversation(conversation)
        turns = [turn.to_json() for turn in found.turns]
        for turn, kept in zip(turns, found.turns, strict=True):
            turn["sources"] = [source_json(source) for source in kept.sources]
        return {"id": found.id, "object": "conversation", "turns": turns}

    @router.patch("/v1/conversations/{conversation}")
    def rename_conversation(conversation: str, body: NewConversation) -> dict[str, Any]:
        """Give a conversation another title."""
        if not service.conversations.rename(conversation, body.title, service.about):
            raise not_found("conversation", conversation)
        return {"id": conversation, "object": "conversation", "title": body.title}

    @router.delete("/v1/conversations/{conversation}")
    def delete_conversation(conversation: str) -> dict[str, Any]:
        """Forget a conversation."""
        service.require_quiet(conversation)
        if not service.conversations.delete(conversation, service.about):
            raise not_found("conversation", conversation)
        return {"id": conversation, "object": "conversation", "deleted": True}

    return router


def _listed(kept: ConversationSummary) -> dict[str, Any]:
    data = asdict(kept)
    del data["about"]
    return {"object": "conversation", **data}
