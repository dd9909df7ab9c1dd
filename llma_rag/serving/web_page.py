"""The web page: files of the package, under a policy that lets in nothing else."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_FOLDER = Path(__file__).parent / "page"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_PAGE_CACHING = {"Cache-Control": "no-cache"}
_DATA_CACHING = {"Cache-Control": "no-store"}  # answers and documents are nobody else's


class WithHeaders:
    """ASGI middleware that adds the page's headers to responses: none is to be taken for more than it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._of_page = _encoded({**_HEADERS, **_PAGE_CACHING})
        self._of_data = _encoded({**_HEADERS, **_DATA_CACHING})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        headers = self._of_data if scope.get("path", "").startswith("/v1/") else self._of_page

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in message["headers"]}
                added = [(name, value) for name, value in headers if name not in known]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, with_headers)


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def page_routes() -> list[Route | Mount]:
    """Return the routes of the page and its files."""

    async def index(_: object) -> Response:
        return FileResponse(_FOLDER / "index.html")

    return [Route("/", index, name="page"), Mount("/page", StaticFiles(directory=_FOLDER), name="files")]
