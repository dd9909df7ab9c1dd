"""Who may ask, and how much: the API key, pages of other sites, sizes, and the bound of the queue."""

from __future__ import annotations

import hmac
import ipaddress
import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llma_rag.serving.errors import ApiError, too_big

_OPEN = ("/", "/healthz")  # the page asks for the key itself
_OPEN_BELOW = "/page/"
_LONGEST_WAIT_S = 60


class Gate:
    """ASGI middleware that turns away what has no key, comes from another site's page, or is too big.

    Args:
        app: behind the gate.
        api_key: that requests must carry; None asks for none.
        origins: sites whose pages may ask, beside the server's own.
        loopback_only: the server listens on this machine only: without a key it answers to this machine's names only,
            so that no site can make its own name lead here.
        body_limit: most bytes of a request to a path.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str | None,
        origins: Collection[str],
        loopback_only: bool,
        body_limit: Callable[[str], int],
    ) -> None:
        self._app = app
        self._api_key = None if api_key is None else api_key.encode()
        self._origins = origins
        self._loopback_only = loopback_only
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer with the error."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path in _OPEN or path.startswith(_OPEN_BELOW):
            await self._app(scope, receive, send)
            return
        try:
            self._check(path, Headers(scope=scope))
        except ApiError as error:
            await error.response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        self._check_site(headers)
        self._check_key(headers)
        limit = self._body_limit(path)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > limit:
            raise too_big(limit)

    def _check_site(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._loopback_only and self._api_key is None and not _is_this_machine(_host_name(host) or ""):
            raise ApiError(
                403, f"without an API key the server answers to localhost and 127.0.0.1 only, got {host!r}"
            )
        origin = headers.get("origin")
        if origin is not None and not self._may_ask(origin, host):
            raise ApiError(
                403, f"pages of {origin!r} may not use this server; start it with --cors-origin to let them"
            )

    def _may_ask(self, origin: str, host: str) -> bool:
        return origin.partition("://")[2] == host or origin in self._origins or "*" in self._origins

    def _check_key(self, headers: Headers) -> None:
        if self._api_key is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # compared even where the scheme is wrong, in a time that does not tell how much of the key is right
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), self._api_key)
        if scheme.lower() != "bearer" or not is_right:
            raise ApiError(
                401,
                "a valid API key is needed; send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_this_machine(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


class Admission:
    """Bounds how many requests are in work; it is used in the event loop only.

    Args:
        most: requests, those that wait for the model included.
        unfinished: how many are being prepared or wait for the model; those of clients that have gone count until they
            are out of the way.
    """

    def __init__(self, most: int, unfinished: Callable[[], int]) -> None:
        self._most = most
        self._unfinished = unfinished
        self._held = 0
        self._mean_s = 1.0  # that a request takes, of late

    @contextmanager
    def places(self, wanted: int = 1) -> Iterator[None]:
        """Hold places, one per answer.

        Raises:
            ApiError: there is no place left; the status is 429.
        """
        self._require_place()
        self._held += wanted
        entered = time.perf_counter()
        try:
            yield
        finally:
            self._held -= wanted
            self._mean_s += 0.2 * (time.perf_counter() - entered - self._mean_s)

    def _require_place(self) -> None:
        waiting = max(self._held, self._unfinished())
        if waiting >= self._most:
            retry_s = min(max(1, math.ceil(self._mean_s)), _LONGEST_WAIT_S)
            raise ApiError(
                429,
                f"the server has {waiting} requests in work, the most that it takes; try again in {retry_s} s",
                code="server_busy",
                headers={"Retry-After": str(retry_s)},
            )
