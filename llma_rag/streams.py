"""Pieces of an answer on their way from the model's worker to the caller, who waits in a thread or an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from llma_rag.errors import RequestCancelledError
from llma_rag.generation import Generation

Event = str | Generation | BaseException  # pieces of text, then the outcome


class TextStream(Iterator[str]):
    """Pieces of an answer as they become final; `result` is the whole with its evidence."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._outcome: Generation | BaseException | None = None

    @property
    def put(self) -> Callable[[Event], None]:
        """What the worker calls with each event; it does not keep the stream alive."""
        return self._events.put

    def __next__(self) -> str:
        """Return the next piece of text; raise what went wrong in the worker."""
        if self._outcome is not None:
            raise StopIteration
        event = self._events.get()
        if isinstance(event, str):
            return event
        self._outcome = event
        if isinstance(event, BaseException) and not isinstance(event, RequestCancelledError):
            raise event
        raise StopIteration

    @property
    def result(self) -> Generation:
        """The whole answer, waiting for it where needed.

        Raises:
            RequestCancelledError: the stream was closed before the answer was complete.
        """
        for _ in self:
            pass
        return _generation(self._outcome)

    def close(self) -> None:
        """Stop the model before its next step; a complete answer stays available."""
        self.cancelled.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncTextStream(AsyncIterator[str]):
    """The same for an event loop, which is not blocked and gets no thread of its own per stream."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._outcome: Generation | BaseException | None = None

    @property
    def put(self) -> Callable[[Event], None]:
        """What the worker calls with each event; it does not keep the stream alive."""
        loop, events, cancelled = self._loop, self._events, self.cancelled

        def put(event: Event) -> None:
            try:
                loop.call_soon_threadsafe(events.put_nowait, event)
            except RuntimeError:  # the loop is closed: nobody listens any more
                cancelled.set()

        return put

    async def __anext__(self) -> str:
        """Return the next piece of text; raise what went wrong in the worker."""
        if self._outcome is not None:
            raise StopAsyncIteration
        event = await self._events.get()
        if isinstance(event, str):
            return event
        self._outcome = event
        if isinstance(event, BaseException) and not isinstance(event, RequestCancelledError):
            raise event
        raise StopAsyncIteration

    async def result(self) -> Generation:
        """Return the whole answer, waiting for it where needed.

        Raises:
            RequestCancelledError: the stream was closed before the answer was complete.
        """
        async for _ in self:
            pass
        return _generation(self._outcome)

    def close(self) -> None:
        """Stop the model before its next step; a complete answer stays available."""
        self.cancelled.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _generation(outcome: Generation | BaseException | None) -> Generation:
    if isinstance(outcome, Generation):
        return outcome
    assert outcome is not None
    raise outcome
