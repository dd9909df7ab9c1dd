"""What Prometheus is told of the server."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llma_rag.generation import Generation

_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")  # clients may invent others
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one server.

    Args:
        unfinished: how many requests the model has not finished.
        passages: how many passages there are.
    """

    def __init__(self, unfinished: Callable[[], int], passages: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "llma_rag_http_requests",
            "Responses by path and status.",
            ["method", "path", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "llma_rag_http_seconds",
            "Until a response was complete.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        Gauge(
            "llma_rag_unfinished_requests",
            "Waiting for the model or being answered.",
            registry=registry,
        ).set_function(unfinished)
        Gauge("llma_rag_passages", "In the store.", registry=registry).set_function(passages)
        counters = {
            "prompt_tokens": "Of prompts.",
            "cached_tokens": "Of prompts, known from earlier prompts.",
            "completion_tokens": "Of answers.",
            "forward_passes": "That produced tokens.",
            "drafted_tokens": "Copied and checked by the model.",
            "accepted_tokens": "Copied, and the model agreed.",
        }
        self._counters = {
            name: Counter(f"llma_rag_{name}", text, registry=registry) for name, text in counters.items()
        }
        phases = {
            "queue": "Waiting for the model.",
            "prefill": "Reading the prompt, up to the first token.",
            "decode": "From the first token to the last.",
        }
        self._phases = {
            name: Histogram(f"llma_rag_{name}_seconds", text, buckets=_SECONDS, registry=registry)
            for name, text in phases.items()
        }

    def count(self, answer: Generation) -> None:
        """Count an answer."""
        counted = {
            "prompt_tokens": answer.prompt_tokens,
            "cached_tokens": answer.cached_tokens,
            "completion_tokens": answer.completion_tokens,
            "forward_passes": answer.forward_passes,
            "drafted_tokens": answer.drafted,
            "accepted_tokens": answer.accepted,
        }
        for name, number in counted.items():
            self._counters[name].inc(number)
        timings = answer.timings
        self._phases["queue"].observe(timings.queued_s)
        self._phases["prefill"].observe(timings.prefill_s)
        self._phases["decode"].observe(timings.decode_s)

    def count_response(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a response."""
        self.requests.labels(method, path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self._registry)


class CountResponses:
    """ASGI middleware that counts responses by route and method, of which clients cannot invent any."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count the response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 499  # the client has gone before there was a response

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:
            status = 500
            raise
        finally:
            path = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.count_response(method, path, status, time.perf_counter() - started)
