"""What answers took, and what of them stands in their sources."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.chat_engine.types import AgentChatResponse, StreamingAgentChatResponse

from llma_rag.provenance import CopiedSpan, as_references, copied_spans
from llma_rag.references import gather

AnyResponse = (
    Response | StreamingResponse | AsyncStreamingResponse | AgentChatResponse | StreamingAgentChatResponse
)


class FiguresHandler(BaseCallbackHandler):
    """Collects what each call of an `LLMA` took: tokens, forward passes, seconds and copied spans, as its `raw`.

    >>> from llama_index.core.callbacks import CallbackManager
    >>> manager = CallbackManager([figures := FiguresHandler()])
    >>> figures.calls
    []
    """

    def __init__(self) -> None:
        super().__init__(event_starts_to_ignore=[], event_ends_to_ignore=[])
        self.calls: list[dict[str, Any]] = []

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **kwargs: Any,
    ) -> str:
        """Do nothing."""
        return event_id

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **kwargs: Any,
    ) -> None:
        """Keep the figures of a call that is complete."""
        if event_type != CBEventType.LLM or payload is None:
            return
        answer = payload.get(EventPayload.RESPONSE) or payload.get(EventPayload.COMPLETION)
        raw = getattr(answer, "raw", None)
        if isinstance(raw, dict) and raw.get("model_provider") == "llma_rag":
            self.calls.append(raw)

    def start_trace(self, trace_id: str | None = None) -> None:
        """Do nothing."""

    def end_trace(self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None) -> None:
        """Do nothing."""


def copied_from_sources(response: AnyResponse) -> list[CopiedSpan]:
    """Return which characters of a complete response stand in which of its source nodes.

    `reference_index` counts in `response.source_nodes`, and the ranges in the text of `str(response)` and of a node's
    `get_content()`.

    Raises:
        TypeError: it is no response of a query or chat engine.
    """
    if not hasattr(response, "source_nodes"):
        raise TypeError(f"a response of a query or chat engine is needed, got {type(response).__name__}")
    return copied_spans(str(response), as_references(gather(response.source_nodes)))
