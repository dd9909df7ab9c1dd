"""Answers on their way to a client: cancelled where it goes, ended where the server stops, kept alive while they wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from llma_rag.serving.errors import as_api_error

Result = TypeVar("Result")
End = asyncio.Future[Callable[[], Exception]]  # of all work; it says what to raise

_SILENCE_S = 15.0  # after which a client, or a proxy before it, hears that the answer is still to come


class ClientGoneError(Exception):
    """Nobody waits for the response any more."""


async def client_gone(request: Request) -> Callable[[], Exception]:
    """Return once the client has closed the connection; the request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return ClientGoneError


async def until_end(work: Awaitable[Result], *ends: End) -> Result:
    """Return what comes of some work; where an end comes first, cancel it and raise what the end says."""
    working = asyncio.ensure_future(work)
    try:
        waited: set[asyncio.Future[Any]] = {working, *ends}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        return _outcome(working, ends)
    finally:
        await _cancelled(working)


def event(data: Mapping[str, Any]) -> str:
    """Return data as a server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


async def robust(events: AsyncGenerator[str], *ends: End) -> AsyncGenerator[str]:
    """Yield events; comments while they are long in coming, and errors as events once anything was sent."""
    is_begun = False
    async with aclosing(events):
        while True:
            following = asyncio.ensure_future(anext(events))
            waited: set[asyncio.Future[Any]] = {following, *ends}
            try:
                while not (
                    await asyncio.wait(waited, timeout=_SILENCE_S, return_when=asyncio.FIRST_COMPLETED)
                )[0]:
                    is_begun = True
                    yield ": the answer is still to come\n\n"
                yield _outcome(following, ends)
                is_begun = True
            except StopAsyncIteration:
                return
            except Exception as error:
                if not is_begun:
                    raise
                yield event(as_api_error(error).body)
                return
            finally:
                await _cancelled(following)


class EventStream(StreamingResponse):
    """Server-sent events; what they hold is let go once they end or the client goes.

    Args:
        first: the first event, which is there already: what goes wrong before it still has its own status.
        rest: the others.
        held: closed at the end.
    """

    media_type = "text/event-stream"

    def __init__(self, first: str, rest: AsyncGenerator[str], held: AsyncExitStack) -> None:
        super().__init__(
            _chained(first, rest), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it."""
        async with self._held:
            await super().__call__(scope, receive, send)


async def _chained(first: str, rest: AsyncGenerator[str]) -> AsyncGenerator[str]:
    yield first
    async for one in rest:
        yield one


def _outcome(working: asyncio.Future[Result], ends: Iterable[End]) -> Result:
    """Return what came of some work, or raise what the end says that came before."""
    if not working.done():
        raise next(end.result() for end in ends if end.done())()
    return working.result()


async def _cancelled(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
