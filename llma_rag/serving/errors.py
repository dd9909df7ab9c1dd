"""Errors as OpenAI's clients know them: a status, and a body that says what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from llma_rag.errors import ContextLengthError, DocumentError, LlmaRagError, PromptError

_FAILED = "the server has failed; its log says why"
_log = logging.getLogger(__name__)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """What the client is told instead of an answer.

    Args:
        status: of the response.
        message: the rule, the value, and the remedy.
        code: a word for programs.
        param: the parameter that is wrong.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """The response's body."""
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """The response."""
        return JSONResponse(self.body, self.status, headers=dict(self.headers or {}))


def too_big(limit: int) -> ApiError:
    """Return the error for a body of more than `limit` bytes."""
    return ApiError(413, f"the request's body may have {limit} bytes at most", code="body_too_large")


def not_found(what: str, name: str) -> ApiError:
    """Return the error for a thing that is not there."""
    return ApiError(404, f"there is no {what} {name!r}", code=f"{what}_not_found")


def as_api_error(error: Exception) -> ApiError:
    """Return what a client is told of an error; what is no fault of the client's is logged, and not told."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        # where a value may have several forms, the error that lies deepest is of the form that was meant
        deepest = max(error.errors(), key=lambda one: len(one["loc"]))
        place = ".".join(str(part) for part in deepest["loc"])
        if deepest["type"] == "json_invalid":
            return ApiError(
                400, f"the body is no JSON: {deepest['ctx']['error']} at character {deepest['loc'][-1]}"
            )
        return ApiError(400, f"{place}: {deepest['msg']}", code=str(deepest["type"]), param=place)
    if isinstance(error, ContextLengthError):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, DocumentError | PromptError):
        return ApiError(400, str(error))
    _log.error("a request failed", exc_info=error)
    return ApiError(500, _FAILED)


def handle_errors(app: FastAPI, body_limit: Callable[[str], int]) -> None:
    """Make an application answer errors in OpenAI's form."""

    async def known(_: Request, error: Exception) -> Response:
        return as_api_error(error).response

    async def unexpected(_: Request, error: Exception) -> Response:
        return ApiError(500, _FAILED).response  # the server logs it itself

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 413:
            return too_big(body_limit(request.url.path)).response
        if error.status_code == 404:
            return ApiError(
                404,
                f"there is nothing at {request.url.path!r}; the API is below /v1, and /openapi.json describes it",
            ).response
        return ApiError(error.status_code, str(error.detail), headers=error.headers).response

    for kind in (ApiError, LlmaRagError, RequestValidationError):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, unexpected)
