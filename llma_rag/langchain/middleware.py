"""`ReferenceMiddleware`: retrieved documents for an agent, in its prompt and as references."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.retrievers import BaseRetriever

from llma_rag.references import gather

_HEADING = "Answer from these documents:"


class ReferenceMiddleware(AgentMiddleware):
    """Retrieves documents for the user's last question, shows them to the model and hands them over as references.

    Documents that the agent's own retriever tools leave as artifacts are references without this.

    Args:
        retriever: finds documents for the last human message.
        show: whether the documents go into the system message; otherwise they are references only.
        heading: what stands above them there.
    """

    def __init__(self, retriever: BaseRetriever, *, show: bool = True, heading: str = _HEADING) -> None:
        super().__init__()
        self._retriever = retriever
        self._show = show
        self._heading = heading

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Retrieve, then let the model answer."""
        question = _last_question(request)
        documents = self._retriever.invoke(question) if question else []
        return handler(self._with_documents(request, documents))

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """Retrieve, then let the model answer."""
        question = _last_question(request)
        documents = await self._retriever.ainvoke(question) if question else []
        return await handler(self._with_documents(request, documents))

    def _with_documents(self, request: ModelRequest[Any], documents: list[Document]) -> ModelRequest[Any]:
        if not documents:
            return request
        references = gather(documents, request.model_settings.get("references"))
        settings = {**request.model_settings, "references": references}
        if not self._show:
            return request.override(model_settings=settings)
        shown = "\n\n".join([self._heading, *(document.page_content for document in documents)])
        before = f"{request.system_prompt}\n\n" if request.system_prompt else ""
        return request.override(model_settings=settings, system_message=SystemMessage(before + shown))


def _last_question(request: ModelRequest[Any]) -> str:
    questions = [message for message in request.messages if isinstance(message, HumanMessage)]
    return questions[-1].text if questions else ""
