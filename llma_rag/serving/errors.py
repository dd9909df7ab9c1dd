"""Errors as OpenAI's clients know them: a status, and a body that says what is wrong."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.responses import JSONResponse

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """What a client did wrong, or has to wait for.

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
        return error_body(self.status, str(self), self.code, self.param)

    @property
    def response(self) -> JSONResponse:
        """The response."""
        return JSONResponse(self.body, self.status, headers=dict(self.headers or {}))


def error_body(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> dict[str, dict[str, str | None]]:
    """Return the body of an error's response."""
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
